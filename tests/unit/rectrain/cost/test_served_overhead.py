"""What HTTP and Ray add to a model's calls; and the lengths of the texts that it is timed by."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaged_toy import toy_parts
from served_toy import CARD

from rectrain.cost import serving
from rectrain.cost.overhead import Overhead
from rectrain.cost.routes import lone
from rectrain.cost.serving import Served, _Texts, latency_curve, measure_served, to_speed
from rectrain.cost.traffic import Traffic
from rectrain.inference.packaged import load
from rectrain.package import write_package

MIX = {"risk": 1.0}
SERVED = Served("v", "torch", {"risk": (0.004, 0.0001)}, (0.8, 1.0, 1.2), 0, 10, 12)
NONE = Overhead(request_ms=0, candidate_ms=0, idle_share=0)


def test_a_request_takes_its_call_and_the_servers_part_of_it():
    overhead = Overhead(request_ms=6, candidate_ms=0.2, idle_share=0)
    found = to_speed(SERVED, "small", MIX, candidates=10, overhead=overhead).tasks["risk"]
    for candidates in (1, 10, 50):
        own = 0.004 + candidates * 0.0001
        assert found.seconds(candidates) == pytest.approx(own + 0.006 + candidates * 0.0002)


def test_the_overhead_waits_in_the_queue_too():
    overhead = Overhead(request_ms=5, candidate_ms=0, idle_share=0)
    # Twice the work with the same spread of its first half: no request is faster than 9 ms.
    bare = dict(latency_curve(SERVED, MIX, candidates=10))
    found = dict(latency_curve(SERVED, MIX, candidates=10, overhead=overhead))
    assert found.keys() == bare.keys()
    assert all(found[busy] >= bare[busy] + 5 for busy in bare)
    assert found[0.9] > 1.5 * bare[0.9]


def test_what_ray_keeps_busy_is_taken_from_the_models_core():
    half = Overhead(request_ms=0, candidate_ms=0, idle_share=0.5)
    bare = latency_curve(SERVED, MIX, candidates=10)
    found = latency_curve(SERVED, MIX, candidates=10, overhead=half)
    assert found == pytest.approx(np.array([(busy / 2, 2 * p99) for busy, p99 in bare]))
    # Where the limit is wide, half of the requests a second.
    traffic = Traffic(mix=MIX, candidates=10, latency_ms=10_000)
    rates = [
        lone(to_speed(SERVED, "small", MIX, candidates=10, overhead=one), traffic).stages[0].rate
        for one in (NONE, half)
    ]
    assert rates[0] == pytest.approx(0.9 / 0.005) and rates[1] == pytest.approx(rates[0] / 2)


def test_without_a_word_the_measured_overhead_counts():
    found = to_speed(SERVED, "small", MIX, candidates=10).tasks["risk"].seconds(10)
    assert found == pytest.approx(0.005 + Overhead().seconds(10))
    assert found > 0.005


def test_texts_have_the_lengths_that_were_asked_for():
    words = _Texts(12, 0.3, np.random.default_rng(0)).words(20_000)
    tokens = np.array(words) + 2
    assert tokens.mean() == pytest.approx(12, rel=0.01)
    assert tokens.std() / 12 == pytest.approx(0.3, rel=0.05)
    assert set(_Texts(12, 0.0, np.random.default_rng(0)).words(100)) == {10}
    assert min(_Texts(3, 1.0, np.random.default_rng(0)).words(1000)) == 1


def test_a_model_is_timed_by_texts_of_many_lengths_and_by_the_tasks_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package = write_package(tmp_path / "made", toy_parts(tmp_path / "parts"), card=CARD)
    made, asked = serving.made_up_rows, []

    def note(model: Any, task: str, sizes: list[int], **more: Any) -> Any:
        asked.append((task, len(sizes), set(sizes)))
        return made(model, task, sizes, **more)

    monkeypatch.setattr(serving, "made_up_rows", note)
    ticks = count()  # each look at the clock is a second after the last one
    found = measure_served(
        load(package.path, backend="torch", cached_texts=0), candidates=20, tokens=8, spread=0.4,
        tasks=["risk"], clock=lambda: float(next(ticks)),
    )  # fmt: skip
    assert found.tasks == {"risk": (1.0, 0.0)} and set(found.ratios) == {1.0}
    # Both sizes in turn: a slow moment of the machine falls on both.
    assert [(task, size) for task, size, _ in asked[:4]] == 2 * [("risk", 4), ("risk", 20)]
    assert {(task, size) for task, size, _ in asked} == {("risk", 4), ("risk", 20)}
    assert len(set.union(*(lengths for _, _, lengths in asked))) > 5
