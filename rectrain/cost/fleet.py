"""The machines that answer: which, how many in each month, and what they cost.

    machines of month m   = by the rules of `machines`, for the peak, or hour by hour

Of a purchase, and of one's own, the machine is taken that is the cheapest over the horizon. Both
together: one's own take what they can, the cloud what is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from rectrain.cost.case import Case, Owned, Strategy
from rectrain.cost.lines import Line, cited, prices_by_month
from rectrain.cost.machines import (
    Purchase,
    Route,
    Server,
    capacity,
    contracts,
    held,
    num_servers,
    running,
)
from rectrain.cost.prices import HOURS_PER_MONTH
from rectrain.cost.traffic import Floats

__all__ = ["Fleet", "fleet"]

_STEPS = 200  # of a number of machines: a step is at most this part of it


@dataclass(frozen=True)
class Fleet:
    """The machines of a strategy.

    Attributes:
        lines: what is paid for them.
        machines: float64 [H], how many are paid for, on average over the month.
        machine: what they are.
        in_cloud: float64 [H], the share of the requests that a cloud's machines answer.
        owned: those of one's own among them.
    """

    lines: tuple[Line, ...]
    machines: Floats
    machine: str
    in_cloud: Floats
    owned: Owned | None = None

    @property
    def cost(self) -> float:
        """Of the whole horizon."""
        return float(sum(line.amounts.sum() for line in self.lines))


def fleet(case: Case, route: Route, strategy: Strategy) -> Fleet:
    """What answers a route's requests, as a strategy says.

    Args:
        case: what is known.
        route: that is answered.
        strategy: of the case: a process of the route fits into a machine of its kind.
    """
    rates = case.traffic.rates(hourly=case.traffic.scales_hourly)
    if strategy.hosting == "cloud":
        return _cheapest(_rented(case, route, strategy.purchase, rates))
    mean = case.traffic.mean * case.traffic.months()
    found = []
    for owned in case.owned:
        server = owned.rented(case.kwh)
        needed = _needed(case, route, server, rates)
        if needed is not None and strategy.hosting == "own":
            found.append(_on_own(case, route, owned, held(server, needed), mean))
        elif needed is not None:
            counts = _counts(int(needed.max()))
            found.append(_cheapest(_both(case, route, strategy.purchase, owned, counts, rates)))
    return _cheapest(found)


def _cheapest(found: Iterable[Fleet]) -> Fleet:
    return min(found, key=lambda one: one.cost)  # a strategy has machines; see `strategies`


def _counts(needed: int) -> Iterator[int]:
    """Numbers of machines below what is needed, at least 1: all to 400, then in steps of 0.5%."""
    count = 1
    while count < max(2, needed):
        yield count
        count += max(1, count // _STEPS)


def _needed(case: Case, route: Route, server: Server, rates: Floats) -> Floats | None:
    traffic = case.traffic
    return num_servers(
        server, route, rates, availability=traffic.availability, restart_h=traffic.restart_h
    )


def _both(
    case: Case,
    route: Route,
    purchase: Purchase,
    owned: Owned,
    counts: Iterable[int],
    rates: Floats,
) -> Iterator[Fleet]:
    """So many machines of one's own, all of the time, and the cloud beside them."""
    day = case.traffic.rates(hourly=True)
    for count in counts:
        most = capacity(owned.server, route, count)
        served = np.minimum(day, most).mean(axis=1)
        own = _on_own(case, route, owned, np.full(len(rates), float(count)), served)
        more = _cheapest(_rented(case, route, purchase, np.maximum(rates - most, 0.0)))
        mean = day.mean(axis=1)
        rest = 1 - np.divide(served, mean, out=np.ones(len(day)), where=mean > 0)
        name = f"{count} {own.machine} and {more.machine}"
        yield Fleet(own.lines + more.lines, own.machines + more.machines, name, rest, owned)


def _rented(case: Case, route: Route, purchase: Purchase, rates: Floats) -> list[Fleet]:
    """Of each machine of a cloud that is bought so; a contract keeps the price of its month."""
    found = []
    for server in case.servers:
        needed = _needed(case, route, server, rates) if server.purchase == purchase else None
        if needed is None:
            continue
        machines, term = held(server, needed), server.term_months
        price = prices_by_month(server.hourly, case.traffic.hardware_price_change, len(rates))
        if server.is_held:
            taken = contracts(needed.max(axis=1), term)
            paid = running(taken * price, term)
            price = np.divide(paid, machines, out=price, where=machines > 0)
        name = f"{server.name} {purchase}"
        line = Line(
            "deployment", "hardware", "hardware", "marginal", "machines that answer (cloud)",
            "hour", cited(name, server.source), machines * HOURS_PER_MONTH, price,
        )  # fmt: skip
        found.append(Fleet((line,), machines, name, np.ones(len(rates))))
    return found


def _on_own(case: Case, route: Route, owned: Owned, machines: Floats, served: Floats) -> Fleet:
    """Machines of one's own; both float64 [H]: how many, and requests a second that they take."""
    server, months = owned.server, case.traffic.horizon_months
    busy = served * route.busy_s / (server.threads * server.speed)
    watts = machines * owned.idle_watts + busy * (owned.watts - owned.idle_watts)
    lines = (
        Line(
            "deployment", "hardware", "hardware", "fixed", "machines that answer (own)",
            "machine month", cited(f"{server.name}: written off, and its place", owned.source),
            machines, np.full(months, owned.monthly),
        ),
        Line(
            "deployment", "hardware", "hardware", "marginal", "energy", "kwh",
            cited(f"{server.name}, by its load", case.sources.get("kwh", "")),
            watts * HOURS_PER_MONTH / 1000, np.full(months, case.kwh),
        ),
    )  # fmt: skip
    return Fleet(lines, machines, server.name, np.zeros(months), owned)
