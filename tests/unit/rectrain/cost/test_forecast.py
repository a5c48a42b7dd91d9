"""Forecasts by hand, and what must hold of any: they add up, and ranges hold the middle."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectrain.cost import fleet as fleet_module
from rectrain.cost.case import Case, Licence, Owned, Strategy, Training, strategies
from rectrain.cost.forecast import break_even, forecast, lead, payback
from rectrain.cost.machines import Route, Server, Stage, num_servers
from rectrain.cost.ranges import INPUTS, draw, sensitivity, spread_of, vary
from rectrain.cost.traffic import Traffic, load_traffic
from rectrain.errors import ConfigError

FREE = {
    "data": 0, "labelling": 0, "tuning": 0, "shrinking": 0, "deployment": 0, "maintenance": 0,
    "retraining": 0,
}  # fmt: skip
FLAT = {
    "mean_rate": 10.0, "peak_rate": 10.0, "growth_per_month": 0.0, "horizon_months": 6,
    "retrain_every_months": 3, "hardware_price_change": 0.0, "labour_price_change": 0.0,
}  # fmt: skip
SMALL = Route("small", (Stage("small", 1.0, 20.0),), worth_per_1000=0.09)
LARGE = Route("large", (Stage("large", 1.0, 2.0),), deferred=1.0, worth_per_1000=0.1)
CASCADE = Route(
    "cascade", (SMALL.stages[0], Stage("large", 0.1, 2.0)), deferred=0.1, worth_per_1000=0.095
)
ONE = Server("one", 1, 0.1)
SPOT = replace(ONE, hourly=0.04, purchase="spot", interruptions_per_hour=0.001)
TRAINING = Training(100.0, 30.0, {"full": 1.0, "lora": 0.5, "adalora": 0.75}, "a test")


def case(effort: dict[str, float] | None = None, **traffic: object) -> Case:
    given = {**FLAT, "effort": {**FREE, **(effort or {})}, **traffic}
    return Case(
        traffic=Traffic.model_validate(given),
        routes={"large": LARGE, "small": SMALL, "cascade": CASCADE},
        training=TRAINING,
        servers=(ONE, SPOT),
        owned=(Owned(Server("own", 4, 0.0), monthly=100.0, watts=200.0, idle_watts=100.0),),
        engineer_h=90.0,
        operator_h=60.0,
        kwh=0.2,
    )


def test_a_forecast_by_hand():
    found = forecast(case(), Strategy("large"))
    # 10 requests/s take 5 processes of 2 a second: 5 · 0.1 · 730 = 365 a month. Trainings in month
    # 1 and 4: 100 hours of a device at 0.1.
    assert found.costs.tolist() == pytest.approx([375, 365, 365, 375, 365, 365])
    assert found.requests.tolist() == [10 * 3600 * 730] * 6
    assert found.worth.tolist() == pytest.approx([2628.0] * 6)  # 26.28 million at 0.1 per 1,000
    assert found.per_1000 == pytest.approx(1000 * 2210 / (6 * 26.28e6))
    assert found.serving_per_1000 == pytest.approx(1000 * 365 / 26.28e6)
    assert found.roi == pytest.approx((6 * 2628 - 2210) / 2210)
    assert found.machines.tolist() == [5] * 6


def test_the_small_model_is_trained_besides_and_the_cascade_runs_both():
    small = forecast(case(), Strategy("small"))
    assert small.costs.tolist() == pytest.approx([73 + 13, 73, 73, 73 + 13, 73, 73])
    cascade = forecast(case(), Strategy("cascade"))  # 1 request/s of 2 takes one process more
    assert cascade.machines.tolist() == [2] * 6


def test_adapters_save_the_trainings_after_the_first():
    full, lora = (forecast(case(), Strategy("large", method)) for method in ("full", "lora"))
    assert (full.costs - lora.costs).tolist() == pytest.approx([0, 0, 0, 5, 0, 0])


def test_interruptions_cost_spares_and_work_done_again():
    spot = case(availability=0.9999, restart_minutes=60, checkpoint_minutes=120)
    found = forecast(spot, Strategy("large", purchase="spot"))
    # q = 0.001 / 1.001: five of six run in all but 1.5e-5 of the time, five of five not in 5e-3.
    assert found.machines.tolist() == [6] * 6
    again = 1 + 0.001 * (1 + 1)  # half an interval, and the restart, in hours
    assert found.costs[0] == pytest.approx(6 * 0.04 * 730 + 100 * 0.04 * again)


def test_spares_of_a_month_are_those_of_its_own_need():
    rising = case(growth_per_month=0.2, restart_minutes=60, horizon_months=3)
    found = forecast(rising, Strategy("large", purchase="spot"))
    rates = 10 * 1.2 ** np.arange(3)
    needed = num_servers(SPOT, LARGE, rates, availability=0.9999, restart_h=1)
    assert needed is not None
    assert found.machines.tolist() == needed.tolist() == [6, 7, 9]  # of 5, 6 and 8 that must run


def test_own_machines_cost_what_they_are_and_what_they_draw():
    some = case(retrain_every_months=0)
    some = replace(some, routes={**some.routes, "small": replace(SMALL, busy=0.4)})
    found = forecast(some, Strategy("small", hosting="own"))
    # One machine; half a process of four is needed, which works for 0.4 of its time: 105 W.
    kwh = (200 * 0.05 + 100 * 0.95) * 730 / 1000
    assert found.costs[1] == pytest.approx(100 + kwh * 0.2)


def test_both_uses_the_cloud_for_the_hours_that_own_machines_do_not_cover():
    day = [4.0] * 23 + [20.0]
    wide = case(mean_rate=None, peak_rate=None, hourly_rates=day, retrain_every_months=0)
    wide = replace(wide, kwh=0.0, training=replace(TRAINING, large=0.0, small=0.0))
    hourly = replace(wide, traffic=wide.traffic.model_copy(update={"scales_hourly": True}))
    found = forecast(hourly, Strategy("large", hosting="both"))
    # Own: 4 threads of 2 a second; one machine covers 8 of the 20, 6 cloud processes for an hour.
    assert found.costs.tolist() == pytest.approx([100 + 6 * 0.1 * 730 / 24] * 6)
    found = forecast(wide, Strategy("large", hosting="both"))  # two, and 2 processes for the month
    assert found.costs.tolist() == pytest.approx([200 + 2 * 0.1 * 730] * 6)
    own = forecast(wide, Strategy("large", hosting="own"))
    assert own.costs.tolist() == pytest.approx([300.0] * 6)


def test_own_machines_take_no_more_than_whole_processes_of_each_model():
    flat = case(mean_rate=30.0, peak_rate=30.0, retrain_every_months=0)
    mine = Owned(Server("mine", 3, 0.0), monthly=100.0)
    flat = replace(flat, owned=(mine,), training=replace(TRAINING, large=0.0, small=0.0))
    found = forecast(flat, Strategy("cascade", hosting="both"))
    # Two small processes and one large one, or the reverse, carry 20 a second; of the ten that are
    # left each model takes a process of the cloud.
    assert found.costs.tolist() == pytest.approx([100 + 2 * 73] * 6)


def test_growth_seasons_and_prices_move_months():
    moved = case(
        growth_per_month=0.1, seasons=[1.0] * 11 + [2.0], start_month=11, horizon_months=3,
        hardware_price_change=-0.5, retrain_every_months=0,
    )  # fmt: skip
    found = forecast(moved, Strategy("large"))
    assert (found.requests / (10 * 3600 * 730)).tolist() == pytest.approx([1.0, 2.2, 1.21])
    assert found.machines.tolist() == [5, 11, 7]  # of 10, 22, 12.1 requests a second
    expected = [(5 * 73, 10), (11 * 73, 0), (7 * 73, 0)]
    months = [sum(one) * 0.5 ** (month / 12) for month, one in enumerate(expected)]
    assert found.costs.tolist() == pytest.approx(months)


def test_software_is_paid_once_or_monthly_and_what_is_kept_all_of_the_time():
    some = case(stored_gib=100.0)
    licences = {"tool": Licence(600.0, "once"), "support": Licence(50.0, "month")}
    paid = forecast(replace(some, licences=licences, gib_month=0.02), Strategy("large"))
    more = paid.costs - forecast(some, Strategy("large")).costs
    assert more.tolist() == pytest.approx([652] + [52] * 5)


@pytest.mark.parametrize(("hosting", "share"), [("cloud", 1.0), ("own", 0.0), ("both", 1 / 8)])
def test_traffic_out_of_the_cloud_is_paid_of_answers_from_there_alone(hosting, share):
    # Three machines of one's own carry 24 requests a second: all but 8 of 32 in 8 hours of a day,
    # 64 of 16 · 16 + 8 · 32 = 512.
    day = [16.0] * 16 + [32.0] * 8
    wide = case(
        mean_rate=None, peak_rate=None, hourly_rates=day, scales_hourly=True, answer_kib=2.0
    )
    wide = replace(wide, owned=(replace(wide.owned[0], monthly=10.0),))
    dear = replace(wide, egress_gib=0.09)
    plain, paid = (forecast(one, Strategy("large", hosting=hosting)) for one in (wide, dear))
    gib = np.mean(day) * 3600 * 730 * 2 / 2**20
    assert (paid.costs - plain.costs).tolist() == pytest.approx([share * gib * 0.09] * 6)
    assert paid.serving.tolist() == plain.serving.tolist()
    kinds = [(line.kind, line.behaviour) for line in paid.lines if line.unit == "gib"]
    assert kinds == ([("hardware", "marginal")] if share else [])


def test_people_are_paid_when_they_work():
    hours = {"data": 10.0, "shrinking": 2.0, "maintenance": 1.0, "retraining": 3.0}
    plain, busy = (forecast(case(effort), Strategy("small")) for effort in ({}, hours))
    assert (busy.costs - plain.costs).tolist() == pytest.approx(
        [12 * 90 + 60, 60, 60, 3 * 90 + 60, 60, 60]
    )


@given(
    rate=st.floats(0.01, 500), growth=st.floats(-0.2, 0.3), months=st.integers(1, 18),
    rhythm=st.integers(0, 5), hourly=st.booleans(),
)  # fmt: skip
def test_any_forecast_adds_up_line_by_line_and_in_the_ledger(rate, growth, months, rhythm, hourly):
    some = case(
        {"data": 3.3, "maintenance": 1.7}, mean_rate=rate, peak_rate=rate * 2.5,
        growth_per_month=growth, horizon_months=months, retrain_every_months=rhythm,
        scales_hourly=hourly,
    )  # fmt: skip
    for strategy in (Strategy("cascade", "lora", "both", "spot"), Strategy("large")):
        found = forecast(some, strategy)
        ledger = found.ledger("EUR")
        assert float(ledger.total()) == pytest.approx(found.cost)
        assert sum(ledger.totals("stage", "kind").values()) == ledger.total()
        assert sum(found.parts().values()) == pytest.approx(found.cost)


def test_every_choice_is_a_strategy_once():
    every = strategies(case())
    assert len(every) == len(set(every)) == 3 * 3 * 5
    reserved = replace(ONE, purchase="reserved", term_months=12)
    assert len(strategies(replace(case(), servers=(ONE, SPOT, reserved)))) == 3 * 3 * 7
    assert len(strategies(replace(case(), owned=()))) == 3 * 3 * 2
    assert len(strategies(replace(case(), servers=()))) == 3 * 3


def test_machines_that_no_process_fits_into_are_no_strategy():
    big = replace(LARGE, stages=(replace(LARGE.stages[0], memory_bytes=3e9),))
    small = tuple(replace(one, memory_bytes=2e9) for one in (ONE, SPOT))
    (owned,) = case().owned
    own = replace(owned, server=replace(owned.server, memory_bytes=2e9))
    some = replace(case(), routes={"large": big, "small": SMALL}, owned=(own,))
    places = {one.hosting for one in strategies(some) if one.route == "large"}
    assert places == {"cloud"}
    assert {one.hosting for one in strategies(some) if one.route == "small"} > places
    with pytest.raises(ConfigError, match=r"machines of the prices for large.*2\.8 GiB"):
        strategies(replace(some, servers=small))


def test_a_reserved_machine_keeps_its_price_and_stays_for_its_term():
    term = replace(ONE, hourly=0.06, purchase="reserved", term_months=3)
    moved = case(
        seasons=[2.0] + [1.0] * 11, horizon_months=5, hardware_price_change=-0.5,
        retrain_every_months=0,
    )  # fmt: skip
    moved = replace(moved, servers=(ONE, term), training=replace(TRAINING, large=0.0))
    found = forecast(moved, Strategy("large", purchase="reserved"))
    assert found.machines.tolist() == [10, 10, 10, 5, 5]  # ten are needed in the first month alone
    then = 5 * 0.06 * 730 * 0.5 ** (3 / 12)
    assert found.costs.tolist() == pytest.approx([10 * 0.06 * 730] * 3 + [then] * 2)


def test_trainings_run_on_the_machine_that_answers():
    dear = Owned(Server("dear", 4, 0.0), monthly=900.0, watts=200.0, idle_watts=100.0)
    some = replace(case(hardware_price_change=-0.5), owned=(dear, *case().owned))
    found = forecast(some, Strategy("large", hosting="own"))
    assert found.machine == "own"
    hour = (100 / 730 + 0.2 * 200 / 1000) / 4  # full load, and no price that falls
    trainings = [line for line in found.lines if line.unit == "device hour"]
    paid = sum(line.amounts for line in trainings)
    assert paid.tolist() == pytest.approx([100 * hour, 0, 0, 100 * hour, 0, 0])
    reserved = replace(ONE, purchase="reserved", hourly=0.06, term_months=12)
    found = forecast(replace(some, servers=(ONE, reserved)), Strategy("large", purchase="reserved"))
    (first,) = [line for line in found.lines if line.label == "first training"]
    assert first.price[0] == pytest.approx(0.1)  # on demand: for some hours, not for a term


# --- comparisons ---------------------------------------------------------------------------------


def test_what_was_spent_first_is_back_when_the_sums_cross():
    # The small model costs 1,000 and 3 more in the first month, and saves 292 in each.
    some = replace(case({"shrinking": 1000 / 90}, retrain_every_months=0), routes={
        name: replace(route, worth_per_1000=0.0) for name, route in case().routes.items()
    })  # fmt: skip
    small, large = (forecast(some, Strategy(name)) for name in ("small", "large"))
    assert payback(small, large) == 4  # 4 · 292 = 1,168 > 1,003 > 3 · 292
    assert payback(large, small) is None and payback(large, large) == 0


def test_what_answers_are_worth_counts_in_what_is_paid_back():
    # As much dearer at first, but its answers bring 2,628 a month less: never back.
    some = case({"shrinking": 1000 / 90}, retrain_every_months=0)
    worthless = replace(SMALL, worth_per_1000=0.0)
    some = replace(some, routes={**some.routes, "small": worthless})
    small, large = (forecast(some, Strategy(name)) for name in ("small", "large"))
    assert payback(small, large) is None
    assert lead(small, large)[:2].tolist() == pytest.approx(
        [-1003 + 292 - 2628, -1003 + 2 * (292 - 2628)], abs=8
    )
    assert lead(small, large).tolist() == (-lead(large, small)).tolist()


def test_many_machines_are_counted_in_small_steps_and_cost_hardly_more(monkeypatch):
    day = [400.0] * 12 + [4000.0] * 12  # 50 to 500 own machines of 8 a second
    wide = case(mean_rate=None, peak_rate=None, hourly_rates=day, retrain_every_months=0)
    wide = replace(wide, traffic=wide.traffic.model_copy(update={"scales_hourly": True}))
    both = Strategy("large", hosting="both")
    found = forecast(wide, both).cost
    counts = list(fleet_module._counts(50_000))
    assert counts[:400] == list(range(1, 401)) and len(counts) < 1500
    assert all(200 * (more - count) <= count for count, more in itertools.pairwise(counts[399:]))
    monkeypatch.setattr(fleet_module, "_counts", lambda needed: iter(range(1, needed)))
    exact = forecast(wide, both).cost
    assert exact <= found <= 1.005 * exact


def test_at_the_break_even_volume_both_cost_the_same_and_then_the_cheaper_one_changes():
    some = case({"shrinking": 5.0})
    (rate,) = break_even(some, Strategy("small"), Strategy("large"))
    for factor, cheaper in ((0.99, "large"), (1.01, "small")):
        there = replace(some, traffic=some.traffic.times(factor * rate / some.traffic.mean))
        costs = {name: forecast(there, Strategy(name)).cost for name in ("small", "large")}
        assert min(costs, key=lambda name: costs[name]) == cheaper


# --- ranges --------------------------------------------------------------------------------------


def test_draws_are_the_seeds_and_hold_the_case_in_their_middle():
    some, chosen = case({"maintenance": 10.0}), [Strategy("large"), Strategy("small")]
    measures = [lambda one: one.cost]
    first, again, other = (
        draw(some, chosen, measures, num_draws=300, seed=seed) for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    low, middle, high = spread_of(first[0, :, 0])
    assert low < forecast(some, chosen[0]).cost < high and low < middle < high


def test_without_spread_every_draw_is_the_forecast():
    sure = case(spread=dict.fromkeys(INPUTS, 0.0))
    drawn = draw(sure, [Strategy("cascade")], [lambda one: one.cost], num_draws=3)
    assert drawn.ravel().tolist() == pytest.approx([forecast(sure, Strategy("cascade")).cost] * 3)


def test_the_input_that_moves_the_result_most_comes_first():
    heavy = case({"maintenance": 100.0})  # 6,000 a month of people, 365 of machines
    effects = sensitivity(heavy, lambda one: forecast(one, Strategy("large")).cost)
    assert effects[0].name == "effort" and effects[0].low < effects[0].high
    assert effects[0].high == pytest.approx(
        forecast(vary(heavy, {"effort": 1.2815515655446004}), Strategy("large")).cost
    )
    (deferred,) = [one for one in effects if one.name == "deferred"]
    assert deferred.swing == 0  # the large model alone defers nothing


@given(units=st.floats(0.01, 0.9), asked=st.floats(0.1, 1.0), z=st.floats(-3, 3))
def test_more_units_deferred_are_more_work_and_more_worth_whoever_asks(units, asked, z):
    stage = Stage("large", asked, 2.0)
    worth = SMALL.worth_per_1000 + units * (LARGE.worth_per_1000 - SMALL.worth_per_1000)
    route = replace(CASCADE, stages=(SMALL.stages[0], stage), deferred=units, worth_per_1000=worth)
    some = replace(case(), routes={"large": LARGE, "small": SMALL, "cascade": route})
    moved = vary(some, {"deferred": z}).routes["cascade"]
    factor = min(1.2**z, 1 / units)  # all of them is the most
    assert moved.deferred == pytest.approx(units * factor)
    work = [one.core_s - 1 / 20 for one in (route, moved)]
    assert work[1] == pytest.approx(work[0] * factor)
    gain = units * (factor - 1) * (LARGE.worth_per_1000 - SMALL.worth_per_1000)
    assert moved.worth_per_1000 == pytest.approx(route.worth_per_1000 + gain)


def test_a_cascade_that_gains_nothing_gains_nothing_by_deferring_more():
    # What it defers is of a task whose answers are worth nothing.
    route = replace(CASCADE, worth_per_1000=SMALL.worth_per_1000)
    some = replace(case(), routes={"large": LARGE, "small": SMALL, "cascade": route})
    for z in (-2, 2):
        moved = vary(some, {"deferred": z}).routes["cascade"]
        assert moved.worth_per_1000 == pytest.approx(SMALL.worth_per_1000)


def test_no_task_defers_more_than_all_of_its_units():
    # Half of the requests, all of them of one task that is deferred as a whole.
    route = replace(CASCADE, deferred=0.5, most_deferred=1.0)
    some = replace(case(), routes={"large": LARGE, "small": SMALL, "cascade": route})
    assert vary(some, {"deferred": 2}).routes["cascade"].deferred == 0.5
    assert vary(some, {"deferred": -2}).routes["cascade"].deferred == pytest.approx(0.5 / 1.2**2)


# --- the traffic file ----------------------------------------------------------------------------


@given(mean=st.floats(0.01, 1e4), factor=st.floats(1.0, 24.0))
def test_a_day_has_the_mean_and_the_peak(mean, factor):
    day = Traffic(mean_rate=mean, peak_rate=mean * factor).day()
    assert day.mean() == pytest.approx(1.0) and day.min() >= 0
    assert day.max() == pytest.approx(factor, rel=1e-3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rate: 5", "an unknown key"),
        ("mean_rate: 5\npeak_rate: 2", "must be at least mean_rate"),
        ("hourly_rates: [1, 2]", "must be 24"),
        ("mean_rate: 1\nhourly_rates: [" + "1," * 23 + "1]", "they say the same"),
        ("seasons: [1, 1]", "must be 12"),
        ("mean_rate: 2\npeak_rate: 49", "one hour of it alone"),
        ("seasons: [0,1,1,1,1,1,1,1,1,1,1,1]\nhorizon_months: 1", "some month of the horizon"),
        ("worth: {clicks: 1}", "worth.click"),
        ("mean_rate: .nan", "mean_rate"),
        ("growth_per_month: 2", "2 is 200% a month"),
        ("growth_per_month: 2", "in month 24"),
        ("mean_rate: 900_000", "mean_rate of the traffic: got 2.7e+06"),
        ("mean_rate: 900_000\npeak_rate: 2_000_000", "peak_rate of the traffic: got 2e+06"),
        ("hourly_rates: [" + "1," * 23 + "2_000_000]", "hourly_rates of the traffic"),
        ("seasons: [1,1,1,1,1,1,1,1,1,1,1,900_000]", "seasons"),
    ],
)
def test_a_wrong_traffic_file_is_refused_with_its_key(text, said, tmp_path):
    path = tmp_path / "traffic.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_traffic(str(path))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_mix_of_tasks_that_the_models_lack_is_refused():
    assert Traffic(mix={"a": 3.0, "b": 1.0}).shares(["a", "b", "c"]) == {"a": 0.75, "b": 0.25}
    with pytest.raises(ConfigError, match="the models have a"):
        Traffic(mix={"b": 1.0}).shares(["a"])
