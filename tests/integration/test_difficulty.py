"""The simulated marketplace is neither easy nor hopeless: the facts of docs/simulation.md."""

from __future__ import annotations

import pytest

from benchmarks.difficulty import Difficulty, measure
from rectrain.data.simulate import SIZES


@pytest.fixture(scope="module")
def figures() -> dict[str, Difficulty]:
    return measure(SIZES["demo"], seed=0)


TASKS = ("recommendation", "search_ranking", "ad_ctr", "risk")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("learner", ["text", "features"])
def test_text_or_features_alone_win_at_most_80_percent(
    task: str, learner: str, figures: dict[str, Difficulty]
) -> None:
    assert 0.05 < figures[task].lift(learner) <= 0.80


@pytest.mark.parametrize("task", TASKS)
def test_both_together_can_be_learnt_far_beyond_the_baselines(
    task: str, figures: dict[str, Difficulty]
) -> None:
    found = figures[task]
    baselines = set(found.values) - {"text", "features", "joint"}
    assert found.lift("joint") > max(found.lift(name) for name in baselines) + 0.15
    assert found.lift("joint") <= 1.0


def test_the_best_possible_is_far_from_random(figures: dict[str, Difficulty]) -> None:
    assert figures["recommendation"].best > 0.12
    assert all(figures[task].best - figures[task].random > 0.25 for task in TASKS[1:])
