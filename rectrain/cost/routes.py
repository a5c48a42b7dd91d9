"""From what was measured of a small and a large model to the routes of a plan.

A request of a task with n candidates takes `fixed_s + n · candidate_s` seconds of a core; a stream
of tasks the mean over its mix. A process that is busy for the share u of the time has the latency
of a measured curve; the most that keeps the limit is what a plan counts on, so that

    rate of a stage = u / core seconds of a request that asks it

Of a cascade that defers the share d of units (policy.json: rows of a 0/1 task, else lists) the
large model sees, of a request,

    rows     d · n candidates, in the share 1 - (1 - d)^n of the requests
    lists    the head (or all) of the candidates, in the share d of the requests

and u is the most at which the p99 of both models together keep the limit, the large one's curve
shrunk to its smaller work (a queue has no other clock than its requests' seconds; the server's
bound of a batch is one, and is passed over here). That is a bound for the deferred answers, of
which one in fifty may be later, and so for all answers where few are deferred.

What an answer is worth goes with the share of the first model's lift over a trivial one that a
route has, (metric - trivial) / (first - trivial); that of a cascade lies between its models, for
each task in proportion to its d: the doubtful units gain most from the large model, so it is rather
more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from rectrain.cascade.policy import Policy, TaskPolicy
from rectrain.cost.machines import Route, Stage
from rectrain.cost.traffic import Traffic

__all__ = ["DEFERRED", "Lift", "Speed", "TaskSpeed", "cascade", "lone", "worths"]

Curve: TypeAlias = tuple[tuple[float, float], ...]
"""(Share of the time that a process is busy, p99 in ms), rising."""
Lift = Mapping[str, float]
"""Task -> share of the first model's lift over a trivial one."""
Worths = Mapping[str, float]
"""Task -> what its answers among 1,000 are worth; 0 where one is missing."""

#: Shares of units that plans may defer.
DEFERRED = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


@dataclass(frozen=True)
class TaskSpeed:
    """Seconds of a core for a request of a task: fixed_s + candidates · candidate_s."""

    fixed_s: float
    candidate_s: float

    def seconds(self, candidates: float) -> float:
        """Of a request with so many."""
        return self.fixed_s + candidates * self.candidate_s


@dataclass(frozen=True)
class Speed:
    """What was measured of a model.

    Attributes:
        model: its name in a route.
        tasks: task -> seconds of a core.
        curve: of requests with the traffic's candidates.
        memory_bytes: of a process.
    """

    model: str
    tasks: Mapping[str, TaskSpeed]
    curve: Curve
    memory_bytes: float = 0.0

    def request_s(self, traffic: Traffic) -> float:
        """Seconds of a core for a request, over the traffic's mix."""
        mix = traffic.shares(tuple(self.tasks))
        return sum(
            share * self.tasks[task].seconds(traffic.candidates) for task, share in mix.items()
        )


def _most_busy(curves: Sequence[Curve], limit_ms: float) -> float:
    """The largest share of the time at which the sum of the p99 keeps the limit.

    Between measured points the curve is a line; beyond the last one nothing is known. Where even
    an idle process is late, the last one: late answers are then at least not dear ones.
    """
    last = min(curve[-1][0] for curve in curves)
    first = max(curve[0][0] for curve in curves)
    found = None
    for busy in np.linspace(min(first, last), last, 401):
        if sum(_p99(curve, float(busy)) for curve in curves) > limit_ms:
            break
        found = float(busy)
    return last if found is None else found


def _scaled(curve: Curve, factor: float) -> Curve:
    """Of requests that take so many times as long: a queue has no clock but their seconds."""
    return tuple((busy, factor * p99) for busy, p99 in curve)


def _p99(curve: Curve, busy: float) -> float:
    shares, p99 = zip(*curve, strict=True)
    return float(np.interp(busy, shares, p99))


def lone(speed: Speed, traffic: Traffic, *, worth: Worths | None = None) -> Route:
    """One model that answers everything.

    Args:
        speed: of the model.
        traffic: whose mix, candidates and limit.
        worth: of its answers.
    """
    busy = _most_busy([speed.curve], traffic.latency_ms)
    stage = Stage(speed.model, 1.0, busy / speed.request_s(traffic), speed.memory_bytes)
    return Route(
        speed.model, (stage,), deferred=1.0 if speed.model == "large" else 0.0,
        p99_ms=_p99(speed.curve, busy), worth_per_1000=sum((worth or {}).values()), busy=busy,
    )  # fmt: skip


def cascade(
    small: Speed,
    large: Speed,
    policy: Policy,
    traffic: Traffic,
    *,
    deferred: float | None = None,
    worth: Mapping[str, Worths] | None = None,
    name: str = "cascade",
) -> Route:
    """The small model, which asks the large one in doubt.

    Args:
        small, large: of the models.
        policy: whose units and heads; and rates, where `deferred` is None.
        traffic: whose mix, candidates and limit.
        deferred: share of the units of each task that go to the large model.
        worth: "small" and "large" -> of their answers.
        name: of the route.
    """
    mix = traffic.shares(tuple(small.tasks))
    rates = {  # without a policy nothing is deferred
        task: policy.tasks[task].deferred if deferred is None else deferred
        for task in mix
        if task in policy.tasks
    }
    parts = [
        (mix[task], *_deferral(policy.tasks[task], large.tasks[task], traffic.candidates, rate))
        for task, rate in rates.items()
    ]
    asked = sum(share * asks for share, asks, _ in parts)
    work = sum(share * seconds for share, _, seconds in parts)
    curves = [small.curve]
    if asked:
        curves.append(_scaled(large.curve, work / asked / large.request_s(traffic)))
    busy = _most_busy(curves, traffic.latency_ms)
    stages = [Stage(small.model, 1.0, busy / small.request_s(traffic), small.memory_bytes)]
    if asked:
        stages.append(Stage(large.model, asked, busy * asked / work, large.memory_bytes))
    of_small, of_large = ((worth or {}).get(one, {}) for one in ("small", "large"))
    gains = (rate * (of_large.get(t, 0.0) - of_small.get(t, 0.0)) for t, rate in rates.items())
    return Route(
        name, tuple(stages), deferred=sum(mix[task] * rate for task, rate in rates.items()),
        p99_ms=sum(_p99(curve, busy) for curve in curves),
        worth_per_1000=sum(of_small.values()) + sum(gains),
        busy=busy, most_deferred=max(rates.values(), default=0.0),
    )  # fmt: skip


def _deferral(
    policy: TaskPolicy, large: TaskSpeed, candidates: int, rate: float
) -> tuple[float, float]:
    """Of a request: how likely it asks the large model, and seconds of a core there, on average."""
    if policy.kind == "probability":
        asked = 1 - (1 - rate) ** candidates
        return asked, asked * large.fixed_s + rate * candidates * large.candidate_s
    head = min(policy.head or candidates, candidates)
    return rate, rate * large.seconds(head)


def worths(traffic: Traffic, lift: Lift, *, tasks: Sequence[str]) -> dict[str, float]:
    """Task -> what its answers among 1,000 are worth: share · lift · events · worth of an event.

    Args:
        traffic: whose mix and worth.
        lift: of the model, over the first one's; 1 where a task is missing.
        tasks: that the models have.
    """
    return {
        task: share * lift.get(task, 1.0) * traffic.worth.per_1000(task)
        for task, share in traffic.shares(tasks).items()
    }
