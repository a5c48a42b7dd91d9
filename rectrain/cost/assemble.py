"""From files and measurements to a case: machines with prices in one currency, routes, answers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rectrain.cascade.policy import Policy
from rectrain.cost.case import METHODS, Case, Licence, Method, Owned, Training
from rectrain.cost.machines import Route, Server, num_slots
from rectrain.cost.prices import Hourly, Instance, Machine, Prices
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
    "routes_of",
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

    def worth(self, name: str, traffic: Traffic) -> dict[str, float]:
        """Task -> what a model's answers among 1,000 are worth."""
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
    traffic: Traffic, prices: Prices, training: Training, *, device: Literal["cpu", "gpu"]
) -> Case:
    """The case without routes, which are known once models were measured: see `routes_of`.

    Args:
        traffic: what is asked.
        prices: of machines and people.
        training: what trainings take.
        device: that models are measured on: machines with others are left out.

    Raises:
        ConfigError: no machine is left, or a currency has no rate.
    """
    currency = traffic.currency or prices.currency
    servers = tuple(
        server
        for name, one in prices.instances.items()
        if one.device == device
        for server in _rented(name, one, prices, currency)
    )
    owned = tuple(
        _owned(name, one, prices, currency)
        for name, one in prices.machines.items()
        if one.device == device
    )
    if not servers and not owned:
        raise ConfigError(
            what="machines of the prices", got=f"none with a {device}",
            rule=f"the models are measured on a {device}",
            fix=f"add an instance or a machine with device: {device} to your prices file",
        )  # fmt: skip
    single = {
        "engineer": prices.people.engineer, "operator": prices.people.operator,
        "kwh": prices.energy, "gib": prices.traffic.internet, "gib month": prices.storage.object,
    }  # fmt: skip
    amounts = {name: prices.amount(price, currency) for name, price in single.items()}
    return Case(
        traffic=traffic,
        routes={},
        training=training,
        servers=servers,
        owned=owned,
        engineer_h=amounts["engineer"],
        operator_h=amounts["operator"],
        kwh=amounts["kwh"],
        egress_gib=amounts["gib"],
        gib_month=amounts["gib month"],
        sources={name: prices.cited(price, currency) for name, price in single.items()},
        licences={
            name: Licence(prices.amount(one, currency), one.unit, prices.cited(one, currency))
            for name, one in prices.licences.items()
        },
    )


def _rented(name: str, one: Instance, prices: Prices, currency: str) -> Iterator[Server]:
    """An instance in the ways that it may be bought."""

    def server(price: Hourly, **bought: Any) -> Server:
        return Server(
            name, one.num_devices, prices.amount(price, currency), one.speed,
            one.memory_gib * _GIB, source=prices.cited(price, currency), **bought,
        )  # fmt: skip

    yield server(one.on_demand)
    if one.reserved is not None:
        yield server(one.reserved, purchase="reserved", term_months=one.reserved_months)
    if one.spot is not None:
        rate = one.spot.interruptions_per_hour
        yield server(one.spot, purchase="spot", interruptions_per_hour=rate)


def _owned(name: str, one: Machine, prices: Prices, currency: str) -> Owned:
    paid = [one.purchase, *([one.hosting] if one.hosting else [])]
    amounts = [prices.amount(price, currency) for price in paid]
    return Owned(
        Server(name, one.num_devices, 0.0, one.speed, one.memory_gib * _GIB),
        monthly=amounts[0] * float(one.monthly_share) + sum(amounts[1:]),
        watts=one.watts * one.power_usage_effectiveness,
        idle_watts=one.idle_watts * one.power_usage_effectiveness,
        life_months=one.life_months,
        source="; ".join(prices.cited(price, currency) for price in paid),
    )


def gpu_servers(prices: Prices, currency: str, *, chips: Collection[str]) -> tuple[Server, ...]:
    """Machines of clouds that trainings on GPUs are paid on, in the ways that they may be bought.

    Args:
        prices: of them.
        currency: of the case.
        chips: that the trainings were measured on.
    """
    names = {name for chip in chips for name in prices.of_chip("gpu", chip)}
    return tuple(
        server
        for name, one in prices.instances.items()
        if name in names
        for server in _rented(name, one, prices, currency)
    )


def routes_of(models: Models, traffic: Traffic) -> dict[str, Route]:
    """Large alone, small alone, and the cascade as its policy says; as far as they are there."""
    worth = {name: models.worth(name, traffic) for name in ("large", "small")}
    found = {"large": lone(models.large, traffic, worth=worth["large"])}
    if models.small is not None:
        found["small"] = lone(models.small, traffic, worth=worth["small"])
        if models.policy is not None:
            found["cascade"] = cascade(
                models.small, models.large, models.policy, traffic, worth=worth
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
                worth=worth, name=f"cascade of {share:.0%}",
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

    Ways are "large" and "small" alone, and the "pair" of them; one whose processes don't fit into
    the machine is left out. Of a pair with a policy the load is the cascade's, whose two latencies
    share the limit.

    Args:
        models: what answers.
        traffic: whose mix, candidates and limit.
        server: what it runs on.
    """
    routes, speeds = routes_of(models, traffic), {"large": models.large}
    if models.small is not None:
        speeds["small"] = models.small
    ways = {name: {name: routes[name]} for name in speeds}
    if models.small is not None:
        ways["pair"] = {name: routes.get("cascade", routes[name]) for name in speeds}
    return {
        way: {name: _task_costs(speeds[name], route, server) for name, route in parts.items()}
        for way, parts in ways.items()
        if all(num_slots(server, route) for route in parts.values())
    }


def _task_costs(speed: Speed, route: Route, server: Server) -> dict[str, tuple[float, float]]:
    """Task -> what 1,000 requests cost of a model as a part of a route: fixed, and a candidate."""
    second = _busy_second(route, server)
    return {
        task: (1000 * one.fixed_s * second, 1000 * one.candidate_s * second)
        for task, one in speed.tasks.items()
    }


def request_cost(route: Route, server: Server) -> float | None:
    """What 1,000 requests cost on a machine, at its plan's load; None: no process fits into it.

    Args:
        route: that answers them.
        server: what it runs on.
    """
    fits = num_slots(server, route) > 0
    return 1000 * route.busy_s * _busy_second(route, server) if fits else None


def _busy_second(route: Route, server: Server) -> float:
    """Money for a second of a route's work: the part of a machine that its process holds, also
    while it waits, and energy."""
    held = server.hourly / num_slots(server, route) / route.busy
    return (held + server.load_hourly / server.threads) / 3600 / server.speed
