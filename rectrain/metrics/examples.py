"""Scored rows, and the small weighted sums that metrics are made of.

Shapes: n rows, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rectrain.errors import DataError

__all__ = [
    "Examples",
    "Floats",
    "Ints",
    "Statistic",
    "group_codes",
    "ratio",
    "starts",
    "sum_by",
    "weighted_mean",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Statistic = Callable[[Floats], float]


@dataclass(frozen=True, slots=True)
class Examples:
    """Scored rows of one task.

    Args:
        label: float [n]; 0/1, or a grade >= 0 for ranking metrics.
        score: float [n], higher is better; probabilities in 0..1 for the metrics of probabilities.
        group: int64 [n], the list, user or session of a row; None: every row is its own.
        weight: float [n] >= 0; None: ones.
        rank: int64 [n] from 1, the row's place in its group's list, where the list is longer than
            the rows here (a whole catalogue, of which the rows are the relevant items); None:
            `rank_within_groups`.

    Raises:
        DataError: a score is NaN or infinite.
    """

    label: NDArray[Any]
    score: NDArray[Any]
    group: Ints | None = None
    weight: NDArray[Any] | None = None
    rank: Ints | None = None

    def __post_init__(self) -> None:
        size = len(self.label)
        for name in ("label", "score", "weight"):
            values = getattr(self, name)
            if values is not None:
                object.__setattr__(self, name, np.asarray(values, dtype=np.float64))
                assert len(values) == size, f"{name} has {len(values)} rows, label has {size}"
        bad = int(np.count_nonzero(~np.isfinite(self.score)))
        if bad:
            raise DataError(
                what="scores",
                got=f"{bad} of {size} NaN or infinite",
                rule="metrics need finite scores",
                fix="look for a diverged loss or broken input features",
            )
        codes = (
            np.arange(size) if self.group is None else np.unique(self.group, return_inverse=True)[1]
        )
        object.__setattr__(self, "group", codes.reshape(-1).astype(np.int64))
        if self.weight is None:
            object.__setattr__(self, "weight", np.ones(size))
        assert len(codes) == size, f"group has {len(codes)} rows, label has {size}"

    @property
    def groups(self) -> Ints:
        """int64 [n]: groups as codes 0..G-1."""
        assert self.group is not None
        return self.group

    @property
    def weights(self) -> Floats:
        """float64 [n]: the rows' weights."""
        assert self.weight is not None
        return self.weight

    @property
    def num_groups(self) -> int:
        """G."""
        return int(self.groups.max()) + 1 if len(self.groups) else 0


def group_codes(names: Sequence[str | None]) -> Ints:
    """int64 [n]: codes 0..G-1 of group names in alphabetical order; None is its own group."""
    keys = np.array([name or f"\0{row}" for row, name in enumerate(names)], dtype=object)
    return np.unique(keys.astype(str), return_inverse=True)[1].reshape(-1).astype(np.int64)


def ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator > 0 else float("nan")


def weighted_mean(values: Floats) -> Statistic:
    return lambda weight: ratio(float(weight @ values), float(weight.sum()))


def sum_by(values: Floats, starts: Ints) -> Floats:
    return np.add.reduceat(values, starts) if len(starts) else np.zeros(0)


def starts(*keys: NDArray[np.generic]) -> Ints:
    """Where a new run of equal keys begins in sorted arrays."""
    size = len(keys[0])
    new = np.ones(size, dtype=bool)
    if size:
        new[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    return np.flatnonzero(new)
