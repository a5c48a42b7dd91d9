"""What is best of many models under several objectives: the front, its knee, its hypervolume.

All points are minimised: `minimised` turns the sign of what should be large. A point with a number
that is not finite (a trial that failed) is in no front and adds no volume.

Shapes: n points, d objectives.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rectrain.strict_json import number
from rectrain.tune.trials import OBJECTIVES

if TYPE_CHECKING:
    import optuna

__all__ = ["hypervolume", "hypervolume_curve", "importances", "knee", "minimised", "non_dominated"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

_MIN_TRIALS = 8  # below it, a forest's variance says nothing


def minimised(values: ArrayLike, *, maximise: Sequence[bool]) -> Floats:
    """The same with the signs of what should be large turned.

    Args:
        values: [n, d].
        maximise: of each objective, whether it should be large.
    """
    points = np.asarray(values, dtype=np.float64).reshape(-1, len(maximise))
    return np.where(maximise, -points, points)


def non_dominated(points: ArrayLike) -> Mask:
    """Whether each point is in the front; of equal points, the first alone.

    A point dominates another if it is nowhere worse and somewhere better.

    Args:
        points: [n, d], to be minimised.
    """
    values = np.asarray(points, dtype=np.float64)
    alive: Mask = np.isfinite(values.sum(axis=1))
    for place, one in enumerate(values):
        if alive[place]:
            equal = (values == one).all(axis=1)
            beaten = (values >= one).all(axis=1) & ~equal
            equal[: place + 1] = False
            alive &= ~(beaten | equal)
    return alive


def knee(points: ArrayLike) -> int | None:
    """The place of the front's knee; None where there is no front.

    It is the point of the front with the least sum of objectives, each scaled to 0..1 over the
    front: the least Manhattan distance from the ideal point (Chiu, Yen and Juan 2016, Minimum
    Manhattan Distance Approach to Multiple Criterion Decision Making in Multiobjective Optimization
    Problems). With two objectives that is the point furthest below the line through both ends (Das
    1999, On Characterizing the "Knee" of the Pareto Curve). Objectives count alike, so two that go
    together count twice; scales are those of the front, so a new end can move the knee.

    Args:
        points: [n, d], to be minimised.
    """
    values = np.asarray(points, dtype=np.float64)
    places = np.flatnonzero(non_dominated(values))
    if not len(places):
        return None
    front = values[places]
    width = np.ptp(front, axis=0)
    scaled = (front - front.min(axis=0)) / np.where(width > 0, width, 1.0)
    return int(places[scaled.sum(axis=1).argmin()])


def hypervolume(points: ArrayLike, *, reference: ArrayLike) -> float:
    """The volume that points dominate, up to a reference point; exact.

    By slices along the last objective, and of each the volume in the others (HSO: While, Hingston,
    Barone and Huband 2006, A Faster Algorithm for Calculating Hypervolume). Its time is of the
    order n^(d - 1) log n.

    Args:
        points: [n, d], d of 2 or more, to be minimised. One that is not better than the reference
            everywhere adds nothing.
        reference: [d].
    """
    limit = np.asarray(reference, dtype=np.float64)
    values = np.asarray(points, dtype=np.float64).reshape(-1, len(limit))
    inside = np.isfinite(values) & (values < limit)
    return _volume(values[inside.all(axis=1)], limit)


def _volume(points: Floats, limit: Floats) -> float:
    """Of points that are better than the limit."""
    points = points[points[:, -1].argsort()]
    depths = np.diff(points[:, -1], append=limit[-1])
    if points.shape[1] == 2:
        return float((limit[0] - np.minimum.accumulate(points[:, 0])) @ depths)
    return sum(
        float(depth) * _volume(points[: place + 1, :-1], limit[:-1])
        for place, depth in enumerate(depths)
        if depth > 0
    )


def hypervolume_curve(points: ArrayLike, *, reference: ArrayLike) -> Floats:
    """The hypervolume [n] of the first 1, 2, …, n points, as they came to be known.

    Args:
        points, reference: as of `hypervolume`, in their order.
    """
    limit = np.asarray(reference, dtype=np.float64)
    values = np.asarray(points, dtype=np.float64).reshape(-1, len(limit))
    volumes, front = np.zeros(len(values)), values[:0]
    for place, point in enumerate(values):
        grown = np.vstack([front, point[None]])
        front = grown[non_dominated(grown)]
        volumes[place] = hypervolume(front, reference=limit)
    return volumes


def importances(study: optuna.Study) -> dict[str, dict[str, float]]:
    """How much of each objective's variance over finished trials each parameter explains.

    fANOVA with a random forest (Hutter, Hoos and Leyton-Brown 2014, An Efficient Approach for
    Assessing Hyperparameter Importance), main effects alone, as Optuna computes it. It is about all
    trials, not about the good ones, and about the trials that the sampler chose.

    Args:
        study: see `trials.open_study`.

    Returns:
        objective -> parameter -> share, 0 to 1, the largest first; without objectives that don't
        vary, and empty where too few trials have ended well.
    """
    import optuna

    finished = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
    if len(finished) < _MIN_TRIALS:
        return {}
    found = {}
    for name in OBJECTIVES:
        value = partial(_objective, name=name)
        if len({value(trial) for trial in finished}) > 1:
            forest = optuna.importance.FanovaImportanceEvaluator(seed=0)
            found[name] = optuna.importance.get_param_importances(
                study, evaluator=forest, target=value
            )
    return found


def _objective(trial: optuna.trial.FrozenTrial, *, name: str) -> float:
    return number(trial.user_attrs["objectives"][name])
