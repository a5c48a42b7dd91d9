"""From speeds to routes, and from calls to a latency curve: by hand and by what must hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectrain.cascade import Calibration, Calibrations, ListDoubt, Policy, RowDoubt, TaskPolicy
from rectrain.cost.assemble import lift_of, measured_factors
from rectrain.cost.overhead import Overhead
from rectrain.cost.routes import Speed, TaskSpeed, cascade, lone, worths
from rectrain.cost.serving import Served, _latencies, _p99, latency_curve, to_speed
from rectrain.cost.traffic import Traffic
from rectrain.errors import ConfigError

PLAIN = Calibration("temperature", 1.0, 0.0)
DECILES = tuple(place / 20 for place in range(1, 10))
ROWS = TaskPolicy(
    task="risk", doubt=RowDoubt(((0.0, 1.0),), scale=1.0), threshold=0.2, bound="budget",
    budget=0.1, rate=0.1, deciles=DECILES, calibration=Calibrations(small=PLAIN, large=PLAIN),
)  # fmt: skip
LISTS = TaskPolicy(
    task="search_ranking", threshold=0.2, bound="budget", budget=0.1, rate=0.1, deciles=DECILES,
    doubt=ListDoubt(temperature=1.0, noise=0.5, places=10, depth=100, scale=0.02), head=4,
)  # fmt: skip
CURVE = ((0.1, 10.0), (0.5, 20.0), (0.9, 100.0))


def speed(name: str, fixed: float, each: float, task: str) -> Speed:
    return Speed(name, {task: TaskSpeed(fixed, each)}, CURVE, 1e9)


def test_a_lone_model_serves_up_to_where_its_p99_keeps_the_limit():
    route = lone(speed("large", 0.1, 0.01, "risk"), Traffic(candidates=10, latency_ms=20.0))
    # 0.1 + 10 · 0.01 = 0.2 s a request, busy for half of the time at 20 ms.
    assert route.stages[0].rate == pytest.approx(0.5 / 0.2, rel=2e-3)
    assert route.p99_ms == pytest.approx(20.0, rel=1e-2)
    # It holds its core for 0.4 s a request, and works for 0.2 of them.
    assert route.core_s == pytest.approx(0.4, rel=2e-3) and route.busy_s == pytest.approx(0.2)


def test_a_model_that_never_keeps_the_limit_says_so():
    route = lone(speed("large", 0.1, 0.01, "risk"), Traffic(latency_ms=5.0))
    assert route.p99_ms > 5.0


def test_of_lists_a_share_of_requests_asks_for_the_head():
    small, large = (speed(n, f, e, "search_ranking") for n, f, e in
                    (("small", 0.01, 0.001), ("large", 0.1, 0.01)))  # fmt: skip
    policy = Policy("s", "l", {"search_ranking": LISTS})
    # A whole request takes large 0.2 s, the head 0.14: its p99 is 14 where small's is 20.
    route = cascade(small, large, policy, Traffic(candidates=10, latency_ms=34.0))
    busy = 0.5
    assert [stage.share for stage in route.stages] == pytest.approx([1.0, 0.1])
    assert route.stages[0].rate == pytest.approx(busy / 0.02, rel=3e-3)
    assert route.stages[1].rate == pytest.approx(busy / (0.1 + 4 * 0.01), rel=3e-3)
    assert route.busy_s == pytest.approx(0.02 + 0.1 * 0.14)
    assert route.p99_ms == pytest.approx(34.0, rel=1e-2)


def test_of_rows_most_requests_ask_for_few_of_theirs():
    small, large = (speed(n, f, e, "risk") for n, f, e in
                    (("small", 0.01, 0.001), ("large", 0.1, 0.01)))  # fmt: skip
    policy = Policy("s", "l", {"risk": ROWS})
    asked = 1 - 0.8**10
    limit_ms = 20.0 + 20.0 * (0.1 + 0.02 / asked) / 0.2  # at half of the time
    traffic = Traffic(candidates=10, latency_ms=limit_ms)
    route = cascade(small, large, policy, traffic, deferred=0.2)
    assert route.stages[1].share == pytest.approx(asked)
    seconds = asked * 0.1 + 0.2 * 10 * 0.01  # a request, on average
    assert route.stages[1].share / route.stages[1].rate == pytest.approx(seconds / 0.5, rel=3e-3)


def test_a_budget_bounds_what_a_threshold_would_defer():
    small, large = (speed(n, f, e, "risk") for n, f, e in
                    (("small", 0.01, 0.001), ("large", 0.1, 0.01)))  # fmt: skip
    routes = [
        cascade(small, large, Policy("s", "l", {"risk": replace(ROWS, rate=rate)}), Traffic())
        for rate in (0.1, 0.3)
    ]
    assert routes[0] == routes[1]


def test_a_cascade_that_defers_nothing_is_the_small_model():
    small, large = (speed(n, f, e, "risk") for n, f, e in
                    (("small", 0.01, 0.001), ("large", 0.1, 0.01)))  # fmt: skip
    traffic, policy = Traffic(candidates=10), Policy("s", "l", {"risk": ROWS})
    assert cascade(small, large, policy, traffic, deferred=0.0).core_s == pytest.approx(
        lone(small, traffic).core_s
    )


@given(one=st.floats(0, 1), other=st.floats(0, 1))
def test_deferring_more_costs_more_and_is_worth_what_lies_between(one, other):
    small, large = (speed(n, f, e, "risk") for n, f, e in
                    (("small", 0.01, 0.001), ("large", 0.1, 0.01)))  # fmt: skip
    less, more = sorted((one, other))
    routes = [
        cascade(
            small, large, Policy("s", "l", {"risk": ROWS}), Traffic(), deferred=share,
            worth={"small": {"risk": 1.0}, "large": {"risk": 2.0}},
        )
        for share in (less, more)
    ]  # fmt: skip
    # The same load: how busy they may be depends on whether the large model is asked at all.
    if less > 0:
        assert routes[0].core_s <= routes[1].core_s * (1 + 1e-9)
    assert 1.0 <= routes[0].worth_per_1000 <= routes[1].worth_per_1000 <= 2.0


def test_worth_goes_with_events_and_lift():
    traffic = Traffic.model_validate(
        {"mix": {"risk": 3.0, "ad_ctr": 1.0},
         "worth": {"fraud": 20.0, "click": 0.1, "events": {"risk": 0.5, "ad_ctr": 8.0}}}
    )  # fmt: skip
    tasks = ("risk", "ad_ctr")
    assert worths(traffic, {}, tasks=tasks) == pytest.approx({"risk": 7.5, "ad_ctr": 0.2})
    half = worths(traffic, {"risk": 0.5}, tasks=tasks)
    assert half == pytest.approx({"risk": 3.75, "ad_ctr": 0.2})


@pytest.mark.parametrize(("lists", "rows", "worth"), [(0.0, 0.4, 45), (0.4, 0.0, 47), (1, 1, 50)])
def test_what_one_task_defers_is_worth_what_that_task_gains(lists, rows, worth):
    small, large = (
        Speed(name, dict.fromkeys(("risk", "search_ranking"), TaskSpeed(0.01, 0.001)), CURVE)
        for name in ("small", "large")
    )
    tasks = {
        "risk": replace(ROWS, rate=rows, budget=rows),
        "search_ranking": replace(LISTS, rate=lists, budget=lists),
    }
    policy = Policy("s", "l", tasks)
    # Of 1,000 answers, half of them lists that are worth 90 and 100 a thousand.
    found = cascade(small, large, policy, Traffic(), worth={
        "small": {"search_ranking": 45.0, "risk": 0.0},
        "large": {"search_ranking": 50.0, "risk": 0.0},
    })  # fmt: skip
    assert found.worth_per_1000 == pytest.approx(worth)
    assert found.deferred == pytest.approx((lists + rows) / 2)
    assert found.most_deferred == max(lists, rows)


def test_the_money_of_an_event_can_be_said_of_any_task():
    traffic = Traffic.model_validate(
        {"worth": {"order": 2.0, "money": {"refund": 3.0, "search_ranking": 5.0},
                   "events": {"refund": 0.5, "search_ranking": 0.1, "recommendation": 0.1}}}
    )  # fmt: skip
    tasks = ("refund", "search_ranking", "recommendation", "risk")
    found = worths(traffic, {}, tasks=tasks)
    assert {task: 4 * worth for task, worth in found.items()} == pytest.approx(
        {"refund": 1.5, "search_ranking": 0.5, "recommendation": 0.2, "risk": 0.0}
    )


@pytest.mark.parametrize(
    ("worth", "said"),
    [
        (
            {"click": 1, "events": {"serch_ranking": 0.1}},
            "worth.events of the traffic.*models have",
        ),
        ({"money": {"ad_ctr": 0.1}}, "worth.money of the traffic.*got ad_ctr.*models have"),
        ({"click": 1, "events": {"refund": 1}}, "worth.events.refund.*set worth.money.refund"),
        ({"events": {"search_ranking": 1}}, "worth.events.search_ranking.*set worth.order"),
        ({"order": 1.5}, "worth.order of the traffic: got 1.5; .*set worth.events"),
        ({"order": 1, "events": {"refund": 1}, "money": {"refund": 2}}, "worth.order.*until"),
        ({"money": {"refund": 2}}, "worth.money.refund of the traffic: got 2.0; .*worth.events"),
        ({"fraud": 5, "events": {"risk": 1}}, "worth.events.risk.*the mix asks search_ranking, re"),
    ],
)
def test_worth_that_would_count_for_nothing_is_refused(worth, said):
    mix = {"search_ranking": 3, "refund": 1, "risk": 0}
    traffic = Traffic.model_validate({"mix": mix, "worth": worth})
    with pytest.raises(ConfigError, match=said):
        traffic.shares(["search_ranking", "refund", "risk"])


def test_lift_is_over_a_trivial_model():
    first = {"risk": {"auc": [0.8, 0.7, 0.9]}, "search_ranking": {"ndcg@10": 0.5}}
    other = {"risk": {"auc": 0.65}, "search_ranking": {"ndcg@10": [0.6, 0.5, 0.7]}}
    assert lift_of(other, first) == pytest.approx({"risk": 0.5, "search_ranking": 1.2})


def test_the_first_metric_that_is_better_when_higher_judges_alone():
    other = {"risk": {"log_loss": 0.3, "auc": 0.65}, "ad_ctr": {"auc": 0.6, "ece": 0.1}}
    first = {"risk": {"log_loss": 0.2, "auc": 0.8}, "ad_ctr": {"auc": 0.5, "ece": 0.05}}
    assert lift_of(other, first) == pytest.approx({"risk": 0.5})  # no lift at all over 0.5


def test_metrics_of_a_whole_catalogue_stand_in_no_lifts_way() -> None:
    card = {"recommendation": {"ndcg@10": [0.2, 0.1, 0.3], "coverage@10": [0.5, 0.4, 0.6]}}
    assert lift_of(card, card) == {"recommendation": 1.0}


def test_a_methods_factor_is_measured_where_it_was():
    figures = [{"id": "adapters/lora/speed", "value": 1.25}]
    assert measured_factors(figures) == pytest.approx({"full": 1.0, "lora": 0.8, "adalora": 2 / 3})


# --- latency -------------------------------------------------------------------------------------

SERVED = Served("v", "torch", {"risk": (0.004, 0.0001)}, (0.8, 1.0, 1.2), 0, 50, 12)


def test_alone_a_request_takes_its_own_time_and_behind_another_the_rest_of_it():
    # At 0 for 10 ms; at 4 behind it until 20; at 5 with that one in a batch: both end at 30.
    arrivals, work = np.array([0.0, 0.004, 0.005]), np.array([0.010, 0.010, 0.010])
    assert _p99(arrivals[:1], work[:1]) == pytest.approx(10.0)
    assert _p99(arrivals, work) == pytest.approx(26.0, abs=0.1)


def test_a_batch_ends_where_its_time_does():
    # 20 requests of 20 ms wait together: five make a batch, the last of which ends at 420 ms.
    arrivals, work = np.array([0.0] + [0.001] * 20), np.full(21, 0.020)
    assert _p99(arrivals, work) == pytest.approx(419.0, abs=1.0)


def test_latency_rises_with_load_from_about_a_lone_requests():
    curve = latency_curve(SERVED, {"risk": 1.0}, candidates=10)
    busy, p99 = zip(*curve, strict=True)
    assert list(busy) == sorted(busy) and list(p99) == sorted(p99)
    assert 1000 * 0.005 <= p99[0] < 3 * 1000 * 0.005 * 1.2 < p99[-1]


@pytest.mark.parametrize("busy", [0.3, 0.6, 0.8])
def test_an_m_d_1_queue_has_its_mean_wait(busy):
    # Requests that are longer than a batch may be go one at a time: they wait rho / (2 (1 - rho))
    # services on average (Pollaczek 1930).
    gaps, service = np.random.default_rng(0).exponential(1.0, 60_000), 0.2
    latency = _latencies(np.cumsum(gaps) * service / busy, np.full(len(gaps), service))
    assert latency.mean() / service - 1 == pytest.approx(busy / (2 * (1 - busy)), rel=0.1)


def test_a_models_seconds_are_the_mean_of_its_calls_not_the_middle():
    skewed = Served("v", "torch", {"risk": (0.004, 0.0001)}, (1.0, 1.0, 2.0), 7, 50, 12)
    found = to_speed(skewed, "large", {"risk": 1.0}, candidates=10, overhead=Overhead(request_ms=0))
    overhead = 10 * Overhead().candidate_ms / 1000
    assert found.tasks["risk"].seconds(10) == pytest.approx(0.005 * 4 / 3 + overhead)
    assert found.memory_bytes == 7
