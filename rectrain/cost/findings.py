"""The answers of a cost report, computed once: the report and cost.json only show them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from rectrain.cost.case import Case, Hosting, Strategy, strategies
from rectrain.cost.fleet import Fleet, fleet
from rectrain.cost.forecast import Forecast, break_even, forecast, lead, payback
from rectrain.cost.machines import Purchase, Route, Server
from rectrain.cost.plan import Bounds, Choice, Plan, choose
from rectrain.cost.ranges import Effect, Range, draw, sensitivity, spread_of
from rectrain.cost.rivals import Change, rivals, ties
from rectrain.cost.traffic import Traffic

__all__ = ["Crossing", "Findings", "Step", "bounds_of", "find", "where_of"]

_FACTORS = tuple(float(f) for f in np.round(10.0 ** np.linspace(-1, 3, 33), 6))


class Crossing(NamedTuple):
    """one costs no more than other from `rates` on (requests a second, each is a change of the
    cheaper one). With the worth of the answers, by costs alone where nothing is worth anything, it
    is `behind` by at most so much money, and no more after `month` months (0: it never is; None:
    not within the horizon)."""

    one: str
    other: str
    rates: tuple[float, ...]
    month: int | None
    behind: float


class Step(NamedTuple):
    """At this multiple of the traffic: the mean rate at first, requests of a month, the best plan,
    without the budget, and what the cheapest machines of each route cost a month."""

    rate: float
    requests: float
    best: Plan | None
    costs: dict[str, float]


@dataclass(frozen=True)
class Findings:
    """What a report says.

    Attributes:
        case: what it is made of.
        currency: of all money.
        bounds: of the plan.
        choice: the best plan and the runner-up.
        rivals: what differs -> the best plan that does, and what would have to change for it.
        relaxed: the best plan if there were neither budget nor latency limit.
        routes: name -> its forecast, bought as the best plan is where its processes fit.
        ranges: name -> of its cost a month.
        wins: name -> share of the draws in which it has the highest net.
        all: forecasts of every strategy.
        crossings: of pairs of routes.
        steps: plans by traffic.
        effects: of inputs on the net of the best route's forecast, of a month.
        leads: of inputs on its lead over the next route, of a month.
        next_route: that route; empty where there is one route alone.
        num_draws: of the Monte Carlo.
    """

    case: Case
    currency: str
    bounds: Bounds
    choice: Choice
    rivals: Mapping[str, tuple[Plan, Change]]
    relaxed: Plan | None
    routes: Mapping[str, Forecast]
    ranges: Mapping[str, Range]
    wins: Mapping[str, float]
    all: tuple[Forecast, ...]
    crossings: tuple[Crossing, ...]
    steps: tuple[Step, ...]
    effects: tuple[Effect, ...]
    leads: tuple[Effect, ...]
    next_route: str
    num_draws: int

    @property
    def best_route(self) -> str:
        """The route with the highest net over the horizon."""
        return max(self.routes, key=lambda name: self.routes[name].net)

    @property
    def best_strategy(self) -> Forecast | None:
        """With the highest net, of those that train all weights and keep the latency limit."""
        limit, routes = self.case.traffic.latency_ms, self.case.routes
        found = [
            one
            for one in self.all
            if one.strategy.method == "full" and routes[one.strategy.route].p99_ms <= limit
        ]
        return max(found, key=lambda one: one.net, default=None)

    @property
    def has_worth(self) -> bool:
        """Whether answers are worth anything, as far as is known."""
        return any(one.worth.any() for one in self.routes.values())


def bounds_of(case: Case) -> Bounds:
    """What a plan for the horizon keeps to."""
    traffic = case.traffic
    return Bounds(
        mean_rate=traffic.mean,
        peak_rate=traffic.peak,
        latency_ms=traffic.latency_ms,
        budget=traffic.budget_per_month or float("inf"),
        availability=traffic.availability,
        restart_h=traffic.restart_h,
        months=tuple(traffic.months().tolist()),
        day=tuple(traffic.day().tolist()) if traffic.scales_hourly else (),
    )


def where_of(plan: Plan) -> tuple[Hosting, Purchase]:
    """Whose machines a plan takes, and how they are bought, in the words of a `Strategy`."""
    if plan.server.purchase == "own":
        return "own", "on demand"
    return "cloud", plan.server.purchase


def find(
    case: Case,
    *,
    options: Callable[[Traffic], tuple[Route, ...]],
    currency: str,
    num_draws: int = 1000,
    seed: int = 0,
) -> Findings:
    """Computes all answers.

    Args:
        case: what is known; its routes are those that are forecast.
        options: traffic -> routes that a plan may choose among, as fast as its latency limit lets
            them be: the case's, and further thresholds of the cascade.
        currency: of the case's money.
        num_draws, seed: of the Monte Carlo.
    """
    bounds, servers = bounds_of(case), case.every_server
    every = dict(_forecasts(case))
    routes_of = partial(_with_besides, options, every)
    offered = routes_of(case.traffic)
    choice = choose(servers, offered, bounds)
    chosen = {name: _bought_as(choice.best, name, every) for name in case.routes}
    routes = {name: every[one] for name, one in chosen.items()}
    costs, wins = _drawn(case, list(chosen.values()), num_draws=num_draws, seed=seed)
    ranked = sorted(routes, key=lambda name: routes[name].net, reverse=True)
    second = ranked[1] if len(ranked) > 1 else ""
    return Findings(
        case=case,
        currency=currency,
        bounds=bounds,
        choice=choice,
        rivals=_rivals(choice, servers, offered, bounds),
        relaxed=_relaxed(servers, case.traffic, routes_of, bounds),
        routes=routes,
        ranges=dict(zip(chosen, costs, strict=True)),
        wins=dict(zip(chosen, wins, strict=True)),
        all=tuple(every.values()),
        crossings=tuple(_crossings(case, chosen, routes)),
        steps=tuple(_steps(servers, offered, case.routes, bounds)),
        effects=sensitivity(case, _monthly(chosen[ranked[0]])),
        leads=sensitivity(case, _lead(chosen[ranked[0]], chosen[second])) if second else (),
        next_route=second,
        num_draws=num_draws,
    )


def _forecasts(case: Case) -> Iterator[tuple[Strategy, Forecast]]:
    """Of each strategy; how the large model learns again moves no machine that answers."""
    served: dict[Strategy, Fleet] = {}
    for one in strategies(case):
        place = one._replace(method="full")
        if place not in served:
            served[place] = fleet(case, case.routes[one.route], place)
        yield one, forecast(case, one, served=served[place])


def _with_besides(
    options: Callable[[Traffic], tuple[Route, ...]],
    every: Mapping[Strategy, Forecast],
    traffic: Traffic,
) -> tuple[Route, ...]:
    """Routes with what they cost besides machines: as of the first strategy of each, in a cloud on
    demand where there is one. Cascades of other thresholds cost what the cascade does."""
    besides: dict[str, float] = {}
    for strategy, one in every.items():
        besides.setdefault(strategy.route, one.besides)
    return tuple(
        replace(one, monthly=besides[one.name if one.name in besides else "cascade"])
        for one in options(traffic)
    )


def _bought_as(plan: Plan | None, route: str, every: Iterable[Strategy]) -> Strategy:
    """A route's strategy with the plan's kind of machines, else its first one."""
    own = [one for one in every if one.route == route]
    alike = [one for one in own if plan and (one.hosting, one.purchase) == where_of(plan)]
    return (alike or own)[0]


def _drawn(
    case: Case, chosen: list[Strategy], *, num_draws: int, seed: int
) -> tuple[list[Range], list[float]]:
    """Of each strategy: its cost a month, and the share of the draws in which it is the best."""
    measures = (lambda one: one.monthly, lambda one: one.net)
    costs, nets = draw(case, chosen, measures, num_draws=num_draws, seed=seed)
    best = nets.argmax(axis=1)
    return (
        [spread_of(costs[:, place]) for place in range(len(chosen))],
        [float((best == place).mean()) for place in range(len(chosen))],
    )


def _rivals(
    choice: Choice, servers: tuple[Server, ...], options: tuple[Route, ...], bounds: Bounds
) -> dict[str, tuple[Plan, Change]]:
    if choice.best is None:
        return {}
    found = {}
    if choice.second is not None:
        found["runner-up"] = choice.second
    for name, plan in rivals(choice.best, servers, options, bounds).items():
        if plan.key not in [one.key for one in found.values()]:
            found[f"other {name}"] = plan
    return {name: (plan, ties(choice.best, plan, bounds)) for name, plan in found.items()}


def _relaxed(
    servers: tuple[Server, ...],
    traffic: Traffic,
    routes_of: Callable[[Traffic], tuple[Route, ...]],
    bounds: Bounds,
) -> Plan | None:
    # Without a limit a process may be as busy as can be, so fewer machines do.
    routes = routes_of(traffic.model_copy(update={"latency_ms": float("inf")}))
    free = replace(bounds, budget=float("inf"), latency_ms=float("inf"))
    return choose(servers, routes, free).best


def _crossings(
    case: Case, chosen: Mapping[str, Strategy], routes: Mapping[str, Forecast]
) -> list[Crossing]:
    found = []
    for one in routes:
        if one != "large" and "large" in routes:
            rates = break_even(case, chosen[one], chosen["large"])
            behind = max(0.0, -float(lead(routes[one], routes["large"]).min()))
            month = payback(routes[one], routes["large"])
            found.append(Crossing(one, "large", rates, month, behind))
    return found


def _steps(
    servers: tuple[Server, ...],
    options: tuple[Route, ...],
    routes: Mapping[str, Route],
    bounds: Bounds,
) -> list[Step]:
    found = []
    for factor in _FACTORS:
        there = replace(bounds.times(factor), budget=float("inf"))
        best = choose(servers, options, there).best
        alone = {
            name: choose(servers, (replace(route, worth_per_1000=0.0),), there).best
            for name, route in routes.items()
        }
        costs = {name: plan.cost for name, plan in alone.items() if plan is not None}
        found.append(Step(there.mean_rate, there.requests, best, costs))
    return found


def _monthly(one: Strategy) -> Callable[[Case], float]:
    return lambda case: forecast(case, one).net / case.traffic.horizon_months


def _lead(one: Strategy, other: Strategy) -> Callable[[Case], float]:
    def ahead(case: Case) -> float:
        more = forecast(case, one).net - forecast(case, other).net
        return more / case.traffic.horizon_months

    return ahead
