"""A calibration as a table and a picture: quality against deferral, and reliability."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rectrain.cascade.fit import Fitted
from rectrain.cascade.thresholds import Curve
from rectrain.metrics import Interval, metric

__all__ = ["calibration_table", "draw_calibration"]


def calibration_table(fitted: Mapping[str, Fitted]) -> str:
    """One line a task: what was chosen, and what to expect of it.

    Args:
        fitted: task -> its policy and curves.
    """
    head = [
        "task", "metric", "units", "groups", "head", "threshold", "deferred", "small [95%]",
        "large [95%]", "cascade [95%]", "lost", "at most", "ECE small", "ECE large",
    ]  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(_cells(task, one))} |" for task, one in fitted.items()]
    return "\n".join(lines)


def _cells(task: str, one: Fitted) -> list[str]:
    choice, policy = one.choice, one.policy
    curve, step = choice.curve, one.step
    errors = []
    for name in ("small", "large"):
        found = one.calibration.get(name)
        errors.append("-" if found is None else f"{found[0].error:.4f} → {found[1].error:.4f}")
    return [
        task, one.metric, f"{one.num_units:,}", f"{one.num_groups:,}", str(policy.head or "all"),
        f"{policy.threshold:.4g}", f"{policy.deferred:.1%}", _interval(choice.small),
        _interval(choice.large), _interval(curve.metrics[step]), f"{curve.losses[step]:.2%}",
        f"{curve.bounds[step]:.2%}", *errors,
    ]  # fmt: skip


def _interval(value: Interval) -> str:
    if math.isnan(value.low):
        return f"{value.value:.4f}"
    return f"{value.value:.4f} [{value.low:.4f}, {value.high:.4f}]"


def draw_calibration(fitted: Mapping[str, Fitted]) -> bytes:
    """A PNG, a line a task: its risk–coverage curve; and beside it its reliability, or, of lists,
    what each head loses against the candidates that large scores.

    Args:
        fitted: task -> its policy and curves.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawing, axes = pyplot.subplots(
        len(fitted), 2, figsize=(10, 3.6 * len(fitted)), layout="constrained", squeeze=False
    )
    for (task, one), (left, right) in zip(fitted.items(), axes, strict=True):
        _draw_curve(left, task, one)
        if one.calibration:
            _draw_reliability(right, one)
        else:
            _draw_work(right, one)
    image = io.BytesIO()
    drawing.savefig(image, format="png", dpi=100)
    pyplot.close(drawing)
    return image.getvalue()


def _draw_curve(axis: Any, task: str, one: Fitted) -> None:
    """The cascade's metric, and what its bound leaves of it: nearer than the table's intervals, for
    both models answered the same units."""
    choice, curve = one.choice, one.choice.curve
    values = np.array([interval.value for interval in curve.metrics])
    large, sign = choice.large.value, -1 if metric(one.metric).higher_is_better is False else 1
    sure = values + (curve.losses - curve.bounds) * large * sign
    axis.plot(curve.rates, values, label=f"cascade, head {choice.head or 'all'}")
    axis.fill_between(
        curve.rates, sure, values, alpha=0.2, linewidth=0, label="what its bound leaves"
    )
    axis.axhline(large, color="black", linewidth=0.8, label="large alone")
    axis.axhline(
        choice.small.value, color="black", linewidth=0.8, linestyle=":", label="small alone"
    )
    axis.plot(
        one.policy.deferred, values[one.step], "o", color="black",
        label=f"chosen: {one.policy.deferred:.1%} deferred",
    )  # fmt: skip
    axis.set_title(f"{task}: {one.num_units:,} held-out units", fontsize=10)
    axis.set_xlabel("share deferred to large (1 - coverage)")
    axis.set_ylabel(one.metric)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def _draw_reliability(axis: Any, one: Fitted) -> None:
    highest = 0.0
    for (name, pair), color in zip(
        one.calibration.items(), ("tab:blue", "tab:orange"), strict=True
    ):
        for when, found, style in zip(("before", "after"), pair, ("o:", "o-"), strict=True):
            label = f"{name} {when}: ECE {found.error:.4f}"
            axis.plot(
                found.predicted, found.observed, style, color=color, markersize=3, label=label,
                alpha=0.5 if when == "before" else 1.0,
            )  # fmt: skip
            highest = max(highest, float(found.predicted.max()), float(found.observed.max()))
    axis.plot([0, highest], [0, highest], color="black", linewidth=0.8)
    axis.set_xlabel("predicted probability")
    axis.set_ylabel("share of positives")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def _draw_work(axis: Any, one: Fitted) -> None:
    def draw(curve: Curve) -> None:
        chosen = curve.head == one.choice.head
        axis.plot(
            curve.work, 100 * curve.losses, label=f"head {curve.head or 'all'}",
            linewidth=2.0 if chosen else 1.0,
        )  # fmt: skip

    for curve in one.choice.curves:
        draw(curve)
    step, curve = one.step, one.choice.curve
    axis.plot(curve.work[step], 100 * curve.losses[step], "o", color="black", label="chosen")
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xscale("symlog", linthresh=1)  # from none to a whole catalogue
    axis.set_xlim(left=0)
    axis.set_xlabel("candidates that large scores, a list")
    axis.set_ylabel(f"lost of large's {one.metric}, %")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
