"""From files and measurements to a case: machines with prices in one currency, routes, answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from rectrain.cascade.policy import Policy
from rectrain.cost.case import METHODS, Case, Licence, Method, Owned, Training
from rectrain.cost.machines import Route, Server
from rectrain.cost.prices import Price, Prices
from rectrain.cost.routes import DEFERRED, Speed, cascade, lone, worths
from rectrain.cost.traffic import Traffic
from rectrain.errors import ConfigError
from rectrain.metrics import metric

__all__ = [
    "Models",
    "answer_costs",
    "closed_form_factors",
    "gpu_servers",
    "lift_of",
    "make_case",
    "measured_factors",
    "options_of",
    "request_cost",
]

_GIB = 2**30
Metrics = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Models:
    """The models of a case.

    Attributes:
        large: the one that answers alone, or is asked.
        small: the one that answers first; None: there is none.
        policy: when it asks the large one; None: never.
        lift: name -> task -> share of the large model's lift; missing where nothing is known.
    """

    large: Speed
    small: Speed | None = None
    policy: Policy | None = None
    lift: Mapping[str, Mapping[str, float]] | None = None

    def worth(self, name: str, traffic: Traffic) -> float:
        """What 1,000 answers of a model are worth."""
        lift = (self.lift or {}).get(name, {})
        return worths(traffic, lift, tasks=tuple(self.large.tasks))


def lift_of(metrics: Metrics, first: Metrics) -> dict[str, float]:
    """Task -> share of the first model's lift that another has, by the first metric of each task.

    A trivial model's AUC and pair-wise accuracy are 1/2. Of rankings it depends on the lists, which
    are not known here; 0 is taken, so that differences of rankings count for less than they are.
    A task whose first model is no better than a trivial one has no share.

    Args:
        metrics, first: task -> metric -> value, or value and interval.
    """
    found = {}
    for task, values in metrics.items():
        others = first.get(task, {})
        # Found one by one: behind the metrics of rows a card has those of a whole catalogue.
        judged = (one for one in values if one in others and metric(one).higher_is_better)
        if (name := next(judged, None)) is not None:
            trivial = 0.5 if name in ("auc", "gauc", "pairwise_accuracy") else 0.0
            if (lift := _first(others[name]) - trivial) > 0:
                found[task] = (_first(values[name]) - trivial) / lift
    return found


def _first(value: Any) -> float:
    return float(value[0] if isinstance(value, list | tuple) else value)


def closed_form_factors() -> dict[Method, float]:
    """Share of a full training's products that each method takes.

    Full: forward 1, gradients of activations 1, of weights 1 (Kaplan et al. 2020, section 2.1: a
    backward pass is two forward passes). With adapters the frozen weights need no gradients: 2 of
    3. Left out: the adapters' own products, the optimizer (less with adapters), AdaLoRA's updates
    of ranks.
    """
    return {"full": 1.0, "lora": 2 / 3, "adalora": 2 / 3}


def measured_factors(figures: list[dict[str, Any]]) -> dict[Method, float]:
    """The same from `python -m benchmarks.adapters`: one over the speed in real tokens a second.

    Args:
        figures: of its JSON file; what is missing is taken from the closed form.
    """
    found = closed_form_factors()
    speeds = {one["id"]: one["value"] for one in figures}
    for method in METHODS:
        if (speed := speeds.get(f"adapters/{method}/speed")) is not None:
            found[method] = 1 / float(speed)
    return found


def make_case(
    models: Models,
    traffic: Traffic,
    prices: Prices,
    training: Training,
    *,
    device: Literal["cpu", "gpu"],
) -> tuple[Case, str]:
    """The case, and its currency.

    Args:
        models: what answers.
        traffic: what is asked.
        prices: of machines and people.
        training: what trainings take.
        device: that was measured: machines with others are left out.

    Raises:
        ConfigError: no machine is left.
    """
    currency = traffic.currency or prices.currency

    def amount(price: Price) -> float:
        return float(price.value * prices.rates.factor(price.currency, currency))

    servers = tuple(_servers(prices, amount, device))
    owned = tuple(
        Owned(
            Server(name, one.num_devices, 0.0, one.speed, one.memory_gib * _GIB),
            monthly=float(
                one.monthly_write_off * prices.rates.factor(one.purchase.currency, currency)
            )
            + (amount(one.hosting) if one.hosting else 0.0),
            watts=one.watts * one.power_usage_effectiveness,
            idle_watts=one.idle_watts * one.power_usage_effectiveness,
            life_months=one.life_months,
        )
        for name, one in prices.machines.items()
        if one.device == device
    )
    if not servers and not owned:
        raise ConfigError(
            what="machines of the prices", got=f"none with a {device}",
            rule=f"the models were measured on a {device}",
            fix=f"add an instance or a machine with device: {device} to your prices file",
        )  # fmt: skip
    case = Case(
        traffic=traffic,
        routes=routes_of(models, traffic),
        training=training,
        servers=servers,
        owned=owned,
        engineer_h=amount(prices.people.engineer),
        operator_h=amount(prices.people.operator),
        kwh=amount(prices.energy),
        egress_gib=amount(prices.traffic.internet),
        gib_month=amount(prices.storage.object),
        sources=_sources(prices),
        licences={
            name: Licence(amount(price), price.unit) for name, price in prices.licences.items()
        },
    )
    return case, currency


def _servers(prices: Prices, amount: Any, device: str) -> list[Server]:
    found = []
    for name, one in prices.instances.items():
        if one.device != device:
            continue
        plain = Server(
            name, one.num_devices, amount(one.on_demand), one.speed, one.memory_gib * _GIB
        )
        found.append(plain)
        if one.reserved is not None:
            hourly, term = amount(one.reserved), one.reserved_months
            found.append(replace(plain, hourly=hourly, purchase="reserved", term_months=term))
        if one.spot is not None:
            hourly, rate = amount(one.spot), one.spot.interruptions_per_hour
            found.append(
                replace(plain, hourly=hourly, purchase="spot", interruptions_per_hour=rate)
            )
    return found


def gpu_servers(prices: Prices, currency: str, *, chips: Collection[str]) -> tuple[Server, ...]:
    """Machines of clouds that trainings on GPUs are paid on, in the ways that they may be bought.

    Args:
        prices: of them.
        currency: of the case.
        chips: that trainings were measured on; where the prices have one, only such machines.
    """

    def amount(price: Price) -> float:
        return float(price.value * prices.rates.factor(price.currency, currency))

    every = _servers(prices, amount, "gpu")
    return tuple(s for s in every if prices.instances[s.name].chip in chips) or tuple(every)


def _sources(prices: Prices) -> dict[str, str]:
    hours = sorted(
        {
            price.cited
            for one in prices.instances.values()
            for price in (one.on_demand, one.reserved, one.spot)
            if price is not None
        }
    )
    people = sorted({prices.people.engineer.cited, prices.people.operator.cited})
    return {
        "hour": "; ".join(hours), "people": "; ".join(people), "kwh": prices.energy.cited,
        "gib": prices.traffic.internet.cited, "gib month": prices.storage.object.cited,
        "licence": "; ".join(sorted({one.cited for one in prices.licences.values()})),
        "exchange": prices.rates.source,
    }  # fmt: skip


def routes_of(models: Models, traffic: Traffic) -> dict[str, Route]:
    """Large alone, small alone, and the cascade as its policy says; as far as they are there."""
    worth = {name: models.worth(name, traffic) for name in ("large", "small")}
    found = {"large": lone(models.large, traffic, worth_per_1000=worth["large"])}
    if models.small is not None:
        found["small"] = lone(models.small, traffic, worth_per_1000=worth["small"])
        if models.policy is not None:
            found["cascade"] = cascade(
                models.small, models.large, models.policy, traffic, worth_per_1000=worth
            )
    return found


def options_of(models: Models, traffic: Traffic) -> tuple[Route, ...]:
    """The routes, and cascades that defer other shares: what a plan may choose among."""
    found = list(routes_of(models, traffic).values())
    if models.small is not None and models.policy is not None:
        worth = {name: models.worth(name, traffic) for name in ("large", "small")}
        found += [
            cascade(
                models.small, models.large, models.policy, traffic, deferred=share,
                worth_per_1000=worth, name=f"cascade of {share:.0%}",
            )
            for share in DEFERRED
        ]  # fmt: skip
    return tuple(found)


def answer_costs(
    models: Models, traffic: Traffic, server: Server
) -> dict[str, dict[str, dict[str, tuple[float, float]]]]:
    """Way of serving -> model -> task -> what 1,000 of its answers cost: fixed, and a candidate.

        1,000 answers of n candidates, of which the large model scores m
            = small fixed + n · small candidate + (m > 0) · (large fixed + m · large candidate)

    Ways are "large" and "small" alone, and the "pair" of them. Seconds of a core are divided by the
    share of the time in which a process is busy at the load that keeps the latency limit: of a pair
    with a policy the cascade's, whose two latencies share the limit.

    Args:
        models: what answers.
        traffic: whose mix, candidates and limit.
        server: what it runs on.
    """
    routes, speeds = routes_of(models, traffic), {"large": models.large}
    if models.small is not None:
        speeds["small"] = models.small
    busy = {name: _busy(routes[name], speed, traffic) for name, speed in speeds.items()}
    ways = {name: {name: share} for name, share in busy.items()}
    if models.small is not None:
        if "cascade" in routes:
            busy = dict.fromkeys(busy, _busy(routes["cascade"], models.small, traffic))
        ways["pair"] = busy
    return {
        way: {
            name: {
                task: (
                    1000 * one.fixed_s / share * _second(server),
                    1000 * one.candidate_s / share * _second(server),
                )
                for task, one in speeds[name].tasks.items()
            }
            for name, share in shares.items()
        }
        for way, shares in ways.items()
    }


def _busy(route: Route, first: Speed, traffic: Traffic) -> float:
    """Share of the time in which a process of a route's first model is busy at the route's load."""
    mix = traffic.shares(tuple(first.tasks))
    seconds = sum(
        share * first.tasks[task].seconds(traffic.candidates) for task, share in mix.items()
    )
    return route.stages[0].rate * seconds


def request_cost(route: Route, server: Server) -> float:
    """What 1,000 requests cost on a machine, at its plan's load.

    Args:
        route: that answers them.
        server: what it runs on.
    """
    return 1000 * route.core_s * _second(server)


def _second(server: Server) -> float:
    """Money for a second of the measured core."""
    return (server.hourly + server.load_hourly) / 3600 / (server.threads * server.speed)
