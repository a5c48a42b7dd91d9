"""An oracle of the plan, written from docs/cost.md alone: it shares no code with rectrain.

Slow and plain: it counts machines upwards one by one until they carry the load, sums binomial
chances in exact fractions, keeps a list of the machines that are held, and tries everything.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import count
from math import comb
from typing import Any, NamedTuple

__all__ = ["Answer", "best_plan"]

_HOURS = 730
_ORDER = ["on demand", "reserved", "spot", "own"]


class Answer(NamedTuple):
    """The plan's machine, how it is bought, its route, the most machines at once, its net."""

    machine: str
    purchase: str
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
            needed = _needed(server, route, bounds)
            if needed is None:
                continue
            costs = _costs(server, route, needed, bounds)
            if max(costs) > bounds["budget"]:
                continue
            spent = sum(costs) / len(costs) + route["monthly"]
            seconds = 3600 * _HOURS
            requests = sum(bounds["mean_rate"] * part * seconds for part in bounds["months"])
            worth = requests / len(bounds["months"]) * route["worth_per_1000"] / 1000
            most = max(max(hours) for hours in needed)
            candidates.append((server, route, most, spent, worth - spent))
    if not candidates:
        return None
    top = max(one[4] for one in candidates)
    size = max(1.0, max(abs(one[4]) + one[3] for one in candidates))
    equal = [one for one in candidates if top - one[4] <= 1e-11 * size]
    least = min(one[3] for one in equal)
    equal = [one for one in equal if one[3] - least <= 1e-11 * size]
    equal.sort(
        key=lambda one: (
            one[2], _ORDER.index(one[0]["purchase"]), one[1]["deferred"], one[0]["name"],
            one[1]["name"],
        )
    )  # fmt: skip
    server, route, machines, _, net = equal[0]
    return Answer(server["name"], server["purchase"], route["name"], machines, net)


def _needed(
    server: dict[str, Any], route: dict[str, Any], bounds: dict[str, Any]
) -> list[list[int]] | None:
    """Machines of each month's hours; of one hour, the peak, where they don't follow the day."""
    hours = [bounds["mean_rate"] * part for part in bounds["day"]] or [bounds["peak_rate"]]
    known: dict[float, int | None] = {0.0: 0}
    found = []
    for part in bounds["months"]:
        counts = []
        for hour in hours:
            rate = part * hour
            if rate not in known:
                known[rate] = _enough(server, route, rate, bounds)
            number = known[rate]
            if number is None:
                return None
            counts.append(number)
        found.append(counts)
    return found


def _costs(
    server: dict[str, Any], route: dict[str, Any], needed: list[list[int]], bounds: dict[str, Any]
) -> list[float]:
    """Of the machines in each month: those that are held, and what they draw by their work."""
    held: list[int] = []  # the month in which each one goes
    costs = []
    for month, (hours, part) in enumerate(zip(needed, bounds["months"], strict=True)):
        held = [end for end in held if end > month]
        while len(held) < max(hours):
            held.append(month + server["term_months"])
        goes = server["purchase"] in ("on demand", "spot")
        machines = sum(hours) / len(hours) if goes else len(held)
        # A process that answers `rate` requests a second works for the share `busy` of it.
        at_work = sum(
            bounds["mean_rate"] * part * stage["share"]
            * (route["busy"] / (stage["rate"] * server["speed"]))
            for stage in route["stages"]
        )  # fmt: skip
        fully_busy = at_work / server["threads"]  # so many machines, if the work stood on few
        costs.append(
            machines * server["hourly"] * _HOURS + fully_busy * server["load_hourly"] * _HOURS
        )
    return costs


def _enough(
    server: dict[str, Any], route: dict[str, Any], rate: float, bounds: dict[str, Any]
) -> int | None:
    """The fewest machines that carry so many requests a second, for the wanted share of the time;
    None: one process is too large."""
    asked = [stage for stage in route["stages"] if stage["share"] > 0]
    room = server["threads"]
    for stage in asked:
        while room and stage["memory_bytes"] * room > server["memory_bytes"]:
            room -= 1
    if not room:
        return None
    wanted = 0
    for stage in asked:
        load = rate * stage["share"]
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
    if server["purchase"] != "spot":
        return Fraction(1)
    away = Fraction(server["interruptions_per_hour"]) * Fraction(bounds["restart_h"])
    up = 1 / (1 + away)
    return sum(
        (comb(machines, k) * up**k * (1 - up) ** (machines - k)
         for k in range(needed, machines + 1)),
        Fraction(0),
    )  # fmt: skip
