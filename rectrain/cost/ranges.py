"""How sure a forecast is: ranges by Monte Carlo, and which input moves the result most.

Each uncertain input is multiplied by exp(z · ln(1 + σ)), z standard normal and σ its `Spread`, so
that doubling and halving are as likely; growth, which is a rate already, gets σ · z added. Inputs
are drawn independently: where yours hang together, the ranges are too narrow or too wide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from rectrain.cost.case import Case, Strategy
from rectrain.cost.forecast import Forecast, forecast
from rectrain.cost.machines import Route
from rectrain.cost.traffic import Floats

__all__ = ["INPUTS", "Effect", "Range", "draw", "sensitivity", "spread_of", "vary"]

Measure = Callable[[Forecast], float]

#: Names of the fields of `traffic.Spread`.
INPUTS = (
    "traffic", "growth", "throughput", "deferred", "training", "prices", "effort", "worth"
)  # fmt: skip
_TENTH = 1.2815515655446004  # of 100 draws of a standard normal, 10 lie above
_SLOWEST = -0.99


class Range(NamedTuple):
    """The tenth, the middle and the ninetieth of a hundred draws."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Effect:
    """What the result becomes at an input's tenth and ninetieth of a hundred, all else as given.

    Attributes:
        name: of the input.
        low, high: the results.
    """

    name: str
    low: float
    high: float

    @property
    def swing(self) -> float:
        """Between both."""
        return abs(self.high - self.low)


def vary(case: Case, z: Mapping[str, float]) -> Case:
    """The case with inputs moved.

    Args:
        case: as given.
        z: name of `INPUTS` -> how many standard deviations.
    """
    spread = case.traffic.spread

    def factor(name: str) -> float:
        return float(np.exp(z.get(name, 0.0) * np.log1p(getattr(spread, name))))

    traffic = case.traffic.times(factor("traffic"))
    growth = max(traffic.growth_per_month + spread.growth * z.get("growth", 0.0), _SLOWEST)
    hours = {name: value * factor("effort") for name, value in dict(traffic.effort).items()}
    traffic = traffic.model_copy(
        update={"growth_per_month": growth, "effort": traffic.effort.model_copy(update=hours)}
    )
    prices = factor("prices")
    small = case.routes.get("small")
    return replace(
        case,
        traffic=traffic,
        routes={
            name: _route(
                route,
                throughput=factor("throughput"), deferred=factor("deferred"),
                worth=factor("worth"), small=small,
            )
            for name, route in case.routes.items()
        },
        training=case.training.times(factor("training"), prices=prices),
        servers=tuple(replace(one, hourly=one.hourly * prices) for one in case.servers),
        owned=tuple(replace(one, monthly=one.monthly * prices) for one in case.owned),
        kwh=case.kwh * prices,
    )  # fmt: skip


def _route(
    route: Route, *, throughput: float, deferred: float, worth: float, small: Route | None
) -> Route:
    """A route whose figures are multiplied by these.

    The last of several stages is the large model. Where more units are deferred, its work grows,
    which its rate takes: most requests may ask it already, with more of their units from then on.
    So does what it makes answers worth over those of the small model alone. No task's units are
    deferred twice.
    """
    stages = [replace(stage, rate=stage.rate * throughput) for stage in route.stages]
    answers = route.worth_per_1000
    if len(stages) > 1 and route.deferred:
        deferred = min(deferred, 1 / max(route.deferred, route.most_deferred))
        stages[-1] = replace(stages[-1], rate=stages[-1].rate / deferred)
        if small is not None:
            answers += (deferred - 1) * (answers - small.worth_per_1000)
    else:
        deferred = 1.0
    return replace(
        route,
        stages=tuple(stages),
        deferred=route.deferred * deferred,
        worth_per_1000=answers * worth,
    )


def draw(
    case: Case,
    chosen: Sequence[Strategy],
    measures: Sequence[Measure],
    *,
    num_draws: int = 1000,
    seed: int = 0,
) -> Floats:
    """float64 [measures, draws, strategies], all of a draw from the same inputs.

    Args:
        case: as given.
        chosen: strategies of it.
        measures: of a forecast.
        num_draws: how many.
        seed: of the draws.
    """
    z = np.random.default_rng(seed).standard_normal((num_draws, len(INPUTS)))
    found = np.empty((len(measures), num_draws, len(chosen)))
    for row, values in enumerate(z):
        drawn = vary(case, dict(zip(INPUTS, values.tolist(), strict=True)))
        forecasts = [forecast(drawn, one) for one in chosen]
        found[:, row] = [[measure(one) for one in forecasts] for measure in measures]
    return found


def spread_of(values: Floats) -> Range:
    """Of draws, float64 [draws]."""
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
    return Range(float(low), float(middle), float(high))


def sensitivity(case: Case, result: Callable[[Case], float]) -> tuple[Effect, ...]:
    """Inputs by how far they move a result, the widest first.

    Args:
        case: as given.
        result: of a case, as the net of one strategy or the lead of one over another.
    """
    effects = [
        Effect(name, *(result(vary(case, {name: sign * _TENTH})) for sign in (-1, 1)))
        for name in INPUTS
    ]
    return tuple(sorted(effects, key=lambda one: one.swing, reverse=True))
