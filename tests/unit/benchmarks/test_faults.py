"""The oracle of the fault benchmark: what it calls wrong, lost, refused, and logged once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from served_toy import write_pair

import rectrain
from benchmarks.doubtful import doubtful_policy
from benchmarks.faults import within
from benchmarks.faults_graph import Watch
from benchmarks.faults_oracle import Oracle, judge, logged_outcomes
from benchmarks.faults_packages import Packages, broken, prepare
from benchmarks.faults_rounds import figure
from benchmarks.load import Outcome
from rectrain.cascade import read_policy
from rectrain.inference.golden import Deviation, read_golden
from rectrain.package import open_package
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
    policy = doubtful_policy("s", "l", tasks=("risk", "search_ranking"), budget=0.2, head=5)
    return Oracle(BODIES, [Model("s", 0.1), Model("l", 0.3)], [policy])  # type: ignore[list-item]


Scored = tuple[int, float, str]  # a candidate's place, its score, and by which model


def rows(*items: Scored, temperatures: tuple[float, float] = (2.0, 4.0), **told: Any) -> bytes:
    """An answer of risk: the temperatures are small's and large's."""
    temperature = dict(zip(("small", "large"), temperatures, strict=True))
    chances = [1 / (1 + ((1 - p) / p) ** (1 / temperature[by])) for _, p, by in items]
    return answer(items, chances, told)


def listed(*items: Scored, **told: Any) -> bytes:
    """An answer of rank."""
    return answer(items, [None] * len(items), told)


def answer(
    items: Sequence[Scored], probabilities: Sequence[float | None], told: dict[str, Any]
) -> bytes:
    given = [
        {"index": place, "score": score, "by": by, "probability": probability}
        for (place, score, by), probability in zip(items, probabilities, strict=True)
    ]
    deferred = any(by == "large" for _, _, by in items)
    facts = {
        "items": given,
        "versions": {"small": "s", "large": "l" if deferred else None},
        "deferred": deferred,
        "reason": "doubtful" if deferred else "confident",
    }
    return json.dumps({**facts, **told}).encode()


A, BB = (0, 0.1, "small"), (1, 0.2, "small")
A_LARGE, BB_LARGE = (0, 0.3, "large"), (1, 0.6, "large")


@pytest.mark.parametrize(
    ("number", "given", "problem"),
    [
        (0, rows(A, BB), ""),
        (0, rows(A, BB_LARGE), ""),
        (0, rows(A, (1, 0.21, "small")), "offline 0.2"),
        (0, rows((0, 0.1, "large"), BB_LARGE), "offline 0.3"),
        (0, rows(BB, A), "not in order"),
        (0, rows(A), "1 items"),
        (0, rows(A, A), "1 of them different"),
        (0, rows(A, BB, versions={"small": "x", "large": None}), "not deployed"),
        (0, rows((0, float("nan"), "small"), BB), "offline"),
        (0, b"<html>", "no answer"),
        (0, b"[]", "no answer"),
        (0, rows(A, BB, versions={"small": None, "large": None}), "no answer"),
        (1, listed(BB, A), ""),
        (1, listed(A_LARGE, BB), ""),
        (3, listed(A, BB), "not in order"),
    ],
)
def test_an_answer_is_right_only_with_the_scores_of_the_versions_that_it_names(
    oracle, number, given, problem
):
    check(oracle, number, given, problem)


def check(oracle: Oracle, number: int, given: bytes, problem: str) -> None:
    found = oracle.problem(number, given)
    assert problem in found
    assert bool(problem) == bool(found)


@pytest.mark.parametrize(
    ("number", "given"),
    [
        (0, rows(A, BB_LARGE, temperatures=(4.0, 2.0))),
        (0, rows(A, BB_LARGE, temperatures=(2.0, 2.0))),
        (0, rows(A, BB, temperatures=(1.0, 1.0))),
        (0, listed(A, BB)),
        (1, rows(BB, A)),
    ],
)
def test_a_probability_is_what_the_policy_makes_of_the_named_models_score(oracle, number, given):
    check(oracle, number, given, "probability")


@pytest.mark.parametrize(
    ("given", "part"),
    [
        (rows(A, BB_LARGE, versions={"small": "s", "large": None}), "some"),
        (rows(A, BB_LARGE, deferred=False), "some"),
        (rows(A, BB_LARGE, reason="confident"), "some"),
        (rows(A, BB, versions={"small": "s", "large": "l"}), "none"),
        (rows(A, BB, deferred=True), "none"),
        (rows(A, BB, reason="doubtful"), "none"),
    ],
)
def test_an_answer_says_of_itself_what_is_so(oracle, given, part):
    check(oracle, 0, given, f"the large model gave {part} of the scores")


def outcome(number: int, status: int, **given: Any) -> Outcome:
    return Outcome(
        id=f"t-{number}", number=number, due_s=0, sent_s=0, done_s=1, status=status, **given
    )


def test_every_request_has_one_end(oracle):
    good = rows(A, BB)
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
    alone = outcome(0, 200, answer=rows(A, BB))
    ordered = outcome(1, 200, answer=listed(A_LARGE, BB))
    asked = outcome(2, 200, answer=rows(A_LARGE, BB))
    verdict = judge(oracle, [alone, ordered])
    assert (dict(verdict.deferred), verdict.undeferred) == ({"risk": 0, "rank": 1}, ["risk"])
    assert judge(oracle, [alone, ordered, asked]).undeferred == []


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


def test_a_probability_of_the_graph_tells_which_model_gave_it(packages):
    for path in (packages.first, packages.second):
        policy = read_policy(open_package(path), large=open_package(packages.large))
        assert policy is not None
        for task in ("ad_ctr", "risk"):
            both = policy.tasks[task].calibration
            chances = [one.probability(np.array([0.3])).item() for one in (both.small, both.large)]
            assert len({0.3, *np.round(chances, 3)}) == 3


def test_replicas_are_counted_by_the_time_that_they_were_there():
    watch = Watch(graph=None)  # type: ignore[arg-type]
    watch.seen = [(float(at), {"Ingress": n}) for at, n in ((0, 2), (1, 2), (2, 1), (4, 2), (9, 2))]
    assert watch.seconds("Ingress", begin=0.5, end=5.0) == {2: 2.0, 1: 2.0}


def test_a_figure_out_of_its_bounds_is_named(capsys):
    figures = [figure("a", 1.0, "", ""), figure("b", 5.0, "", ""), figure("c", 9.0, "", "")]
    assert within(figures, {"a": (0, 1), "b": (0, 1)}) == 1
    assert "b 5" in capsys.readouterr().err
    assert within(figures, {"a": (0, 1)}) == 0
