"""How much of a large model's lift over a trivial predictor another model keeps.

share = (metric - trivial) / (large - trivial). The trivial predictor orders rows at random; its
expected metric is taken on the same draws of the bootstrap as those of both models.

Shapes: n rows, G groups.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rectrain.errors import ConfigError
from rectrain.metrics import (
    Examples,
    Interval,
    metric,
    rank_within_groups,
    resample,
    summarise,
)

__all__ = ["Lifts", "trivial"]

Statistic = Callable[[np.ndarray], float]

_CHANCE = "chance"
# Metrics in which a random order has half of all pairs right.
_HALVES = ("auc", "gauc", "pairwise_accuracy")


def trivial(name: str, examples: Examples, *, num_ranked: np.ndarray | None = None) -> Statistic:
    """What a predictor that orders at random earns in expectation.

    Of AUC and pairwise accuracy it is 1/2. Of nDCG@k a row of a list of N stands at each rank with
    probability 1/N, so E[DCG@k] = mean gain · Σ_{r ≤ min(k, N)} 1 / log2(r + 1).

    Args:
        name: of the metric.
        examples: the judged rows; their scores are not looked at.
        num_ranked: int64 [G], N of each group where its list is longer than its rows here (a whole
            catalogue, of which the rows are the relevant items); by default its rows.

    Returns:
        Weights float64 [n] -> value, as of `rectrain.metrics`.

    Raises:
        ConfigError: a metric whose expectation is not known.
    """
    if name in _HALVES:
        return lambda weight: 0.5
    match = re.fullmatch(r"ndcg@(\d+)", name)
    if match is None:
        raise ConfigError(
            what="metric",
            got=name,
            rule=f"what a random order earns is known of {', '.join(_HALVES)} and ndcg@K",
            fix="judge the task by one of them",
        )
    return _random_ndcg(int(match[1]), examples, num_ranked)


def _random_ndcg(k: int, examples: Examples, num_ranked: np.ndarray | None) -> Statistic:
    groups, size = examples.groups, examples.num_groups
    rows = np.bincount(groups, minlength=size)
    lengths = rows if num_ranked is None else num_ranked
    discount = 1 / np.log2(np.arange(1, k + 1) + 1)
    places = np.concatenate([[0.0], np.cumsum(discount)])[np.minimum(lengths, k)]
    gain = np.exp2(examples.label) - 1
    found = np.bincount(groups, weights=gain, minlength=size) / lengths * places
    rank = rank_within_groups(examples.label, groups)
    best = np.where(rank <= k, gain / np.log2(rank + 1.0), 0.0)
    ideal = np.bincount(groups, weights=best, minlength=size)
    relevant = ideal > 0
    values = found[relevant] / ideal[relevant]

    def mean(weight: np.ndarray) -> float:
        # A group weighs the mean weight of its rows, as in `rectrain.metrics.ranking`.
        of_group = np.bincount(groups, weights=weight, minlength=size)[relevant] / rows[relevant]
        total = of_group.sum()
        return float(of_group @ values / total) if total > 0 else float("nan")

    return mean


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
