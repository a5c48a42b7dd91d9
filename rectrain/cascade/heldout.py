"""What both models said of held-out requests, and what a cascade of them would have answered.

A unit is what is deferred as a whole: a row of a 0/1 task, a list of the others.

Shapes: n rows, Q units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rectrain.metrics import Examples, rank_within_groups

__all__ = ["ALL", "HeldOut", "HeldOutLists", "HeldOutRows", "head_ranks"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

ALL = 0  # the head of a list that large orders as a whole


class HeldOut(Protocol):
    """Units of one task that both models have answered."""

    @property
    def num_units(self) -> int:
        """Q."""

    @property
    def heads(self) -> tuple[int, ...]:
        """Heads that a cascade may have; `ALL` among them."""

    def answered(self, deferred: Bools, *, head: int) -> Examples:
        """The cascade's scored rows where the units `deferred`, bool [Q], went to large."""

    def work(self, head: int) -> Floats:
        """float64 [Q]: candidates that large scores where a unit is deferred."""


@dataclass(frozen=True)
class HeldOutRows:
    """Rows of a 0/1 task.

    Attributes:
        small, large: float64 [n], calibrated probabilities.
        labels: float64 [n], 0 or 1.
        weights: float64 [n].
        groups: int64 [n], the user or session: what a bootstrap draws as a whole.
    """

    small: Floats
    large: Floats
    labels: Floats
    weights: Floats
    groups: Ints

    @property
    def num_units(self) -> int:
        """n."""
        return len(self.labels)

    @property
    def heads(self) -> tuple[int, ...]:
        """A row has no head."""
        return (ALL,)

    def answered(self, deferred: Bools, *, head: int = ALL) -> Examples:
        """See `HeldOut`."""
        return Examples(
            label=self.labels,
            score=np.where(deferred, self.large, self.small),
            group=self.groups,
            weight=self.weights,
        )

    def work(self, head: int = ALL) -> Floats:
        """See `HeldOut`."""
        return np.ones(len(self.labels))


@dataclass(frozen=True)
class HeldOutLists:
    """Ranked lists, by the places of their judged rows.

    Attributes:
        labels: float64 [n], grades.
        weights: float64 [n].
        lists: int64 [n], 0..Q-1.
        small: int64 [n], places in small's order, from 1.
        large: head -> int64 [n], places where large orders small's best `head`, the others staying
            behind; `ALL`: where it orders the whole list.
        sizes: int64 [Q], candidates of a list.
    """

    labels: Floats
    weights: Floats
    lists: Ints
    small: Ints
    large: Mapping[int, Ints]
    sizes: Ints

    @property
    def num_units(self) -> int:
        """Q."""
        return len(self.sizes)

    @property
    def heads(self) -> tuple[int, ...]:
        """Those of `large`."""
        return tuple(self.large)

    def answered(self, deferred: Bools, *, head: int = ALL) -> Examples:
        """See `HeldOut`."""
        place = np.where(deferred[self.lists], self.large[head], self.small)
        return Examples(
            label=self.labels, score=-place, group=self.lists, weight=self.weights, rank=place
        )

    def work(self, head: int = ALL) -> Floats:
        """See `HeldOut`."""
        sizes = self.sizes.astype(np.float64)
        return np.minimum(sizes, head) if head else sizes


def head_ranks(small: Ints, large: Floats, lists: Ints, *, head: int) -> Ints:
    """Places where large orders small's best `head` of each list and the others stay.

    Args:
        small: int64 [n], places in small's order; all of a list's first `head` places are there.
        large: float64 [n], large's scores.
        lists: int64 [n].
        head: how many; `ALL` for the whole list.

    Returns:
        int64 [n], from 1.
    """
    chosen = small <= (head or np.iinfo(np.int64).max)
    place = small.copy()
    place[chosen] = rank_within_groups(large[chosen], lists[chosen])
    return place
