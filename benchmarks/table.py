"""Figures beside their peers: summarise them, print them, keep them as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

__all__ = ["Figure", "paired_ratio", "print_table", "write_figures"]


@dataclass(frozen=True)
class Figure:
    """One figure of a benchmark.

    Attributes:
        id: its name, such as "T1/padded".
        value: the median over rounds.
        unit: of value, low and high.
        peer: what it is compared with, and the peer's own median.
        low: the smallest of the rounds.
        high: the largest of the rounds.
        n: rounds.
    """

    id: str
    value: float
    unit: str
    peer: str
    low: float
    high: float
    n: int

    @classmethod
    def of_rounds(cls, name: str, values: Sequence[float], *, unit: str, peer: str) -> Figure:
        """The figure of one measurement a round."""
        return cls(name, median(values), unit, peer, min(values), max(values), len(values))


def paired_ratio(
    name: str, *, ours: Sequence[float], peer: Sequence[float], unit: str, peer_name: str
) -> Figure:
    """Our figure over the peer's, round by round (a round ran both, one after the other).

    Args:
        name: the figure's id.
        ours: one measurement a round.
        peer: the peer's, in the same rounds.
        unit: of the measurements.
        peer_name: what the peer is.
    """
    ratios = [mine / theirs for mine, theirs in zip(ours, peer, strict=True)]
    return Figure.of_rounds(
        name,
        ratios,
        unit=f"x {unit} (ours {median(ours):,.1f})",
        peer=f"{peer_name} ({median(peer):,.1f})",
    )


def print_table(figures: Sequence[Figure]) -> None:
    """Prints a markdown table, one figure a row."""
    print("| id | value | low | high | n | unit | peer |")
    print("|---|---|---|---|---|---|---|")
    for figure in figures:
        cells = (f"{number:.3f}" for number in (figure.value, figure.low, figure.high))
        print(f"| {figure.id} | {' | '.join(cells)} | {figure.n} | {figure.unit} | {figure.peer} |")


def write_figures(path: Path, figures: Sequence[Figure]) -> None:
    """Writes the figures as a JSON list; makes the directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(figure) for figure in figures], indent=1) + "\n")
