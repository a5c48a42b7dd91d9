"""What to run: against an oracle that tries everything, and by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from benchmarks.plan_oracle import best_plan
from rectrain.cost.case import Case, Owned, Strategy, Training
from rectrain.cost.findings import bounds_of, find
from rectrain.cost.fleet import fleet
from rectrain.cost.machines import (
    PURCHASES,
    Route,
    Server,
    Stage,
    capacity,
    contracts,
    held,
    num_slots,
    processes,
    running,
    spares,
)
from rectrain.cost.plan import Bounds, Plan, choose, plans
from rectrain.cost.rivals import rivals
from rectrain.cost.rivals import ties as what_would_change
from rectrain.cost.traffic import Traffic
from rectrain.report import cost_page as cost_page_module
from rectrain.report.cost import cost_json

SMALL = Route("small", (Stage("small", 1.0, 40.0),), p99_ms=20.0, worth_per_1000=0.010)
LARGE = Route("large", (Stage("large", 1.0, 4.0),), deferred=1.0, p99_ms=60.0, worth_per_1000=0.020)
CASCADE = Route(
    "cascade",
    (Stage("small", 1.0, 40.0), Stage("large", 0.1, 4.0)),
    deferred=0.1,
    p99_ms=80.0,
    worth_per_1000=0.019,
    busy=0.5,
)
ROUTES = (SMALL, LARGE, CASCADE)
TWO = Server("two", 2, 0.1)
EIGHT = Server("eight", 8, 0.36)
BOUNDS = Bounds(mean_rate=10.0, peak_rate=30.0, latency_ms=100.0)
NOW = "on demand"


def known(plan: Plan | None) -> tuple[str, str, str, int] | None:
    return plan and (plan.server.name, plan.server.purchase, plan.route.name, plan.num_servers)


def test_machines_are_counted_by_processes_of_each_stage():
    # 30 requests/s: 1 small; large: 8; cascade: 1 small + 1 large (3 requests/s of 4).
    found = {
        (p.server.name, p.route.name): p.num_servers for p in plans([TWO, EIGHT], ROUTES, BOUNDS)
    }
    assert found == {
        ("two", "small"): 1, ("two", "large"): 4, ("two", "cascade"): 1,
        ("eight", "small"): 1, ("eight", "large"): 1, ("eight", "cascade"): 1,
    }  # fmt: skip


def test_the_best_plan_has_the_highest_worth_less_cost():
    # A month has 10 · 3600 · 730 = 26.28 million requests; 0.019 per 1,000 is 499.32, a machine 73.
    best, second = choose([TWO, EIGHT], ROUTES, BOUNDS)
    assert known(best) == ("two", NOW, "cascade", 1)
    assert best is not None and best.net == pytest.approx(499.32 - 73.0)
    assert known(second) == ("eight", NOW, "large", 1)  # 525.6 - 262.8 = 262.8, small has 189.8


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({"latency_ms": 70.0}, ("eight", NOW, "large", 1)),  # the cascade is too slow
        ({"latency_ms": 70.0, "budget": 100.0}, ("two", NOW, "small", 1)),
        ({"latency_ms": 10.0}, None),
        ({"budget": 50.0}, None),
    ],
)
def test_bounds_are_kept(bounds, expected):
    assert known(choose([TWO, EIGHT], ROUTES, replace(BOUNDS, **bounds)).best) == expected


def test_a_process_must_fit_into_the_memory():
    big = replace(SMALL, stages=(replace(SMALL.stages[0], memory_bytes=3.0),))
    tight = replace(TWO, memory_bytes=5.0)  # holds one process, not two
    fits = list(plans([tight], [big], replace(BOUNDS, peak_rate=80.0)))
    assert [plan.num_servers for plan in fits] == [2]
    assert not list(plans([replace(TWO, memory_bytes=2.0)], [big], BOUNDS))


def test_spares_are_the_fewest_that_keep_the_availability():
    # Each of 10 machines is away a hundredth of the time. All ten run in 0.904 of it; of eleven at
    # least ten in 0.995, of twelve in 0.9998.
    server = replace(TWO, purchase="spot", interruptions_per_hour=0.0101010101)
    assert [
        spares(10, server, availability=share, restart_h=1.0)
        for share in (0.9, 0.99, 0.999, 0.9999)
    ] == [0, 1, 2, 3]
    assert spares(10, replace(server, purchase=NOW), availability=0.9999, restart_h=1.0) == 0
    # Of so many that their chances don't fit a float one by one: 1% of ten thousand, and 4 sigma.
    assert 101 < spares(10_000, server, availability=0.9999, restart_h=1.0) < 101 + 4 * 10.2


def test_a_fleet_of_spot_machines_has_more_spares_than_are_away():
    spot = Server("spot", 2, 0.03, purchase="spot", interruptions_per_hour=0.05)
    found = spares(200_000, spot, availability=0.9999, restart_h=1 / 6)
    q = (0.05 / 6) / (1 + 0.05 / 6)
    assert binom.cdf(found, 200_000 + found, q) >= 0.9999  # some 1,650 are away on average
    assert binom.cdf(found - 1, 200_000 + found - 1, q) < 0.9999


@pytest.mark.parametrize("worth", [0.0, 0.01])
def test_the_report_says_when_and_by_how_much_a_route_was_behind(worth):
    case = some_case(mean_rate=5.0, horizon_months=12, effort={"shrinking": 30.0})
    values = {"large": 2 * worth, "small": worth, "cascade": 2 * worth}
    routes = {name: replace(one, worth_per_1000=values[name]) for name, one in case.routes.items()}
    found = find(
        replace(case, routes=routes), options=lambda _: tuple(routes.values()), currency="EUR",
        num_draws=2,
    )  # fmt: skip
    counted = "With what answers are worth" if worth else "By its costs"
    page = cost_page_module._paid_back
    for one in found.crossings:
        small, large = (found.routes[name] for name in (one.one, one.other))
        ahead = np.cumsum((small.worth - small.costs) - (large.worth - large.costs))
        assert one.behind == pytest.approx(max(0.0, -ahead.min()))
        assert page(one, found).startswith(counted)
        if one.month:
            assert ahead[one.month - 2] < 0 <= ahead[one.month - 1 :].min()
            assert f"after **month {one.month}**" in page(one, found)
        else:
            assert (one.behind == 0) == (one.month == 0)
            assert ("in no month" if one.month == 0 else "not back within 12") in page(one, found)
    json = cost_json(found, {})["break_even"]
    assert [each["behind"] for each in json] == [one.behind for one in found.crossings]


def test_of_equals_the_rule_decides():
    spot = replace(TWO, purchase="spot")  # never interrupted, and as dear
    best, second = choose([spot, TWO], [SMALL], BOUNDS)
    assert known(best) == ("two", NOW, "small", 1) and known(second) == ("two", "spot", "small", 1)
    both = replace(LARGE, worth_per_1000=SMALL.worth_per_1000, stages=SMALL.stages)
    assert known(choose([TWO], [both, SMALL], BOUNDS).best) == ("two", NOW, "small", 1)


def test_the_rivals_differ_in_the_choice_that_they_are_named_for():
    best = choose([TWO, EIGHT], ROUTES, BOUNDS).best
    assert best is not None
    found = rivals(best, [TWO, EIGHT], ROUTES, BOUNDS)
    assert {name: known(plan) for name, plan in found.items()} == {
        "route": ("eight", NOW, "large", 1), "machine": ("eight", NOW, "large", 1)
    }  # fmt: skip


def test_at_what_would_have_to_change_both_plans_are_equal():
    servers, routes = [TWO, EIGHT], ROUTES
    best, second = choose(servers, routes, BOUNDS)
    assert best is not None and second is not None
    change = what_would_change(best, second, BOUNDS)
    assert change.rival_hourly is not None and change.best_hourly is not None
    cheaper = replace(second.server, hourly=change.rival_hourly)
    (plan,) = plans([cheaper], [second.route], BOUNDS)
    assert plan.net == pytest.approx(best.net)
    dearer = replace(best.server, hourly=change.best_hourly)
    (plan,) = plans([dearer], [best.route], BOUNDS)
    assert plan.net == pytest.approx(second.net)
    assert change.worth is not None
    scaled = [
        replace(p.route, worth_per_1000=p.route.worth_per_1000 * change.worth)
        for p in (best, second)
    ]
    (ours,), (theirs,) = (
        plans([p.server], [r], BOUNDS) for p, r in zip((best, second), scaled, strict=True)
    )
    assert ours.net == pytest.approx(theirs.net)


def test_at_the_traffic_named_the_rival_takes_over():
    # With one thread each, the cascade takes a machine more: 73 a month, for 236 at this traffic.
    single = Server("single", 1, 0.1)
    best, rival = choose([single], [SMALL, CASCADE], BOUNDS)
    assert best is not None and rival is not None
    assert (best.route.name, rival.route.name) == ("cascade", "small")
    change = what_would_change(best, rival, BOUNDS)
    assert change.traffic_up is None
    assert change.traffic_down == pytest.approx(73.0 / (0.009 * 26280), rel=1e-6)


# --- over months, and held for terms -------------------------------------------------------------

ONE = Server("one", 1, 0.1)
HELD = replace(ONE, hourly=0.06, purchase="reserved", term_months=12)
SPOT = replace(ONE, hourly=0.04, purchase="spot", interruptions_per_hour=1e-3)
OWN = replace(ONE, hourly=0.05, purchase="own", term_months=48, load_hourly=0.02)
CHEAP = replace(LARGE, worth_per_1000=0.0)  # 4 requests a second of a process


def test_machines_on_demand_follow_the_months_and_reserved_ones_stay():
    year = replace(BOUNDS, peak_rate=4.0, months=(1.0, 5.0, 1.0, 1.0))
    now, later = choose([ONE, HELD], [CHEAP], year)
    # 1, 5, 1, 1 machines at 0.1 an hour; 1 and then 5 at 0.06.
    assert now is not None and (now.server, now.count, now.machines) == (ONE, "1 to 5", 2.0)
    assert now.cost == pytest.approx(2 * 0.1 * 730)
    assert later is not None and later.machines == 4.0
    assert later.cost == pytest.approx(4 * 0.06 * 730)
    assert choose([ONE, HELD], [CHEAP], replace(year, months=(1.0,))).best.server == HELD


def test_machines_on_demand_may_follow_the_hours_and_reserved_ones_do_not():
    day = replace(BOUNDS, mean_rate=4.0, peak_rate=16.0, day=(4.0, 0.0, 0.0, 0.0))
    now, later = choose([ONE, HELD], [CHEAP], day)
    assert now is not None and (now.server, now.machines) == (ONE, 1.0)
    assert later is not None and (later.server, later.machines) == (HELD, 4.0)


@pytest.mark.parametrize(
    ("server", "paid"),
    [(ONE, [2.5, 1.0]), (SPOT, [2.5, 1.0]), (HELD, [4.0, 1.0]), (OWN, [4.0, 1.0])],
)
def test_what_is_bought_for_one_month_stays_for_all_of_its_hours(server, paid):
    needed = np.array([[4.0, 1.0], [1.0, 1.0]])
    assert held(replace(server, term_months=1), needed).tolist() == paid
    day = replace(BOUNDS, mean_rate=4.0, peak_rate=16.0, day=(4.0, 0.0, 0.0, 0.0))
    (plan,) = plans([replace(server, term_months=1)], [CHEAP], day)
    assert (plan.fewest, plan.machines >= 4.0) == ((4, True) if paid[0] == 4.0 else (0, False))


def test_own_machines_draw_by_their_load():
    some = replace(CHEAP, busy=0.6)
    (plan,) = plans([OWN], [some], replace(BOUNDS, mean_rate=2.0, peak_rate=6.0))
    # Two machines; 2 requests a second of 4 take half a process, which works for 0.6 of its time.
    assert plan.cost == pytest.approx(730 * (2 * 0.05 + 0.3 * 0.02))
    assert str(plan) == "2 × one own, large"


def test_the_budget_holds_in_every_month():
    months = replace(BOUNDS, peak_rate=4.0, months=(1.0, 1.0, 3.0))
    assert not list(plans([ONE], [CHEAP], replace(months, budget=2.9 * 73)))
    assert list(plans([ONE], [CHEAP], replace(months, budget=3.1 * 73)))


def test_what_a_route_costs_besides_counts():
    made = replace(SMALL, worth_per_1000=0.0, monthly=300.0)
    assert known(choose([TWO], [CHEAP, made], BOUNDS).best) == ("two", NOW, "large", 4)
    made = replace(made, monthly=200.0)  # 73 and 200 against 4 · 73
    assert known(choose([TWO], [CHEAP, made], BOUNDS).best) == ("two", NOW, "small", 1)


@given(
    most=st.lists(st.integers(0, 9).map(float), min_size=1, max_size=30), term=st.integers(1, 20)
)
def test_what_is_held_is_enough_and_no_contract_was_idle_when_it_was_taken(most, term):
    taken = contracts(np.array(most), term)
    there = running(taken, term)
    assert (there >= most).all() and there.max() == max(most)
    for month in np.flatnonzero(taken):
        assert there[month] == most[month]
    needed = np.array(most)[:, None]
    assert held(replace(HELD, term_months=term), needed).tolist() == there.tolist()


# --- against the forecast ------------------------------------------------------------------------


def some_case(**traffic: object) -> Case:
    return Case(
        traffic=Traffic.model_validate({"hardware_price_change": 0.0, "latency_ms": 90, **traffic}),
        routes={"large": LARGE, "small": SMALL, "cascade": CASCADE},
        training=Training(50.0, 20.0, {"full": 1.0, "lora": 0.5, "adalora": 0.6}, "a test"),
        servers=(ONE, HELD, SPOT),
        owned=(Owned(Server("mine", 4, 0.0), monthly=100.0, watts=200.0, idle_watts=80.0),),
        engineer_h=90.0,
        operator_h=60.0,
        kwh=0.2,
    )  # fmt: skip


def offered(case: Case) -> Callable[[Traffic], tuple[Route, ...]]:
    """The case's own routes, whatever the limit."""
    return lambda _: tuple(case.routes.values())


