"""What a run's validations decide: when its learning rate falls, and when it ends.

All are pure functions of the values so far, in order. Every checkpoint holds these, so a run that
goes on decides as it would have without the interruption.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rectrain.train.config import TrainConfig

__all__ = ["History", "has_stopped", "num_reductions", "num_stale", "read_history", "watched_value"]

History = tuple[tuple[int, float], ...]
"""Step and watched value of each validation; higher is better."""


def watched_value(values: Mapping[str, float], *, watch: str) -> float | None:
    """The value that a run goes by, higher is better: a task's, or the mean of those known.

    Args:
        values: task -> finite value of its metric; of pre-training "loss", which counts negative.
        watch: a task, or "mean".
    """
    if "loss" in values:
        return -values["loss"]
    if watch != "mean":
        return values.get(watch)
    return sum(values.values()) / len(values) if values else None


def read_history(meta: Mapping[str, Any]) -> History:
    """The validations that a checkpoint's meta.json tells of."""
    return tuple((int(step), float(value)) for step, value in meta.get("history", ()))


def num_stale(values: Sequence[float], *, min_delta: float) -> int:
    """How many of the last validations in a row have not beaten the best before by min_delta."""
    stale = 0
    for is_gain in _gains(values, min_delta=min_delta):
        stale = 0 if is_gain else stale + 1
    return stale


def num_reductions(values: Sequence[float], *, patience: int, min_delta: float) -> int:
    """How often the rate has fallen: whenever `patience` validations in a row were no gain."""
    stale = reductions = 0
    for is_gain in _gains(values, min_delta=min_delta):
        stale = 0 if is_gain else stale + 1
        if stale == patience:
            stale, reductions = 0, reductions + 1
    return reductions


def _gains(values: Iterable[float], *, min_delta: float) -> Iterable[bool]:
    best = -float("inf")
    for value in values:
        is_gain = value > best + min_delta
        best = value if is_gain else best
        yield is_gain


def has_stopped(history: History, *, train: TrainConfig) -> bool:
    """Whether early stopping ends the run after these validations."""
    if train.early_stopping is None:
        return False
    values = [value for _, value in history]
    return num_stale(values, min_delta=train.min_delta) >= train.early_stopping
