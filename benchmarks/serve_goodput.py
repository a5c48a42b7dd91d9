"""How much a server answers in time: goodput at p99 within a bound, by search over rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from benchmarks.load import Generator, Load, Outcome, Request, Summary, summarise

__all__ = ["BOUND_S", "Goodput", "Tried", "find_goodput"]

BOUND_S = 0.1
_LOWEST, _HIGHEST = 0.05, 1.2  # of the capacity: a server's own work may be many times the model's
_OVERLOADS = (1.5, 2.0)  # of the best rate that holds: a server that refuses in time gains there
_FEWEST_REQUESTS = 300  # of each rate: of fewer one late one decides
_PATIENCE_S = 10.0

Send = Callable[[Load, Sequence[Request]], list[Outcome]]


@dataclass(frozen=True)
class Tried:
    """One rate.

    Attributes:
        rate: requests a second that were sent, on average.
        summary: of their outcomes.
    """

    rate: float
    summary: Summary

    @property
    def holds(self) -> bool:
        """Whether 99 of 100 requests were answered within the bound, refused ones counted too."""
        return self.summary.num_good >= 0.99 * self.summary.num_requests

    @property
    def holds_answered(self) -> bool:
        """Whether 99 of 100 answers came within the bound; refusals are no answers."""
        return 0 < 0.99 * self.summary.num_ok <= self.summary.num_good


@dataclass(frozen=True)
class Goodput:
    """The best of the rates that were tried.

    Attributes:
        answered: answers a second within the bound, where 99 of 100 answers are; what was refused
            at once may be asked elsewhere.
        every: the same where 99 of 100 of all requests must be.
        best: the rate of `answered`; of none, the lowest.
    """

    answered: float
    every: float
    best: Tried


def find_goodput(
    generator: Generator,
    load: Load,
    requests: Sequence[Request],
    *,
    capacity: float,
    halvings: int,
) -> Goodput:
    """Tries rates: halves the range of those that hold, then goes beyond the best of them.

    Halves are of the range's logarithm, so that slow servers are told apart as finely as fast ones.

    Args:
        generator: sends.
        load: an open one; its rate is set here, its duration is the least of each rate.
        requests: to send.
        capacity: requests a second that the model alone could do, about.
        halvings: of the range from 0.05 to 1.2 times that.
    """
    tried: list[Tried] = []

    def attempt(rate: float) -> Tried:
        sent = replace(
            load,
            rate=rate,
            duration_s=max(load.duration_s, _FEWEST_REQUESTS / rate),
            timeout_s=_PATIENCE_S,
            prefix=f"{load.prefix}-{len(tried)}",
        )
        found = Tried(rate, summarise(generator.run(sent, requests), within_s=BOUND_S))
        tried.append(found)
        return found

    low, high = _LOWEST * capacity, _HIGHEST * capacity
    for _ in range(halvings):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if attempt(middle).holds else (low, middle)
    for share in _OVERLOADS:
        attempt(share * low)
    return best_of(tried)


def best_of(tried: Sequence[Tried]) -> Goodput:
    """The best of rates that were tried, at least one."""
    answered = [one for one in tried if one.holds_answered]
    every = [one for one in tried if one.holds]
    best = max(answered, key=lambda one: one.summary.good_per_s, default=min(tried, key=_rate))
    return Goodput(
        answered=best.summary.good_per_s if answered else 0.0,
        every=max((one.summary.good_per_s for one in every), default=0.0),
        best=best,
    )


def _rate(tried: Tried) -> float:
    return tried.rate
