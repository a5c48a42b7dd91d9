"""Thresholds: how much to defer, so that little is lost with some certainty, or within a budget.

Shapes: Q units, R resamples, S steps of the deferral rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rectrain.cascade.heldout import ALL, HeldOut
from rectrain.metrics import Interval, metric, resample, summarise

__all__ = ["Choice", "Curve", "choose", "defer_lowest", "groups_to_prove", "risk_coverage"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_RATES = (
    *(step / 200 for step in range(10)),  # 0 to 4.5% by half a per cent
    *(step / 100 for step in range(5, 20)),
    *(step / 40 for step in range(8, 41)),  # 20% to all by 2.5%
)


@dataclass(frozen=True)
class Curve:
    """Quality against the share of units that large answers, least confident first.

    Attributes:
        head: see `TaskPolicy.head`.
        rates: float64 [S], rising shares of units deferred, 0 and 1 among them; coverage, the
            share that small answers, is 1 - rates.
        metrics: of the cascade at each rate, with 95% intervals.
        losses: float64 [S], (large - cascade) / large; below 0 where the cascade is better.
        bounds: float64 [S], upper confidence bounds of the losses, never below them.
        work: float64 [S], candidates that large scores, a unit.
    """

    head: int
    rates: Floats
    metrics: tuple[Interval, ...]
    losses: Floats
    bounds: Floats
    work: Floats


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        head, rate: of the cascade.
        curves: one a head; the chosen one is `curve`.
        step: of `rate` in the curve.
        small, large: what each model reaches alone.
    """

    head: int
    rate: float
    curves: tuple[Curve, ...]
    step: int
    small: Interval
    large: Interval

    @property
    def curve(self) -> Curve:
        """The chosen head's."""
        return next(curve for curve in self.curves if curve.head == self.head)


def defer_lowest(confidences: Floats, rate: float) -> Bools:
    """bool [Q]: the share `rate` of the units, of the lowest confidences; of equals the first."""
    chosen = np.zeros(len(confidences), dtype=bool)
    chosen[np.argsort(confidences, kind="stable")[: round(rate * len(confidences))]] = True
    return chosen


