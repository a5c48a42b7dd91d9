"""The machines that answer: which, how many in each month, and what they cost.

    machines of month m   = by the rule of `plan.num_servers`, for the peak, or hour by hour

In the cloud the cheapest machine over the horizon is taken, of one's own the cheapest for the
busiest month. Both together: one's own take what they can, the cloud what is left, hour by hour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rectrain.cost.case import Case, Owned, Strategy
from rectrain.cost.lines import Line, prices_by_month
from rectrain.cost.plan import ROUNDING, Purchase, Route, Server, num_slots, spares
from rectrain.cost.prices import HOURS_PER_MONTH
from rectrain.cost.traffic import Floats, Traffic

__all__ = ["Fleet", "fleet"]


@dataclass(frozen=True)
class Fleet:
    """The machines of a strategy.

    Attributes:
        lines: what is paid for them.
        machines: float64 [H], how many, on average over the month.
        machine: what they are.
    """

    lines: tuple[Line, ...]
    machines: Floats
    machine: str

    @property
    def cost(self) -> float:
        """Of the whole horizon."""
        return float(sum(line.amounts.sum() for line in self.lines))


def fleet(case: Case, route: Route, strategy: Strategy) -> Fleet:
    """What answers a route's requests, as a strategy says.

    Args:
        case: what is known.
        route: that is answered.
        strategy: of the case.
    """
    traffic = case.traffic
    rates = traffic.rates(hourly=traffic.scales_hourly)
    if strategy.hosting == "cloud":
        return _in_cloud(case, route, strategy.purchase, rates)
    owned, needed = _cheapest_own(case, route, rates)
    if strategy.hosting == "own":
        return _on_own(case, route, owned, needed)
    every = traffic.rates(hourly=True)
    capacity = num_slots(owned.server, route) * owned.server.speed / route.core_s
    options = []
    for count in range(1, max(2, needed)):
        left = np.maximum(every - count * capacity, 0.0)
        base = _on_own(case, route, owned, count, served=np.minimum(every, count * capacity))
        more = _in_cloud(case, route, strategy.purchase, left)
        name = f"{count} {base.machine} and {more.machine}"
        both = Fleet(base.lines + more.lines, base.machines + more.machines, name)
        options.append(both)
    return min(options, key=lambda one: one.cost)


def _in_cloud(case: Case, route: Route, purchase: Purchase, rates: Floats) -> Fleet:
    server, hours = _cheapest_rented(case, route, purchase, rates)
    traffic = case.traffic
    price = prices_by_month(server.hourly, traffic.hardware_price_change, len(hours))
    line = Line(
        "deployment", "hardware", "hardware", "marginal", "machines that answer (cloud)",
        "hour", f"{server.name} {purchase}; {case.sources.get('hour', '')}", hours, price,
    )  # fmt: skip
    return Fleet((line,), hours / HOURS_PER_MONTH, f"{server.name} {purchase}")


def _on_own(
    case: Case, route: Route, owned: Owned, count: int, *, served: Floats | None = None
) -> Fleet:
    """Machines of one's own, all of the time.

    Args:
        served: float64 [H, hours], requests a second that they take; default: all.
    """
    traffic = case.traffic
    months = traffic.horizon_months
    rate = traffic.mean * traffic.months() if served is None else served.mean(axis=1)
    busy = rate * route.core_s / (max(count, 1) * owned.server.threads * owned.server.speed)
    busy = np.minimum(busy, 1.0)
    watts = count * (owned.watts * busy + owned.idle_watts * (1 - busy))
    name = owned.server.name
    lines = (
        Line(
            "deployment", "hardware", "hardware", "fixed", "machines that answer (own)",
            "machine month", f"{name}: written off, and its place", np.full(months, float(count)),
            np.full(months, owned.monthly),
        ),
        Line(
            "deployment", "hardware", "hardware", "marginal", "energy", "kwh",
            f"{name}, by its load; {case.sources.get('kwh', '')}",
            watts * HOURS_PER_MONTH / 1000, np.full(months, case.kwh),
        ),
    )  # fmt: skip
    return Fleet(lines, np.full(months, float(count)), name)


def _num_machines(server: Server, route: Route, rates: Floats, traffic: Traffic) -> Floats:
    """float64, like rates: machines for each, by the rule of `plan.num_servers`; where nothing is
    asked, none."""
    total = np.zeros_like(rates)
    for stage in route.stages:
        if stage.share:
            wanted = np.ceil(rates * stage.share / (stage.rate * server.speed) - ROUNDING)
            total += np.maximum(wanted, 1)
    slots = num_slots(server, route)
    if not slots:
        return np.full_like(rates, np.inf)
    needed = np.where(rates > 0, np.ceil(total / slots - ROUNDING), 0.0)
    sizes, places = np.unique(needed, return_inverse=True)
    bounds = {"availability": traffic.availability, "restart_h": traffic.restart_h}
    extra = np.array([spares(int(size), server, **bounds) for size in sizes], dtype=np.float64)
    return np.asarray(needed + extra[places].reshape(needed.shape))


def _cheapest_rented(
    case: Case, route: Route, purchase: Purchase, rates: Floats
) -> tuple[Server, Floats]:
    """The cheapest machine over the horizon, and its hours of each month."""
    best: tuple[float, Server, Floats] | None = None
    weights = prices_by_month(1.0, case.traffic.hardware_price_change, len(rates))
    for server in case.servers:
        if server.purchase == purchase:
            count = _num_machines(server, route, rates, case.traffic)
            hours = count.mean(axis=1) * HOURS_PER_MONTH
            cost = float((hours * weights).sum()) * server.hourly
            if best is None or cost < best[0]:
                best = cost, server, hours
    assert best is not None, "a strategy of a purchase that no server has"
    return best[1], best[2]


def _cheapest_own(case: Case, route: Route, rates: Floats) -> tuple[Owned, int]:
    """The cheapest machine of one's own, and how many the busiest month needs."""
    found = []
    for owned in case.owned:
        count = float(_num_machines(owned.server, route, rates, case.traffic).max())
        watts = owned.watts * case.kwh * HOURS_PER_MONTH / 1000
        found.append((count * (owned.monthly + watts), count, owned))
    _, count, owned = min(found, key=lambda one: one[0])
    return owned, int(count) if np.isfinite(count) else 0
