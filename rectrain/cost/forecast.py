"""What strategies cost and bring, month by month (M9): pure functions of a case.

A *strategy* is a route (large, small or cascade), how the large model is trained anew (all of it,
LoRA, AdaLoRA), whose machines (cloud, own, both) and, in the cloud, on demand or spot. A *case* is
everything that is known: traffic, routes, trainings, machines, prices. Each cost is a `Line`:
quantity × unit price for every month, so a total, a picture and the ledger are sums of the same.

    requests of month m   = mean rate · (1 + growth)^m · season · 3600 · 730
    machines of month m   = by the rule of `plan.num_servers`, for the peak, or hour by hour
    price in month m      = price now · (1 + change a year)^(m / 12)
    a training on spot    = its device hours · (1 + λ · (checkpoint interval / 2 + restart))
    return = worth - cost,  ROI = return / cost

Not counted: discounting, taxes, what a wrong answer costs a shop's name, storage of logs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import product
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rectrain.cost.ledger import Behaviour, Entry, Kind, Ledger, Stage, exact
from rectrain.cost.plan import Route, Server, spares
from rectrain.cost.prices import HOURS_PER_MONTH
from rectrain.cost.traffic import SECONDS_PER_MONTH, Traffic

__all__ = [
    "METHODS",
    "Case",
    "Forecast",
    "Line",
    "Owned",
    "Strategy",
    "Training",
    "break_even",
    "forecast",
    "payback",
    "strategies",
]

Floats = NDArray[np.float64]
Method = Literal["full", "lora", "adalora"]
Hosting = Literal["cloud", "own", "both"]
Purchase = Literal["on demand", "spot"]

METHODS: tuple[Method, ...] = ("full", "lora", "adalora")
_HOURS = 24
_ROUNDING = 1e-9
_GRID, _RANGE = 120, 1000.0
_KIB = 2**10


class Strategy(NamedTuple):
    """One choice of each kind."""

    route: str
    method: Method = "full"
    hosting: Hosting = "cloud"
    purchase: Purchase = "on demand"

    def __str__(self) -> str:
        where = "own machines"
        if self.hosting != "own":
            where = f"{'own machines and ' if self.hosting == 'both' else ''}cloud {self.purchase}"
        return f"{self.route}, {self.method}, {where}"


@dataclass(frozen=True)
class Owned:
    """A machine of one's own.

    Attributes:
        server: its threads, speed and memory; its `hourly` is not read.
        monthly: writing it off, and its place.
        watts, idle_watts: drawn, the building's share included.
    """

    server: Server
    monthly: float
    watts: float = 0.0
    idle_watts: float = 0.0


@dataclass(frozen=True)
class Training:
    """What one training takes, in hours of a device of the machine that was measured.

    Attributes:
        large: all of the large model.
        small: making the small one of it.
        factors: method -> share of `large` that it takes.
        source: how these are known.
    """

    large: float
    small: float
    factors: Mapping[Method, float]
    source: str


@dataclass(frozen=True)
class Case:
    """All that a forecast is made of; money is in one currency.

    Attributes:
        traffic: what is asked.
        routes: name -> way to answer; "large" asks the large model alone, and needs no small one.
        training: what trainings take.
        servers: machines of clouds, each in the ways it may be bought.
        owned: machines of one's own.
        engineer_h, operator_h: an hour of people.
        kwh: energy.
        egress_gib: traffic out of the cloud.
        sources: of the prices, by the unit: "hour", "people", "kwh", "gib".
        licences: name -> a month.
    """

    traffic: Traffic
    routes: Mapping[str, Route]
    training: Training
    servers: tuple[Server, ...]
    owned: tuple[Owned, ...] = ()
    engineer_h: float = 0.0
    operator_h: float = 0.0
    kwh: float = 0.0
    egress_gib: float = 0.0
    sources: Mapping[str, str] = field(default_factory=dict)
    licences: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """One thing that is paid, by month.

    Attributes:
        stage, part, kind, behaviour, label, unit, source: as of `ledger.Entry`.
        quantity, price: float64 [H], of each month; price is of a unit.
    """

    stage: Stage
    part: str
    kind: Kind
    behaviour: Behaviour
    label: str
    unit: str
    source: str
    quantity: Floats
    price: Floats

    @property
    def amounts(self) -> Floats:
        """float64 [H]."""
        return self.quantity * self.price


@dataclass(frozen=True)
class Forecast:
    """What a strategy costs and brings.

    Attributes:
        strategy: which.
        lines: what is paid.
        requests, worth: float64 [H], of each month.
        machines: float64 [H], that serve, on average over the month.
        machine: what they are.
    """

    strategy: Strategy
    lines: tuple[Line, ...]
    requests: Floats
    worth: Floats
    machines: Floats
    machine: str

    @cached_property
    def costs(self) -> Floats:
        """float64 [H], of each month."""
        return np.asarray(sum(line.amounts for line in self.lines))

    @property
    def cost(self) -> float:
        """Of the whole horizon."""
        return float(self.costs.sum())

    @property
    def net(self) -> float:
        """Worth less cost, of the whole horizon."""
        return float(self.worth.sum()) - self.cost

    @property
    def roi(self) -> float:
        """Return on what is spent."""
        return self.net / self.cost if self.cost else 0.0

    @property
    def monthly(self) -> float:
        """Cost of a month, on average."""
        return self.cost / len(self.requests)

    @property
    def per_1000(self) -> float:
        """Cost of 1,000 requests, everything included."""
        return 1000 * self.cost / float(self.requests.sum())

    @property
    def serving_per_1000(self) -> float:
        """Of the machines that answer, alone."""
        serving = sum(
            float(line.amounts.sum())
            for line in self.lines
            if (line.stage, line.kind) == ("deployment", "hardware")
        )
        return 1000 * serving / float(self.requests.sum())

    def parts(self) -> dict[str, float]:
        """Label -> amount over the horizon."""
        found: dict[str, float] = {}
        for line in self.lines:
            found[line.label] = found.get(line.label, 0.0) + float(line.amounts.sum())
        return found

    def ledger(self, currency: str) -> Ledger:
        """An entry for every line and month in which it is paid; they add up to `cost`."""
        return Ledger(tuple(self._entries(currency)))

    def _entries(self, currency: str) -> Iterator[Entry]:
        for line in self.lines:
            for month, (quantity, price) in enumerate(
                zip(line.quantity.tolist(), line.price.tolist(), strict=True), 1
            ):
                if quantity:
                    yield Entry(
                        stage=line.stage, part=line.part, kind=line.kind,
                        behaviour=line.behaviour,
                        label=f"{self.strategy}: {line.label}, month {month}",
                        quantity=exact(quantity), unit=line.unit, unit_price=exact(price),
                        currency=currency, period="once", source=line.source,
                    )  # fmt: skip


def strategies(case: Case) -> tuple[Strategy, ...]:
    """All of a case: where nothing is owned, the cloud alone."""
    hosting: list[tuple[Hosting, Purchase]] = []
    purchases: tuple[Purchase, ...] = ("on demand", "spot")
    kinds = [one for one in purchases if any(s.purchase == one for s in case.servers)]
    hosting += [("cloud", kind) for kind in kinds]
    if case.owned:
        hosting.append(("own", "on demand"))
        hosting += [("both", kind) for kind in kinds]
    return tuple(
        Strategy(route, method, place, kind)
        for route, method, (place, kind) in product(case.routes, METHODS, hosting)
    )


# --- machines ----------------------------------------------------------------------------------


@lru_cache(maxsize=1 << 14)
def _spares(needed: int, server: Server, availability: float, restart_h: float) -> int:
    return spares(needed, server, availability=availability, restart_h=restart_h)


def _slots(server: Server, route: Route) -> int:
    largest = max((stage.memory_bytes for stage in route.stages if stage.share), default=0.0)
    fitting = server.memory_bytes // largest if largest else server.threads
    return int(min(server.threads, fitting))


def _num_machines(server: Server, route: Route, rates: Floats, traffic: Traffic) -> Floats:
    """float64, like rates: machines for each, by the rule of `plan.num_servers`; where nothing is
    asked, none."""
    total = np.zeros_like(rates)
    for stage in route.stages:
        if stage.share:
            wanted = np.ceil(rates * stage.share / (stage.rate * server.speed) - _ROUNDING)
            total += np.maximum(wanted, 1)
    slots = _slots(server, route)
    if not slots:
        return np.full_like(rates, np.inf)
    found = np.where(rates > 0, np.ceil(total / slots - _ROUNDING), 0.0)
    if server.is_spot:
        restart_h = traffic.restart_minutes / 60
        for needed in np.unique(found):
            extra = _spares(int(needed), server, traffic.availability, restart_h)
            found = np.where(found == needed, needed + extra, found)
    return found


def _rates(traffic: Traffic) -> Floats:
    """float64 [H, 24], or [H, 1] of the peak where machines don't follow the hours."""
    months = traffic.months()[:, None]
    if traffic.scales_hourly:
        return np.asarray(traffic.mean * traffic.day()[None] * months)
    return np.asarray(traffic.peak * months)


