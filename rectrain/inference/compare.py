"""Systems beside one another: every metric of each, and what the model gains, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rectrain.metrics import Examples, Interval, metric, resample, summarise

__all__ = ["BEST_POSSIBLE", "MODEL", "MetricResult", "compare", "metric_result"]

# Names of systems: the model, and the truth that simulated data knows; others are baselines.
MODEL, BEST_POSSIBLE = "model", "best_possible"


@dataclass(frozen=True)
class MetricResult:
    """One metric of one task.

    Args:
        name: of the metric.
        model: its value with the 95% interval of a bootstrap over the task's groups.
        baselines: the same of each baseline.
        differences: model - baseline, paired.
        best_possible: the value of the true probabilities; None where they are unknown.
        higher_is_better: None for a rate.
    """

    name: str
    model: Interval
    baselines: Mapping[str, Interval]
    differences: Mapping[str, Interval]
    best_possible: float | None
    higher_is_better: bool | None

    @property
    def best_baseline(self) -> str | None:
        """The baseline of the best value; None without one, or for a rate."""
        if self.higher_is_better is None:
            return None
        sign = 1 if self.higher_is_better else -1
        known = {k: sign * v.value for k, v in self.baselines.items() if not np.isnan(v.value)}
        return max(known, key=lambda name: known[name]) if known else None


def compare(
    systems: Mapping[str, Examples], names: Sequence[str], *, num_resamples: int, seed: int
) -> dict[str, MetricResult]:
    """Every metric of every system, on the same resamples of the groups."""
    specs = {name: metric(name) for name in names}
    judged = systems[MODEL]
    statistics = {
        (system, name): spec.prepare(examples)
        for system, examples in systems.items()
        for name, spec in specs.items()
    }
    values = {key: statistic(judged.weights) for key, statistic in statistics.items()}
    drawn = resample(
        [statistics[key] for key in statistics if key[0] != BEST_POSSIBLE],
        unit=judged.groups,
        weight=judged.weights,
        num_resamples=num_resamples,
        seed=seed,
    )
    columns = {
        key: drawn[:, place]
        for place, key in enumerate(key for key in statistics if key[0] != BEST_POSSIBLE)
    }
    return {
        name: metric_result(name, values, columns, higher_is_better=spec.higher_is_better)
        for name, spec in specs.items()
    }


def metric_result(
    name: str,
    values: Mapping[tuple[str, str], float],
    resamples: Mapping[tuple[str, str], NDArray[np.float64]],
    *,
    higher_is_better: bool | None,
) -> MetricResult:
    """One metric of all systems.

    Args:
        name: of the metric.
        values: (system, metric) -> value.
        resamples: (system, metric) -> float64 [resamples], of the same draws; no interval where
            there are none.
        higher_is_better: None for a rate.
    """

    def interval(system: str) -> Interval:
        return summarise(values[system, name], resamples.get((system, name), np.empty(0)))

    def difference(system: str) -> Interval:
        gap = values[MODEL, name] - values[system, name]
        if (system, name) not in resamples:
            return summarise(gap, np.empty(0))
        return summarise(gap, resamples[MODEL, name] - resamples[system, name])

    others = [
        system for system, title in values if title == name and system not in (MODEL, BEST_POSSIBLE)
    ]
    return MetricResult(
        name=name,
        model=interval(MODEL),
        baselines={system: interval(system) for system in others},
        differences={system: difference(system) for system in others},
        best_possible=values.get((BEST_POSSIBLE, name)),
        higher_is_better=higher_is_better,
    )
