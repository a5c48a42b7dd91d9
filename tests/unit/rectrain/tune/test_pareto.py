"""The front, its knee and its volume, against definitions written out and against chance."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rectrain.tune import pareto

# Whole numbers within 0..6: many are equal, and none is lost to rounding.
POINTS = st.integers(2, 3).flatmap(
    lambda d: arrays(
        np.float64, st.tuples(st.integers(0, 7), st.just(d)), elements=st.integers(0, 6)
    )
)


def dominates(one: np.ndarray, other: np.ndarray) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)


def volume_by_inclusion(points: np.ndarray, reference: np.ndarray) -> float:
    """Of a union of boxes: sums of the volumes of all intersections, with turning signs."""
    boxes = [point for point in points if (point < reference).all()]
    return sum(
        (-1) ** (size + 1) * float(np.prod(reference - np.max(some, axis=0)))
        for size in range(1, len(boxes) + 1)
        for some in combinations(boxes, size)
    )


@given(POINTS)
def test_a_point_is_in_the_front_unless_another_dominates_it_or_came_before(points):
    expected = [
        not any(dominates(other, one) for other in points)
        and not any(tuple(other) == tuple(one) for other in points[:place])
        for place, one in enumerate(points)
    ]
    assert pareto.non_dominated(points).tolist() == expected


def test_a_point_without_a_value_is_in_no_front_and_hides_nothing():
    points = [[np.nan, 0.0], [1.0, 2.0], [2.0, np.nan], [2.0, 1.0], [1.0, 2.0]]
    assert pareto.non_dominated(points).tolist() == [False, True, False, True, False]
    assert pareto.hypervolume(points, reference=[3, 3]) == 3.0


def test_no_points_have_no_front_no_knee_and_no_volume():
    none = np.empty((0, 3))
    assert pareto.non_dominated(none).tolist() == []
    assert pareto.knee(none) is None and pareto.knee([[np.nan, 1.0]]) is None
    assert pareto.hypervolume(none, reference=[1, 1, 1]) == 0.0
    assert pareto.hypervolume_curve(none, reference=[1, 1, 1]).tolist() == []


@given(POINTS)
def test_the_volume_is_that_of_the_union_of_boxes(points):
    reference = np.full(points.shape[1], 5.0)  # some points are beyond it
    expected = volume_by_inclusion(points, reference)
    assert pareto.hypervolume(points, reference=reference) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("d", [2, 3, 4])
def test_the_volume_is_the_share_of_random_places_that_are_dominated(d):
    random = np.random.default_rng(0)
    points, places = random.random((40, d)), random.random((200_000, d))
    hit = np.zeros(len(places), dtype=bool)
    for point in points:
        hit |= (point <= places).all(axis=1)
    error = 4 * np.sqrt(hit.mean() * (1 - hit.mean()) / len(places))
    assert pareto.hypervolume(points, reference=np.ones(d)) == pytest.approx(hit.mean(), abs=error)


@given(POINTS)
def test_the_curve_is_the_volume_of_each_beginning(points):
    reference = np.full(points.shape[1], 5.0)
    curve = pareto.hypervolume_curve(points, reference=reference)
    expected = [
        pareto.hypervolume(points[: n + 1], reference=reference) for n in range(len(points))
    ]
    assert curve.tolist() == pytest.approx(expected)


def test_two_boxes_by_hand():
    # 2 × 1 and 1 × 2 below (3, 3), which share 1 × 1; and depth 2 and 1 of a third objective.
    assert pareto.hypervolume([[1, 2], [2, 1]], reference=[3, 3]) == 3.0
    assert pareto.hypervolume([[1, 2, 0], [2, 1, 1]], reference=[3, 3, 2]) == 2 * 2 + 2 - 1


def test_what_should_be_large_turns_its_sign():
    points = pareto.minimised([[0.9, 5.0], [0.5, 1.0]], maximise=[True, False])
    assert points.tolist() == [[-0.9, 5.0], [-0.5, 1.0]]
    assert pareto.minimised([], maximise=[True, False]).shape == (0, 2)


@given(arrays(np.float64, st.tuples(st.integers(3, 8), st.just(2)), elements=st.integers(0, 9)))
def test_with_two_objectives_the_knee_is_furthest_below_the_line_through_the_ends(points):
    front = points[pareto.non_dominated(points)]
    first, last = front[front[:, 0].argmin()], front[front[:, 0].argmax()]
    along = last - first
    below = along[1] * (front - first)[:, 0] - along[0] * (front - first)[:, 1]
    found = points[pareto.knee(points)]
    distance = along[1] * (found - first)[0] - along[0] * (found - first)[1]
    assert distance == pytest.approx(below.max())


def test_the_knee_does_not_depend_on_units():
    points = np.array([[0.0, 10.0, 9.0], [2.0, 3.0, 4.0], [9.0, 0.0, 3.0], [5.0, 5.0, 5.0]])
    assert pareto.knee(points) == pareto.knee(points * [1000, 0.01, 1] + [5, 0, -7]) == 1


def study(rows, *, layers=(1, 2, 3, 4)):
    """Trials whose cost is their depth, whose lift is their width, and whose p99 is always 5."""
    made = optuna.create_study(directions=["maximize", "minimize", "minimize"])
    space = {
        "layers": optuna.distributions.IntDistribution(min(layers), max(layers)),
        "hidden": optuna.distributions.CategoricalDistribution([96, 192, 384]),
    }
    for depth, width in rows:
        objectives = {"mean_lift": width / 384, "cost_per_1000": float(depth), "p99_ms": 5.0}
        made.add_trial(
            optuna.trial.create_trial(
                params={"layers": depth, "hidden": width},
                distributions=space,
                values=list(objectives.values()),
                user_attrs={"objectives": objectives},
            )
        )
    return made


def test_importance_is_with_the_parameter_that_an_objective_follows():
    found = pareto.importances(study([(d, w) for d in (1, 2, 3, 4) for w in (96, 192, 384)]))
    assert list(found) == ["mean_lift", "cost_per_1000"]  # p99 doesn't vary
    assert found["mean_lift"]["hidden"] > 0.95 and found["cost_per_1000"]["layers"] > 0.95
    assert all(sum(shares.values()) == pytest.approx(1) for shares in found.values())


def test_few_trials_have_no_importance():
    assert pareto.importances(study([(1, 96), (2, 192)])) == {}