def _prices(now: float, change: float, months: int) -> Floats:
    return np.asarray(now * (1 + change) ** (np.arange(months) / 12))


def _cloud(case: Case, route: Route, purchase: Purchase, rates: Floats) -> tuple[Server, Floats]:
    """The cheapest machine over the horizon, and its hours of each month."""
    best: tuple[float, Server, Floats] | None = None
    weights = _prices(1.0, case.traffic.hardware_price_change, len(rates))
    for server in case.servers:
        if server.purchase == purchase:
            count = _num_machines(server, route, rates, case.traffic)
            hours = count.mean(axis=1) * HOURS_PER_MONTH
            cost = float((hours * weights).sum()) * server.hourly
            if best is None or cost < best[0]:
                best = cost, server, hours
    assert best is not None, "a strategy of a purchase that no server has"
    return best[1], best[2]


def _own(case: Case, route: Route, rates: Floats) -> tuple[Owned, int]:
    """The cheapest machine of one's own, and how many the busiest month needs."""
    found = []
    for owned in case.owned:
        count = float(_num_machines(owned.server, route, rates, case.traffic).max())
        watts = owned.watts * case.kwh * HOURS_PER_MONTH / 1000
        found.append((count * (owned.monthly + watts), count, owned))
    _, count, owned = min(found, key=lambda one: one[0])
    return owned, int(count) if np.isfinite(count) else 0


