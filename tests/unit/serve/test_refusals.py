"""What the application refuses, and what it says then, over all of it in one process."""

from __future__ import annotations

import json
import re
import time

import pytest
import torch
from served_toy import RISKS, search

from rectrain.errors import NoIndex, PackageError
from rectrain.inference.golden import Deviation
from rectrain.inference.packaged import load
from serve.batcher import DeadlinePassed, Overloaded
from serve.proxy import WITHDRAWN
from serve.scoring import NoNumber


def deep(levels: int) -> str:
    return '{"query": ' + "[" * levels + "]" * levels + "}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "body"),
        ("{", "no JSON"),
        ("[]", "body"),
        ('{"query": NaN, "candidates": []}', "no JSON"),
        (deep(300), "no JSON"),
        (deep(5000), "no JSON"),
        ('{"query": "\\ud800", "candidates": []}', "no JSON"),
        (json.dumps(search(0)), "candidates"),
        (json.dumps(search(21)), "candidates"),
        (json.dumps({**search(), "query": "x" * 201}), "query"),
        (json.dumps({**search(), "query": "  "}), "query"),
        (json.dumps({**search(), "label": 1}), "label"),
        (json.dumps({**search(), "options": {"route": "both"}}), "route"),
        (json.dumps({**search(), "options": {"model": "other"}}), "options.model"),
        (json.dumps({**search(), "options": {"timings": 1}}), "options.timings"),
    ],
)
def test_a_wrong_request_is_refused_with_its_reason(graph, text, said):
    headers = {"content-type": "application/json"}
    response = graph().client.post("/v1/rank", content=text, headers=headers)
    assert response.status_code == 422, response.text
    assert said in response.json()["message"]
    assert "Traceback" not in response.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/rank", {**search(), "candidates": [{}] * 20}),
        ("/v1/risk", {"candidates": [{"item_text": "alpha", "image": [None] * 2}] * 20}),
        ("/v1/risk/batch", {"requests": [{}] * 20}),
        ("/v1/recommend", {"history": [1] * 20, "candidates": [[]] * 20}),
        *(
            ("/v2/models/shop.rank/infer", {"inputs": inputs})
            for inputs in (
                [{"name": "query", "shape": [9], "datatype": "BYTES", "data": [{}] * 1000}],
                [{"name": "query", "shape": [9], "datatype": "BYTES", "data": [[{}] * 1000]}],
                [{"name": "query", "shape": ["9"] * 1000, "datatype": "BYTES", "data": []}],
                [{}] * 1000,
            )
        ),
    ],
)
def test_a_body_of_wrong_elements_is_refused_at_the_first_of_them(graph, path, body):
    """Else the event loop of everybody would list hundreds of thousands of errors."""
    response = graph().post(path, body)
    assert response.status_code == 422
    more = re.search(r"and (\d+) more", response.text)
    assert int(more[1]) < 10 if more else True


@pytest.mark.parametrize(
    "price", ["1e999", "-1e999", "1e39", "-1", '"dear"', '"3"', "1" + "0" * 400, "1" + "0" * 5000]
)
def test_numbers_are_finite_and_keep_their_rules(graph, price):
    text = f'{{"candidates": [{{"item_text": "alpha", "price": {price}}}]}}'
    headers = {"content-type": "application/json"}
    assert graph().client.post("/v1/risk", content=text, headers=headers).status_code == 422


@pytest.mark.parametrize("low", [-1e6, 0.0, 1e6])
@pytest.mark.parametrize("high", [1e6, 5e-324])
def test_the_largest_vectors_that_are_taken_have_scores(graph, low, high):
    odd = {"candidates": [{"item_text": "alpha", "image": [low, high], "price": 3e38}]}
    assert graph().post("/v1/risk", odd).status_code == 200


@pytest.mark.parametrize("image", [[2e6, 0.0], [1.0], [True, 0.0], [None, 1.0], []])
def test_a_vector_is_of_its_size_and_of_numbers(graph, image):
    served = graph()
    odd = {"candidates": [{"item_text": "alpha", "image": image}]}
    assert served.post("/v1/risk", odd).status_code == 422
    assert served.post("/v1/risk", RISKS).status_code == 200


@pytest.mark.parametrize("name", ["", " ", "\x1f", "\x85", "\u3000"])
def test_a_text_of_white_space_is_none(graph, name):
    served = graph()
    for body in (
        {"candidates": [{"item_text": name}]},
        {"candidates": [{"item_text": "alpha", "country": name}]},
        {"candidates": [{"item_text": "alpha"}], "user_id": name},
    ):
        assert served.post("/v1/risk", body).status_code == 422


def test_whole_numbers_and_bools_are_names_and_numbers_where_they_are_in_tables(graph):
    row = {"item_text": "alpha", "country": 5.0, "price": True}
    body = {"candidates": [row], "user_id": False}
    assert graph().post("/v1/risk", body).status_code == 200


def test_no_number_of_a_sound_model_is_the_clients_mistake(graph, monkeypatch):
    served = graph()

    async def odd(*args: object, **kwargs: object) -> None:
        served.engine.is_suspect = True
        raise NoNumber(what="scores", got="NaN", rule="r", fix="f")

    monkeypatch.setattr(served.engine, "submit", odd)
    assert served.post("/v1/risk", RISKS).status_code == 422
    assert served.client.get("/readyz").status_code == 200


