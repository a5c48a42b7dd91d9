"""The oracle of the fault benchmark: what it calls wrong, lost, refused, and logged once."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from served_toy import write_pair

import rectrain
from benchmarks.faults import within
from benchmarks.faults_graph import Watch
from benchmarks.faults_oracle import Oracle, judge, logged_outcomes
from benchmarks.faults_packages import Packages, broken, prepare
from benchmarks.faults_rounds import figure
from benchmarks.load import Outcome
from rectrain.inference.golden import Deviation, read_golden
from serve.pairs import open_pair
from serve.sections import ModelPair

BODIES = [
    ("risk", {"candidates": [{"item_text": "a"}, {"item_text": "bb"}]}),
    ("rank", {"query": "q", "candidates": [{"item_text": "a"}, {"item_text": "bb"}]}),
]


class Model:
    """Scores the length of a text times a factor."""

    def __init__(self, version: str, factor: float) -> None:
        self.version = version
        self.factor = factor

    def predict(self, task: str, rows: list[dict[str, Any]]) -> Any:
        return np.array([self.factor * len(row["item_text"]) for row in rows])


@pytest.fixture
def oracle() -> Oracle:
    return Oracle(BODIES, [Model("s", 1.0), Model("l", 10.0)])  # type: ignore[list-item]


def answer(*items: tuple[int, float, str], small: str = "s", large: str | None = "l") -> bytes:
    listed = [{"index": place, "score": score, "by": by} for place, score, by in items]
    facts = {"versions": {"small": small, "large": large}, "items": listed, "reason": "doubtful"}
    return json.dumps(facts).encode()


@pytest.mark.parametrize(
    ("number", "given", "problem"),
    [
        (0, answer((0, 1.0, "small"), (1, 20.0, "large")), ""),
        (0, answer((0, 1.0, "small"), (1, 2.1, "small")), "offline 2.0"),
        (0, answer((0, 1.0, "large"), (1, 20.0, "large")), "offline 10.0"),
        (0, answer((1, 2.0, "small"), (0, 1.0, "small")), "not in order"),
        (0, answer((0, 1.0, "small")), "1 items"),
        (0, answer((0, 1.0, "small"), (0, 1.0, "small")), "1 of them different"),
        (0, answer((0, 1.0, "small"), (1, 2.0, "small"), small="x"), "not deployed"),
        (0, answer((0, float("nan"), "small"), (1, 2.0, "small")), "offline"),
        (0, b"<html>", "no answer"),
        (1, answer((1, 2.0, "small"), (0, 1.0, "small")), ""),
        (1, answer((0, 10.0, "large"), (1, 2.0, "small")), ""),
        (3, answer((0, 1.0, "small"), (1, 2.0, "small")), "not in order"),
    ],
)
def test_an_answer_is_right_only_with_the_scores_of_the_versions_that_it_names(
    oracle, number, given, problem
):
    found = oracle.problem(number, given)
    assert problem in found
    assert bool(problem) == bool(found)


def outcome(number: int, status: int, **given: Any) -> Outcome:
    return Outcome(
        id=f"t-{number}", number=number, due_s=0, sent_s=0, done_s=1, status=status, **given
    )


def test_every_request_has_one_end(oracle):
    good = answer((0, 1.0, "small"), (1, 2.0, "small"))
    outcomes = [
        outcome(0, 200, answer=good),
        outcome(2, 200, answer=b"{}"),
        outcome(4, 503, retry_after="1"),
        outcome(6, 503),
        outcome(8, 500),
        outcome(10, 0, error="gone"),
    ]
    verdict = judge(oracle, outcomes, {"t-0": [200], "t-2": [200], "t-4": [503, 503], "t-6": []})
    assert (verdict.num_ok, verdict.refused) == (1, 1)
    assert set(verdict.wrong) == {"t-2"}
    assert set(verdict.lost) == {"t-6", "t-8", "t-10"}
    assert set(verdict.unlogged) == {"t-4", "t-6", "t-8"}


def test_an_endpoint_that_the_large_model_had_no_part_in_is_named(oracle):
    rows = outcome(0, 200, answer=answer((0, 1.0, "small"), (1, 2.0, "small")))
    listed = outcome(1, 200, answer=answer((0, 10.0, "large"), (1, 2.0, "small")))
    asked = outcome(2, 200, answer=answer((0, 10.0, "large"), (1, 2.0, "small")))
    verdict = judge(oracle, [rows, listed])
    assert (dict(verdict.deferred), verdict.undeferred) == ({"risk": 0, "rank": 1}, ["risk"])
    assert judge(oracle, [rows, listed, asked]).undeferred == []


def test_the_log_says_what_became_of_a_request(tmp_path):
    lines = {
        "replica_rectrain_Ingress_a.log": [
            {"request_id": "t-1", "outcome": "ok", "status": 200},
            {"request_id": "t-2", "outcome": "left", "status": 0},
            {"request_id": "t-3", "outcome": "ok", "status": 200},
            {"request_id": "t-3", "message": "no outcome"},
            {"request_id": "t-4", "outcome": "ok", "status": 200},
            {"request_id": "other-1", "message": "about t-1", "outcome": "ok", "status": 200},
        ],
        "replica_rectrain_Ingress_b.log": [{"request_id": "t-3", "outcome": "ok", "status": 200}],
        "proxy_1.log": [
            {"request_id": "t-2", "outcome": "busy", "status": 503},
            {"request_id": "t-3", "event": "resent"},
            {"request_id": "t-4", "outcome": "busy", "status": 503},
        ],
    }
    for name, facts in lines.items():
        text = "".join(f"{json.dumps(one)}\n" for one in facts)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert logged_outcomes(tmp_path, prefix="t-") == {
        "t-1": [200],
        "t-2": [503],
        "t-3": [200],
        "t-4": [503],
    }


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    folder = tmp_path_factory.mktemp("faults")
    small, large = (str(one.path) for one in write_pair(folder).values())
    return prepare(folder / "prepared", small=small, large=large, deferred=0.2)


def test_the_first_broken_version_is_one_that_only_its_replicas_can_refuse(packages, tmp_path):
    """The quick form tries no other, and what `build` refuses never comes near the graph."""
    _, path = next(broken(packages.first, tmp_path))
    pair = ModelPair(small=str(path), large=str(packages.large))
    golden = read_golden(open_pair(pair).small)
    assert golden is not None
    with pytest.raises(Deviation):
        golden.check(rectrain.load(path), tolerance=1e-4)


def test_replicas_are_counted_by_the_time_that_they_were_there():
    watch = Watch(graph=None)  # type: ignore[arg-type]
    watch.seen = [(float(at), {"Ingress": n}) for at, n in ((0, 2), (1, 2), (2, 1), (4, 2), (9, 2))]
    assert watch.seconds("Ingress", begin=0.5, end=5.0) == {2: 2.0, 1: 2.0}


def test_a_figure_out_of_its_bounds_is_named(capsys):
    figures = [figure("a", 1.0, "", ""), figure("b", 5.0, "", ""), figure("c", 9.0, "", "")]
    assert within(figures, {"a": (0, 1), "b": (0, 1)}) == 1
    assert "b 5" in capsys.readouterr().err
    assert within(figures, {"a": (0, 1)}) == 0