# --- lines -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Served:
    """What serves: its lines, the number of machines [H], their name."""

    lines: tuple[Line, ...]
    machines: Floats
    machine: str

    @property
    def cost(self) -> float:
        return float(sum(line.amounts.sum() for line in self.lines))


def _serve(case: Case, route: Route, strategy: Strategy) -> _Served:
    rates = _rates(case.traffic)
    if strategy.hosting == "cloud":
        return _serve_cloud(case, route, strategy.purchase, rates)
    owned, needed = _own(case, route, rates)
    if strategy.hosting == "own":
        return _serve_own(case, route, owned, needed)
    # Both: own machines take what they can, the cloud what is left, hour by hour.
    hourly = case.traffic.model_copy(update={"scales_hourly": True})
    every = _rates(hourly)
    capacity = _slots(owned.server, route) * owned.server.speed / route.core_s
    options = []
    for count in range(1, max(2, needed)):
        left = np.maximum(every - count * capacity, 0.0)
        base = _serve_own(case, route, owned, count, served=np.minimum(every, count * capacity))
        more = _serve_cloud(case, route, strategy.purchase, left)
        name = f"{count} {base.machine} and {more.machine}"
        both = _Served(base.lines + more.lines, base.machines + more.machines, name)
        options.append(both)
    return min(options, key=lambda one: one.cost)


