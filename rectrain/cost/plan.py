"""What to run: the best machine, number, route and purchase under a budget and a latency limit.

A *route* is a way to answer: the large model, the small one, or the small one with a share of the
requests deferred to the large one (a threshold of the policy). Its stages are the models that it
asks. One process of one core answers `rate` requests a second of a stage while 99 of 100 come
within the latency limit: a measured figure, below the peak. So of the peak's rate λ

    processes = Σ over stages of ⌈λ · share / (rate · speed)⌉
    machines  = ⌈processes / slots⌉ + spares,   slots = min(hardware threads, memory / largest)

and of machines that may be taken back, interrupted λᵢ times an hour and replaced after τ hours,
each is away for the share q = λᵢτ / (1 + λᵢτ) of the time: spares are the fewest with
P(Binomial(machines, q) > spares) ≤ 1 - availability, interruptions being independent.

    net = worth of the answers - machines · price of an hour · 730

The best plan has the highest net; of equals the cheaper one, then fewer machines, on demand before
spot, the smaller share deferred, and names in their order. The search is over all of them: more
machines than needed only cost more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple

from rectrain.cost.prices import HOURS_PER_MONTH
from rectrain.cost.traffic import SECONDS_PER_MONTH

__all__ = [
    "ROUNDING",
    "Bounds",
    "Change",
    "Choice",
    "Plan",
    "Purchase",
    "Route",
    "Server",
    "Stage",
    "choose",
    "num_servers",
    "num_slots",
    "plans",
    "rivals",
    "spares",
    "ties",
]

Purchase = Literal["on demand", "spot"]

ROUNDING = 1e-9  # a need of 2.0000000001 processes is one of 2
_MOST_SPARES = 1000
_GRID, _RANGE = 240, 1000.0  # traffic that `ties` looks at: a thousandth to a thousandfold
_EQUAL = 1e-12  # nets that differ by less, as a share of the cost, are equal


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
        p99_ms: 99 of 100 answers come within this, at the stages' rates.
        worth_per_1000: what 1,000 answers are worth.
    """

    name: str
    stages: tuple[Stage, ...]
    deferred: float = 0.0
    p99_ms: float = 0.0
    worth_per_1000: float = 0.0

    @property
    def core_s(self) -> float:
        """Seconds of a core for a request, at the stages' rates."""
        return sum(stage.share / stage.rate for stage in self.stages)


@dataclass(frozen=True)
class Server:
    """A machine, bought in one way.

    Attributes:
        name: of the machine.
        threads: hardware threads, each of which runs one process.
        speed: of one, over the one that was measured.
        memory_bytes: of the machine.
        hourly: its price.
        is_spot: whether it may be taken back.
        interruptions_per_hour: how often it is.
    """

    name: str
    threads: int
    hourly: float
    speed: float = 1.0
    memory_bytes: float = math.inf
    is_spot: bool = False
    interruptions_per_hour: float = 0.0

    @property
    def purchase(self) -> Purchase:
        """In words."""
        return "spot" if self.is_spot else "on demand"


@dataclass(frozen=True)
class Bounds:
    """What a plan must keep to.

    Attributes:
        mean_rate: requests a second, which are worth something.
        peak_rate: requests a second, which must be answered in time.
        latency_ms: 99 of 100 answers come within this.
        budget: a month, of the machines.
        availability: share of the time in which enough machines run.
        restart_h: hours until a machine that was taken back is replaced.
    """

    mean_rate: float
    peak_rate: float
    latency_ms: float = math.inf
    budget: float = math.inf
    availability: float = 0.9999
    restart_h: float = 1 / 6

    def times(self, factor: float) -> Bounds:
        """The same at a multiple of the traffic; the budget stays."""
        return replace(self, mean_rate=self.mean_rate * factor, peak_rate=self.peak_rate * factor)


@dataclass(frozen=True)
class Plan:
    """Machines and a route, with what they cost and bring a month.

    Attributes:
        server, route: what runs where.
        num_servers: machines, spares included.
        num_processes: of each of the route's stages.
        cost, worth: a month.
    """

    server: Server
    route: Route
    num_servers: int
    num_processes: tuple[int, ...]
    cost: float
    worth: float

    @property
    def net(self) -> float:
        """Worth less cost."""
        return self.worth - self.cost

    @property
    def key(self) -> tuple[str, bool, str]:
        """What makes it another plan than one of another number."""
        return self.server.name, self.server.is_spot, self.route.name

    def __str__(self) -> str:
        server = self.server
        return f"{self.num_servers} × {server.name} {server.purchase}, {self.route.name}"