@settings(deadline=None)
@given(
    mean=st.floats(0.1, 60), growth=st.floats(-0.2, 0.3), months=st.integers(1, 18),
    seasons=st.lists(st.floats(0, 2), min_size=12, max_size=12), hourly=st.booleans(),
)  # fmt: skip
def test_a_plans_machines_cost_what_the_forecasts_do(mean, growth, months, seasons, hourly):
    seasons[0] = 1.0
    case = some_case(
        mean_rate=mean, growth_per_month=growth, horizon_months=months, seasons=seasons,
        scales_hourly=hourly,
    )  # fmt: skip
    for server in case.every_server:
        for route in case.routes.values():
            (plan,) = plans([server], [route], bounds_of(case))
            where = Strategy(route.name, purchase=server.purchase)
            if server.purchase == "own":
                where = Strategy(route.name, hosting="own")
            assert plan.cost * months == pytest.approx(fleet(case, route, where).cost)


def test_the_plan_is_the_forecasts_winner_with_trainings_and_people():
    # Little traffic: the small model saves less than its making costs, 8 hours and checks.
    for mean, winner in ((0.5, "large"), (50.0, "small")):
        case = some_case(mean_rate=mean, horizon_months=12)
        routes = {name: replace(one, worth_per_1000=0.0) for name, one in case.routes.items()}
        case = replace(case, routes=routes)
        found = find(case, options=offered(case), currency="EUR", num_draws=2)
        best = found.choice.best
        assert best is not None and best.route.name == winner
        assert found.best_route == winner
        forecasts = found.routes[winner]
        assert best.spent == pytest.approx(forecasts.monthly, rel=0.02)


