"""How much of a large model's lift over a trivial predictor another model keeps.

share = (metric - trivial) / (large - trivial). The trivial predictor orders rows at random; its
expected metric is taken on the same draws of the bootstrap as those of both models.

Shapes: n rows, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rectrain.metrics import (
    Examples,
    Interval,
    metric,
    resample,
    summarise,
    trivial,
)

__all__ = ["Lifts", "trivial"]

_CHANCE = "chance"


class Lifts:
    """Systems' metric on one task's rows, all on the same draws of its groups.

    Args:
        name: of the metric.
        systems: name -> scores of the same rows.
        large: the system whose lift is the whole.
        num_ranked: see `trivial`.
        num_resamples: at most.
    """

    def __init__(
        self,
        name: str,
        systems: Mapping[str, Examples],
        *,
        large: str,
        num_ranked: np.ndarray | None = None,
        num_resamples: int = 1000,
    ) -> None:
        first = systems[large]
        for other in systems.values():
            assert np.array_equal(first.groups, other.groups), "systems judged on other groups"
            assert np.array_equal(first.weights, other.weights), "systems judged on other weights"
            assert np.array_equal(first.label, other.label), "systems judged on other labels"
        prepare = metric(name).prepare
        statistics = {system: prepare(examples) for system, examples in systems.items()}
        statistics[_CHANCE] = trivial(name, first, num_ranked=num_ranked)
        drawn = resample(
            list(statistics.values()),
            unit=first.groups,
            weight=first.weights,
            num_resamples=num_resamples,
        )
        self.metric, self._large = name, large
        self._values = {system: one(first.weights) for system, one in statistics.items()}
        self._drawn = {system: drawn[:, place] for place, system in enumerate(statistics)}

    @property
    def chance(self) -> float:
        """The trivial predictor's metric."""
        return self._values[_CHANCE]

    def value(self, system: str) -> Interval:
        """The metric of a system with its 95% interval."""
        return summarise(self._values[system], self._drawn[system])

    def difference(self, first: str, second: str) -> Interval:
        """metric(first) - metric(second)."""
        gap = self._values[first] - self._values[second]
        return summarise(gap, self._drawn[first] - self._drawn[second])

    def share(self, system: str) -> Interval:
        """A system's share of the large model's lift; NaN where that has none.

        Draws in which the large model has none are left out of the interval (see `undefined`).
        """
        values, chance = self._values, self.chance
        value = _share(values[system], values[self._large], chance)
        drawn = _share(self._drawn[system], self._drawn[self._large], self._drawn[_CHANCE])
        return summarise(float(value), drawn)

    @property
    def undefined(self) -> float:
        """Share of the draws in which the large model has no lift, 0 to 1."""
        return float(np.mean(self._drawn[self._large] <= self._drawn[_CHANCE]))


def _share(value: Any, large: Any, chance: Any) -> np.ndarray:
    lift = np.asarray(large - chance)
    return np.where(lift > 0, (value - chance) / np.where(lift > 0, lift, 1.0), np.nan)
