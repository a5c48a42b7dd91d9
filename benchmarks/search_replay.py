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
from typing import Literal, NamedTuple

import numpy as np
import optuna
from numpy.typing import NDArray

from benchmarks.search_runs import point_name
from rectrain.tune.chosen import choose
from rectrain.tune.config import FinishConfig
from rectrain.tune.pareto import hypervolume_curve, minimised
from rectrain.tune.space import Space
from rectrain.tune.trials import DIRECTIONS, Objectives, Trial

__all__ = ["Curve", "Pool", "Priced", "chosen", "mean_volume", "replay"]

Floats = NDArray[np.float64]

_MAXIMISE = [one == "maximize" for one in DIRECTIONS]
_TRIES = 10  # draws of points that are known, before any is taken


class Priced(NamedTuple):
    """A model, and the device-seconds to know it."""

    objectives: Objectives
    seconds: float


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

    def curve(self, order: Sequence[str], *, then: Sequence[Priced] = ()) -> Curve:
        """What is known after each of some points, and then of some further models."""
        seen = [Priced(self.found[name], self.seconds[name]) for name in order]
        models = [*seen, *then]
        points = minimised([one.objectives.values() for one in models], maximise=_MAXIMISE)
        limit = minimised([self.reference], maximise=_MAXIMISE)[0]
        spent = self.before_s + np.cumsum([one.seconds for one in models])
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


def replay(
    pool: Pool, space: Space, *, sampler: Literal["tpe", "random"], seed: int, budget: float
) -> list[str]:
    """The points of a search until its budget is spent, in their order; it tries none twice.

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
        drawn = [names[place] for place in shuffled]
        ends = pool.before_s + np.cumsum([pool.seconds[name] for name in drawn])
        return drawn[: np.searchsorted(ends, budget, side="left") + 1]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    startup = max(4, min(10, len(names) // 4))
    study = optuna.create_study(
        directions=DIRECTIONS,
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup),
    )
    study.enqueue_trial(space.smallest)
    order: list[str] = []
    spent = pool.before_s
    while spent < budget and len(order) < len(names):
        name, trial = _unknown(study, space, order, seed=seed)
        study.tell(trial, pool.found[name].values())
        order.append(name)
        spent += pool.seconds[name]
    return order


def chosen(pool: Pool, order: Sequence[str], config: FinishConfig) -> list[str]:
    """The points that a search which has seen some would finish, each once."""
    trials = [
        Trial(number, {}, "complete", objectives=pool.found[name])
        for number, name in enumerate(order)
    ]
    return list(dict.fromkeys(order[one.number] for one in choose(trials, config).values()))


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
