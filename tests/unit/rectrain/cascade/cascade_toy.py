"""Policies of two tasks, small enough to follow by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rectrain.cascade import Calibration, Calibrations, ListDoubt, RowDoubt, TaskPolicy

PLAIN = Calibration("temperature", 1.0, 0.0)
DECILES = tuple(place / 10 for place in range(1, 10))

#: Confidence e^-(1 - |logit|), at most 1: a probability of 1/2 has 0.37, of σ(±1) and beyond 1.
ROWS = TaskPolicy(
    task="risk",
    doubt=RowDoubt(((-1.0, 0.0), (0.0, 1.0), (1.0, 0.0)), scale=1.0),
    threshold=0.9,
    bound="loss",
    budget=0.5,
    rate=0.2,
    deciles=DECILES,
    calibration=Calibrations(small=PLAIN, large=Calibration("temperature", 2.0, 0.0)),
)
LISTS = TaskPolicy(
    task="search_ranking",
    doubt=ListDoubt(temperature=1.0, noise=0.5, places=10, depth=100, scale=0.02),
    threshold=0.5,
    bound="loss",
    budget=0.5,
    rate=0.2,
    deciles=DECILES,
    head=3,
)


def changed(policy: TaskPolicy, **fields: Any) -> TaskPolicy:
    """The policy with other values."""
    return replace(policy, **fields)
