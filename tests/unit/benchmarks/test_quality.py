"""The judge of the quality benchmark: means over folds and seeds, paired draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.quality import Judge
from rectrain.metrics import Examples, bootstrap_interval, paired_difference


def examples(seed: int, *, noise: float, num_rows: int = 60) -> Examples:
    rows = np.random.default_rng(seed)
    label = rows.integers(0, 2, num_rows)
    noisy = np.random.default_rng(seed + 1000).normal(size=num_rows) * noise
    return Examples(label=label, score=label + noisy, group=np.arange(num_rows) // 3)


def test_one_fold_and_seed_is_the_metric_and_its_paired_difference() -> None:
    systems = {"model": examples(1, noise=1.0), "other": examples(1, noise=3.0)}
    judge = Judge("risk", [[systems]])
    assert judge.value("model") == pytest.approx(bootstrap_interval("auc", systems["model"]))
    assert judge.difference("model", "other") == pytest.approx(
        paired_difference("auc", systems["model"], systems["other"])
    )


def test_the_mean_over_folds_of_the_mean_over_seeds() -> None:
    folds: list[list[dict[str, Any]]] = [
        [{"model": examples(1, noise=noise)} for noise in (0.5, 2.0)],
        [{"model": examples(2, noise=1.0, num_rows=30)}],
    ]
    values = [[bootstrap_interval("auc", s["model"]).value for s in seeds] for seeds in folds]
    judge = Judge("risk", folds)
    assert judge.value("model").value == pytest.approx(np.mean([np.mean(v) for v in values]))
    assert judge.of_seeds("model") == pytest.approx(values[0])


def test_a_baseline_stands_in_the_first_seed_alone() -> None:
    model, baseline = examples(1, noise=1.0), examples(1, noise=2.0)
    judge = Judge("risk", [[{"model": model, "base": baseline}, {"model": model}]])
    assert judge.difference("model", "base") == pytest.approx(
        paired_difference("auc", model, baseline)
    )
