"""What a predictor that orders rows at random earns in expectation: the zero of a lift.

Shapes: n rows, G groups.
"""

from __future__ import annotations

import re

import numpy as np

from rectrain.errors import ConfigError
from rectrain.metrics.examples import Examples, Floats, Ints, Statistic
from rectrain.metrics.ranking import rank_within_groups

__all__ = ["trivial"]

# Metrics in which a random order has half of all pairs right.
_HALVES = ("auc", "gauc", "pairwise_accuracy")


def trivial(name: str, examples: Examples, *, num_ranked: Ints | None = None) -> Statistic:
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


def _random_ndcg(k: int, examples: Examples, num_ranked: Ints | None) -> Statistic:
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

    def mean(weight: Floats) -> float:
        # A group weighs the mean weight of its rows, as in `rectrain.metrics.ranking`.
        of_group = np.bincount(groups, weights=weight, minlength=size)[relevant] / rows[relevant]
        total = of_group.sum()
        return float(of_group @ values / total) if total > 0 else float("nan")

    return mean
