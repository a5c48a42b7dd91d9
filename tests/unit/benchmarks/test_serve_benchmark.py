"""The serving benchmark's own arithmetic: requests, rates, answers, what is deferred."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import serve
from benchmarks.load import Load, Outcome, Request
from benchmarks.serve_cascade import _list_confidences, _Stream
from benchmarks.serve_goodput import find_goodput
from benchmarks.serve_requests import draw
from benchmarks.serve_rounds import _compare, _Sample, _scores, _split, _wrapped

WORDS = ["ab abc", "a b c d", "abcd bc"]


def pieces(texts: Sequence[str]) -> list[list[int]]:
    """A tokenizer whose pieces are two letters, with [CLS] and [SEP]."""
    return [[0, *(1 for word in text.split() for _ in range(0, len(word), 2)), 2] for text in texts]


def drawn(**settings: Any) -> Any:
    given = {"num_requests": 3, "num_candidates": 40, "ragged": False, "seed": 0, **settings}
    return draw(WORDS, pieces, **given)


def test_candidates_have_24_tokens_each_and_a_request_what_is_sent():
    found = drawn()
    for rows, request, tokens in zip(found.rows, found.requests, found.tokens, strict=True):
        texts = [row["item_text"] for row in rows]
        assert {len(ids) for ids in pieces(texts)} == {24}
        assert tokens == sum(map(len, pieces(sorted({rows[0]["query"], *texts}))))
        assert request.body is not None
        body = json.loads(request.body)
        assert body["query"] == rows[0]["query"]
        assert [one["item_text"] for one in body["candidates"]] == texts


def test_ragged_candidates_have_a_median_of_24_and_at_most_256_tokens():
    found = drawn(num_candidates=2000, num_requests=1, ragged=True)
    lengths = [len(ids) for ids in pieces([row["item_text"] for row in found.rows[0]])]
    assert 22 <= np.median(lengths) <= 26
    assert min(lengths) >= 4 and 150 < max(lengths) <= 256


class Server:
    """Answers so many requests a second in time; beyond, it refuses the rest, or answers late."""

    def __init__(self, capacity: float, *, refuses: bool) -> None:
        self.capacity, self.refuses = capacity, refuses
        self.rates: list[float] = []

    def run(self, load: Load, requests: Sequence[Request]) -> list[Outcome]:
        self.rates.append(load.rate)
        count = round(load.rate * load.duration_s)
        able = round(self.capacity * load.duration_s)
        is_over = count > able
        outcomes = []
        for number in range(count):
            due_s = number / load.rate
            in_time = not is_over or (self.refuses and number < able)
            status = 200 if in_time or not self.refuses else 503
            latency_s = 0.05 if in_time else 0.001 if self.refuses else 0.5
            outcomes.append(Outcome(str(number), number, due_s, due_s, due_s + latency_s, status))
        return outcomes


# 6.25 to 150 a second, halved; then 1.5 and 2 times the best that holds.
_LATE = [30.62, 67.77, 100.82, 82.66, 91.29, 136.93, 182.57]
_REFUSED = [30.62, 67.77, 100.82, 122.98, 111.35, 151.24, 201.65]  # 1% may be refused


@pytest.mark.parametrize(
    ("refuses", "rates", "every", "answered"),
    [(False, _LATE, 91.29, 91.29), (True, _REFUSED, 100.0, 100.0)],
)
def test_goodput_is_of_the_best_rate_that_holds(refuses, rates, every, answered):
    server: Any = Server(100.0, refuses=refuses)
    load = Load("http://x", rate=1.0, duration_s=10.0)

    found = find_goodput(server, load, [Request("/")], capacity=125.0, halvings=5)

    assert server.rates == pytest.approx(rates, rel=1e-3)
    assert found.every == pytest.approx(every, rel=0.01)
    assert found.answered == pytest.approx(answered, rel=0.01)


def test_a_server_that_is_always_late_has_no_goodput():
    server: Any = Server(0.0, refuses=False)
    load = Load("http://x", rate=1.0, duration_s=1.0)
    found = find_goodput(server, load, [Request("/")], capacity=100.0, halvings=5)
    assert (found.answered, found.every) == (0.0, 0.0)


@pytest.mark.parametrize(
    "answer",
    [
        [[0.1, 0.2]],
        {"scores": [0.1, 0.2]},
        {"items": [{"index": 1, "score": 0.2}, {"index": 0, "score": 0.1}]},
    ],
)
def test_scores_are_read_from_any_servers_answer(answer):
    assert _scores(answer) == [0.1, 0.2]


def test_requests_go_below_the_applications_prefix():
    host, (asked,) = _split("http://127.0.0.1:8100/bare", "/healthz")
    assert (host, asked.path) == ("http://127.0.0.1:8100", "/bare/healthz")
    host, (asked,) = _split("http://127.0.0.1:8100", Request("/v1/rank", b"{}"))
    assert (host, asked) == ("http://127.0.0.1:8100", Request("/v1/rank", b"{}"))


def test_bentoml_gets_the_same_body_in_a_list():
    body = {"query": "q", "candidates": []}
    sent = _wrapped(Request("/v1/rank", json.dumps(body).encode())).body
    assert sent is not None and json.loads(sent) == {"bodies": [body]}


def test_a_peer_that_never_answers_in_time_is_divided_by_as_one():
    samples = {"a": [_Sample(40.0)] * 3, "b": [_Sample(0.0)] * 3}
    assert _compare("S4", samples, "a", "b", "answers/s", "peer").value == 40.0


class Lengths:
    """A policy that doubts short lists, or low rows."""

    threshold, head = 0.5, 2

    def confidences(self, scores: np.ndarray) -> np.ndarray:
        return np.array([len(scores) / 6])


def stream(tokens: list[int], lists: list[int]) -> _Stream:
    rows = pa.table({"row": list(range(len(tokens)))})
    return _Stream(rows, np.array(tokens), np.array(lists), True, None)


def test_batches_of_the_stream_part_no_list():
    found = stream([1500] * 6, [0, 0, 1, 1, 1, 2])
    assert [(one.start, one.stop) for one in found._parts()] == [(0, 2), (2, 5), (5, 6)]


def test_of_a_doubtful_list_the_head_goes_to_the_large_model():
    found = stream([1] * 6, [0, 0, 1, 1, 1, 1])
    policy: Any = Lengths()
    chosen = found._deferred(policy, np.arange(6), np.array([0.1, 0.9, 0.1, 0.2, 0.3, 0.4]))
    assert chosen.tolist() == [1, 0]  # the first list has 2 of 6, the other 4


def test_lists_are_judged_one_by_one():
    policy: Any = Lengths()
    scores, lists = np.zeros(5), np.array([0, 0, 1, 2, 2])
    assert _list_confidences(policy, scores, lists) == pytest.approx([2 / 6, 1 / 6, 2 / 6])


def test_the_table_and_json_hold_what_the_parts_measured(monkeypatch, tmp_path, capsys):
    figure = serve.Figure("S3", 0.95, "x requests/s", "bare", 0.9, 1.0, 5)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(serve, "prepare", lambda *_, **__: SimpleNamespace())
    monkeypatch.setattr(serve, "_workload", lambda *_, **__: None)
    monkeypatch.setattr(serve, "Bench", lambda *_, **__: None)
    monkeypatch.setattr(serve, "measure_servers", lambda bench, parts: [figure])
    monkeypatch.setattr(serve.os, "sched_setaffinity", lambda *_: None)
    assert serve.main(["--quick", "--only", "S3"]) == 0
    (written,) = json.loads((tmp_path / "runs/bench/serve-quick.json").read_text())
    assert written["id"] == "S3" and "| S3 | 0.950 |" in capsys.readouterr().out


def test_an_unknown_part_is_refused():
    with pytest.raises(SystemExit, match="S9"):
        serve.main(["--only", "S9"])
