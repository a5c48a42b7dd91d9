"""What a forecast is about: everything that is known, and the strategies that it leaves open (M9).

A *strategy* is a route (large, small or cascade), how the large model is trained anew (all of it,
LoRA, AdaLoRA), whose machines (cloud, own, both) and, in the cloud, on demand or spot. A *case* is
everything that is known: traffic, routes, trainings, machines, prices. `assemble` makes one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Literal, NamedTuple

from rectrain.cost.plan import Purchase, Route, Server
from rectrain.cost.traffic import Traffic

__all__ = ["METHODS", "Case", "Method", "Owned", "Strategy", "Training", "strategies"]

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
        large: one training of the large model, all of its weights: its last run.
        small: making the small one of it.
        factors: method -> share of `large` that it takes.
        source: how these are known.
        before: "large", "small" -> hours of what its first training started from, paid once.
        gpu: "large", "small", "before large", "before small" -> share of its hours that a GPU
            computed; 0 where it is missing.
        gpu_servers: of clouds, for these.
    """

    large: float
    small: float
    factors: Mapping[Method, float]
    source: str
    before: Mapping[str, float] = field(default_factory=dict)
    gpu: Mapping[str, float] = field(default_factory=dict)
    gpu_servers: tuple[Server, ...] = ()

    def times(self, hours: float, *, prices: float) -> Training:
        """The same with a multiple of the hours, and of what an hour of a GPU costs."""
        servers = tuple(replace(one, hourly=one.hourly * prices) for one in self.gpu_servers)
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


def strategies(case: Case) -> tuple[Strategy, ...]:
    """All of a case: where nothing is owned, the cloud alone."""
    purchases: tuple[Purchase, ...] = ("on demand", "spot")
    kinds = [one for one in purchases if any(s.purchase == one for s in case.servers)]
    hosting: list[tuple[Hosting, Purchase]] = [("cloud", kind) for kind in kinds]
    if case.owned:
        hosting.append(("own", "on demand"))
        hosting += [("both", kind) for kind in kinds]
    return tuple(
        Strategy(route, method, place, kind)
        for route, method, (place, kind) in product(case.routes, METHODS, hosting)
    )
