"""How many machines carry a route's requests, and which of them are paid for in which month.

A *route* is a way to answer: the large model, the small one, or the small one with a share of the
requests deferred to the large one (a threshold of the policy). Its stages are the models that it
asks. One process of one core answers `rate` requests a second of a stage while 99 of 100 come
within the latency limit: a measured figure, below the peak. So of λ requests a second

    processes = Σ over stages of ⌈λ · share / (rate · speed)⌉, at least one each; none where λ = 0
    machines  = ⌈processes / slots⌉ + spares,   slots = min(hardware threads, memory / largest)

and of machines that may be taken back, interrupted λᵢ times an hour and replaced after τ hours,
each is away for the share q = λᵢτ / (1 + λᵢτ) of the time: spares are the fewest with
P(Binomial(machines, q) > spares) ≤ 1 - availability, interruptions being independent.

Machines on demand and spot ones come and go; others are held for a term. Where fewer run in a month
than it needs at most, the missing ones are taken, each for its term from then on.

At its rate a process works for the share `busy` of the time. It holds its thread all of the time,
and draws energy for its work.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from scipy.stats import binom  # type: ignore[import-untyped]

from rectrain.cost.traffic import Floats

__all__ = [
    "PURCHASES",
    "Purchase",
    "Route",
    "Server",
    "Stage",
    "capacity",
    "contracts",
    "held",
    "num_servers",
    "num_slots",
    "processes",
    "running",
    "spares",
]

Purchase = Literal["on demand", "reserved", "spot", "own"]
PURCHASES: tuple[Purchase, ...] = get_args(Purchase)

_ROUNDING = 1e-9  # a need of 2.0000000001 processes is one of 2


@dataclass(frozen=True)
class Stage:
    """A model that a route asks.

    Attributes:
        model: its name.
        share: of the requests that ask it, 0..1.
        rate: of such requests, that a process of one core answers a second within the limit.
        memory_bytes: of a process.
    """

    model: str
    share: float
    rate: float
    memory_bytes: float = 0.0


@dataclass(frozen=True)
class Route:
    """A way to answer.

    Attributes:
        name: for people.
        stages: the models that it asks.
        deferred: the share of requests that the large model sees.
        most_deferred: of the task of which it sees most; 0: of all tasks alike.
        busy: share of its time for which a process works, at the stages' rates.
        p99_ms: 99 of 100 answers come within this, at the stages' rates.
        worth_per_1000: what 1,000 answers are worth.
        monthly: what it costs a month, whatever answers: trainings and people.
    """

    name: str
    stages: tuple[Stage, ...]
    deferred: float = 0.0
    p99_ms: float = 0.0
    worth_per_1000: float = 0.0
    monthly: float = 0.0
    busy: float = 1.0
    most_deferred: float = 0.0

    @property
    def core_s(self) -> float:
        """Seconds for which a request holds a core, those in which it waits for others included."""
        return sum(stage.share / stage.rate for stage in self.stages)

    @property
    def busy_s(self) -> float:
        """Seconds for which a request keeps a core at work."""
        return self.core_s * self.busy


@dataclass(frozen=True)
class Server:
    """A machine, bought in one way.

    Attributes:
        name: of the machine.
        threads: hardware threads, each of which runs one process.
        hourly: its price, used or not.
        speed: of one thread, over the one that was measured.
        memory_bytes: of the machine.
        purchase: the way; "spot" may be taken back.
        interruptions_per_hour: how often it is.
        term_months: for which one is held, if it is; see `is_held`.
        load_hourly: what an hour under full load costs more: energy.
        source: of its price, and the date.
    """

    name: str
    threads: int
    hourly: float
    speed: float = 1.0
    memory_bytes: float = math.inf
    purchase: Purchase = "on demand"
    interruptions_per_hour: float = 0.0
    term_months: int = 1
    load_hourly: float = 0.0
    source: str = ""

    @property
    def is_held(self) -> bool:
        """Whether it is paid for its term, however short; others go when they aren't needed."""
        return self.purchase in ("reserved", "own")

    @property
    def device_hour(self) -> float:
        """What an hour of the measured device costs, under full load."""
        return (self.hourly + self.load_hourly) / (self.threads * self.speed)


def _ceil(values: Floats) -> Floats:
    return np.maximum(np.ceil(values - _ROUNDING), 0.0)


