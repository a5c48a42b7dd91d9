"""Sizes of work: what batches and queues are measured by."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from contextlib import suppress
from dataclasses import replace
from itertools import islice, product

import numpy as np
import pytest
from served_toy import TASKS

from rectrain.errors import ConfigError, DataError
from rectrain.package import Package
from serve.answering import LargeReply
from serve.batcher import DeadlinePassed, Overloaded
from serve.config import Settings
from serve.deployments import Large
from serve.scoring import Engine, ModelFault, NoNumber, Work, num_tokens, score_works
from serve.sections import Batching


@pytest.fixture
def engine(packages: dict[str, Package]):
    engine = Engine(Batching(), observe=lambda *_: None)
    engine.load("shop", str(packages["small"].path), "torch", 1, 0)
    yield engine
    engine.close()


def search(*texts: str, query: str = "alpha") -> Work:
    row = {"query_id": "-", "query": query, "item_id": "a"}
    rows = tuple({**row, "item_text": text} for text in texts)
    return Work("shop", TASKS[1], rows)


def test_each_different_text_counts_once_and_no_more_than_is_read_of_it(engine):
    model = engine.models["shop"]
    longest = model.predictor.rows.limits[TASKS[1]].max_length
    one = num_tokens(search("beta beta"), model, chars_a_token=1.0)
    assert num_tokens(search("beta beta", "beta beta"), model, chars_a_token=1.0) == one
    # The query's 5 characters with [CLS] and [SEP], the cut text, and one for all.
    endless = num_tokens(search("x" * 10_000), model, chars_a_token=1.0)
    assert endless == (5 + 2) + longest + 1


def test_the_size_of_texts_is_learned_from_those_that_were_read(engine):
    model, work = engine.models["shop"], search(*("alpha beta gamma delta" for _ in range(3)))

    async def score(count: int) -> None:
        for _ in range(count):
            await engine.submit(work, deadline=time.monotonic() + 60)

    asyncio.run(score(200))
    pieces = [
        len(model.predictor.rows.tokenizer.tokenize(text))
        for text in ("alpha", "alpha beta gamma delta")
    ]
    size = num_tokens(work, model, chars_a_token=engine.chars_a_token("shop"))
    assert size == pytest.approx(sum(pieces) + 2 * 2 + 1, abs=2)


def test_a_body_of_single_characters_fits_into_an_empty_queue(packages):
    texts = ["".join(one) for one in islice(product("!?.,;:", repeat=10), 400)]
    works = [search(*texts[at : at + 50], query="!") for at in range(0, len(texts), 50)]
    rows = [{"candidates": [{"item_text": row["item_text"]} for row in one.rows]} for one in works]
    num_bytes = len(json.dumps({"requests": rows}, separators=(",", ":")))
    engine = Engine(smallest_queue(num_bytes), observe=lambda *_: None)
    model = engine.load("shop", str(packages["small"].path), "torch", 1, 0)
    assert len(model.predictor.rows.tokenizer.tokenize(texts[0])) == 10

    async def score() -> None:
        deadline = time.monotonic() + 600
        for text in texts[:150]:  # how many characters a token has must be learned first
            await engine.submit(search(text, query="!"), deadline=deadline)
        await asyncio.gather(*(engine.submit(one, deadline=deadline) for one in works))

    asyncio.run(score())
    assert engine.chars_a_token("shop") < 1.1
    engine.close()


def smallest_queue(body_bytes: int) -> Batching:
    """The shortest queue that settings take beside such bodies."""
    for share in (8, 4, 2, 1):
        batching = {"max_tokens": 100, "max_queued_tokens": -(-body_bytes // share)}
        given = {"limits": {"body_bytes": body_bytes}, "batching": batching}
        with suppress(ConfigError):
            return Settings.model_validate({"models": {"shop": {"small": "s"}}, **given}).batching
    raise AssertionError("no queue is long enough")


def test_there_is_room_for_a_request_of_the_usual_size_or_none(engine, monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr(
        engine._batcher, "require_room", lambda tokens, *, deadline: asked.append(tokens)
    )

    async def score(*works: Work) -> None:
        for work in works:
            await engine.submit(work, deadline=time.monotonic() + 60)

    def usual(task: str) -> int:
        engine.require_room(task, deadline=9.0)
        return asked[-1]

    assert usual(TASKS[1]) == 1  # nothing is known: only what has no room for anything refuses
    small, giant = search("beta"), search(*(f"beta {n}" for n in range(400)))
    asyncio.run(score(*[small] * 20))
    size = num_tokens(small, engine.models["shop"], chars_a_token=engine.chars_a_token("shop"))
    before = usual(TASKS[1])
    assert before == pytest.approx(size, abs=2)
    asyncio.run(score(giant))
    assert before <= usual(TASKS[1]) <= 1.5 * before + 1
    assert usual(TASKS[0]) == 1  # each task has a size of its own


def test_a_work_that_fails_in_any_way_fails_alone(engine, monkeypatch):
    model, fine, odd = engine.models["shop"], search("alpha"), search("odd")
    predict = model.predict

    def fails(task, rows):
        if any(row["item_text"] == "odd" for row in rows):
            raise RuntimeError("nobody thought of this")
        return predict(task, rows)

    monkeypatch.setattr(type(model), "predict", lambda self, task, rows: fails(task, rows))
    first, second, third = score_works(engine.models, [fine, odd, fine])
    assert isinstance(second, RuntimeError)
    for result in (first, third):
        np.testing.assert_allclose(result, predict(TASKS[1], fine.rows))


@pytest.mark.parametrize(
    ("error", "is_expected"),
    [
        (RuntimeError("the engine is gone"), True),
        (NoNumber(what="w", got="NaN", rule="r", fix="f"), True),
        (DataError(what="w", got="g", rule="r", fix="f"), False),
        (Overloaded(1.0), False),
        (DeadlinePassed(), False),
    ],
)
def test_what_no_sound_model_fails_with_makes_it_suspect(engine, monkeypatch, error, is_expected):
    async def fails(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(engine._batcher, "submit", fails)
    with pytest.raises(type(error)):
        asyncio.run(engine.submit(search("alpha"), deadline=0.0))
    assert engine.is_suspect == is_expected


def test_work_that_waits_while_golden_requests_fail_gets_no_answer(engine):
    async def submit() -> None:
        waits = threading.Event()

        def fail() -> None:
            waits.wait()
            engine.is_sound = False

        failing = asyncio.create_task(engine.call_async(fail))
        asking = asyncio.create_task(engine.submit(search("alpha"), deadline=time.monotonic() + 60))
        await asyncio.sleep(0)
        waits.set()
        await failing
        with pytest.raises(ModelFault):
            await asking

    asyncio.run(submit())


def test_a_large_model_that_lacks_the_task_says_so(engine):
    large = object.__new__(Large)  # without Ray's metrics
    large._engine, large._model = engine, engine.models["shop"]
    work = replace(search("alpha"), task="of another model")
    assert asyncio.run(large.score(work, 60.0, large._model.version)) == LargeReply(None)