def risk_coverage(
    heldout: HeldOut,
    confidences: Floats,
    name: str,
    *,
    head: int = ALL,
    rates: Sequence[float] = _RATES,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> tuple[Curve, Interval, Interval]:
    """The curve of a cascade, and the intervals of small and large alone.

    The bounds are percentiles of a paired bootstrap: the same resamples of whole groups judge
    large and every cascade.

    Args:
        heldout: units that both models answered.
        confidences: float64 [Q]; the least confident are deferred first.
        name: of the metric.
        head: see `HeldOut.heads`.
        rates: rising, in 0..1.
        level: of the one-sided bounds, 0.5..1.
        num_resamples: of the bootstrap, at most.
        seed: of its draws.
    """
    spec = metric(name)
    masks = [defer_lowest(confidences, rate) for rate in rates]
    nothing = np.zeros(heldout.num_units, dtype=bool)
    small = heldout.answered(nothing, head=head)
    examples = [small, heldout.answered(~nothing, head=ALL)]
    examples += [heldout.answered(mask, head=head) for mask in masks]
    statistics = [spec.prepare(one) for one in examples]
    values = np.array([statistic(small.weights) for statistic in statistics])
    drawn = resample(
        statistics, unit=small.groups, weight=small.weights, num_resamples=num_resamples, seed=seed
    )
    intervals = [summarise(float(v), drawn[:, column]) for column, v in enumerate(values)]
    sign = -1 if spec.higher_is_better is False else 1
    lost = sign * (drawn[:, 1:2] - drawn[:, 2:]) / drawn[:, 1:2]
    known = lost[~np.isnan(lost).any(axis=1)]
    bounds = np.quantile(known, level, axis=0) if len(known) else np.full(len(rates), np.inf)
    losses = sign * (values[1] - values[2:]) / values[1]
    work = heldout.work(head)
    curve = Curve(
        head=head,
        rates=np.array(rates),
        metrics=tuple(intervals[2:]),
        losses=losses,
        bounds=np.maximum(bounds, losses),
        work=np.array([float(work[mask].sum()) / max(len(mask), 1) for mask in masks]),
    )
    return curve, intervals[0], intervals[1]


def choose(
    heldout: HeldOut,
    confidences: Floats,
    name: str,
    *,
    max_loss: float | None = None,
    budget: float | None = None,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Choice:
    """The head and the deferral rate.

    Under `max_loss`: nothing is deferred where small alone passes, tested at 1 - (1 - level) / 2.
    Else, for each head, the rates are tested from all down to none, and the last one before the
    first whose bound is above `max_loss` stands (fixed-sequence testing from two starts,
    Angelopoulos et al. 2021, Learn then Test: stopping at the first failure needs no correction for
    the number of rates). For H heads these bounds are of level 1 - (1 - level) / 2 H (Bonferroni).
    Of the heads, the one whose cascade costs large the fewest candidates. All deferred as a whole
    loses nothing, so there always is one.

    Under `budget`: the head of the best metric at that rate; of those within 0.1% of it, the
    shortest.

    Args:
        heldout, confidences, name, num_resamples, seed: as of `risk_coverage`.
        max_loss: share of large's metric that may be lost, 0..1; or
        budget: share of the units that may be deferred, 0..1.
        level: certainty of the bound.
    """
    assert (max_loss is None) != (budget is None), "a bound or a budget"
    rates = _RATES if budget is None else tuple(sorted({*_RATES, budget}))
    heads, doubt = heldout.heads, (1 - level) / (2 if budget is None else 1)  # tests to share it

    def judged(head: int, rates: Sequence[float], level: float) -> tuple[Curve, Interval, Interval]:
        return risk_coverage(
            heldout, confidences, name, head=head, rates=rates, level=level,
            num_resamples=num_resamples, seed=seed,
        )  # fmt: skip

    alone, small, large = judged(ALL, (0.0,), 1 - doubt)
    curves = tuple(
        replace(curve, bounds=np.concatenate([alone.bounds, curve.bounds[1:]]))
        for curve, _, _ in (judged(head, rates, 1 - doubt / len(heads)) for head in heads)
    )
    if max_loss is not None:
        curve, step = _within_loss(curves, max_loss)
    else:
        step = rates.index(budget)
        curve = _best_at(curves, step)
    return Choice(curve.head, float(curve.rates[step]), curves, step, small, large)


def groups_to_prove(
    choice: Choice, *, max_loss: float, num_groups: int, rate: float = 0.1
) -> float:
    """About how many held-out groups would prove a bound at a deferral rate, if the cascade were in
    truth as good as large.

    The bound lies above the estimate by a width that falls as 1 / √groups, whatever the metric
    (docs/cascade.md), so G (width / max_loss)² groups bring it down to `max_loss`.

    Args:
        choice: its curve's width is taken.
        max_loss: share of large's metric; infinitely many prove 0.
        num_groups: G, of the choice.
        rate: the deferral rate; the nearest of the curve's.
    """
    curve = choice.curve
    step = int(np.argmin(np.abs(curve.rates - rate)))
    width = float(curve.bounds[step] - curve.losses[step])
    return num_groups * (width / max_loss) ** 2 if max_loss else math.inf


def _within_loss(curves: Sequence[Curve], max_loss: float) -> tuple[Curve, int]:
    options: list[tuple[float, int, Curve, int]] = []
    for curve in curves:
        passes = curve.bounds <= max_loss
        passes[-1] |= curve.head == ALL
        failed = np.flatnonzero(~passes)
        step = int(failed[-1]) + 1 if len(failed) and not passes[0] else 0
        if step < len(passes):
            options.append((float(curve.work[step]), len(options), curve, step))
    _, _, curve, step = min(options)
    return curve, step


def _best_at(curves: Sequence[Curve], step: int, *, tolerance: float = 0.001) -> Curve:
    best = min(curve.losses[step] for curve in curves)
    near = [curve for curve in curves if curve.losses[step] <= best + tolerance]
    return min(near, key=lambda curve: (curve.work[step], curve.head))
