"""Metrics of single rows: areas under curves, calibration, rates.

Each is prepared once from the examples and is then a function of the rows' weights.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rectrain.errors import DataError
from rectrain.metrics.examples import (
    Examples,
    Floats,
    Ints,
    Statistic,
    ratio,
    starts,
    sum_by,
    weighted_mean,
)

__all__ = [
    "accuracy",
    "auc",
    "calibration_ratio",
    "ece",
    "gauc",
    "log_loss",
    "num_one_class_groups",
    "pr_auc",
    "precision",
    "predicted_rate",
    "rate",
    "recall",
    "recall_at_fpr",
]

_NUM_BINS = 15
_MIN_PROBABILITY = 1e-7


def _group_aucs(examples: Examples, groups: Ints) -> Callable[[Floats], tuple[Floats, Floats]]:
    """weights -> (AUC [G], NaN for one class; impressions [G]).

    AUC = (Σ over positives of the weight of negatives scored lower + half of those scored equal)
    / (weight of positives × weight of negatives): the Mann-Whitney statistic with midranks.
    """
    order = np.lexsort((examples.score, groups))
    group, score = groups[order], examples.score[order]
    positive = (examples.label[order] > 0).astype(np.float64)
    ties = starts(group, score)
    firsts = starts(group[ties])  # in units of tie blocks

    def statistic(weight: Floats) -> tuple[Floats, Floats]:
        weight = weight[order]
        tied_positive = sum_by(weight * positive, ties)
        tied_negative = sum_by(weight * (1 - positive), ties)
        positives, negatives = sum_by(tied_positive, firsts), sum_by(tied_negative, firsts)
        before = np.cumsum(tied_negative) - tied_negative
        within = before - np.repeat(before[firsts], np.diff([*firsts, len(ties)]))
        wins = sum_by(tied_positive * (within + 0.5 * tied_negative), firsts)
        pairs = positives * negatives
        auc = np.where(pairs > 0, wins / np.where(pairs > 0, pairs, 1), np.nan)
        return auc, positives + negatives

    return statistic


def auc(examples: Examples) -> Statistic:
    aucs = _group_aucs(examples, np.zeros(len(examples.label), dtype=np.int64))
    return lambda weight: float(aucs(weight)[0][0]) if len(weight) else float("nan")


def gauc(examples: Examples) -> Statistic:
    """AUC per group, averaged by impressions; groups of one class are left out."""
    aucs = _group_aucs(examples, examples.groups)

    def statistic(weight: Floats) -> float:
        auc, impressions = aucs(weight)
        known = ~np.isnan(auc)
        return ratio(float(auc[known] @ impressions[known]), float(impressions[known].sum()))

    return statistic


def _operating_points(examples: Examples) -> Callable[[Floats], tuple[Floats, Floats]]:
    """weights -> weight of true and of false positives at each distinct threshold, falling."""
    order = np.argsort(-examples.score, kind="stable")
    positive = (examples.label[order] > 0).astype(np.float64)
    first = starts(examples.score[order])
    ends = np.append(first[1:], len(order)) - 1 if len(order) else first

    def points(weight: Floats) -> tuple[Floats, Floats]:
        weight = weight[order]
        true = np.cumsum(weight * positive)[ends]
        return true, np.cumsum(weight * (1 - positive))[ends]

    return points


def pr_auc(examples: Examples) -> Statistic:
    """Average precision: Σ over thresholds of (recall gained) × precision, not interpolated."""
    points = _operating_points(examples)

    def statistic(weight: Floats) -> float:
        true, false = points(weight)
        if not len(true) or true[-1] <= 0:
            return float("nan")
        flagged = true + false
        precision = true / np.where(flagged > 0, flagged, 1)
        return float(np.diff(true, prepend=0.0) @ precision / true[-1])

    return statistic


def recall_at_fpr(limit: float) -> Callable[[Examples], Statistic]:
    def prepare(examples: Examples) -> Statistic:
        points = _operating_points(examples)

        def statistic(weight: Floats) -> float:
            true, false = points(weight)
            if not len(true) or true[-1] <= 0 or false[-1] <= 0:
                return float("nan")
            allowed = false <= limit * false[-1]
            return float(true[allowed][-1] / true[-1]) if allowed.any() else 0.0

        return statistic

    return prepare


def num_one_class_groups(examples: Examples) -> int:
    """How many groups GAUC leaves out because all their labels are alike."""
    return int(np.isnan(_group_aucs(examples, examples.groups)(examples.weights)[0]).sum())


def _probabilities(examples: Examples) -> Floats:
    score = examples.score
    if len(score) and (score.min() < 0 or score.max() > 1):
        raise DataError(
            what="scores",
            got=f"{score.min():.4g} to {score.max():.4g}",
            rule="metrics of probabilities need scores in 0..1",
            fix="apply the sigmoid, or use a metric of ranks such as auc",
        )
    return score


def log_loss(examples: Examples) -> Statistic:
    chance = np.clip(_probabilities(examples), _MIN_PROBABILITY, 1 - _MIN_PROBABILITY)
    positive = examples.label > 0
    return weighted_mean(-np.log(np.where(positive, chance, 1 - chance)))


def ece(examples: Examples) -> Statistic:
    """Σ over bins |Σ w (label - p)| / Σ w: equal numbers of rows a bin, ties together."""
    chance = _probabilities(examples)
    if not len(chance):
        return lambda weight: float("nan")
    edges = np.quantile(chance, np.arange(1, _NUM_BINS) / _NUM_BINS)
    bins = np.searchsorted(edges, chance, side="left")
    gap = (examples.label > 0) - chance

    def statistic(weight: Floats) -> float:
        gaps = np.bincount(bins, weights=weight * gap, minlength=_NUM_BINS)
        return ratio(float(np.abs(gaps).sum()), float(weight.sum()))

    return statistic


def calibration_ratio(examples: Examples) -> Statistic:
    chance, positive = _probabilities(examples), (examples.label > 0).astype(np.float64)
    return lambda weight: ratio(float(weight @ chance), float(weight @ positive))


def rate(examples: Examples) -> Statistic:
    return weighted_mean((examples.label > 0).astype(np.float64))


def predicted_rate(examples: Examples) -> Statistic:
    return weighted_mean(_probabilities(examples))


def accuracy(examples: Examples) -> Statistic:
    return weighted_mean(
        ((_probabilities(examples) >= 0.5) == (examples.label > 0)).astype(np.float64)
    )


def precision(examples: Examples) -> Statistic:
    flagged = (_probabilities(examples) >= 0.5).astype(np.float64)
    hit = flagged * (examples.label > 0)
    return lambda weight: ratio(float(weight @ hit), float(weight @ flagged))


def recall(examples: Examples) -> Statistic:
    positive = (examples.label > 0).astype(np.float64)
    hit = positive * (_probabilities(examples) >= 0.5)
    return lambda weight: ratio(float(weight @ hit), float(weight @ positive))
