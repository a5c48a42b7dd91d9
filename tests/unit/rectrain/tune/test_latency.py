"""Latency: measured alone, once a shape, and so that a moment's disturbance changes nothing."""

from __future__ import annotations

import pytest
from packaged_toy import orders, searches, toy_parts

from rectrain.inference.predictor import Predictor
from rectrain.tune import latency
from rectrain.tune.config import MeasureConfig
from rectrain.tune.latency import Latency, LatencyTable, measure_latency

CONFIG = MeasureConfig(backend="torch", rows=4, requests=6, rounds=3)


def test_a_shape_is_measured_once_and_another_way_of_measuring_anew(tmp_path, monkeypatch, held):
    calls: list[str] = []

    def measured(parts, tables, config) -> Latency:
        assert held() == {"training": "alone", "stopwatch": "alone"}
        calls.append(parts)
        return Latency(0.5, 7.0)

    monkeypatch.setattr(latency, "measure_latency", measured)
    table = LatencyTable(tmp_path / "t", CONFIG, {})
    for name in ("a", "b", "a"):
        assert table.of({"shape": name}, lambda name=name: name) == Latency(0.5, 7.0)
    again = LatencyTable(tmp_path / "t", CONFIG, {})
    assert again.of({"shape": "a"}, lambda: "never") == Latency(0.5, 7.0)
    assert calls == ["a", "b"] and again.spent_s == 0.0 and table.spent_s > 0
    other = CONFIG.model_copy(update={"threads": 2})
    LatencyTable(tmp_path / "t", other, {}).of({"shape": "a"}, lambda: "c")
    assert calls == ["a", "b", "c"]
    monkeypatch.setattr(latency, "cpu_name", lambda: "another processor")
    again.of({"shape": "a"}, lambda: "d")
    assert calls == ["a", "b", "c", "d"]


@pytest.fixture
def requests(tmp_path):
    parts = toy_parts(tmp_path, tasks=("search_ranking", "risk"))
    predictor = Predictor.of(parts)
    rows = {"search_ranking": searches(30), "risk": orders(30)}
    tables = {task: predictor.encode(task, given).prepared for task, given in rows.items()}
    return parts, tables


def test_the_mean_and_the_tail_are_of_medians_over_rounds(requests, monkeypatch):
    parts, tables = requests
    each = [0.001, 0.002, 0.003, 0.004, 0.005, 0.006]
    disturbed = [*each[:5], 9.0]  # one round of three
    clock = iter([*each, *disturbed, *each])

    def seconds(call) -> float:
        call()
        return next(clock)

    monkeypatch.setattr(latency, "_seconds", seconds)
    found = measure_latency(parts, tables, CONFIG)
    assert found.request_s == pytest.approx(sum(each) / 6)
    assert found.p99_ms == pytest.approx(1000 * (0.005 + 0.95 * 0.001))


def test_requests_are_of_each_task_in_turn(requests, monkeypatch):
    parts, tables = requests
    seen: list[tuple[str, int]] = []
    score = Predictor.score

    def noted(self, task, rows):
        seen.append((task, rows.num_rows))
        return score(self, task, rows)

    monkeypatch.setattr(Predictor, "score", noted)
    measure_latency(parts, tables, CONFIG)
    warm_up, timed = 4, 6 * 3
    assert len(seen) == warm_up + timed
    assert {rows for _, rows in seen} == {4}
    assert [task for task, _ in seen[:4]] == ["search_ranking", "risk"] * 2