def test_a_month_without_requests_may_come_first():
    case = some_case(seasons=[0.0] + [1.0] * 11, horizon_months=3)
    found = find(case, options=offered(case), currency="EUR", num_draws=2)
    best = found.choice.best
    assert best is not None and best.fewest == 0 < best.num_servers
    assert all(step.requests > 0 for step in found.steps)


# --- against the oracle --------------------------------------------------------------------------

positive = st.floats(0.01, 100.0)
speeds = st.floats(0.3, 100.0)
stage = st.builds(
    Stage, model=st.just("m"), share=st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]), rate=speeds,
    memory_bytes=st.sampled_from([0.0, 1.0, 3.0]),
)  # fmt: skip
route = st.builds(
    Route, name=st.sampled_from("abcd"), p99_ms=st.sampled_from([10.0, 50.0, 90.0]),
    stages=st.one_of(
        st.tuples(st.builds(Stage, model=st.just("s"), share=st.just(1.0), rate=speeds)),
        st.tuples(st.builds(Stage, model=st.just("s"), share=st.just(1.0), rate=speeds), stage),
    ),
    deferred=st.sampled_from([0.0, 0.1, 1.0]), worth_per_1000=st.sampled_from([0.0, 0.01, 0.1]),
    monthly=st.sampled_from([0.0, 50.0, 400.0]), busy=st.sampled_from([0.2, 0.7, 1.0]),
)  # fmt: skip
server = st.builds(
    Server, name=st.sampled_from("wxyz"), threads=st.integers(1, 16),
    hourly=st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.4]), speed=st.sampled_from([0.5, 1.0, 2.0]),
    memory_bytes=st.sampled_from([2.0, 8.0, 1e9]), purchase=st.sampled_from(PURCHASES),
    interruptions_per_hour=st.sampled_from([0.0, 1e-4, 0.02]),
    term_months=st.sampled_from([1, 2, 12]), load_hourly=st.sampled_from([0.0, 0.03]),
)  # fmt: skip
bound = st.builds(
    Bounds, mean_rate=positive, peak_rate=positive, latency_ms=st.sampled_from([20.0, 60.0, 1e9]),
    budget=st.sampled_from([50.0, 500.0, 1e12]),
    availability=st.sampled_from([0.9, 0.999, 0.99999]), restart_h=st.sampled_from([0.1, 1.0]),
    months=st.sampled_from([(1.0,), (0.5, 2.0, 1.0), (0.0, 1.0, 3.0, 3.0, 0.2)]),
    day=st.sampled_from([(), (0.5, 1.5), (2.0, 0.0, 1.0)]),
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    servers=st.lists(server, min_size=1, max_size=4, unique_by=lambda s: (s.name, s.purchase)),
    routes=st.lists(route, min_size=1, max_size=4, unique_by=lambda r: r.name),
    bounds=bound,
)
def test_the_choice_is_the_oracles(servers, routes, bounds):
    best = choose(servers, routes, bounds).best
    expected = best_plan(
        [asdict(one) for one in servers], [asdict(one) for one in routes], asdict(bounds)
    )
    assert known(best) == (expected and expected[:4])
    if best is not None and expected is not None:
        assert best.net == pytest.approx(expected.net)


