"""The answers of a cost report, computed once: the report and cost.json only show them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from rectrain.cost.case import Case, Strategy, strategies
from rectrain.cost.forecast import Forecast, break_even, forecast, payback
from rectrain.cost.plan import Bounds, Change, Choice, Plan, Route, Server, choose, rivals, ties
from rectrain.cost.ranges import Effect, Range, draw, sensitivity, spread_of

__all__ = ["Crossing", "Findings", "Step", "bounds_of", "find"]

_FACTORS = tuple(float(f) for f in np.round(10.0 ** np.linspace(-1, 3, 33), 6))


class Crossing(NamedTuple):
    """one costs no more than other from `rates` on (requests a second, each is a change of the
    cheaper one), and what it costs more at first is back after `month` months (0: it never is
    more; None: not within the horizon)."""

    one: str
    other: str
    rates: tuple[float, ...]
    month: int | None


class Step(NamedTuple):
    """At this mean rate: the best plan, and what the smallest plan of each route costs a month."""

    rate: float
    best: Plan | None
    costs: dict[str, float]


@dataclass(frozen=True)
class Findings:
    """What a report says.

    Attributes:
        case: what it is made of.
        currency: of all money.
        bounds: of the plan: the first month's traffic.
        choice: the best plan and the runner-up.
        rivals: what differs -> the best plan that does, and what would have to change for it.
        relaxed: the best plan if there were neither budget nor latency limit.
        routes: name -> its forecast, all of them bought alike.
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
    def has_worth(self) -> bool:
        """Whether answers are worth anything, as far as is known."""
        return any(one.worth.any() for one in self.routes.values())


def bounds_of(case: Case) -> Bounds:
    """What a plan for the first month keeps to."""
    traffic = case.traffic
    first = float(traffic.months()[0])
    return Bounds(
        mean_rate=traffic.mean * first,
        peak_rate=traffic.peak * first,
        latency_ms=traffic.latency_ms,
        budget=traffic.budget_per_month or float("inf"),
        availability=traffic.availability,
        restart_h=traffic.restart_h,
    )


def find(
    case: Case,
    *,
    options: tuple[Route, ...],
    currency: str,
    num_draws: int = 1000,
    seed: int = 0,
) -> Findings:
    """Computes all answers.

    Args:
        case: what is known; its routes are those that are forecast.
        options: routes that a plan may choose among: the same, and further thresholds.
        currency: of the case's money.
        num_draws, seed: of the Monte Carlo.
    """
    bounds, servers = bounds_of(case), case.servers
    choice = choose(servers, options, bounds)
    purchase = "on demand" if choice.best is None else choice.best.server.purchase
    chosen = {name: Strategy(name, purchase=purchase) for name in case.routes}
    routes = {name: forecast(case, one) for name, one in chosen.items()}
    costs, wins = _drawn(case, list(chosen.values()), num_draws=num_draws, seed=seed)
    ranked = sorted(routes, key=lambda name: routes[name].net, reverse=True)
    second = ranked[1] if len(ranked) > 1 else ""
    return Findings(
        case=case,
        currency=currency,
        bounds=bounds,
        choice=choice,
        rivals=_rivals(choice, servers, options, bounds),
        relaxed=_relaxed(servers, options, bounds),
        routes=routes,
        ranges=dict(zip(chosen, costs, strict=True)),
        wins=dict(zip(chosen, wins, strict=True)),
        all=tuple(forecast(case, one) for one in strategies(case)),
        crossings=tuple(_crossings(case, chosen, routes)),
        steps=tuple(_steps(servers, options, case.routes, bounds)),
        effects=sensitivity(case, _monthly(chosen[ranked[0]])),
        leads=sensitivity(case, _lead(chosen[ranked[0]], chosen[second])) if second else (),
        next_route=second,
        num_draws=num_draws,
    )


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
    servers: tuple[Server, ...], options: tuple[Route, ...], bounds: Bounds
) -> Plan | None:
    free = replace(bounds, budget=float("inf"), latency_ms=float("inf"))
    return choose(servers, options, free).best


def _crossings(
    case: Case, chosen: Mapping[str, Strategy], routes: Mapping[str, Forecast]
) -> list[Crossing]:
    found = []
    for one in routes:
        if one != "large" and "large" in routes:
            rates = break_even(case, chosen[one], chosen["large"])
            found.append(Crossing(one, "large", rates, payback(routes[one], routes["large"])))
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
        found.append(Step(there.mean_rate, best, costs))
    return found


def _monthly(one: Strategy) -> Callable[[Case], float]:
    return lambda case: forecast(case, one).net / case.traffic.horizon_months


def _lead(one: Strategy, other: Strategy) -> Callable[[Case], float]:
    def lead(case: Case) -> float:
        ahead = forecast(case, one).net - forecast(case, other).net
        return ahead / case.traffic.horizon_months

    return lead
