"""Sizes of work: what batches and queues are measured by."""

from __future__ import annotations

import asyncio
import time

import pytest
from served_toy import TASKS

from rectrain.package import Package
from serve.config import Batching
from serve.scoring import Engine, Work, num_tokens


@pytest.fixture
def engine(packages: dict[str, Package]):
    engine = Engine(Batching(), observe=lambda *_: None)
    engine.load("shop", str(packages["small"].path), "torch", 1, 0)
    yield engine
    engine.close()


def search(*texts: str) -> Work:
    row = {"query_id": "-", "query": "alpha", "item_id": "a"}
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
