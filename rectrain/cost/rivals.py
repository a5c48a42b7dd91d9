"""What would have to change for another plan to win."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rectrain.cost.machines import Route, Server
from rectrain.cost.plan import Bounds, Plan, best_of, is_better, plans
from rectrain.cost.prices import HOURS_PER_MONTH

__all__ = ["Change", "rivals", "ties"]

_GRID, _RANGE = 240, 1000.0  # traffic that `ties` looks at: a thousandth to a thousandfold


@dataclass(frozen=True)
class Change:
    """What would have to change for a rival to win; None where nothing of the kind does.

    Attributes:
        rival_hourly: price of an hour of its machine, below which it wins.
        best_hourly: that of the best plan's machine, above which the rival wins.
        traffic_up, traffic_down: the nearest multiples of the traffic, above and below 1.
        worth: multiple of what answers are worth.
    """

    rival_hourly: float | None
    best_hourly: float | None
    traffic_up: float | None
    traffic_down: float | None
    worth: float | None


def rivals(
    best: Plan, servers: Sequence[Server], routes: Sequence[Route], bounds: Bounds
) -> dict[str, Plan]:
    """The best plan that differs in one kind of choice: the route, the machine or the purchase.

    Args:
        best: of these servers, routes and bounds.
        servers, routes, bounds: as of `plan.choose`.

    Returns:
        "route", "machine" or "purchase" -> plan, where there is one.
    """
    differs: dict[str, Callable[[Plan], bool]] = {
        "route": lambda plan: plan.route.name != best.route.name,
        "machine": lambda plan: plan.server.name != best.server.name,
        "purchase": lambda plan: plan.server.purchase != best.server.purchase,
    }
    found = list(plans(servers, routes, bounds))
    chosen = {name: best_of([one for one in found if rule(one)]) for name, rule in differs.items()}
    return {name: plan for name, plan in chosen.items() if plan is not None}


def ties(best: Plan, rival: Plan, bounds: Bounds) -> Change:
    """What would have to change for a rival to win, one thing at a time.

    Args:
        best, rival: plans of the same bounds.
        bounds: those.
    """
    lead = best.net - rival.net
    rival_hourly = rival.server.hourly - lead / (rival.machines * HOURS_PER_MONTH)
    gain, saved = best.worth - rival.worth, best.spent - rival.spent
    worth = saved / gain if gain and saved / gain >= 0 else None
    best_hourly = best.server.hourly + lead / (best.machines * HOURS_PER_MONTH)
    if best.key[:2] == rival.key[:2]:  # one price, which moves both
        rival_hourly = best_hourly = _common(best, rival)
    return Change(
        rival_hourly=rival_hourly if rival_hourly > 0 else None,
        best_hourly=best_hourly if best_hourly > 0 else None,
        traffic_up=_turn(best, rival, bounds, up=True),
        traffic_down=_turn(best, rival, bounds, up=False),
        worth=worth,
    )


def _common(best: Plan, rival: Plan) -> float:
    """The price of an hour at which two plans on the same machine tie; NaN-free: -1 for none."""
    more = HOURS_PER_MONTH * (best.machines - rival.machines)
    if not more:
        return -1.0
    return best.server.hourly + (best.net - rival.net) / more


def _turn(best: Plan, rival: Plan, bounds: Bounds, *, up: bool) -> float | None:
    """The nearest multiple of the traffic at which the rival is better, each of them resized."""

    def wins(factor: float) -> bool:
        there = bounds.times(factor)
        ours, theirs = (
            next(plans([one.server], [one.route], there), None) for one in (best, rival)
        )
        return theirs is not None and (ours is None or is_better(theirs, ours))

    step = float(_RANGE ** (1 / _GRID))
    last = 1.0
    for _ in range(_GRID):
        factor = last * step if up else last / step
        if wins(factor):
            for _ in range(40):
                middle = math.sqrt(last * factor)
                last, factor = (last, middle) if wins(middle) else (middle, factor)
            return factor
        last = factor
    return None
