"""From both models' scores of held-out rows to a task's policy, and what to expect of it.

What is judged is out of sample where it was fitted with some freedom: calibration errors and the
order of deferral come from the other half of the groups. The final curves are of all rows; the
threshold is where they defer the chosen rate.

Shapes: n rows, m candidates, Q units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rectrain.cascade.calibration import (
    Reliability,
    fit_calibration,
    folds,
    reliability,
)
from rectrain.cascade.doubt import (
    ListDoubt,
    RowDoubt,
    auc_gains,
    fit_list_doubt,
    fit_row_doubt,
)
from rectrain.cascade.heldout import HeldOutLists, HeldOutRows
from rectrain.cascade.policy import Calibrations, TaskPolicy
from rectrain.cascade.thresholds import Choice, choose

__all__ = ["DEPTH", "Aim", "Fitted", "ListScores", "RowScores", "fit_lists", "fit_rows"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_ROOM = 1.5  # of the budget over the held-out rate, under a bound of the loss
_DECILES = np.arange(1, 10) / 10
DEPTH = 100  # candidates of a list that its doubt looks at


@dataclass(frozen=True)
class Aim:
    """What is asked for: one of the first two.

    Attributes:
        max_loss: share of large's metric that may be lost.
        budget: share of units that may be deferred.
        level: certainty of the bound.
        num_resamples, seed: of bootstraps and halves.
    """

    max_loss: float | None = None
    budget: float | None = None
    level: float = 0.95
    num_resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class RowScores:
    """What both packages give for held-out rows of a 0/1 task.

    Attributes:
        small, large: float64 [n], their probabilities.
        labels, weights: float64 [n].
        groups: int64 [n].
    """

    small: Floats
    large: Floats
    labels: Floats
    weights: Floats
    groups: Ints


@dataclass(frozen=True)
class ListScores:
    """What both packages give for held-out lists.

    Attributes:
        small, large: float64 [m], scores of the candidates, as small's package offers them.
        gains: float64 [m], 2^grade - 1.
        lists: int64 [m], 0..Q-1, neighbours; every list has a candidate.
        judged: the places of the rows that the metric judges.
    """

    small: Floats
    large: Floats
    gains: Floats
    lists: Ints
    judged: HeldOutLists


@dataclass(frozen=True)
class Fitted:
    """A task's policy and what stands behind it.

    Attributes:
        policy: of the task.
        metric: its name.
        choice: curves and what was chosen.
        calibration: small, large -> reliability before and after; empty for lists.
        num_units, num_groups: held-out ones.
    """

    policy: TaskPolicy
    metric: str
    choice: Choice
    calibration: dict[str, tuple[Reliability, Reliability]]
    num_units: int
    num_groups: int


def fit_rows(task: str, scores: RowScores, *, metric: str, aim: Aim) -> Fitted:
    """The policy of a 0/1 task.

    Args:
        task: its name.
        scores: of held-out rows.
        metric: what judges it.
        aim: the bound or the budget.
    """
    labels, weights = scores.labels, scores.weights
    half = folds(scores.groups, seed=aim.seed)
    small = fit_calibration(scores.small, labels, weights, fold=half)
    large = fit_calibration(scores.large, labels, weights, fold=half)
    heldout = HeldOutRows(
        small.probability(scores.small),
        large.probability(scores.large),
        labels,
        weights,
        scores.groups,
    )
    logits = small.logits(scores.small)
    gains = auc_gains(heldout.small, heldout.large)

    def fit(rows: NDArray[np.bool_]) -> RowDoubt:
        return fit_row_doubt(logits[rows], gains[rows])

    crossed = np.empty(len(labels))
    for own, other in _halves(half):
        crossed[own] = fit(other).confidences(logits[own])
    doubt = fit(np.ones(len(labels), dtype=bool))
    choice = choose(
        heldout, crossed, metric, max_loss=aim.max_loss, budget=aim.budget, level=aim.level,
        num_resamples=aim.num_resamples, seed=aim.seed,
    )  # fmt: skip
    policy = _policy(
        task, doubt, doubt.confidences(logits), choice, aim, Calibrations(small=small, large=large)
    )
    calibration = {
        name: _before_after(raw, scores, half)
        for name, raw in (("small", scores.small), ("large", scores.large))
    }
    groups = len(np.unique(scores.groups))
    return Fitted(policy, metric, choice, calibration, len(labels), groups)


def fit_lists(task: str, scores: ListScores, *, metric: str, aim: Aim) -> Fitted:
    """The policy of a task of lists; arguments as of `fit_rows`."""
    num_lists = scores.judged.num_units
    half = folds(np.arange(num_lists), seed=aim.seed)
    first = np.searchsorted(scores.lists, np.arange(1, num_lists))
    parts = np.split(scores.small, first)

    def fit(chosen: NDArray[np.bool_]) -> ListDoubt:
        rows = chosen[scores.lists]
        return fit_list_doubt(
            scores.small[rows], scores.large[rows], scores.gains[rows], scores.lists[rows],
            places=_places(metric), depth=DEPTH,
        )  # fmt: skip

    crossed = np.empty(num_lists)
    for own, other in _halves(half):
        doubt = fit(other)
        crossed[own] = [doubt.confidence(parts[one]) for one in np.flatnonzero(own)]
    doubt = fit(np.ones(num_lists, dtype=bool))
    choice = choose(
        scores.judged, crossed, metric, max_loss=aim.max_loss, budget=aim.budget, level=aim.level,
        num_resamples=aim.num_resamples, seed=aim.seed,
    )  # fmt: skip
    confidences = np.array([doubt.confidence(part) for part in parts])
    policy = _policy(task, doubt, confidences, choice, aim, None)
    return Fitted(policy, metric, choice, {}, num_lists, num_lists)


def _halves(half: Ints) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """(own, other) for each half; where there is but one unit, it is its own other."""
    pairs = [(half == one, half != one) for one in (0, 1)]
    return [(own, other if other.any() else own) for own, other in pairs if own.any()]


def _places(metric: str) -> int:
    """How many places count: K of a metric @K; else all of the depth."""
    _, at, places = metric.partition("@")
    return int(places) if at else DEPTH


def _policy(
    task: str,
    doubt: RowDoubt | ListDoubt,
    confidences: Floats,
    choice: Choice,
    aim: Aim,
    calibration: Calibrations | None,
) -> TaskPolicy:
    threshold = _threshold_at(confidences, choice.rate)
    rate = float(np.mean(confidences < threshold))
    return TaskPolicy(
        task=task,
        doubt=doubt,
        threshold=threshold,
        bound="loss" if aim.budget is None else "budget",
        budget=min(1.0, _ROOM * rate) if aim.budget is None else aim.budget,
        rate=rate,
        deciles=tuple(np.quantile(confidences, _DECILES).tolist()),
        head=choice.head,
        calibration=calibration,
    )


def _threshold_at(confidences: Floats, rate: float) -> float:
    """The confidence below which the share `rate` of the units lies; 0 for none, 2 for all."""
    count = round(rate * len(confidences))
    if count >= len(confidences):
        return 2.0
    return float(np.sort(confidences)[count]) if count else 0.0


def _before_after(raw: Floats, scores: RowScores, half: Ints) -> tuple[Reliability, Reliability]:
    """A model's reliability as it is, and calibrated on the other half of the groups."""
    calibrated = np.empty(len(raw))
    for own, other in _halves(half):
        fitted = fit_calibration(raw[other], scores.labels[other], scores.weights[other])
        calibrated[own] = fitted.probability(raw[own])
    return (
        reliability(raw, scores.labels, scores.weights),
        reliability(calibrated, scores.labels, scores.weights),
    )
