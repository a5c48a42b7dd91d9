"""From both models' scores of held-out rows to a task's policy, and what to expect of it.

What is judged is out of sample where it was fitted with some freedom: calibration errors and the
order of deferral come from the other half of the groups. The final curves are of all rows; the
threshold is where they defer the chosen rate.

Shapes: n rows, m candidates, Q units.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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
from rectrain.cascade.heldout import HeldOut, HeldOutLists, HeldOutRows
from rectrain.cascade.policy import ALWAYS, NEVER, SURE, Calibrations, TaskPolicy
from rectrain.cascade.thresholds import Choice, choose

__all__ = ["DEPTH", "Aim", "Fitted", "ListScores", "RowScores", "fit_lists", "fit_rows"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

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

    @property
    def step(self) -> int:
        """The chosen curve's nearest to what is deferred: where confidences are equal, that is more
        than the chosen rate."""
        return int(np.argmin(np.abs(self.choice.curve.rates - self.policy.deferred)))


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
    small, large = (
        fit_calibration(raw, labels, weights, fold=half) for raw in (scores.small, scores.large)
    )
    chances = small.probability(scores.small), large.probability(scores.large)
    heldout = HeldOutRows(*chances, labels, weights, scores.groups)
    logits, gains = small.logits(scores.small), auc_gains(*chances)
    crossed = _crossed(
        half, lambda own, other: fit_row_doubt(logits[other], gains[other]).confidences(logits[own])
    )
    choice = _choose(heldout, crossed, metric, aim)
    doubt = fit_row_doubt(logits, gains)
    both = Calibrations(small=small, large=large)
    return Fitted(
        policy=_policy(task, doubt, doubt.confidences(logits), choice, aim, both),
        metric=metric,
        choice=choice,
        calibration={
            name: _before_after(raw, scores, half)
            for name, raw in (("small", scores.small), ("large", scores.large))
        },
        num_units=len(labels),
        num_groups=len(np.unique(scores.groups)),
    )


def fit_lists(task: str, scores: ListScores, *, metric: str, aim: Aim) -> Fitted:
    """The policy of a task of lists; arguments as of `fit_rows`."""
    num_lists = scores.judged.num_units
    half = folds(np.arange(num_lists), seed=aim.seed)
    parts = np.split(scores.small, np.searchsorted(scores.lists, np.arange(1, num_lists)))

    def fit(chosen: Bools) -> ListDoubt:
        rows = chosen[scores.lists]
        return fit_list_doubt(
            scores.small[rows], scores.large[rows], scores.gains[rows], scores.lists[rows],
            places=_places(metric), depth=DEPTH,
        )  # fmt: skip

    def confidences(own: Bools, other: Bools) -> Floats:
        doubt = fit(other)
        return np.array([doubt.confidence(parts[one]) for one in np.flatnonzero(own)])

    everything = np.ones(num_lists, dtype=bool)
    choice = _choose(scores.judged, _crossed(half, confidences), metric, aim)
    return Fitted(
        policy=_policy(
            task, fit(everything), confidences(everything, everything), choice, aim, None
        ),
        metric=metric,
        choice=choice,
        calibration={},
        num_units=num_lists,
        num_groups=num_lists,
    )


def _choose(heldout: HeldOut, confidences: Floats, metric: str, aim: Aim) -> Choice:
    return choose(
        heldout, confidences, metric, max_loss=aim.max_loss, budget=aim.budget, level=aim.level,
        num_resamples=aim.num_resamples, seed=aim.seed,
    )  # fmt: skip


def _crossed(half: Ints, of: Callable[[Bools, Bools], Floats]) -> Floats:
    """Values of each half's units (own) from what the other half's fitted (other); where there is
    but one half, it is its own other."""
    values = np.empty(len(half))
    for one in np.unique(half):
        own, other = half == one, half != one
        values[own] = of(own, other if other.any() else own)
    return values


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
    most = ALWAYS if aim.budget is None else SURE  # who is sure does not use a budget up
    threshold = _threshold_at(confidences, choice.rate, most=most)
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


def _threshold_at(confidences: Floats, rate: float, *, most: float) -> float:
    """The confidence below which the share `rate` of the units lies; 0 for none, 2 for all.

    Of units of equal confidence it is all or none, so here all: under a bound of the loss the rates
    above the chosen one have passed too, under a budget `Budget` takes the first of them.
    """
    count = round(rate * len(confidences))
    if count >= len(confidences):
        return ALWAYS
    return min(math.nextafter(np.sort(confidences)[count - 1], math.inf), most) if count else NEVER


def _before_after(raw: Floats, scores: RowScores, half: Ints) -> tuple[Reliability, Reliability]:
    """A model's reliability as it is, and calibrated on the other half of the groups."""
    labels, weights = scores.labels, scores.weights
    calibrated = _crossed(
        half,
        lambda own, other: fit_calibration(raw[other], labels[other], weights[other]).probability(
            raw[own]
        ),
    )
    return reliability(raw, labels, weights), reliability(calibrated, labels, weights)
