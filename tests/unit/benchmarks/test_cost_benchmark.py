"""C1 and C3 from made-up loads: what is calibrated, what is predicted, which order follows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.cost import agreement
from benchmarks.cost_loads import TASK, Loaded
from benchmarks.cost_serving import Round, calibrated, figures
from rectrain.cascade import ListDoubt, Policy, TaskPolicy
from rectrain.cost.serving import Served

CORES = 2
IDLE, REQUEST_S, CANDIDATE_S = 0.15, 0.007, 0.0002
SMALL, LARGE = (0.004, 0.0003), (0.020, 0.004)
HEAD, DEFERRED = 3, 0.1
POLICY = Policy(
    "s", "l",
    {TASK: TaskPolicy(
        task=TASK, threshold=0.2, bound="budget", budget=DEFERRED, rate=DEFERRED,
        deciles=tuple(place / 20 for place in range(1, 10)), head=HEAD,
        doubt=ListDoubt(temperature=1.0, noise=0.5, places=10, depth=100, scale=0.02),
    )},
)  # fmt: skip


def timed(name: str, line: tuple[float, float], candidates: int) -> Served:
    return Served(name, "torch", {TASK: line}, (0.9, 1.0, 1.1), 0, candidates, 9)


def seconds(line: tuple[float, float], candidates: int) -> float:
    """Of cores: a request with so many, over HTTP."""
    return line[0] + REQUEST_S + candidates * (line[1] + CANDIDATE_S)


def load(request_s: float, rate: float, requests: int = 60) -> Loaded:
    return Loaded(IDLE * requests / rate + requests * request_s, requests / rate, requests)


def one_round(**changes: float) -> Round:
    """As the product's model has it; a model's requests take `changes` times as long."""
    each = {
        "small": seconds(SMALL, 10),
        "large": seconds(LARGE, 10),
        "shop": seconds(SMALL, 10) + DEFERRED * seconds(LARGE, HEAD),
    }
    return Round(
        idle=Loaded(IDLE * 15, 15.0, 0),
        known={size: load(seconds(SMALL, size), 15.0) for size in (6, 30)},
        loads={
            (name, rate): load(request_s * changes.get(name, 1.0), rate)
            for name, request_s in each.items()
            for rate in (6.0, 9.0, 12.0)
        },
        calibration=timed("s", SMALL, 30),
        timed={"small": timed("s", SMALL, 10), "large": timed("l", LARGE, 10)},
    )


def test_the_overhead_is_what_loads_take_beyond_calls_and_idleness():
    found = calibrated(one_round(), cores=CORES)
    assert found.request_ms == pytest.approx(1000 * REQUEST_S)
    assert found.candidate_ms == pytest.approx(1000 * CANDIDATE_S)
    assert found.idle_share == pytest.approx(IDLE / CORES)


def test_calls_that_took_longer_alone_leave_no_overhead_below_nothing():
    right = one_round()
    cheap = {size: one._replace(cpu_s=IDLE * one.duration_s) for size, one in right.known.items()}
    found = calibrated(replace(right, known=cheap), cores=CORES)
    assert found.request_ms == found.candidate_ms == 0


def test_where_the_products_model_is_right_the_ratios_are_1():
    found = {one.id: one for one in figures([one_round(), one_round()], POLICY, cores=CORES)}
    for model in ("small", "shop", "large"):
        for rate in ("6", "9", "12"):
            assert found[f"C1/serving/{model}/{rate}"].value == pytest.approx(1)
    assert found["C3/order"].value == 1
    assert found["C1/serving/overhead/request_ms"].value == pytest.approx(7)


def test_where_it_is_wrong_they_are_not():
    found = {one.id: one for one in figures([one_round(large=1.5)], POLICY, cores=CORES)}
    truth = load(seconds(LARGE, 10), 6.0).cpu_s / load(1.5 * seconds(LARGE, 10), 6.0).cpu_s
    assert found["C1/serving/large/6"].value == pytest.approx(truth)
    assert found["C1/serving/small/6"].value == pytest.approx(1)
    # A small model that is dearer than the cascade is not what was predicted.
    odd = {one.id: one for one in figures([one_round(small=2.0)], POLICY, cores=CORES)}
    assert odd["C3/order"].value == 0


def test_in_random_settings_the_plan_is_the_oracles():
    assert agreement(10, seed=1).value == 1


def test_money_is_the_predicted_seconds_at_a_price():
    found = {one.id: one for one in figures([one_round()], POLICY, cores=CORES)}
    per_request = load(seconds(LARGE, 10), 9.0).cpu_s / 60
    money = found["C1/serving/large/9/money"]
    assert money.value == pytest.approx(1e6 * per_request * 0.08925 / 2 / 3600)
    assert money.unit.startswith("USD")
