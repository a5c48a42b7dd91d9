"""An oracle of the plan, written from docs/cost.md alone: it shares no code with rectrain.

Slow and plain: it counts machines upwards one by one until they carry the load, sums binomial
chances in exact fractions, and tries everything.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import count
from math import comb
from typing import Any, NamedTuple

__all__ = ["Answer", "best_plan"]

_HOURS = 730


class Answer(NamedTuple):
    """The plan's machine, whether it is spot, its route, the number of machines, its net."""

    machine: str
    is_spot: bool
    route: str
    machines: int
    net: float


def best_plan(
    servers: list[dict[str, Any]], routes: list[dict[str, Any]], bounds: dict[str, Any]
) -> Answer | None:
    """The best plan of plain dictionaries with the fields of Server, Route, Stage and Bounds."""
    candidates = []
    for server in servers:
        for route in routes:
            if route["p99_ms"] > bounds["latency_ms"]:
                continue
            machines = _enough(server, route, bounds)
            if machines is None:
                continue
            cost = machines * server["hourly"] * _HOURS
            if cost > bounds["budget"]:
                continue
            requests = bounds["mean_rate"] * 3600 * _HOURS
            net = requests * route["worth_per_1000"] / 1000 - cost
            candidates.append((server, route, machines, cost, net))
    if not candidates:
        return None
    top = max(one[4] for one in candidates)
    size = max(1.0, max(abs(one[4]) + one[3] for one in candidates))
    equal = [one for one in candidates if top - one[4] <= 1e-11 * size]
    least = min(one[3] for one in equal)
    equal = [one for one in equal if one[3] - least <= 1e-11 * size]
    equal.sort(
        key=lambda one: (
            one[2], one[0]["is_spot"], one[1]["deferred"], one[0]["name"], one[1]["name"]
        )
    )  # fmt: skip
    server, route, machines, _, net = equal[0]
    return Answer(server["name"], server["is_spot"], route["name"], machines, net)


def _enough(server: dict[str, Any], route: dict[str, Any], bounds: dict[str, Any]) -> int | None:
    """The fewest machines that carry the peak, for the wanted share of the time."""
    asked = [stage for stage in route["stages"] if stage["share"] > 0]
    room = server["threads"]
    for stage in asked:
        while room and stage["memory_bytes"] * room > server["memory_bytes"]:
            room -= 1
    if not room:
        return None
    wanted = 0
    for stage in asked:
        load = bounds["peak_rate"] * stage["share"]
        for number in count(1):
            if number * stage["rate"] * server["speed"] * (1 + 1e-9) >= load:
                wanted += number
                break
    running = next(number for number in count(1) if number * room >= wanted)
    for machines in count(running):
        if _share_of_time(server, machines, running, bounds) >= Fraction(bounds["availability"]):
            return machines
    raise AssertionError("count has no end")


def _share_of_time(
    server: dict[str, Any], machines: int, needed: int, bounds: dict[str, Any]
) -> Fraction:
    """In which at least so many of the machines run."""
    if not server["is_spot"]:
        return Fraction(1)
    away = Fraction(server["interruptions_per_hour"]) * Fraction(bounds["restart_h"])
    up = 1 / (1 + away)
    return sum(
        (comb(machines, k) * up**k * (1 - up) ** (machines - k)
         for k in range(needed, machines + 1)),
        Fraction(0),
    )  # fmt: skip
