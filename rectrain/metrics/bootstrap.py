"""Bootstrap intervals and paired differences: a resample of groups is nothing but other weights.

Shapes: n rows, G groups, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rectrain.metrics.examples import Examples, Floats, Ints, Statistic
from rectrain.metrics.table import metric

__all__ = ["Interval", "bootstrap_interval", "paired_difference", "resample", "summarise"]

# Resamples × rows that a bootstrap spends at most; never fewer than 200 resamples.
_BOOTSTRAP_BUDGET = 20_000_000


class Interval(NamedTuple):
    """A value with the ends of its 95% bootstrap interval (percentiles)."""

    value: float
    low: float
    high: float


def resample(
    statistics: Sequence[Statistic],
    *,
    unit: Ints,
    weight: Floats,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Floats:
    """Values of statistics over bootstrap resamples of whole groups; the same resample for all.

    Args:
        statistics: functions of the rows' weights.
        unit: int64 [n], the group 0..G-1 that is drawn as a whole.
        weight: float64 [n], the rows' own weights.
        num_resamples: at most; fewer (not below 200) where resamples × rows would pass 2e7.
        seed: of the draws.

    Returns:
        float64 [R, len(statistics)].
    """
    size = int(unit.max()) + 1 if len(unit) else 0
    count = int(np.clip(_BOOTSTRAP_BUDGET // max(len(unit), 1), 200, max(num_resamples, 1)))
    count = min(count, num_resamples)
    generator = np.random.default_rng(seed)
    values = np.empty((count, len(statistics)))
    for row in range(count):
        drawn = np.bincount(generator.integers(0, size, size), minlength=size) if size else unit
        weights = weight * drawn[unit]
        values[row] = [statistic(weights) for statistic in statistics]
    return values


def summarise(value: float, resamples: Floats, *, confidence: float = 0.95) -> Interval:
    """A value with the percentiles of its resamples, those where it is undefined left out."""
    known = resamples[~np.isnan(resamples)]
    if not len(known):
        return Interval(value, float("nan"), float("nan"))
    tail = (1 - confidence) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def bootstrap_interval(
    name: str, examples: Examples, *, num_resamples: int = 1000, seed: int = 0
) -> Interval:
    """A metric with its 95% bootstrap interval over groups (over rows where there are none)."""
    statistic = metric(name).prepare(examples)
    values = resample(
        [statistic],
        unit=examples.groups,
        weight=examples.weights,
        num_resamples=num_resamples,
        seed=seed,
    )
    return summarise(statistic(examples.weights), values[:, 0])


def paired_difference(
    name: str, a: Examples, b: Examples, *, num_resamples: int = 1000, seed: int = 0
) -> Interval:
    """metric(a) - metric(b) with its 95% interval, both on the same resamples.

    Args:
        name: of the metric.
        a, b: the same rows, groups and weights with two systems' scores (or ranks).
        num_resamples: see `resample`.
        seed: of the draws.
    """
    assert np.array_equal(a.groups, b.groups), "a paired difference needs the same rows"
    assert np.array_equal(a.weights, b.weights), "a paired difference needs the same weights"
    first, second = (metric(name).prepare(examples) for examples in (a, b))
    values = resample(
        [first, second], unit=a.groups, weight=a.weights, num_resamples=num_resamples, seed=seed
    )
    return summarise(first(a.weights) - second(b.weights), values[:, 0] - values[:, 1])
