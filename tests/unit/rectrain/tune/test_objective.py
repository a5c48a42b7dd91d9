"""What a trial's measurements are worth."""

from __future__ import annotations

import pytest

from rectrain.errors import DataError
from rectrain.tune.config import LimitsConfig, PriceConfig
from rectrain.tune.objective import Facts, Standard, cost_per_1000, excesses, lifts, objectives

STANDARDS = {
    "ad_ctr": Standard("auc", trivial=0.5, teacher=0.7, error=0.02),
    "risk": Standard("auc", trivial=0.5, teacher=0.9, error=0.02),
    "recommendation": Standard("ndcg@10", trivial=0.02, teacher=0.03, error=0.02),
}
FACTS = Facts(
    values={"ad_ctr": 0.65, "risk": 0.94, "recommendation": 0.5},
    request_s=0.036,
    p99_ms=80.0,
    threads=2,
    num_bytes=12_000_000,
)


def test_a_lift_is_a_share_of_the_teachers_and_may_exceed_it():
    assert lifts(FACTS.values, STANDARDS) == pytest.approx({"ad_ctr": 0.75, "risk": 1.1})


def test_a_task_in_which_the_teacher_is_no_better_than_chance_says_nothing():
    assert not STANDARDS["recommendation"].tells
    assert "recommendation" not in lifts(FACTS.values, STANDARDS)


def test_a_teacher_that_is_nowhere_better_than_chance_is_refused():
    only = {"recommendation": STANDARDS["recommendation"]}
    with pytest.raises(DataError, match=r"recommendation 0\.0300.*trained longer"):
        lifts(FACTS.values, only)


def test_the_three_objectives():
    found = objectives(FACTS, standards=STANDARDS, price=PriceConfig(core_hour=0.1))
    assert found.mean_lift == pytest.approx((0.75 + 1.1) / 2)
    assert found.cost_per_1000 == pytest.approx(0.002)  # 36 s × 2 cores at 0.1 an hour
    assert found.p99_ms == 80.0
    assert found.values() == (found.mean_lift, found.cost_per_1000, found.p99_ms)


def test_cost_is_linear_in_time_threads_and_price():
    one = cost_per_1000(0.01, threads=1, price=PriceConfig(core_hour=0.05))
    assert cost_per_1000(0.02, threads=3, price=PriceConfig(core_hour=0.1)) == pytest.approx(
        12 * one
    )


def test_limits_are_kept_at_their_bound_and_exceeded_by_a_share():
    found = objectives(FACTS, standards=STANDARDS, price=PriceConfig(core_hour=0.1))
    limits = LimitsConfig(p99_ms=40.0, megabytes=12.0, cost_per_1000=0.004)
    assert excesses(FACTS, found, limits=limits) == pytest.approx(
        {"p99_ms": 1.0, "megabytes": 0.0, "cost_per_1000": -0.5}
    )
    assert excesses(FACTS, found, limits=LimitsConfig()) == {}
