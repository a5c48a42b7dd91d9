"""Doubt: against sampled and brute-force gains, and how it must move."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectrain.cascade.doubt import (
    ListDoubt,
    RowDoubt,
    auc_gains,
    fit_list_doubt,
    fit_row_doubt,
    list_temperature,
)

DOUBT = ListDoubt(temperature=1.0, noise=0.5, places=10, depth=100, scale=0.1)
SCORES = st.lists(st.floats(-20, 20), min_size=1, max_size=30)


def test_doubt_of_two_is_the_expected_gain_of_exchanging_them():
    doubt = ListDoubt(temperature=2.0, noise=0.7, places=10, depth=100, scale=1.0)
    u = np.array([0.8, 0.1])
    noise = np.random.default_rng(0).normal(0, 0.7, (2_000_000, 2))
    weight = np.exp(u + noise) / np.exp(0.7**2 / 2)  # its mean is e^u
    exchange = np.maximum(weight[:, 1] - weight[:, 0], 0).mean()
    second = 1 / math.log2(3)
    expected = (1 - second) * exchange / (np.exp(u) @ [1, second])
    assert doubt.doubt(2.0 * u) == pytest.approx(expected, rel=0.01)


@given(scores=SCORES, shift=st.floats(-50, 50), factor=st.floats(0.1, 10))
def test_neither_order_nor_shift_nor_unit_matters(scores, shift, factor):
    scores = np.array(scores)
    own = DOUBT.doubt(scores)
    other = ListDoubt(factor, 0.5, 10, 100, 0.1)
    assert own >= 0
    assert DOUBT.doubt(scores[::-1] + shift) == pytest.approx(own, abs=1e-9)
    assert other.doubt(factor * scores) == pytest.approx(own, abs=1e-9)
    assert 0 <= DOUBT.confidence(scores) <= 1


@given(gap=st.floats(0, 5), wider=st.floats(0.01, 5))
def test_a_wider_gap_is_less_doubtful(gap, wider):
    assert DOUBT.doubt(np.array([gap + wider, 0.0])) < DOUBT.doubt(np.array([gap, 0.0]))


def test_the_same_gap_counts_less_further_down():
    top, bottom = np.array([9.0, 8.9, 5.0, 1.0]), np.array([9.0, 5.0, 1.1, 1.0])
    assert DOUBT.doubt(top) > 10 * DOUBT.doubt(bottom)


def test_one_candidate_leaves_no_doubt_and_depth_bounds_the_work():
    assert DOUBT.confidence(np.array([3.0])) == 1.0
    shallow = ListDoubt(1.0, 0.5, 10, 3, 0.1)
    assert shallow.doubt(np.array([3.0, 2.0, 1.0, 0.9])) == shallow.doubt(np.array([1.0, 2.0, 3.0]))


def test_the_temperature_is_the_one_that_made_the_choices():
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 2, (4000, 6))
    share = np.exp(scores / 2.5)
    chosen = (rng.random(4000)[:, None] > np.cumsum(share / share.sum(1, keepdims=True), 1)).sum(1)
    gains = np.eye(6)[chosen]
    lists = np.repeat(np.arange(4000), 6)
    assert list_temperature(scores.ravel(), gains.ravel(), lists) == pytest.approx(2.5, rel=0.05)


def test_a_list_without_relevance_does_not_count_for_the_temperature():
    scores, gains = np.array([1.0, 0.0, 2.0, 0.0, 1.0]), np.array([1.0, 0.3, 0.0, 0.0, 0.0])
    lists = np.array([0, 0, 1, 1, 1])
    alone = list_temperature(scores[:2], gains[:2], lists[:2])
    assert list_temperature(scores, gains, lists) == alone
    assert list_temperature(scores, np.zeros(5), lists) == 1.0


def test_fitted_noise_is_how_far_the_models_stand_apart():
    rng = np.random.default_rng(0)
    small = rng.normal(0, 1, (3000, 8))
    large = small + rng.normal(0, 0.4, small.shape)
    share = np.exp(large)
    chosen = (rng.random(3000)[:, None] > np.cumsum(share / share.sum(1, keepdims=True), 1)).sum(1)
    lists = np.repeat(np.arange(3000), 8)
    found = fit_list_doubt(
        small.ravel(), large.ravel(), np.eye(8)[chosen].ravel(), lists, places=5, depth=50
    )
    assert found.noise == pytest.approx(0.4, rel=0.15)
    assert (found.places, found.depth) == (5, 50)
    doubts = [found.doubt(one) for one in small]
    assert np.mean(doubts) == pytest.approx(found.scale)


def test_doubt_orders_lists_by_what_large_gains():
    """Deferring the most doubtful fifth buys more than twice what a random fifth does."""
    rng = np.random.default_rng(1)
    small = rng.normal(0, 1, (3000, 12)) * rng.uniform(0.2, 3, (3000, 1))
    large = small + rng.normal(0, 0.5, small.shape)
    relevance = np.exp(large)
    discount = 1 / np.log2(np.arange(2, 14))
    best = -np.sort(-relevance, axis=1) @ discount
    own = np.take_along_axis(relevance, np.argsort(-small, axis=1), axis=1) @ discount
    gain = 1 - own / best
    doubt = np.array([DOUBT.doubt(one) for one in small])
    chosen = np.argsort(-doubt)[:600]
    assert gain[chosen].sum() / gain.sum() > 0.4


def test_auc_gains_are_those_of_moving_one_row():
    rng = np.random.default_rng(0)
    small, large = rng.random(60), rng.random(60)
    found = auc_gains(small, large)
    rate = small.mean()
    for row in range(60):
        low, high = sorted((small[row], large[row]))
        passed = small[(small >= low) & (small < high) & (np.arange(60) != row)]
        sign = 1 if large[row] > small[row] else -1
        # Each row that is passed: positive row against a negative one, minus the other way round.
        moved = large[row] * (1 - passed) - (1 - large[row]) * passed
        expected = sign * moved.sum() / (60 * rate * (1 - rate))
        assert found[row] == pytest.approx(max(expected, 0), abs=1e-9)


def test_rows_where_the_models_differ_are_the_doubtful_ones():
    z = np.linspace(-4, 4, 2000)
    gains = np.where(np.abs(z + 1) < 0.5, 1.0, 0.01)
    shuffled = np.random.default_rng(0).permutation(2000)
    found = fit_row_doubt(z[shuffled], gains[shuffled])
    confidence = found.confidences(z)
    assert np.abs(z[np.argsort(confidence)[:200]] + 1).max() < 0.5
    assert confidence.min() >= 0 and confidence.max() <= 1


def test_a_row_of_mean_doubt_has_confidence_one_over_e():
    doubt = RowDoubt(((0.0, 1.0), (1.0, 3.0)), scale=2.0)
    assert doubt.confidences(np.array([0.5])) == pytest.approx([math.exp(-1)])
    assert doubt.confidences(np.array([-9.0, 9.0])) == pytest.approx(np.exp([-0.5, -1.5]))


@given(count=st.integers(1, 40), seed=st.integers(0, 20))
def test_any_rows_give_a_curve(count, seed):
    rng = np.random.default_rng(seed)
    z = np.round(rng.normal(size=count), 1)
    found = fit_row_doubt(z, np.zeros(count))
    assert (found.confidences(z) <= 1).all() and (found.confidences(z) >= 0).all()


@pytest.mark.parametrize("name", ["temperature", "noise", "places", "depth", "scale"])
def test_a_doubt_without_measure_is_refused(name):
    given = {"temperature": 1.0, "noise": 1.0, "places": 1, "depth": 1, "scale": 1.0, name: 0}
    with pytest.raises(ValueError, match=name):
        ListDoubt(**given)


@pytest.mark.parametrize(("knots", "scale"), [((), 1.0), (((1.0, 1.0), (1.0, 2.0)), 1.0)])
def test_a_curve_without_knots_that_rise_is_refused(knots, scale):
    with pytest.raises(ValueError, match="knots"):
        RowDoubt(knots, scale)
