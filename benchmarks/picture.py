"""Differences with their intervals, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.table import Figure

__all__ = ["draw_differences"]


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