def processes(route: Route, rates: Floats, *, speed: float = 1.0) -> Floats:
    """Of each stage, for so many requests a second; at least one of a stage that is asked.

    Args:
        route: that is run.
        rates: float64 [...], requests a second.
        speed: of the machines.

    Returns:
        float64 [stages, ...], whole numbers.
    """
    rates = np.asarray(rates, dtype=np.float64)
    return np.stack(
        [
            np.where(
                (rates > 0) & (stage.share > 0),
                np.maximum(_ceil(rates * stage.share / (stage.rate * speed)), 1.0),
                0.0,
            )
            for stage in route.stages
        ]
    )


def num_slots(server: Server, route: Route) -> int:
    """Processes that a machine holds: one a thread, as far as the largest fits that often."""
    largest = max((stage.memory_bytes for stage in route.stages if stage.share), default=0.0)
    return int(min(server.threads, server.memory_bytes // largest if largest else math.inf))


def capacity(server: Server, route: Route, count: int) -> float:
    """The most requests a second that so many machines carry: whole processes of each stage.

    Args:
        server, route: what runs where.
        count: of machines, without spares.
    """
    slots = count * num_slots(server, route)
    full = [stage.rate * server.speed / stage.share for stage in route.stages if stage.share]
    if slots < len(full):
        return 0.0
    # One stage's processes are full then. Were those of all, this would be the rate; each of the
    # others holds back less than a process.
    most = slots / sum(1 / one for one in full)
    places = [(one, math.floor(most / one + _ROUNDING)) for one in full]
    rates = np.array(
        [one * k for one, last in places for k in range(max(1, last - len(full)), last + 1)]
    )
    fits = processes(route, rates, speed=server.speed).sum(axis=0) <= slots
    return float(rates[fits].max())


def num_servers(
    server: Server, route: Route, rates: Floats, *, availability: float, restart_h: float
) -> Floats | None:
    """Machines that must run, spares included; None: one process does not fit.

    Args:
        server, route: what runs where.
        rates: float64 [...], requests a second.
        availability: share of the time in which enough machines run.
        restart_h: hours until a machine that was taken back is replaced.

    Returns:
        float64 [...], whole numbers.
    """
    slots = num_slots(server, route)
    if slots < 1:
        return None
    needed = _ceil(processes(route, rates, speed=server.speed).sum(axis=0) / slots)
    if server.purchase != "spot":
        return needed
    sizes, places = np.unique(needed, return_inverse=True)
    extra = [spares(int(n), server, availability=availability, restart_h=restart_h) for n in sizes]
    return np.asarray(needed + np.array(extra, dtype=np.float64)[places].reshape(needed.shape))


def spares(needed: int, server: Server, *, availability: float, restart_h: float) -> int:
    """Further machines, so that enough run for this share of the time; see the module's docstring.

    Args:
        needed: machines that must run.
        server: what they are.
        availability: share of the time, below 1.
        restart_h: hours until one is replaced.
    """
    away = server.interruptions_per_hour * restart_h
    if server.purchase != "spot" or not away or not needed:
        return 0
    return _spares(needed, away / (1 + away), availability)


@lru_cache(maxsize=1 << 14)
def _spares(needed: int, q: float, availability: float) -> int:
    def share(extra: int) -> float:  # of the time in which no more are away than are spare
        return float(binom.cdf(extra, needed + extra, q))

    most = 1
    while share(most) < availability:
        most *= 2
    return bisect_left(range(most), availability, key=share)


# --- which are paid for --------------------------------------------------------------------------


def contracts(most: Floats, term_months: int) -> Floats:
    """How many machines are taken in each month, each of them for a term.

    Args:
        most: float64 [H], that each month needs.
        term_months: of each.

    Returns:
        float64 [H].
    """
    taken = np.zeros_like(most)
    for month, need in enumerate(most):
        still = taken[max(0, month - term_months + 1) : month].sum()
        taken[month] = max(need - still, 0.0)
    return taken


def running(taken: Floats, term_months: int) -> Floats:
    """float64 [H], the sum in each month of what was taken, float64 [H], within the last term."""
    return np.convolve(taken, np.ones(term_months))[: len(taken)]


def held(server: Server, needed: Floats) -> Floats:
    """Machines that are paid for, on average over each month.

    Args:
        server: what they are.
        needed: float64 [H, hours].

    Returns:
        float64 [H].
    """
    if not server.is_held:
        return np.asarray(needed.mean(axis=1))
    return running(contracts(needed.max(axis=1), server.term_months), server.term_months)
