"""The linear cost model: the worked figure, the fit and its uncertainty, the bounded minimum."""

from __future__ import annotations

import numpy as np
import pytest

from rectrain.cost.linear import Candidate, Coefficients, LinearCost, Run, fit, minimum
from rectrain.errors import ConfigError, DataError

WORKED = LinearCost(
    hardware=Coefficients(100, 10), software=Coefficients(20, 5), labour=Coefficients(5, 2)
)


def test_the_worked_figure():
    assert WORKED.whole == (125, 17)
    assert WORKED.total(3, 4) == 125 * 3 + 17 * 4
    assert WORKED.costs(1, 1) == {"hardware": 110, "software": 25, "labour": 7}


def test_a_negative_coefficient_is_refused():
    with pytest.raises(ConfigError, match="at least 0"):
        LinearCost(Coefficients(-1, 0), Coefficients(0, 0), Coefficients(0, 0))


def runs(model: LinearCost, *, noise: float = 0.0, number: int = 12, seed: int = 0) -> list[Run]:
    rng = np.random.default_rng(seed)
    found = []
    for place in range(number):
        p, c = rng.uniform(1, 30), rng.uniform(1, 60)
        costs = {
            kind: value * (1 + noise * rng.standard_normal())
            for kind, value in model.costs(p, c).items()
        }
        found.append(Run(f"run {place}", p, c, costs))
    return found


def test_runs_of_a_linear_cost_give_its_coefficients():
    found = fit(runs(WORKED), resamples=20)
    for kind in ("hardware", "software", "labour"):
        assert getattr(found.model, kind) == pytest.approx(getattr(WORKED, kind), rel=1e-9)
    assert max(found.relative_error.values()) < 1e-9
    assert found.interval(3, 4) == pytest.approx((443, 443))


def test_no_coefficient_is_ever_negative():
    # Cost falls with P: an unbounded fit would say so.
    falling = [Run("a", 1, 5, {"hardware": 60.0}), Run("b", 8, 5, {"hardware": 50.0}),
               Run("c", 15, 5, {"hardware": 40.0})]  # fmt: skip
    found = fit(falling, resamples=50)
    assert found.model.hardware.of_p == 0 and found.model.hardware.of_c > 0
    assert found.draws.min() >= 0
    assert found.model.software == found.model.labour == (0, 0)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for seed in range(60):
        found = fit(runs(WORKED, noise=0.1, number=15, seed=seed), seed=seed, resamples=200)
        low, high = found.interval(10, 20)
        covered += low <= WORKED.total(10, 20) <= high
    assert 48 <= covered <= 60  # 95% of 60 is 57; percentile intervals of 15 runs are a bit short


def test_every_draw_tells_p_from_c():
    # P + 2 C, the second a bit off: of the first two alone all would be put on one of them.
    shapes = {(2, 3): 8.0, (4, 6.000001): 16.5, (1, 1): 3.0, (9, 1): 11.0}
    found = fit([Run("r", p, c, {"hardware": cost}) for (p, c), cost in shapes.items()])
    assert found.draws[:, 0].min() > 0


def test_ratios_near_an_axis_are_told_apart():
    found = fit([Run("r", p, 1.0, {"hardware": 5.0 + p}) for p in (1e-4, 2e-4, 4e-4)], resamples=5)
    assert found.model.hardware == pytest.approx((1, 5), rel=1e-3)


def test_a_seed_gives_the_same_draws():
    first, second = (fit(runs(WORKED, noise=0.1), seed=3, resamples=10) for _ in range(2))
    assert np.array_equal(first.draws, second.draws)


@pytest.mark.parametrize(
    "shapes",
    [[(1, 1), (2, 3)], [(1, 2), (2, 4), (3, 6)], [(1, 1), (2, 3), (4, 6.000001), (9, 9)], []],
    ids=["two", "one ratio", "two ratios", "none"],
)
def test_runs_that_cannot_tell_p_from_c_are_refused(shapes):
    with pytest.raises(DataError, match="at least three ratios"):
        fit([Run("r", p, c, {"hardware": 1.0}) for p, c in shapes])


CANDIDATES = [
    Candidate("large", 110, 90, quality=0.90, latency_ms=200),
    Candidate("middle", 30, 40, quality=0.88, latency_ms=60),
    Candidate("small", 8, 5, quality=0.85, latency_ms=10),
    Candidate("odd", 9, 4, quality=0.87, latency_ms=300),
]


@pytest.mark.parametrize(
    ("bounds", "chosen"),
    [
        ({}, "small"),
        ({"least_quality": 0.86}, "odd"),
        ({"least_quality": 0.86, "most_latency_ms": 100}, "middle"),
        ({"least_quality": 0.90}, "large"),
    ],
)
def test_the_cheapest_within_the_bounds(bounds, chosen):
    assert minimum(CANDIDATES, WORKED, **bounds).name == chosen


def test_bounds_that_nothing_keeps_say_what_would_be_possible():
    with pytest.raises(ConfigError, match=r"the best has a quality of 0\.9, the fastest .* 10 ms"):
        minimum(CANDIDATES, WORKED, least_quality=0.95)


def test_of_equal_costs_the_better_model():
    twins = [Candidate("a", 1, 1, 0.5, 9), Candidate("b", 1, 1, 0.6, 9)]
    assert minimum(twins, WORKED).name == "b"
