"""Calibration: by hand, against what made the labels, and that it changes no ranking."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rectrain.cascade.calibration import (
    Calibration,
    fit_calibration,
    folds,
    logit,
    reliability,
)


def sigmoid(z):
    return 1 / (1 + np.exp(-np.asarray(z, dtype=float)))


STEPS = Calibration("isotonic", 2.0, 0.0, ((-1.0, -2.0), (1.0, 2.0)))


@pytest.mark.parametrize(
    ("calibration", "z", "expected"),
    [
        (Calibration("temperature", 2.0, 0.0), math.log(4), math.log(2)),
        (Calibration("temperature", 1.0, -1.0), 1.0, 0.0),
        (STEPS, 0.5, 1.0),
        (STEPS, 3.0, 2.0 + 2.0 / 2),  # beyond the last knot: as steep as 1 / T
        (STEPS, -2.0, -2.0 - 1.0 / 2),
    ],
)
def test_a_calibration_by_hand(calibration, z, expected):
    assert calibration.probability(sigmoid([z])) == pytest.approx([sigmoid(expected)], abs=1e-12)


def test_certain_scores_stay_finite():
    p = Calibration("temperature", 0.5, 1.0).probability(np.array([0.0, 1.0]))
    assert np.isfinite(logit(p)).all() and 0 <= p[0] < p[1] <= 1


@pytest.mark.parametrize(
    "wrong",
    [
        ("temperature", 0.0, 0.0, ()),
        ("temperature", 1.0, 0.0, ((0.0, 0.0),)),
        ("isotonic", 1.0, 0.0, ()),
        ("isotonic", 1.0, 0.0, ((0.0, 0.0), (1.0, 0.0))),
        ("isotonic", 1.0, 0.0, ((1.0, 0.0), (0.0, 1.0))),
    ],
)
def test_a_calibration_that_would_not_rise_is_refused(wrong):
    with pytest.raises(ValueError, match=r"temperature|knots"):
        Calibration(*wrong)


def test_temperature_finds_what_made_the_labels():
    """Each score stands twice, positive with the weight of its true probability."""
    z = np.linspace(-4, 4, 81)
    truth = sigmoid(z / 2.5 - 0.7)
    scores, labels = np.tile(sigmoid(z), 2), np.repeat([1.0, 0.0], len(z))
    weights = 1e4 * np.concatenate([truth, 1 - truth])
    found = fit_calibration(scores, labels, weights, fold=np.tile(np.arange(81) % 2, 2))
    assert found.kind == "temperature"
    assert (found.temperature, found.bias) == pytest.approx((2.5, -0.7), abs=1e-3)


def test_isotonic_is_taken_where_a_sigmoid_does_not_fit():
    rng = np.random.default_rng(0)
    z = rng.uniform(-4, 4, 6000)
    truth = np.where(np.abs(z) < 3, 0.3, np.where(z > 0, 0.9, 0.02))
    labels = (rng.random(len(z)) < truth).astype(float)
    found = fit_calibration(sigmoid(z), labels)
    assert found.kind == "isotonic"
    assert np.abs(found.probability(sigmoid(z)) - truth).mean() < 0.03


@pytest.mark.parametrize("seed", range(20))
def test_many_rows_of_one_score_and_of_different_weights_are_calibrated(seed):
    rng = np.random.default_rng(seed)
    scores = rng.choice([0.1, 0.3, 0.7, 0.9], 3000)
    labels = (rng.random(3000) < scores**2).astype(float)
    found = fit_calibration(scores, labels, rng.uniform(0.1, 3, 3000))
    assert (np.diff(found.probability(np.array([0.1, 0.3, 0.7, 0.9]))) > 0).all()


@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("count", [1, 2, 40])
def test_labels_of_one_class_give_a_finite_calibration(label, count):
    found = fit_calibration(np.linspace(0.1, 0.9, count), np.full(count, label))
    p = found.probability(np.array([0.0, 0.5, 1.0]))
    assert np.isfinite(p).all() and 0 < found.temperature < math.inf
    assert (p[1] > 0.5) == (label == 1.0)


def test_a_model_that_says_the_opposite_keeps_its_ranking():
    z = np.linspace(-3, 3, 200)
    found = fit_calibration(sigmoid(z), (z < 0).astype(float))
    assert (np.diff(found.logits(sigmoid(z))) > 0).all()


@settings(max_examples=40)
@given(
    scores=st.lists(st.floats(1e-6, 1 - 1e-6), min_size=2, max_size=80),
    seed=st.integers(0, 99),
)
def test_no_calibration_changes_a_ranking(scores, seed):
    scores = np.array(scores)
    labels = np.random.default_rng(seed).integers(0, 2, len(scores)).astype(float)
    z = logit(scores)
    for found in (fit_calibration(scores, labels), STEPS):
        order = np.argsort(z)
        gaps, risen = np.diff(z[order]), np.diff(found.logits(scores)[order])
        assert (risen[gaps > 1e-9] > 0).all()


def test_halves_keep_groups_together():
    groups = np.array([3, 3, 7, 7, 7, 9, 1, 1])
    half = folds(groups)
    assert all(len(set(half[groups == one])) == 1 for one in groups)
    assert sorted(np.bincount(half[[0, 2, 5, 6]]).tolist()) == [2, 2]


def test_reliability_by_hand():
    p = np.array([0.1, 0.1, 0.7, 0.7])
    labels, weights = np.array([0.0, 1.0, 1.0, 1.0]), np.array([3.0, 1.0, 1.0, 1.0])
    found = reliability(p, labels, weights, num_bins=2)
    assert found.predicted == pytest.approx([0.1, 0.7])
    assert found.observed == pytest.approx([0.25, 1.0])
    assert found.error == pytest.approx((4 * 0.15 + 2 * 0.3) / 6)
