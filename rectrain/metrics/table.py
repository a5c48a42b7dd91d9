"""METRICS: name -> MetricSpec; a new metric is one entry here and its test."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rectrain.errors import ConfigError
from rectrain.metrics import pointwise, ranking
from rectrain.metrics.examples import Examples, Statistic

__all__ = ["METRICS", "MetricSpec", "compute", "metric"]


@dataclass(frozen=True)
class MetricSpec:
    """One metric.

    Args:
        name: as written in configs and reports, e.g. `ndcg@10`.
        prepare: examples -> (weights float64 [n] -> value; NaN where it is undefined).
        higher_is_better: None for a rate that is neither good nor bad.
        unit: what the value counts.
        needs_groups: a value per group is averaged, so `Examples.group` must be given.
    """

    name: str
    prepare: Callable[[Examples], Statistic]
    higher_is_better: bool | None
    unit: str
    needs_groups: bool

    def __call__(self, examples: Examples) -> float:
        """The metric's value with the examples' own weights."""
        return self.prepare(examples)(examples.weights)


METRICS: dict[str, MetricSpec] = {
    spec.name: spec
    for spec in (
        MetricSpec("auc", pointwise.auc, True, "area", False),
        MetricSpec("gauc", pointwise.gauc, True, "area", True),
        MetricSpec("pr_auc", pointwise.pr_auc, True, "area", False),
        MetricSpec("log_loss", pointwise.log_loss, False, "nats", False),
        MetricSpec("ece", pointwise.ece, False, "probability", False),
        MetricSpec(
            "calibration_ratio", pointwise.calibration_ratio, None, "predicted/actual", False
        ),
        MetricSpec("ctr", pointwise.rate, None, "clicks/impression", False),
        MetricSpec("conversion", pointwise.rate, None, "positives/row", False),
        MetricSpec("predicted_rate", pointwise.predicted_rate, None, "positives/row", False),
        MetricSpec("accuracy", pointwise.accuracy, True, "share", False),
        MetricSpec("precision", pointwise.precision, True, "share", False),
        MetricSpec("recall", pointwise.recall, True, "share", False),
        MetricSpec("mrr", ranking.mrr(0), True, "1/rank", True),
        MetricSpec("pairwise_accuracy", ranking.pairwise_accuracy, True, "share", True),
    )
}
_AT_K: dict[str, Callable[[int], Callable[[Examples], Statistic]]] = {
    "ndcg": ranking.ndcg,
    "hr": ranking.hit_rate,
    "recall": ranking.recall_at,
    "precision": ranking.precision_at,
    # The same two as a shop reads them: clicks per shown item of the first k, and lists with at
    # least one purchase among the first k.
    "ctr": ranking.precision_at,
    "conversion": ranking.hit_rate,
}


def metric(name: str) -> MetricSpec:
    """The metric of a name: one of `METRICS`, or `ndcg@K`, `hr@K`, `recall@K`, `precision@K`,
    `ctr@K`, `conversion@K`, or `recall@fprX` (the highest recall at a threshold whose
    false-positive rate is at most X).

    Raises:
        ConfigError: no such metric.
    """
    if name in METRICS:
        return METRICS[name]
    if (match := re.fullmatch(r"(\w+)@([1-9]\d*)", name)) and match[1] in _AT_K:
        return MetricSpec(name, _AT_K[match[1]](int(match[2])), True, "share", True)
    if match := re.fullmatch(r"recall@fpr(0?\.\d+)", name):
        return MetricSpec(name, pointwise.recall_at_fpr(float(match[1])), True, "share", False)
    known = [*METRICS, *(f"{base}@10" for base in _AT_K), "recall@fpr0.01"]
    near = difflib.get_close_matches(name, known, n=1)
    raise ConfigError(
        what="metric",
        got=name,
        rule=f"one of {', '.join(known)} (any K after @)",
        fix=f"write {near[0]}" if near else "choose one of these",
    )


def compute(names: Sequence[str], examples: Examples) -> dict[str, float]:
    """Values of several metrics with the examples' own weights; NaN where one is undefined."""
    return {name: metric(name)(examples) for name in names}
