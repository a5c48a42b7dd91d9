"""Searches replayed on models that are there: which are seen in which order, by which moment.

A model that was trained alone is what a grid, a random search and a search of separate trials would
all have trained. So they draw from the same models, and each draw costs the seconds that the model
took. The same of an elastic search, whose draws are sub-networks, after the super-network's.

Shapes: n points, k points seen.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import optuna
from numpy.typing import NDArray

from benchmarks.search_runs import point_name
from rectrain.tune.pareto import hypervolume_curve, minimised
from rectrain.tune.space import Space
from rectrain.tune.trials import DIRECTIONS, Objectives

__all__ = ["Curve", "Pool", "mean_volume", "replay"]

Floats = NDArray[np.float64]

_MAXIMISE = [one == "maximize" for one in DIRECTIONS]
_TRIES = 10  # draws of points that are known, before any is taken


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
        points = minimised([self.found[name].values() for name in order], maximise=_MAXIMISE)
        limit = minimised([self.reference], maximise=_MAXIMISE)[0]
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

    def until(self, budget: float) -> Curve:
        """The trials that begin before a budget is spent."""
        begun = np.searchsorted(self.spent, budget, side="left") + 1
        return Curve(self.spent[:begun], self.volumes[:begun])


def replay(
    pool: Pool, space: Space, *, sampler: Literal["tpe", "random"], seed: int, budget: float
) -> Curve:
    """A search until its budget is spent, which tries no point twice.

    By TPE it draws as `rectrain.tune.study` does (a test compares them), in memory and not in a
    file, which is much faster.

    Args:
        pool: what it draws from.
        space: of the search.
        sampler: what chooses the next point.
        seed: of the sampler.
        budget: device-seconds; a trial that begins before they are spent is told, but `Curve.at`
            counts it only once it has ended.
    """
    names = [point_name(point) for point in space.points()]
    if sampler == "random":
        shuffled = np.random.default_rng(seed).permutation(len(names)).tolist()
        return pool.curve([names[place] for place in shuffled]).until(budget)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    startup = max(4, min(10, len(names) // 4))
    study = optuna.create_study(
        directions=DIRECTIONS,
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup),
    )
    order: list[str] = []
    spent = pool.before_s
    while spent < budget and len(order) < len(names):
        name, trial = _unknown(study, space, order, seed=seed)
        study.tell(trial, pool.found[name].values())
        order.append(name)
        spent += pool.seconds[name]
    return pool.curve(order)


def _unknown(
    study: optuna.Study, space: Space, known: Sequence[str], *, seed: int
) -> tuple[str, optuna.Trial]:
    """The next point, not yet known: as the sampler draws it, after some draws any."""
    for _ in range(_TRIES):
        trial = study.ask(space.distributions())
        name = _name(trial, space)
        if name not in known:
            return name, trial
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    left = [point for point in space.points() if point_name(point) not in known]
    study.enqueue_trial(random.Random(f"{seed} {len(known)}").choice(left))
    trial = study.ask(space.distributions())
    return _name(trial, space), trial


def _name(trial: optuna.Trial, space: Space) -> str:
    return point_name({key: trial.params[key] for key in space.values})


def mean_volume(curves: Sequence[Curve], budget: Floats | float) -> Floats:
    """The mean over searches of what they know for a budget."""
    return np.mean([curve.at(budget) for curve in curves], axis=0)