def _serve_cloud(case: Case, route: Route, purchase: Purchase, rates: Floats) -> _Served:
    server, hours = _cloud(case, route, purchase, rates)
    traffic = case.traffic
    price = _prices(server.hourly, traffic.hardware_price_change, len(hours))
    line = Line(
        "deployment", "hardware", "hardware", "marginal", "machines that answer (cloud)",
        "hour", f"{server.name} {purchase}; {case.sources.get('hour', '')}", hours, price,
    )  # fmt: skip
    return _Served((line,), hours / HOURS_PER_MONTH, f"{server.name} {purchase}")


def _serve_own(
    case: Case, route: Route, owned: Owned, count: int, *, served: Floats | None = None
) -> _Served:
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
    return _Served(lines, np.full(months, float(count)), name)


def _device_hour(case: Case, strategy: Strategy) -> tuple[float, str]:
    """What an hour of the measured device costs in training, and where."""
    if strategy.hosting != "cloud" and case.owned:
        owned = case.owned[0]
        energy = owned.watts * case.kwh / 1000
        hour = owned.monthly / HOURS_PER_MONTH + energy
        return hour / (owned.server.threads * owned.server.speed), owned.server.name
    best = min(
        (server for server in case.servers if server.purchase == strategy.purchase),
        key=lambda server: server.hourly / (server.threads * server.speed),
    )
    again = 1.0
    if best.is_spot:
        lost_h = (case.traffic.checkpoint_minutes / 2 + case.traffic.restart_minutes) / 60
        again += best.interruptions_per_hour * lost_h
    hour = again * best.hourly / (best.threads * best.speed)
    return hour, f"{best.name} {best.purchase}"


def _train(case: Case, strategy: Strategy) -> Iterator[Line]:
    traffic, training = case.traffic, case.training
    when = traffic.trainings().astype(np.float64)
    first = np.zeros_like(when)
    first[0] = 1.0
    hour, where = _device_hour(case, strategy)
    price = _prices(hour, traffic.hardware_price_change, len(when))
    source = f"{training.source}; {where}"
    large = training.large * training.factors[strategy.method]
    # The first training is of all weights: an adapter stands beside a model that is trained.
    yield Line(
        "pretraining", "training", "hardware", "fixed", "first training", "device hour", source,
        first * training.large, price,
    )  # fmt: skip
    yield Line(
        "maintenance", "resources", "hardware", "fixed", "trainings again", "device hour", source,
        (when - first) * large, price,
    )  # fmt: skip
    if strategy.route != "large":
        yield Line(
            "tuning", "resources", "hardware", "fixed", "making the small model", "device hour",
            source, first * training.small, price,
        )  # fmt: skip
        yield Line(
            "maintenance", "resources", "hardware", "fixed", "making the small model again",
            "device hour", source, (when - first) * training.small, price,
        )  # fmt: skip


def _work(case: Case, strategy: Strategy) -> Iterator[Line]:
    traffic, effort = case.traffic, case.traffic.effort
    when = traffic.trainings().astype(np.float64)
    first = np.zeros_like(when)
    first[0] = 1.0
    again = (when - first) * effort.retraining
    tuning = effort.tuning + (effort.shrinking if strategy.route != "large" else 0.0)
    rows: tuple[tuple[Stage, str, str, Floats, float], ...] = (
        ("pretraining", "data", "data", first * effort.data, case.engineer_h),
        ("pretraining", "labelling", "labelling", first * effort.labelling, case.engineer_h),
        ("tuning", "time", "choosing and shrinking", first * tuning, case.engineer_h),
        ("deployment", "software", "bringing into operation", first * effort.deployment,
         case.engineer_h),
        ("maintenance", "time", "watching and mending",
         np.full(len(when), effort.maintenance), case.operator_h),
        ("maintenance", "time", "checking new versions", again, case.engineer_h),
    )  # fmt: skip
    for stage, part, label, hours, hourly in rows:
        price = _prices(hourly, traffic.labour_price_change, len(when))
        source = f"effort in the traffic file; {case.sources.get('people', '')}"
        yield Line(stage, part, "labour", "fixed", label, "hour", source, hours, price)


