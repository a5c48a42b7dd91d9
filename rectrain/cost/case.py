"""What a forecast is about: everything that is known, and the strategies that it leaves open (M9).

A *strategy* is a route (large, small or cascade), how the large model is trained anew (all of it,
LoRA, AdaLoRA), whose machines (cloud, own, both) and, in the cloud, on demand, reserved or spot. A
*case* is everything that is known: traffic, routes, trainings, machines, prices. `assemble` makes
one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Literal, NamedTuple

from rectrain.cost.machines import PURCHASES, Purchase, Route, Server, num_slots
from rectrain.cost.prices import HOURS_PER_MONTH
from rectrain.cost.traffic import Traffic
from rectrain.errors import ConfigError

__all__ = [
    "METHODS",
    "Case",
    "Hosting",
    "Licence",
    "Method",
    "Owned",
    "Strategy",
    "Training",
    "strategies",
]

Method = Literal["full", "lora", "adalora"]
Hosting = Literal["cloud", "own", "both"]

METHODS: tuple[Method, ...] = ("full", "lora", "adalora")


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
        server: its threads, speed and memory; nothing else of it is read.
        monthly: writing it off, and its place.
        watts, idle_watts: drawn, the building's share included.
        life_months: for which one is kept.
        source: of what a month costs, and the dates.
    """

    server: Server
    monthly: float
    watts: float = 0.0
    idle_watts: float = 0.0
    life_months: int = 48
    source: str = ""

    def rented(self, kwh: float) -> Server:
        """As a machine by the hour, with its energy at this price."""
        return replace(
            self.server,
            hourly=self.monthly / HOURS_PER_MONTH + self.idle_watts * kwh / 1000,
            load_hourly=(self.watts - self.idle_watts) * kwh / 1000,
            purchase="own",
            term_months=self.life_months,
            source=self.source,
        )


class Licence(NamedTuple):
    """Of software: an amount, whether it is paid once or each month, and where that is said."""

    amount: float
    unit: Literal["once", "month"]
    source: str = ""


@dataclass(frozen=True)
class Training:
    """What one training takes, in hours of a device of the machine that was measured.

    Attributes:
        large: one training of the large model, all of its weights: its last run.
        small: making the small one of it.
        factors: method -> share of `large` that it takes.
        source: how these are known.
        before: "large", "small" -> hours of what its first training started from, paid once.
        gpu: "large", "small", "before large", "before small" -> share of its hours that a GPU
            computed; 0 where it is missing.
        gpu_servers: the same -> machines of clouds, for these.
    """

    large: float
    small: float
    factors: Mapping[Method, float]
    source: str
    before: Mapping[str, float] = field(default_factory=dict)
    gpu: Mapping[str, float] = field(default_factory=dict)
    gpu_servers: Mapping[str, tuple[Server, ...]] = field(default_factory=dict)

    def times(self, hours: float, *, prices: float) -> Training:
        """The same with a multiple of the hours, and of what an hour of a GPU costs."""
        servers = {
            model: tuple(replace(one, hourly=one.hourly * prices) for one in found)
            for model, found in self.gpu_servers.items()
        }
        before = {model: hours * value for model, value in self.before.items()}
        return replace(
            self, large=self.large * hours, small=self.small * hours, before=before,
            gpu_servers=servers,
        )  # fmt: skip


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
        gib_month: of what is kept.
        sources: of the other prices: "engineer", "operator", "kwh", "gib", "gib month".
        licences: name -> what it costs.
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
    gib_month: float = 0.0
    sources: Mapping[str, str] = field(default_factory=dict)
    licences: Mapping[str, Licence] = field(default_factory=dict)

    @property
    def every_server(self) -> tuple[Server, ...]:
        """What a plan may choose among: clouds' machines and one's own."""
        return self.servers + tuple(one.rented(self.kwh) for one in self.owned)


def strategies(case: Case) -> tuple[Strategy, ...]:
    """All of a case that have machines which a process of their route fits into.

    Raises:
        ConfigError: a route has none.
    """
    return tuple(
        Strategy(name, method, *where)
        for name, route in case.routes.items()
        for method, where in product(METHODS, _hosting(case, name, route))
    )


def _hosting(case: Case, name: str, route: Route) -> list[tuple[Hosting, Purchase]]:
    fitting = [one for one in case.every_server if num_slots(one, route)]
    if not fitting:
        largest = max(stage.memory_bytes for stage in route.stages)
        raise ConfigError(
            what=f"machines of the prices for {name}",
            got=f"none with the memory of a process, {largest / 2**30:.2g} GiB",
            rule="one process must fit",
            fix="add a machine with more memory to your prices file",
        )
    kinds = [kind for kind in PURCHASES if any(one.purchase == kind for one in fitting)]
    cloud = [kind for kind in kinds if kind != "own"]
    found: list[tuple[Hosting, Purchase]] = [("cloud", kind) for kind in cloud]
    if "own" in kinds:
        found.append(("own", "on demand"))
        found += [("both", kind) for kind in cloud]
    return found