def test_one_machine_carries_what_whole_processes_of_each_stage_do():
    pair = (Stage("small", 1.0, 100.0), Stage("large", 0.1, 1.5))
    both = Route("cascade", pair)
    # One process of each: 15 a second of 1.5 deferred; two of large ones, 30.
    assert capacity(Server("mine", 2, 0.0), both, 1) == pytest.approx(15.0)
    assert capacity(Server("mine", 3, 0.0), both, 1) == pytest.approx(30.0)
    assert capacity(Server("mine", 1, 0.0), both, 1) == 0.0
    assert capacity(Server("mine", 4, 0.0), SMALL, 3) == pytest.approx(480.0)


@given(machine=server, one=route, count=st.integers(1, 40))
def test_at_their_capacity_machines_are_full_and_a_little_more_is_too_much(machine, one, count):
    slots = count * num_slots(machine, one)
    most = capacity(machine, one, count)
    needed = processes(one, np.array([most, 1.001 * most + 1e-6]), speed=machine.speed).sum(axis=0)
    assert needed[0] <= slots < needed[1]


@given(routes=st.lists(route, min_size=1, max_size=3, unique_by=lambda r: r.name), bounds=bound)
def test_more_traffic_never_takes_fewer_machines(routes, bounds):
    for one in plans([TWO], routes, bounds):
        for more in plans([TWO], [one.route], replace(bounds, peak_rate=bounds.peak_rate * 1.5)):
            assert more.num_servers >= one.num_servers