class Choice(NamedTuple):
    """best: None where no plan keeps to the bounds; second: the best with another machine, route or
    purchase."""

    best: Plan | None
    second: Plan | None


@dataclass(frozen=True)
class Change:
    """What would have to change for a rival to win; None where nothing of the kind does.

    Attributes:
        rival_hourly: price of an hour of its machine, below which it wins.
        best_hourly: that of the best plan's machine, above which the rival wins.
        traffic_up, traffic_down: the nearest multiples of the traffic, above and below 1.
        worth: multiple of what answers are worth.
    """

    rival_hourly: float | None
    best_hourly: float | None
    traffic_up: float | None
    traffic_down: float | None
    worth: float | None


def _ceil(value: float) -> int:
    return max(0, math.ceil(value - ROUNDING))


@lru_cache(maxsize=1 << 14)
def spares(needed: int, server: Server, *, availability: float, restart_h: float) -> int:
    """Further machines, so that enough run for this share of the time; see the module's docstring.

    Args:
        needed: machines that must run.
        server: what they are.
        availability: share of the time, below 1.
        restart_h: hours until one is replaced.
    """
    away = server.interruptions_per_hour * restart_h
    if not server.is_spot or not away or not needed:
        return 0
    q = away / (1 + away)
    for extra in range(_MOST_SPARES):
        total, running = needed + extra, 0.0
        for gone in range(extra + 1):
            running += math.comb(total, gone) * q**gone * (1 - q) ** (total - gone)
        if 1 - running <= 1 - availability:
            return extra
    return _MOST_SPARES


def processes(route: Route, rate: float, *, speed: float = 1.0) -> tuple[int, ...]:
    """Of each stage, for so many requests a second; at least one of a stage that is asked."""
    return tuple(
        max(1, _ceil(rate * stage.share / (stage.rate * speed))) if stage.share else 0
        for stage in route.stages
    )


