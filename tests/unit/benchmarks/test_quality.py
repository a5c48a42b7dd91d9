"""The judge of the quality benchmark: means over folds and seeds, paired draws."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import quality
from benchmarks.quality import DATASETS, MARKET, Judge
from benchmarks.quality_runs import SINGLE, Cell, Systems
from rectrain.inference.evaluate import MODEL
from rectrain.metrics import Examples, bootstrap_interval, paired_difference, resample
from rectrain.tasks import TASKS


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


def test_folds_are_drawn_together_and_their_groups_are_not_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quality, "resample", partial(resample, num_resamples=200))
    folds = [[{name: examples(fold, noise=noise) for name, noise in (("a", 1.0), ("b", 3.0))}]
             for fold in (1, 2)]  # fmt: skip
    groups = [fold[0]["a"].groups for fold in folds]
    generator = np.random.default_rng(0)
    found = []
    for _ in range(200):
        drawn = np.bincount(generator.integers(0, 40, 40), minlength=40)  # 20 groups a fold
        pieces = (drawn[:20][groups[0]], drawn[20:][groups[1]])
        parts = [
            _auc(fold[0]["a"], piece) - _auc(fold[0]["b"], piece)
            for fold, piece in zip(folds, pieces, strict=True)
        ]
        found.append(np.mean(parts))
    interval = Judge("risk", folds).difference("a", "b")
    assert interval[1:] == pytest.approx(tuple(np.quantile(found, [0.025, 0.975])))


def _auc(rows: Examples, weight: np.ndarray) -> float:
    """By its definition: how often a positive row stands above a negative one."""
    positive, negative = rows.label == 1, rows.label == 0
    above = rows.score[positive][:, None] > rows.score[negative][None]
    weights = weight[positive][:, None] * weight[negative][None]
    return float((above * weights).sum() / weights.sum())


def test_systems_of_other_rows_are_not_compared() -> None:
    with pytest.raises(AssertionError, match="groups"):
        Judge("risk", [[{"a": examples(1, noise=1.0), "b": examples(1, noise=1.0, num_rows=30)}]])


class StubStudy:
    """Scores in the place of runs: the joint model is always the better one."""

    def __init__(self, folder: Path, *, scale: quality.Scale, shared: Path) -> None:
        self.scale = scale

    def real(self, tasks: Iterable[str], *, cells: Iterable[Cell]) -> list[dict[str, Systems]]:
        baselines = {dataset.task: dataset.baseline for dataset in DATASETS.values()}
        noise = {MODEL: 0.1, SINGLE: 2.0}
        return [
            {
                task: {
                    name: ranked(task, seed=cell.fold, noise=level + cell.seed / 100)
                    for name, level in (noise | {baselines[task]: 3.0}).items()
                    if name in noise or cell.seed == 0
                }
                for task in cell.judged
            }
            for cell in cells
        ]

    def market(self, variants: Iterable[str]) -> dict[str, dict[str, Systems]]:
        return {
            name: {
                task: {MODEL: ranked(task, seed=9, noise=1.0 + place)}
                for task in ("risk", "ad_ctr")
            }
            for place, name in enumerate(variants)
        }


def ranked(task: str, *, seed: int, noise: float) -> Examples:
    """Rows that a task's metric can be taken of."""
    rows = examples(seed, noise=noise, num_rows=120)
    if not TASKS[task].has_catalogue:
        return rows
    place = 1 + np.argsort(np.argsort(-rows.score))
    return Examples(label=np.ones(120), score=-place, group=rows.group, rank=place)


def test_the_benchmark_ends_in_its_figures_and_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quality, "Study", StubStudy)
    monkeypatch.setattr(quality, "resample", partial(resample, num_resamples=50))
    monkeypatch.setattr(quality, "_OUTPUT", tmp_path)
    monkeypatch.setattr(quality, "_SHARED", tmp_path)
    assert quality.main([]) == 0
    found = {f["id"]: f for f in json.loads((tmp_path / "quality-real.json").read_text())}
    assert found["T6/better"]["value"] >= 5 and found["T6/worse"]["value"] == 0
    assert found["T6/baselines_missed"]["value"] == 0
    seeds = found["quality/returns/joint-single/seeds"]
    assert seeds["n"] == 3 and seeds["low"] <= seeds["value"] <= seeds["high"]
    market = {f["id"] for f in json.loads((tmp_path / "quality-market.json").read_text())}
    wanted = {f"quality/market-risk/{name}-shared_bottom" for name in list(MARKET)[1:]}
    assert wanted <= market
    for part in ("real", "market"):
        assert (tmp_path / f"quality-{part}.png").stat().st_size > 10_000


def test_a_baseline_stands_in_the_first_seed_alone() -> None:
    model, baseline = examples(1, noise=1.0), examples(1, noise=2.0)
    judge = Judge("risk", [[{"model": model, "base": baseline}, {"model": model}]])
    assert judge.difference("model", "base") == pytest.approx(
        paired_difference("auc", model, baseline)
    )
