"""Decisions on single requests, and the answers of both models together."""

from __future__ import annotations

import math

import numpy as np
import pytest
from cascade_toy import LISTS, ROWS, changed
from hypothesis import given
from hypothesis import strategies as st

from rectrain.cascade import BudgetState, decide, merge


def sigmoid(z):
    return 1 / (1 + np.exp(-np.asarray(z, dtype=float)))


PLENTY = BudgetState(threshold=0.9, credit=100)


@pytest.mark.parametrize(
    ("z", "state", "defer", "reason", "candidates"),
    [
        ([2.0, -2.0], PLENTY, False, "confident", ()),
        ([2.0, 0.5, 0.0, -0.2], PLENTY, True, "doubtful", (2, 3, 1)),
        ([2.0, 0.5, 0.0, -0.2], BudgetState(0.9, 2), True, "doubtful", (2, 3)),
        ([2.0, 0.5, 0.0, -0.2], BudgetState(0.9, 0), False, "over_budget", ()),
        ([2.0, 0.5, 0.0, -0.2], BudgetState(0.4, 9), True, "doubtful", (2,)),
        ([2.0, 0.5], BudgetState(0.4, 9), False, "over_budget", ()),  # steered below the policy's
        ([2.0], BudgetState(0.4, 9), False, "confident", ()),
        ([5.0], BudgetState(2.0, 9), True, "doubtful", (0,)),
        ([], PLENTY, False, "confident", ()),
    ],
)
def test_rows_below_the_threshold_are_deferred_the_most_doubtful_first(
    z, state, defer, reason, candidates
):
    found = decide(ROWS, sigmoid(z), budget=state)
    assert (found.defer, found.reason, found.candidates) == (defer, reason, candidates)
    assert found.num_deferred == len(candidates)
    assert len(found.confidences) == len(z)
    assert found.confidence == min(found.confidences, default=1.0)


@pytest.mark.parametrize(
    ("threshold", "credit", "is_cut"),
    [(0.9, 3, False), (0.9, 2, True), (0.9, 0, False), (0.5, 3, True), (0.95, 3, False)],
)
def test_a_decision_says_where_the_budget_left_out_doubtful_rows(threshold, credit, is_cut):
    found = decide(ROWS, sigmoid([2.0, 0.5, 0.0, -0.2]), budget=BudgetState(threshold, credit))
    assert found.is_cut == is_cut
    assert not found.withheld("deadline").is_cut


def test_a_rows_confidence_by_hand():
    found = decide(ROWS, sigmoid([0.5, -3.0]), budget=PLENTY)
    assert found.confidences == pytest.approx([math.exp(-0.5), 1.0])


def test_a_doubtful_list_sends_its_head_best_first():
    close = np.array([0.1, 0.9, 0.3, 0.8, 0.2])
    found = decide(LISTS, close, budget=BudgetState(0.5, 1))
    assert (found.defer, found.reason, found.candidates) == (True, "doubtful", (1, 3, 2))
    assert (found.num_deferred, len(found.confidences)) == (1, 1)
    whole = decide(changed(LISTS, head=0), close, budget=BudgetState(0.5, 1))
    assert whole.candidates == (1, 3, 2, 4, 0)
    assert not found.is_cut, "the head is all that is asked of a list"
    clear = decide(LISTS, 10 * np.arange(5.0), budget=BudgetState(0.5, 1))
    assert (clear.defer, clear.reason) == (False, "confident")
    for spent in (BudgetState(0.5, 0), BudgetState(0.0, 1)):
        assert decide(LISTS, close, budget=spent).reason == "over_budget"
    assert decide(LISTS, np.array([]), budget=PLENTY).confidences == ()


def test_what_is_withheld_is_small_s_answer():
    found = decide(ROWS, sigmoid([0.0]), budget=PLENTY).withheld("overload")
    assert (found.defer, found.reason, found.candidates, found.num_deferred) == (
        False, "overload", (), 0,
    )  # fmt: skip
    answer = merge(
        found.candidates, calibration=ROWS.calibration, small=sigmoid([0.0]), large=np.array([])
    )
    assert answer == pytest.approx([0.5])


def test_rows_are_answered_by_whoever_saw_them_in_calibrated_probabilities():
    small, large = sigmoid([2.0, 0.5, 0.0]), sigmoid([4.0, -4.0])
    decision = decide(ROWS, small, budget=PLENTY)
    assert decision.candidates == (2, 1)
    answer = merge(decision.candidates, calibration=ROWS.calibration, small=small, large=large)
    assert answer == pytest.approx(sigmoid([2.0, -2.0, 2.0]))  # large's temperature is 2


def test_large_orders_the_head_and_the_others_stay_behind():
    small = np.array([0.1, 0.9, 0.3, 0.8, 0.2])
    decision = decide(LISTS, small, budget=BudgetState(2.0, 1))
    answer = merge(
        decision.candidates,
        calibration=LISTS.calibration,
        small=small,
        large=np.array([-7.0, 5.0, -6.0]),
    )
    assert np.argsort(-answer).tolist() == [3, 2, 1, 4, 0]
    kept = merge(
        decision.withheld("deadline").candidates,
        calibration=LISTS.calibration,
        small=small,
        large=np.array([]),
    )
    assert kept.tolist() == small.tolist()


@given(
    scores=st.lists(st.floats(-5, 5), min_size=1, max_size=12, unique=True),
    seed=st.integers(0, 99),
)
def test_deferring_all_equals_large_and_nothing_equals_small(scores, seed):
    small = np.array(scores)
    large = np.random.default_rng(seed).permutation(len(small)).astype(float)
    whole = changed(LISTS, head=0)
    everything = decide(whole, small, budget=BudgetState(2.0, 1))
    answer = merge(
        everything.candidates,
        calibration=whole.calibration,
        small=small,
        large=large[list(everything.candidates)],
    )
    assert np.argsort(-answer).tolist() == np.argsort(-large).tolist()
    rows = decide(ROWS, sigmoid(small), budget=BudgetState(2.0, 99))
    got = merge(
        rows.candidates,
        calibration=ROWS.calibration,
        small=sigmoid(small),
        large=sigmoid(large)[list(rows.candidates)],
    )
    assert got == pytest.approx(sigmoid(large / 2))
    nothing = decide(whole, small, budget=BudgetState(0.0, 1))
    assert (
        merge(
            nothing.candidates, calibration=whole.calibration, small=small, large=np.array([])
        ).tolist()
        == small.tolist()
    )
