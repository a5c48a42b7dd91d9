"""How good a model is on validation rows; test rows are never looked at."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rectrain.compress.measure import judged_rows
from rectrain.data.shards import Prepared
from rectrain.inference.predictor import Predictor
from rectrain.inference.recommend import Shoppers
from rectrain.metrics import metric, resample, trivial
from rectrain.tune.objective import Standard

__all__ = ["standards_of", "values_of"]

_SPLIT = "validation"
_RESAMPLES = 200  # enough for a standard error

Data = Mapping[str, Prepared]


def values_of(predictor: Predictor, data: Data) -> dict[str, float]:
    """Task -> its primary metric on the validation rows."""
    return {
        task: judged.value for task, judged in judged_rows(predictor, data, split=_SPLIT).items()
    }


def standards_of(teacher: Predictor, data: Data) -> dict[str, Standard]:
    """Task -> what a random order and the teacher earn on the validation rows."""
    found = {}
    for task, judged in judged_rows(teacher, data, split=_SPLIT).items():
        rows, statistic = judged.rows, metric(judged.metric).prepare(judged.rows)
        num_ranked = None
        if teacher.spec(task).has_catalogue:
            num_ranked = _num_ranked(data[task], task)
        drawn = resample(
            [statistic], unit=rows.groups, weight=rows.weights, num_resamples=_RESAMPLES
        )
        found[task] = Standard(
            metric=judged.metric,
            trivial=trivial(judged.metric, rows, num_ranked=num_ranked)(rows.weights),
            teacher=judged.value,
            error=float(np.nanstd(drawn[:, 0])),
        )
    return found


def _num_ranked(prepared: Prepared, task: str) -> np.ndarray:
    """Items that are ranked for each user: all that the user doesn't have."""
    items = prepared.items(task).table().column("item_id").to_pylist()
    bought = Shoppers.of(prepared.shards(task, _SPLIT).table(), items).bought
    return np.array([len(set(items).difference(ids)) for ids in bought])
