"""What a trial's measurements are worth: pure functions of facts, prices and limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from rectrain.errors import DataError
from rectrain.strict_json import number
from rectrain.tune.config import LimitsConfig, PriceConfig
from rectrain.tune.trials import Objectives

__all__ = ["Facts", "Standard", "cost_per_1000", "excesses", "lifts", "objectives"]


@dataclass(frozen=True)
class Standard:
    """A task's two fixed points on the validation rows.

    Attributes:
        metric: name of its primary metric.
        trivial: what a random order earns: a lift of 0.
        teacher: what the teacher earns: a lift of 1.
        error: standard error of the teacher's value.
    """

    metric: str
    trivial: float
    teacher: float
    error: float

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """From its fields, with null for NaN."""
        values = {name: number(value) for name, value in stored.items() if name != "metric"}
        return cls(metric=stored["metric"], **values)

    @property
    def tells(self) -> bool:
        """Whether the teacher's lift is more than chance, so that shares of it say something."""
        return self.teacher - self.trivial > self.error


@dataclass(frozen=True)
class Facts:
    """What was measured of a model.

    Attributes:
        values: task -> its primary metric on validation rows.
        request_s: seconds of a request on one stream, on average.
        p99_ms: 99th percentile over requests, in milliseconds.
        threads: that a request keeps busy.
        num_bytes: of all weights in fp32.
    """

    values: Mapping[str, float]
    request_s: float
    p99_ms: float
    threads: int
    num_bytes: int


def lifts(values: Mapping[str, float], standards: Mapping[str, Standard]) -> dict[str, float]:
    """Share of the teacher's lift over a random order: (value − trivial) / (teacher − trivial).

    Args:
        values: task -> primary metric.
        standards: task -> the two fixed points on the same rows.

    Returns:
        Of the tasks in which the teacher itself is better than chance by a standard error.

    Raises:
        DataError: there is no such task.
    """
    found = {
        task: (values[task] - one.trivial) / (one.teacher - one.trivial)
        for task, one in standards.items()
        if one.tells
    }
    if not found:
        raise DataError(
            what="the teacher's validation metrics",
            got=", ".join(f"{task} {one.teacher:.4f}" for task, one in standards.items()),
            rule="at least one must be better than a random order by a standard error",
            fix="give a teacher that was trained longer, or more validation rows",
        )
    return found


def cost_per_1000(request_s: float, *, threads: int, price: PriceConfig) -> float:
    """Money for 1,000 requests one after the other: 1000 · request_s · threads · core_hour / 3600.

    Left out: memory, and the time between requests; `rectrain.cost` has these for a whole service.

    Args:
        request_s: device time of one, in seconds.
        threads: that it keeps busy.
        price: of a core.
    """
    return 1000 * request_s * threads * price.core_hour / 3600


def objectives(
    facts: Facts, *, standards: Mapping[str, Standard], price: PriceConfig
) -> Objectives:
    """The three objectives.

    Raises:
        DataError: see `lifts`.
    """
    shares = lifts(facts.values, standards)
    return Objectives(
        mean_lift=sum(shares.values()) / len(shares),
        cost_per_1000=cost_per_1000(facts.request_s, threads=facts.threads, price=price),
        p99_ms=facts.p99_ms,
    )


def excesses(facts: Facts, found: Objectives, *, limits: LimitsConfig) -> dict[str, float]:
    """By what share each limit is exceeded; at most 0 where it is kept.

    Args:
        facts: of the model.
        found: its objectives.
        limits: those that are None bind nothing.
    """
    values = {
        "p99_ms": (found.p99_ms, limits.p99_ms),
        "megabytes": (facts.num_bytes / 1e6, limits.megabytes),
        "cost_per_1000": (found.cost_per_1000, limits.cost_per_1000),
    }
    return {
        name: value / bound - 1.0 for name, (value, bound) in values.items() if bound is not None
    }
