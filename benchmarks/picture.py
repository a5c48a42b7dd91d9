"""Differences with their intervals, and what each step of a way comes to, as pictures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from benchmarks.table import Figure
from rectrain.metrics import Interval

__all__ = ["draw_differences", "draw_steps"]


def draw_differences(path: Path, panels: Sequence[tuple[str, Sequence[Figure]]]) -> None:
    """Draws each panel's figures as points with bars, beside a line at zero.

    Args:
        path: of the PNG; its directory is made.
        panels: (title, figures), a figure's id being its label; intervals that exclude zero have
            a colour.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    height = 1.2 + 0.3 * max(len(figures) for _, figures in panels)
    drawing, axes = plt.subplots(
        1, len(panels), figsize=(5.2 * len(panels), height), squeeze=False, layout="constrained"
    )
    for axis, (title, figures) in zip(axes[0], panels, strict=True):
        axis.axvline(0, color="0.6", linewidth=1)
        for place, figure in enumerate(figures):
            color = "0.55" if figure.low <= 0 <= figure.high else "tab:blue"
            if figure.high < 0:
                color = "tab:red"
            axis.plot([figure.low, figure.high], [place, place], color=color, linewidth=2)
            axis.plot([figure.value], [place], "o", color=color)
        axis.set_yticks(
            range(len(figures)),
            [figure.id for figure in figures],
        )
        axis.invert_yaxis()
        axis.set_title(title)
        axis.set_xlabel("difference, 95% interval")
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=110)
    plt.close(drawing)


def draw_steps(
    path: Path,
    shares: Mapping[str, Mapping[str, Interval]],
    times: Mapping[str, Mapping[str, float]],
    *,
    apart: Collection[str],
    wanted: float,
) -> None:
    """Draws what is kept at each step of a way, beside what is saved.

    Args:
        path: of the PNG; its directory is made.
        shares: line -> step -> share that is kept, with its interval.
        times: line -> step -> how many times over; on a logarithmic axis.
        apart: steps that are no part of the way: no line leads there.
        wanted: the least share that is wanted.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    drawing, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    steps = list(next(iter(times.values())))
    for number, (label, found) in enumerate(shares.items()):
        at = [steps.index(step) + 0.07 * number for step in found]
        values = [one.value for one in found.values()]
        bars = [[max(0.0, one.value - one.low) for one in found.values()],
                [max(0.0, one.high - one.value) for one in found.values()]]  # fmt: skip
        color = f"C{number}"
        left.errorbar(at, values, yerr=bars, fmt="o", color=color, markersize=4, label=label)
        way = [place for place, step in enumerate(found) if step not in apart]
        left.plot([at[p] for p in way], [values[p] for p in way], color=color, linewidth=1)
    known = [one.value for found in shares.values() for one in found.values()] or [0.0, 1.0]
    left.set_ylim(min(known) - 0.1, max(known) + 0.1)  # few groups have intervals without end
    left.axhline(wanted, color="0.6", linestyle="--", linewidth=1)
    left.set_ylabel("share of the large model's lift, 95% interval")
    for number, (label, numbers) in enumerate(times.items()):
        at = [steps.index(step) for step in numbers]
        way = [place for place, step in enumerate(numbers) if step not in apart]
        values = list(numbers.values())
        right.plot(at, values, "o", color=f"C{number}", label=label)
        right.plot([at[p] for p in way], [values[p] for p in way], color=f"C{number}", linewidth=1)
    right.set_yscale("log")
    right.set_ylabel("times the large model in torch, fp32")
    for axis in (left, right):
        axis.set_xticks(range(len(steps)), steps, rotation=30, ha="right")
        axis.grid(alpha=0.3)
        if axis.has_data():
            axis.legend(fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=110)
    plt.close(drawing)
