"""Searches replayed on models that are there: which are seen in which order, by which moment.

A model that was trained alone is what a grid, a random search and a search of separate trials would
all have trained. So they draw from the same models, and each draw costs the seconds that the model
took. The same of an elastic search, whose draws are sub-networks, after the super-network's.

Shapes: n points, k points seen.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.search_runs import point_name
from rectrain.tune.config import SearchConfig
from rectrain.tune.pareto import hypervolume_curve, minimised
from rectrain.tune.space import Space
from rectrain.tune.study import Result, SearchStudy
from rectrain.tune.trials import DIRECTIONS, Objectives

__all__ = ["Curve", "Pool", "mean_volume", "replay"]

Floats = NDArray[np.float64]

MAXIMISE = [one == "maximize" for one in DIRECTIONS]


@dataclass(frozen=True)
class Pool:
    """The models of one way and seed.

    Attributes:
        found: name of a point -> its objectives.
        seconds: name -> device-seconds to know them.
        before_s: device-seconds before the first.
        reference: of the hypervolume, in the order of the objectives.
    """

    found: Mapping[str, Objectives]
    seconds: Mapping[str, float]
    before_s: float
    reference: tuple[float, float, float]

    @property
    def total_s(self) -> float:
        """Device-seconds to know all."""
        return self.before_s + sum(self.seconds.values())

    def curve(self, order: Sequence[str]) -> Curve:
        """What is known after each of some points."""
        points = minimised([self.found[name].values() for name in order], maximise=MAXIMISE)
        limit = minimised([self.reference], maximise=MAXIMISE)[0]
        spent = self.before_s + np.cumsum([self.seconds[name] for name in order])
        return Curve(spent, hypervolume_curve(points, reference=limit))

    @property
    def whole(self) -> float:
        """The hypervolume of all."""
        return float(self.curve(list(self.found)).volumes[-1])


@dataclass(frozen=True)
class Curve:
    """Hypervolume [k] known when so many device-seconds [k] are spent."""

    spent: Floats
    volumes: Floats

    def at(self, budget: Floats | float) -> Floats:
        """The hypervolume for a budget: of points that were known by then; 0 before the first."""
        known = np.searchsorted(self.spent, budget, side="right")
        return np.concatenate([[0.0], self.volumes])[known]


def replay(pool: Pool, config: SearchConfig, space: Space, *, seed: int, budget: float) -> Curve:
    """A search by the product's own study, until its budget is spent.

    Args:
        pool: what it draws from.
        config: of the search, with its sampler.
        space: of the search.
        seed: of the sampler.
        budget: device-seconds; a trial that begins before they are spent is told, but `Curve.at`
            counts it only once it has ended.
    """
    changes = {"seed": seed, "num_trials": len(pool.found), "budget_s": budget}
    order = []
    with tempfile.TemporaryDirectory() as folder:
        study = SearchStudy(Path(folder), config.model_copy(update=changes), space)
        study.note(preparation_seconds=pool.before_s)
        while (question := study.ask()) is not None:
            name = point_name({key: question.parameters[key] for key in space.values})
            order.append(name)
            result = Result(objectives=pool.found[name], device_seconds=pool.seconds[name])
            study.tell(question.number, result)
    return pool.curve(order)


def mean_volume(curves: Sequence[Curve], budget: Floats | float) -> Floats:
    """The mean over searches of what they know for a budget."""
    return np.mean([curve.at(budget) for curve in curves], axis=0)