def _software(case: Case, requests: Floats) -> Iterator[Line]:
    months = np.ones(len(requests))
    for name, monthly in case.licences.items():
        yield Line(
            "deployment", "software", "software", "fixed", f"licence {name}", "month",
            case.sources.get("licence", ""), months, months * monthly,
        )  # fmt: skip
    gib = requests * case.traffic.answer_kib / _KIB**2
    yield Line(
        "deployment", "software", "software", "marginal", "answers out of the cloud", "gib",
        case.sources.get("gib", ""), gib, months * case.egress_gib,
    )  # fmt: skip


def forecast(case: Case, strategy: Strategy) -> Forecast:
    """What a strategy costs and brings in each month of the horizon.

    Args:
        case: what is known.
        strategy: one of `strategies(case)`.
    """
    route = case.routes[strategy.route]
    requests = case.traffic.mean * SECONDS_PER_MONTH * case.traffic.months()
    served = _serve(case, route, strategy)
    lines = (
        *served.lines, *_train(case, strategy), *_work(case, strategy),
        *_software(case, requests),
    )  # fmt: skip
    return Forecast(
        strategy=strategy,
        lines=tuple(line for line in lines if line.amounts.any()),
        requests=requests,
        worth=requests / 1000 * route.worth_per_1000,
        machines=served.machines,
        machine=served.machine,
    )


# --- comparisons -------------------------------------------------------------------------------


def payback(extra: Forecast, plain: Forecast) -> int | None:
    """The month, from 1, at whose end what was spent more at first is saved for good.

    Args:
        extra: costs more at first.
        plain: what it is compared with.

    Returns:
        0: it never costs more; None: it is not paid back within the horizon.
    """
    ahead = np.cumsum(plain.costs - plain.worth) - np.cumsum(extra.costs - extra.worth)
    behind = np.flatnonzero(ahead < 0)
    if not len(behind):
        return 0
    last = int(behind[-1]) + 1
    return None if last == len(ahead) else last + 1


def break_even(case: Case, one: Strategy, other: Strategy) -> tuple[float, ...]:
    """Mean rates, requests a second, at which the cheaper of two strategies changes, rising.

    Looked for between a thousandth and a thousandfold of the case's traffic, on a grid of 5% and
    then by halving; whole machines make several changes possible.
    """

    def ahead(factor: float) -> bool:
        there = replace(case, traffic=times(case.traffic, factor))
        return forecast(there, one).cost < forecast(there, other).cost

    factors = _RANGE ** np.linspace(-1, 1, _GRID + 1)
    signs = [ahead(factor) for factor in factors]
    found = []
    for place in np.flatnonzero(np.diff(np.array(signs, dtype=np.int8))):
        low, high = factors[place], factors[place + 1]
        for _ in range(20):
            middle = float(np.sqrt(low * high))
            low, high = (middle, high) if ahead(middle) == signs[place] else (low, middle)
        found.append(float(high * case.traffic.mean))
    return tuple(found)


def times(traffic: Traffic, factor: float) -> Traffic:
    """The same at a multiple of the rate."""
    if traffic.hourly_rates:
        rates = tuple(rate * factor for rate in traffic.hourly_rates)
        return traffic.model_copy(update={"hourly_rates": rates})
    changed: dict[str, float] = {
        "mean_rate": traffic.mean * factor, "peak_rate": traffic.peak * factor
    }  # fmt: skip
    return traffic.model_copy(update=changed)


def cheapest(found: Sequence[Forecast]) -> Forecast:
    """The one with the highest net; of equals the first."""
    return max(found, key=lambda one: one.net)
