"""Searches replayed on models that are there: the order, the seconds, the figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import BertConfig

from benchmarks import search
from benchmarks.search_replay import Curve, Pool, Priced, chosen, mean_volume, replay
from benchmarks.search_runs import SearchRuns, Shape, Shapes, Trained, point_name
from rectrain.tune.config import SearchConfig
from rectrain.tune.latency import Latency
from rectrain.tune.objective import Standard
from rectrain.tune.space import Space
from rectrain.tune.study import Result, SearchStudy
from rectrain.tune.trials import Objectives

CONFIG = SearchConfig.model_validate(
    {
        "teacher": "runs/large", "output": "runs/x",
        "space": {"layers": [1, 2, 3], "heads": [4, 6, 8], "intermediate": [96, 192, 384]},
    }
)  # fmt: skip
PARENT = BertConfig(
    num_hidden_layers=6, hidden_size=384, num_attention_heads=12, intermediate_size=1536
)
SPACE = Space.of(CONFIG.space, PARENT)
NAMES = [point_name(point) for point in SPACE.points()]


def pool(*, before_s=0.0, second=10.0):
    """Lift, cost and p99 all grow with the shape, so every model is in the front."""
    found = {}
    for point in SPACE.points():
        size = point["layers"] * point["heads"] + point["intermediate"] / 1000
        found[point_name(point)] = Objectives(size / 30, size, size)
    return Pool(found, dict.fromkeys(found, second), before_s, (0.0, 30.0, 30.0))


def test_a_curve_counts_what_was_known_by_then():
    curve = Curve(np.array([10.0, 20.0, 40.0]), np.array([1.0, 3.0, 4.0]))
    assert curve.at(np.array([0.0, 9.9, 10.0, 39.0, 40.0, 99.0])).tolist() == [0, 0, 1, 3, 4, 4]
    other = Curve(np.array([30.0]), np.array([4.0]))
    assert float(mean_volume([curve, other], 35.0)) == pytest.approx(3.5)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_every_model_is_seen_once_and_costs_its_seconds(sampler):
    everything = pool(before_s=50.0)
    curve = everything.curve(replay(everything, SPACE, sampler=sampler, seed=0, budget=1e9))
    assert len(curve.spent) == len(NAMES) == 27
    assert curve.spent[0] == 60.0 and curve.spent[-1] == everything.total_s == 320.0
    assert curve.volumes[-1] == pytest.approx(everything.whole)
    assert (np.diff(curve.volumes) >= 0).all()


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_budget_ends_a_search_and_seeds_draw_others(sampler):
    first, second = (
        pool().curve(replay(pool(), SPACE, sampler=sampler, seed=seed, budget=55.0))
        for seed in (0, 1)
    )
    assert len(first.spent) == 6  # the last begins at 50 and ends at 60
    assert float(first.at(55.0)) == first.volumes[4]
    assert first.volumes.tolist() != second.volumes.tolist()


def test_a_search_draws_as_the_products_study_does(tmp_path):
    models = pool(before_s=50.0)
    settings = {"seed": 3, "num_trials": 27, "budget_s": 175.0, "sampler": "tpe"}
    study = SearchStudy(tmp_path, CONFIG.model_copy(update=settings), SPACE)
    study.note(preparation_seconds=50.0)
    order = []
    while (question := study.ask()) is not None:
        order.append(point_name({key: question.parameters[key] for key in SPACE.values}))
        result = Result(objectives=models.found[order[-1]], device_seconds=10.0)
        study.tell(question.number, result)
    assert len(order) == 13
    assert order == replay(models, SPACE, sampler="tpe", seed=3, budget=175.0)


def test_what_is_finished_is_what_the_search_chooses_each_once():
    models, order = pool(before_s=50.0), ["1x4x96", "2x6x192", "3x8x384"]
    finish = CONFIG.finish.model_copy(update={"least_lift": 0.1})
    assert chosen(models, order, finish) == ["1x4x96", "3x8x384"]  # knee and cheapest; best
    assert chosen(models, order[2:], finish) == ["3x8x384"]
    better = Priced(replace(models.found["1x4x96"], mean_lift=0.9), 7.0)
    curve = models.curve(order, then=[better])
    assert curve.spent.tolist() == [60.0, 70.0, 80.0, 87.0]
    assert curve.volumes[3] > curve.volumes[2] == models.curve(order).volumes[2]


class StubRuns:
    """Models whose lift grows with their size; sub-networks a little worse, and much cheaper."""

    def __init__(
        self, folder: Path, *, separate: SearchConfig, elastic: SearchConfig, seeds: object
    ) -> None:
        self.folder = folder

    def make(self) -> None:
        pass

    def shapes(self) -> Shapes:
        times = {name: 0.001 * (1 + place) for place, name in enumerate(NAMES)}
        shapes = {name: Shape(Latency(s, 1500 * s), 1.0) for name, s in times.items()}
        return Shapes(20.0, shapes, {"risk": Standard("auc", 0.5, 0.8, 0.01)})

    def alone(self, seed: int) -> dict[str, Trained]:
        return self._models(seed, seconds=60.0, less=0.0)

    def sub_networks(self, seed: int) -> dict[str, Trained]:
        return self._models(seed, seconds=3.0, less=0.003)

    def finished(self, seed: int) -> dict[str, Trained]:
        return self._models(seed, seconds=9.0, less=0.001)

    def supernet_s(self, seed: int) -> float:
        return 250.0

    def _models(self, seed: int, *, seconds: float, less: float) -> dict[str, Trained]:
        noise = np.random.default_rng(seed).normal(0, 0.001, len(NAMES))
        values = 0.5 + 0.3 * (1 - np.exp(-(1 + np.arange(len(NAMES))) / 9)) + noise - less
        return {
            name: Trained({"risk": float(value)}, seconds)
            for name, value in zip(NAMES, values, strict=True)
        }


def test_what_was_trained_becomes_figures_and_a_picture(tmp_path, monkeypatch):
    class Large:
        class model:
            class encoder:
                config = PARENT

    monkeypatch.setattr(search, "SearchRuns", StubRuns)
    monkeypatch.setattr(search, "load_model", lambda teacher: Large)
    monkeypatch.setattr(search, "_OUTPUT", tmp_path)
    monkeypatch.setattr(search, "_REPLAYS", 2)
    assert search.main(["--teacher=runs/large"]) == 0
    found = {one["id"]: one for one in json.loads((tmp_path / "search.json").read_text())}
    total = 20 + 27 * 61
    assert found["C2/grid/seconds"]["value"] == total
    assert found["C2/elastic/training/budget"]["value"] == pytest.approx(270 / total)
    assert found["C2/elastic/all/budget"]["value"] == pytest.approx((270 + 27 * 4) / total)
    assert found["C2/sub/gap"]["value"] == pytest.approx(-0.01)  # of a lift of 0.3
    assert found["C2/finished/gap"]["value"] == pytest.approx(-0.001 / 0.3)
    assert found["C2/sub/rank"]["value"] == pytest.approx(1.0)
    assert 0.9 < found["C2/alone/rank"]["low"] < 1.0
    assert found["C2/elastic"]["n"] == 3
    assert found["C2/elastic-random"]["low"] > 0  # six draws of a grid are no front
    assert found["C2/random"]["value"] < found["C2/elastic"]["value"] < 1.0
    assert found["C2/elastic/judged"]["value"] < 1.0
    assert (tmp_path / "search.png").stat().st_size > 10_000


def test_a_name_is_that_of_the_file_and_parts_are_all_of_the_grid():
    runs = SearchRuns(Path("folder"), separate=CONFIG, elastic=CONFIG, seeds=(0,))
    parts = runs._parts()
    assert sorted(name for part in parts for name in part) == sorted(NAMES)
    assert [part[0] for part in parts] == ["3x4x96", "2x4x96", "1x4x96"]