def test_no_number_of_a_broken_model_is_ours_and_withdraws_it(graph, packages, monkeypatch):
    served = graph()
    # One of its own: the vectors that it gives must not stay in the others' cache.
    broken = load(packages["small"].path, backend="torch", cached_texts=0)
    with torch.no_grad():
        broken.predictor.model.encoder.embeddings.word_embeddings.weight.fill_(float("nan"))
    monkeypatch.setattr(served.engine, "is_sound", True)
    monkeypatch.setitem(served.engine.models, "shop", broken)
    response = served.post("/v1/risk", RISKS)
    assert (response.status_code, response.json()["code"]) == (503, "withdrawn")
    assert "retry-after" in response.headers
    assert served.client.get("/readyz").status_code == 503


@pytest.mark.parametrize("is_broken", [False, True])
def test_an_engine_that_fails_is_withdrawn_if_it_fails_golden_requests_too(
    graph, monkeypatch, is_broken
):
    served, asked = graph(), []
    predictor = type(served.engine.models["shop"].predictor)
    score = predictor.score

    def fails(self, *args):
        asked.append(args)
        if is_broken or len(asked) == 1:
            raise RuntimeError("the engine is gone")
        return score(self, *args)

    for name, value in (("is_sound", True), ("is_suspect", False)):
        monkeypatch.setattr(served.engine, name, value)
    monkeypatch.setattr(predictor, "score", fails)
    first, second = (served.post("/v1/risk", RISKS) for _ in range(2))
    if is_broken:
        assert (first.status_code, first.json()["code"]) == (503, "withdrawn")
        assert (second.status_code, len(asked)) == (503, 2), "one golden request decides"
    else:
        assert (first.status_code, second.status_code) == (500, 200)
        assert not served.engine.is_suspect


@pytest.mark.parametrize("value", ["0", "-5", "nan", "soon", "1e9"])
def test_a_deadline_is_a_sensible_number(graph, value):
    assert graph().post("/v1/rank", search(), **{"x-deadline-ms": value}).status_code == 422


@pytest.mark.parametrize(
    ("error", "code", "retry"),
    [(Overloaded(2.5), "overload", "3"), (DeadlinePassed(), "deadline", "1")],
)
def test_what_can_not_be_done_in_time_says_when_to_come_back(
    graph, monkeypatch, error, code, retry
):
    served = graph()

    async def refuse(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(served.engine, "submit", refuse)
    response = served.post("/v1/rank", search())
    assert (response.status_code, response.json()["code"]) == (503, code)
    assert response.headers["retry-after"] == retry
    assert served.recorded.requests == [("/v1/rank", 503, "busy")]


def test_what_there_is_no_room_for_is_refused_before_its_body_is_read(graph, monkeypatch):
    served, asked = graph(cache=10), []

    def refuse(task: str, *, deadline: float) -> None:
        asked.append((task, round(deadline - time.monotonic())))
        raise Overloaded(2.5)

    with monkeypatch.context() as patched:
        patched.setattr(served.engine, "require_room", refuse)
        # Were the body read, it would be a 422.
        for path in ("rank", "rank/batch"):
            headers = {"x-deadline-ms": "5000", "x-request-id": "r-1"}
            response = served.client.post(f"/v1/{path}", content=b"no JSON", headers=headers)
            assert (response.status_code, response.json()["code"]) == (503, "overload")
            assert response.headers["retry-after"] == "3"
            assert response.json()["request_id"] == "r-1"
        wrong = served.client.post("/v1/rank", content=b"", headers={"x-deadline-ms": "soon"})
        assert wrong.status_code == 422
    assert asked == [("search_ranking", 5)] * 2
    refused = [
        ("/v1/rank", 503, "busy"),
        ("/v1/rank/batch", 503, "busy"),
        ("/v1/rank", 422, "refused"),
    ]
    assert served.recorded.requests == refused


def test_where_answers_are_kept_a_busy_process_still_reads(graph, monkeypatch):
    served = graph(cache=10)
    for _ in range(20):  # the first is computed
        assert served.post("/v1/rank", search()).status_code == 200

    def refuse(*args: object, **kwargs: object) -> None:
        raise Overloaded(1)

    monkeypatch.setattr(served.engine, "require_room", refuse)
    assert served.post("/v1/rank", search()).json()["cached"]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (NoIndex, (422, "no_index")),
        (Deviation, (503, "withdrawn")),
        (PackageError, (500, "internal")),
    ],
)
def test_of_a_package_only_the_lack_of_a_catalogue_is_the_clients(
    graph, monkeypatch, kind, expected
):
    served = graph()

    async def broken(*args: object, **kwargs: object) -> None:
        raise kind(what="package p", got="g", rule="r", fix="f")

    monkeypatch.setattr(served.engine, "submit", broken)
    response = served.post("/v1/rank", search())
    assert (response.status_code, response.json()["code"]) == expected


def test_a_fault_of_ours_shows_nothing_of_its_inside(graph, monkeypatch):
    served = graph()

    async def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(served.engine, "submit", broken)
    response = served.post("/v1/rank", search(), **{"x-request-id": "r-1"})
    assert response.status_code == 500
    assert response.json()["request_id"] == "r-1"
    assert "secret" not in response.text
    assert served.recorded.requests == [("/v1/rank", 500, "failed")]


def test_a_process_that_is_withdrawn_answers_no_more(graph, monkeypatch):
    served = graph(cache=10)
    assert served.post("/v1/rank", search()).status_code == 200  # and is kept
    monkeypatch.setattr(served.engine, "is_sound", False)
    for response in (served.client.get("/readyz"), served.post("/v1/rank", search())):
        assert (response.status_code, response.json()["code"]) == (503, "withdrawn")
        assert "retry-after" in response.headers
        assert WITHDRAWN in response.headers  # the proxy asks another replica
        assert response.elapsed.total_seconds() > 0.09  # the shortest queue would get every request
    assert served.client.get("/healthz").status_code == 200
