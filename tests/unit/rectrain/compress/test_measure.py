"""What a model keeps of another's metrics."""

from __future__ import annotations

import json
import math

import numpy as np

from rectrain.compress.measure import Judged, Latency, Measured, least_share
from rectrain.metrics import Examples, Interval
from rectrain.strict_json import strict_json


def _judged(score: list[float], label: list[float]) -> Judged:
    size = len(label)
    rows = Examples(
        label=np.array(label),
        score=np.array(score),
        group=np.arange(size),
        weight=np.ones(size),
    )
    return Judged("auc", rows)


def test_the_same_scores_keep_all() -> None:
    rows = _judged([0.1, 0.4, 0.3, 0.9], [0, 0, 1, 1])
    assert least_share({"risk": rows}, {"risk": rows}) == 1.0
    assert least_share({}, {}) == 1.0


def test_the_worst_task_counts_a_standard_error_in_its_favour() -> None:
    rng = np.random.default_rng(0)
    label = (np.arange(4000) % 2).astype(float)
    exact = _judged(list(label + rng.normal(0, 1, 4000)), list(label))
    poor = _judged(list(rng.normal(0, 1, 4000)), list(label))
    share = least_share({"good": exact, "poor": poor}, {"good": exact, "poor": exact})
    assert 0.5 / 0.77 < share < 0.5 / 0.75 + 0.02  # AUC 0.5 of 0.76, and an error of about 0.01
    near = _judged(list(exact.rows.score + rng.normal(0, 0.05, 4000)), list(label))
    plain = least_share({"near": near}, {"near": exact})
    assert plain > 0.999


def test_a_row_whose_metric_is_no_number_is_read_back() -> None:
    metrics = {"risk": Interval(0.7, math.nan, math.nan)}
    row = Measured("small", metrics, 10, 40, {1: Latency(1.0, 2.0)}, 3.0)
    again = Measured.from_json(json.loads(strict_json(row.to_json())))
    assert repr(again) == repr(row)  # NaN is not equal to itself