def num_slots(server: Server, route: Route) -> int:
    """Processes that a machine holds: one a thread, as far as the largest fits that often."""
    largest = max((stage.memory_bytes for stage in route.stages if stage.share), default=0.0)
    return int(min(server.threads, server.memory_bytes // largest if largest else math.inf))


def num_servers(
    server: Server, route: Route, rate: float, *, availability: float, restart_h: float
) -> int | None:
    """Machines for so many requests a second, spares included; None: one process does not fit.

    Args:
        server, route: what runs where.
        rate: requests a second.
        availability, restart_h: as of `Bounds`.
    """
    slots = num_slots(server, route)
    if slots < 1:
        return None
    needed = _ceil(sum(processes(route, rate, speed=server.speed)) / slots)
    return needed + spares(needed, server, availability=availability, restart_h=restart_h)


def plans(servers: Sequence[Server], routes: Sequence[Route], bounds: Bounds) -> Iterator[Plan]:
    """The smallest plan of each machine and route that keeps to the bounds."""
    for server in servers:
        for route in routes:
            plan = _sized(server, route, bounds)
            if plan is not None and plan.cost <= bounds.budget:
                yield plan


def _sized(server: Server, route: Route, bounds: Bounds) -> Plan | None:
    if route.p99_ms > bounds.latency_ms:
        return None
    count = num_servers(
        server, route, bounds.peak_rate,
        availability=bounds.availability, restart_h=bounds.restart_h,
    )  # fmt: skip
    if count is None:
        return None
    return Plan(
        server=server,
        route=route,
        num_servers=count,
        num_processes=processes(route, bounds.peak_rate, speed=server.speed),
        cost=count * server.hourly * HOURS_PER_MONTH,
        worth=route.worth_per_1000 / 1000 * bounds.mean_rate * SECONDS_PER_MONTH,
    )


def _better(one: Plan, other: Plan) -> bool:
    """Whether it comes first by the rule of the module's docstring."""
    scale = _EQUAL * max(one.cost, other.cost, abs(one.worth), abs(other.worth))
    if abs(one.net - other.net) > scale:
        return one.net > other.net
    if abs(one.cost - other.cost) > scale:
        return one.cost < other.cost
    return _order(one) < _order(other)


def _order(plan: Plan) -> tuple[int, bool, float, str, str]:
    return (
        plan.num_servers, plan.server.is_spot, plan.route.deferred, plan.server.name,
        plan.route.name,
    )  # fmt: skip


def _best(found: Iterator[Plan] | Sequence[Plan]) -> Plan | None:
    best: Plan | None = None
    for plan in found:
        if best is None or _better(plan, best):
            best = plan
    return best


def choose(servers: Sequence[Server], routes: Sequence[Route], bounds: Bounds) -> Choice:
    """The best plan and the runner-up.

    Args:
        servers: machines, each in the ways that it may be bought.
        routes: ways to answer.
        bounds: what a plan must keep to.
    """
    found = list(plans(servers, routes, bounds))
    best = _best(found)
    if best is None:
        return Choice(None, None)
    return Choice(best, _best([plan for plan in found if plan.key != best.key]))


def rivals(
    best: Plan, servers: Sequence[Server], routes: Sequence[Route], bounds: Bounds
) -> dict[str, Plan]:
    """The best plan that differs in one kind of choice: the route, the machine or the purchase.

    Args:
        best: of these servers, routes and bounds.
        servers, routes, bounds: as of `choose`.

    Returns:
        "route", "machine" or "purchase" -> plan, where there is one.
    """
    differs: dict[str, Callable[[Plan], bool]] = {
        "route": lambda plan: plan.route.name != best.route.name,
        "machine": lambda plan: plan.server.name != best.server.name,
        "purchase": lambda plan: plan.server.is_spot != best.server.is_spot,
    }
    found = list(plans(servers, routes, bounds))
    chosen = {name: _best([one for one in found if rule(one)]) for name, rule in differs.items()}
    return {name: plan for name, plan in chosen.items() if plan is not None}


def ties(best: Plan, rival: Plan, bounds: Bounds) -> Change:
    """What would have to change for a rival to win, one thing at a time.

    Args:
        best, rival: plans of the same bounds.
        bounds: those.
    """
    lead = best.net - rival.net
    rival_hourly = rival.server.hourly - lead / (rival.num_servers * HOURS_PER_MONTH)
    gain, saved = best.worth - rival.worth, best.cost - rival.cost
    worth = saved / gain if gain and saved / gain >= 0 else None
    same = best.server.name == rival.server.name and best.server.is_spot == rival.server.is_spot
    best_hourly = best.server.hourly + lead / (best.num_servers * HOURS_PER_MONTH)
    if same:  # one price, which moves both
        rival_hourly = best_hourly = _common(best, rival)
    return Change(
        rival_hourly=rival_hourly if rival_hourly > 0 else None,
        best_hourly=best_hourly if best_hourly > 0 else None,
        traffic_up=_turn(best, rival, bounds, up=True),
        traffic_down=_turn(best, rival, bounds, up=False),
        worth=worth,
    )


def _common(best: Plan, rival: Plan) -> float:
    """The price of an hour at which two plans on the same machine tie; NaN-free: -1 for none."""
    more = best.num_servers - rival.num_servers
    if not more:
        return -1.0
    return (best.worth - rival.worth) / (more * HOURS_PER_MONTH)


def _turn(best: Plan, rival: Plan, bounds: Bounds, *, up: bool) -> float | None:
    """The nearest multiple of the traffic at which the rival is better, each of them resized."""

    def wins(factor: float) -> bool:
        there = bounds.times(factor)
        ours, theirs = (
            next(plans([one.server], [one.route], there), None) for one in (best, rival)
        )
        return theirs is not None and (ours is None or _better(theirs, ours))

    step = float(_RANGE ** (1 / _GRID))
    last = 1.0
    for _ in range(_GRID):
        factor = last * step if up else last / step
        if wins(factor):
            for _ in range(40):
                middle = math.sqrt(last * factor)
                last, factor = (last, middle) if wins(middle) else (middle, factor)
            return factor
        last = factor
    return None
