"""What to run, in words: where the table of strategies has another one on top, it is said why."""

from __future__ import annotations

from typing import Any

from rectrain.cost.case import Case, Owned, Training
from rectrain.cost.findings import Findings, find
from rectrain.cost.machines import Route, Server, Stage
from rectrain.cost.traffic import Traffic
from rectrain.report.cost_page import route_table
from rectrain.report.cost_plans import what_to_run

LARGE = Route("large", (Stage("large", 1.0, 4.0),), deferred=1.0, p99_ms=50.0)
DAY = [8.0] * 23 + [80.0]


def found(*owned: Owned, held: tuple[Server, ...] = (), **traffic: Any) -> Findings:
    case = Case(
        traffic=Traffic.model_validate(
            {
                "hourly_rates": DAY,
                "scales_hourly": True,
                "growth_per_month": 0,
                "hardware_price_change": 0,
                "effort": {"maintenance": 0},
                **traffic,
            }
        ),
        routes={"large": LARGE},
        training=Training(0.0, 0.0, {"full": 1.0, "lora": 1.0, "adalora": 1.0}, "a test"),
        servers=(Server("cloudy", 1, 0.1), *held),
        owned=owned,
    )
    return find(case, options=lambda _: (LARGE,), currency="EUR", num_draws=2)


def test_a_mixture_that_is_cheaper_than_any_plan_is_named():
    # Own machines of 4 threads, 50 a month each: 5 for the peak. By the hour 66 / 24 processes on
    # average: 201. One own machine takes 16 a second, and 16 processes an hour a day the rest: 99.
    some = found(Owned(Server("mine", 4, 0.0), monthly=50.0))
    text = " ".join(what_to_run(some))
    assert "Best: 2 to 20 × cloudy on demand, large." in text and "EUR 201 a month" in text
    assert "<b>large, full, own machines and cloud on demand</b>" in text
    assert "at EUR 98.67 a month in all. It isn&#x27;t the plan: a plan has one kind" in text


def test_where_the_plan_is_the_best_strategy_nothing_more_is_said():
    text = " ".join(what_to_run(found()))
    assert "Best: 2 to 20 × cloudy on demand, large." in text and "It isn" not in text
    assert "The best plan, by traffic:" in text and "If there were neither" not in text


def test_a_budget_is_named_as_the_reason():
    # On demand 5 machines in January and 1 in the other months, 73 each; reserved 5 of 44, always.
    year = {"hourly_rates": [4.0] * 24, "seasons": [5.0] + [1.0] * 11, "horizon_months": 12}
    held = Server("cloudy", 1, 0.06, purchase="reserved", term_months=12)
    text = " ".join(what_to_run(found(held=(held,), budget_per_month=300.0, **year)))
    assert "Best: 5 × cloudy reserved, large." in text and "EUR 219 a month" in text
    assert "large, full, cloud on demand" in text and "cost up to EUR 365 a month, above" in text
    assert "The best plan, by traffic, whatever the budget:" in text


def test_the_table_of_routes_says_which_of_them_is_too_slow():
    head, rows = route_table(found(latency_ms=49.0))
    assert dict(zip(head, rows[0], strict=True))["p99"] == "50 ms, above 49"
    assert route_table(found(latency_ms=50.0))[1][0][-1] == "50 ms"
