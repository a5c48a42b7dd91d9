"""Latency: measured alone, once a shape, and so that a moment's disturbance changes nothing."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from packaged_toy import orders, searches, toy_parts

from rectrain.errors import StorageError
from rectrain.inference.predictor import Predictor
from rectrain.tune import latency
from rectrain.tune.config import MeasureConfig
from rectrain.tune.latency import Latency, LatencyTable, alone, busy, measure_latency

CONFIG = MeasureConfig(backend="torch", rows=4, requests=6, rounds=3)


@pytest.fixture
def own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that a search on this machine doesn't hold."""
    monkeypatch.setattr(latency.tempfile, "gettempdir", lambda: str(tmp_path))


@pytest.mark.usefixtures("own_lock")
def test_who_waits_long_says_for_what(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(latency, "_SILENT_S", 0.05)
    with busy(), busy():
        time.sleep(0.2)
    assert capsys.readouterr().out == ""
    entered, leave = threading.Event(), threading.Event()

    def compute() -> None:
        with busy():
            entered.set()
            leave.wait(20)

    first = threading.Thread(target=compute)
    first.start()
    entered.wait(20)
    release = threading.Timer(0.5, leave.set)
    release.start()
    with alone():
        pass
    first.join()
    assert capsys.readouterr().out.startswith("tune: waits for another trial or search")


@pytest.mark.usefixtures("own_lock")
def test_who_computes_again_and_again_lets_who_waits_measure():
    """There are so many that some hold the lock at any moment."""
    stop, measured = threading.Event(), threading.Event()

    def compute() -> None:
        while not stop.is_set():
            with busy():
                time.sleep(0.05)

    def measure() -> None:
        with alone():
            measured.set()

    threads = [threading.Thread(target=compute) for _ in range(6)]
    for place, thread in enumerate(threads):
        thread.start()
        time.sleep(0.007 * place)
    threads.append(threading.Thread(target=measure))
    threads[-1].start()
    try:
        assert measured.wait(10)
    finally:
        stop.set()
    for thread in threads:
        thread.join(20)


@pytest.mark.usefixtures("own_lock")
def test_who_waits_at_the_gate_for_long_goes_in(monkeypatch: pytest.MonkeyPatch):
    """What computes may need a CPU that it holds."""
    monkeypatch.setattr(latency, "_GATE_S", 0.2)
    with busy():
        first = threading.Thread(target=lambda: alone().__enter__(), daemon=True)
        first.start()
        time.sleep(0.3)
        with busy():
            pass
        assert first.is_alive()  # it measures later
    first.join(20)
    assert not first.is_alive()


def test_the_lock_is_this_users_alone_and_no_link(own_lock: None, tmp_path: Path):
    with busy():
        files = sorted(tmp_path.glob("rectrain-*"))
        assert [path.suffix for path in files] == [".gate", ".stopwatch"]
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    for path in files:
        path.unlink()
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="no link"), busy():
        pass
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.usefixtures("own_lock")
def test_who_measures_waits_for_all_who_compute_and_they_for_it():
    order: list[str] = []
    entered, leave = threading.Event(), threading.Event()

    def compute() -> None:
        with busy():
            entered.set()
            leave.wait(20)
            order.append("computed")

    def measure() -> None:
        with alone():
            order.append("measured")

    first = threading.Thread(target=compute)
    first.start()
    assert entered.wait(20)
    with busy():  # beside the other one
        order.append("computed")
    second = threading.Thread(target=measure)
    second.start()
    second.join(0.2)
    assert order == ["computed"] and second.is_alive()
    leave.set()
    first.join(20)
    second.join(20)
    assert order == ["computed", "computed", "measured"]


@pytest.mark.usefixtures("own_lock")
def test_a_shape_is_measured_once_and_another_way_of_measuring_anew(tmp_path, monkeypatch):
    calls: list[str] = []

    def measured(parts, tables, config) -> Latency:
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
