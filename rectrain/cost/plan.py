"""What to run: the best machine, number, route and purchase under a budget and a latency limit.

A plan is one kind of machine, bought in one way, and one route, for all months of a horizon: as
many machines as carry each month's peak, or each hour's rate (see `machines`). At today's prices,
on average over the months,

    net = worth of the answers - machines that are paid for · price of an hour · 730
        - energy by load - what the route costs besides: trainings and people

The budget bounds what the machines cost in any month. The best plan has the highest net; of equals
the cheaper one, then fewer machines at their most, purchases in the order on demand, reserved,
spot, own, the smaller share deferred, and names in their order. The search is over all of them:
more machines than needed only cost more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from rectrain.cost.machines import (
    PURCHASES,
    Purchase,
    Route,
    Server,
    held,
    num_servers,
    processes,
)
from rectrain.cost.prices import HOURS_PER_MONTH
from rectrain.cost.traffic import SECONDS_PER_MONTH, Floats

__all__ = ["Bounds", "Choice", "Plan", "best_of", "choose", "is_better", "plans"]

_EQUAL = 1e-12  # nets that differ by less, as a share of the cost, are equal


@dataclass(frozen=True)
class Bounds:
    """What a plan must keep to.

    Attributes:
        mean_rate: requests a second, which are worth something.
        peak_rate: requests a second, which must be answered in time.
        latency_ms: 99 of 100 answers come within this.
        budget: of the machines, in any month.
        availability: share of the time in which enough machines run.
        restart_h: hours until a machine that was taken back is replaced.
        months: what both rates are multiplied by in each month.
        day: rate of each hour over the mean, where machines follow it; empty: the peak's stay.
    """

    mean_rate: float
    peak_rate: float
    latency_ms: float = math.inf
    budget: float = math.inf
    availability: float = 0.9999
    restart_h: float = 1 / 6
    months: tuple[float, ...] = (1.0,)
    day: tuple[float, ...] = ()

    @property
    def requests(self) -> float:
        """Of a month, on average."""
        return self.mean_rate * sum(self.months) / len(self.months) * SECONDS_PER_MONTH

    @property
    def rates(self) -> Floats:
        """float64 [months, hours], that must be answered in time."""
        hours = self.mean_rate * np.array(self.day) if self.day else np.array([self.peak_rate])
        return np.asarray(np.array(self.months)[:, None] * hours)

    def times(self, factor: float) -> Bounds:
        """The same at a multiple of the traffic; the budget stays."""
        return replace(self, mean_rate=self.mean_rate * factor, peak_rate=self.peak_rate * factor)


@dataclass(frozen=True)
class Plan:
    """Machines and a route, with what they cost and bring a month, on average.

    Attributes:
        server, route: what runs where.
        num_servers: machines, spares included, where the most of them run.
        fewest: and where the fewest are paid for.
        num_processes: of each of the route's stages, where the most run.
        machines: that are paid for, on average.
        cost: of them.
        worth: of the answers.
    """

    server: Server
    route: Route
    num_servers: int
    fewest: int
    num_processes: tuple[int, ...]
    machines: float
    cost: float
    worth: float

    @property
    def spent(self) -> float:
        """All of it: machines, trainings and people."""
        return self.cost + self.route.monthly

    @property
    def net(self) -> float:
        """Worth less what is spent."""
        return self.worth - self.spent

    @property
    def key(self) -> tuple[str, Purchase, str]:
        """What makes it another plan than one of another number."""
        return self.server.name, self.server.purchase, self.route.name

    @property
    def count(self) -> str:
        """How many machines, in words."""
        few, most = self.fewest, self.num_servers
        return f"{most}" if few == most else f"{few} to {most}"

    def __str__(self) -> str:
        server = self.server
        return f"{self.count} × {server.name} {server.purchase}, {self.route.name}"


class Choice(NamedTuple):
    """best: None where no plan keeps to the bounds; second: the best with another machine, route or
    purchase."""

    best: Plan | None
    second: Plan | None


def plans(servers: Sequence[Server], routes: Sequence[Route], bounds: Bounds) -> Iterator[Plan]:
    """The smallest plan of each machine and route that keeps to the bounds."""
    for server in servers:
        for route in routes:
            plan = _sized(server, route, bounds)
            if plan is not None:
                yield plan


def _sized(server: Server, route: Route, bounds: Bounds) -> Plan | None:
    if route.p99_ms > bounds.latency_ms:
        return None
    needed = num_servers(
        server, route, bounds.rates,
        availability=bounds.availability, restart_h=bounds.restart_h,
    )  # fmt: skip
    if needed is None:
        return None
    paid = held(server, needed)
    cores = bounds.mean_rate * np.array(bounds.months) * route.busy_s / server.speed
    costs = HOURS_PER_MONTH * (
        paid * server.hourly + cores / server.threads * server.load_hourly
    )  # fmt: skip
    if float(costs.max()) > bounds.budget:
        return None
    most = processes(route, bounds.rates.max(), speed=server.speed)
    return Plan(
        server=server,
        route=route,
        num_servers=int(needed.max()),
        fewest=int((paid if server.is_held else needed).min()),
        num_processes=tuple(int(count) for count in most),
        machines=float(paid.mean()),
        cost=float(costs.mean()),
        worth=route.worth_per_1000 / 1000 * bounds.requests,
    )


def is_better(one: Plan, other: Plan) -> bool:
    """Whether it comes first by the rule of the module's docstring."""
    scale = _EQUAL * max(one.spent, other.spent, abs(one.worth), abs(other.worth))
    if abs(one.net - other.net) > scale:
        return one.net > other.net
    if abs(one.spent - other.spent) > scale:
        return one.spent < other.spent
    return _order(one) < _order(other)


def _order(plan: Plan) -> tuple[int, int, float, str, str]:
    return (
        plan.num_servers, PURCHASES.index(plan.server.purchase), plan.route.deferred,
        plan.server.name, plan.route.name,
    )  # fmt: skip


def best_of(found: Iterator[Plan] | Sequence[Plan]) -> Plan | None:
    """The first by `is_better`; None of none."""
    best: Plan | None = None
    for plan in found:
        if best is None or is_better(plan, best):
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
    best = best_of(found)
    if best is None:
        return Choice(None, None)
    return Choice(best, best_of([plan for plan in found if plan.key != best.key]))
