"""The budget: what no traffic can break, and how it follows traffic that changes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from cascade_toy import LISTS, changed
from hypothesis import given
from hypothesis import strategies as st

from rectrain.cascade import Budget, TaskPolicy


def drive(policy: TaskPolicy, confidences, *, window: int = 512) -> list[bool]:
    """Which of a stream of lists are deferred."""
    budget, deferred = Budget(policy, window=window), []
    for value in confidences:
        state = budget.state
        defer = value < state.threshold and state.credit >= 1
        budget.feed([value], deferred=int(defer))
        deferred.append(defer)
    return deferred


@given(
    confidences=st.lists(st.floats(0, 1), max_size=120),
    budget=st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]),
    bound=st.sampled_from(["loss", "budget"]),
)
def test_no_traffic_defers_more_than_the_burst_and_its_share(confidences, budget, bound):
    policy = changed(LISTS, budget=budget, bound=bound)
    total = 0
    for count, one in enumerate(drive(policy, confidences, window=20), start=1):
        total += one
        assert total <= (max(1, 20 * budget) if budget else 0) + budget * count + 1e-6


@given(confidences=st.lists(st.floats(0, 1), min_size=1, max_size=80))
def test_under_a_bound_nothing_above_the_policys_threshold_is_deferred(confidences):
    deferred = drive(changed(LISTS, budget=0.3), confidences, window=20)
    assert not any(one and value >= 0.5 for one, value in zip(deferred, confidences, strict=True))


@pytest.mark.parametrize("bound", ["loss", "budget"])
def test_harder_traffic_is_steered_back_to_the_budget(bound):
    """Of calm traffic a tenth lies below the threshold; then nearly all does."""
    rng = np.random.default_rng(0)
    policy = changed(LISTS, threshold=0.1, budget=0.1, rate=0.1, bound=bound)
    stream = np.concatenate([rng.random(2000), 0.1 * rng.random(4000) ** 2])
    deferred = np.array(drive(policy, stream))
    assert deferred[500:2000].mean() == pytest.approx(0.1, abs=0.02)
    assert deferred[2000:].mean() <= 0.1 + 52 / 4000
    assert deferred[3000:].mean() == pytest.approx(0.1, abs=0.02)
    late = stream[3000:]  # the most doubtful are chosen, not whoever comes first
    assert np.median(late[deferred[3000:]]) < np.quantile(late, 0.12)


def test_easier_traffic_uses_a_budget_and_leaves_a_bound_alone():
    rng = np.random.default_rng(0)
    stream = 0.5 + 0.5 * rng.random(4000)
    policy = changed(LISTS, threshold=0.1, budget=0.1)
    assert not any(drive(policy, stream))
    used = np.array(drive(changed(policy, bound="budget"), stream))
    assert used[1000:].mean() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("bound", ["loss", "budget"])
@pytest.mark.parametrize("ties", [0.3, 1.0])
def test_equal_confidences_use_the_budget_and_no_more(bound, ties):
    """The lowest confidences are equal, and more of them than the budget's share."""
    rng = np.random.default_rng(0)
    stream = np.where(rng.random(4000) < ties, 0.2, 0.6 + 0.3 * rng.random(4000))
    policy = changed(LISTS, threshold=0.5, budget=0.1, bound=bound)
    deferred = np.array(drive(policy, stream))
    assert deferred.mean() <= 0.1 + 52 / 4000
    assert deferred[1000:].mean() == pytest.approx(0.1, abs=0.01)
    assert (stream[1000:][deferred[1000:]] == 0.2).all()


def test_what_is_sure_is_not_deferred_to_use_a_budget():
    budget = Budget(changed(LISTS, budget=0.5, bound="budget"), window=10)
    for value in [0.3] + [1.0] * 9:
        budget.feed([value], deferred=0)
    assert 0.3 < budget.state.threshold <= 1.0


def test_what_large_was_not_asked_for_costs_nothing():
    budget = Budget(changed(LISTS, budget=0.1), window=10)
    for _ in range(5):
        budget.feed([0.1], deferred=0)
    assert budget.state.credit == 1
    budget.feed([0.1], deferred=1)
    assert budget.state.credit == 0


def test_the_threshold_is_the_policys_until_enough_is_known():
    budget = Budget(changed(LISTS, budget=0.5, threshold=0.4), window=100)
    for _ in range(19):
        assert budget.feed([0.01], deferred=0) == 0.4
    assert budget.feed([0.01], deferred=0) == math.nextafter(0.01, 1)


def test_only_the_window_is_remembered():
    budget = Budget(changed(LISTS, budget=0.5, bound="budget"), window=10)
    for value in [0.9] * 30 + [0.2] * 10:
        budget.feed([value], deferred=0)
    assert budget.state.threshold == math.nextafter(0.2, 1)


def test_drift_and_rate_by_hand():
    budget = Budget(changed(LISTS, threshold=0.25))
    assert math.isnan(budget.drift) and math.isnan(budget.rate)
    budget.feed([0.05 + place / 10 for place in range(10)], deferred=0)
    assert budget.known == 10
    assert budget.drift == pytest.approx(0.0) and budget.rate == pytest.approx(0.2)
    harder = Budget(changed(LISTS, threshold=0.25))
    harder.feed([0.01] * 50, deferred=0)
    expected = 0.9 * math.log(10) + 9 * (1e-4 - 0.1) * math.log(1e-3)
    assert harder.drift == pytest.approx(expected) and harder.rate == 1.0
