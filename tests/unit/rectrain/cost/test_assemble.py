"""A case of a user's files: machines in every way to buy, licences, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from rectrain.cascade import Calibration, Calibrations, Policy, RowDoubt, TaskPolicy
from rectrain.cost.assemble import (
    Models,
    answer_costs,
    make_case,
    options_of,
    request_cost,
    routes_of,
)
from rectrain.cost.case import Case, Strategy, Training
from rectrain.cost.findings import find
from rectrain.cost.forecast import forecast
from rectrain.cost.ledger import exact
from rectrain.cost.machines import Server
from rectrain.cost.plan import Bounds, plans
from rectrain.cost.prices import load_prices
from rectrain.cost.routes import Speed, TaskSpeed, lone
from rectrain.cost.traffic import Traffic
from rectrain.errors import ConfigError
from rectrain.report.cost_plans import what_to_run

MODELS = Models(Speed("large", {"risk": TaskSpeed(0.01, 0.001)}, ((0.1, 10.0), (0.9, 90.0)), 1e9))
PLAIN = Calibration("temperature", 1.0, 0.0)
TRAINING = Training(1.0, 0.0, {"full": 1.0, "lora": 0.5, "adalora": 0.6}, "a test")


@pytest.fixture
def made(tmp_path):
    """made(text): the case, in dollars, of the shipped prices with this over them."""

    def make(text: str = "", *, device: str = "cpu") -> Case:
        path = tmp_path / "own.yaml"
        path.write_text(text)
        case = make_case(Traffic(), load_prices(str(path)), TRAINING, device=device)
        return replace(case, routes=routes_of(MODELS, case.traffic))

    return make


def test_machines_come_in_every_way_that_they_can_be_bought(made):
    case, shipped = made(), load_prices().instance("aws-c7i-large")
    found = {one.purchase: one for one in case.servers if one.name == "aws-c7i-large"}
    assert {way: one.hourly for way, one in found.items()} == {
        "on demand": float(shipped.on_demand.amount),
        "reserved": float(shipped.reserved.amount),
        "spot": float(shipped.spot.amount),
    }
    assert {way: one.term_months for way, one in found.items()} == {
        "on demand": 1, "reserved": 12, "spot": 1
    }  # fmt: skip
    assert found["spot"].interruptions_per_hour > 0 == found["reserved"].interruptions_per_hour
    (own,) = (one for one in case.every_server if one.purchase == "own")
    assert (own.name, own.threads, own.term_months) == ("server-32-threads", 32, 48)
    # 5,000 over 48 months and 80 a month; 90 W of 250 idle, half as much again of the building.
    kwh = 0.20 * float(exact("1.0889"))
    assert own.hourly == pytest.approx((5000 / 48 + 80) / 730 + 0.09 * 1.5 * kwh)
    assert own.load_hourly == pytest.approx(0.16 * 1.5 * kwh)


def test_a_machine_that_was_taken_away_is_in_no_plan(made):
    case = made("instances: {aws-c7i-large: null, aws-c7i-xlarge: {reserved: null, spot: null}}")
    ways = [(one.name, one.purchase) for one in case.servers]
    assert "aws-c7i-large" not in dict(ways) and "aws-c7i-2xlarge" in dict(ways)
    assert [way for name, way in ways if name == "aws-c7i-xlarge"] == ["on demand"]
    assert {one.purchase for one in made("instances: null").every_server} == {"own"}


def test_prices_without_any_machine_are_refused(made):
    with pytest.raises(ConfigError, match="machines of the prices: got none with a cpu"):
        made("instances: null\nmachines: null")


def test_licences_keep_whether_they_are_paid_once(made):
    price = "amount: 109, currency: USD, date: 2026-01-01, source: a"
    case = made(f"licences: {{tool: {{{price}, unit: once}}, help: {{{price}, unit: month}}}}")
    assert case.licences["tool"][:2] == (109.0, "once")
    assert case.licences["help"] == (109.0, "month", "a (2026-01-01)")


def test_every_line_has_the_source_of_its_own_price_alone(made):
    case, prices = made("licences: {tool: {amount: 9, unit: month, currency: CHF, date: 2026-01-01,"
                        " source: a quote}}"), load_prices()  # fmt: skip
    instance, machine = prices.instance("aws-c7i-large"), prices.machines["server-32-threads"]
    case = replace(
        case, traffic=case.traffic.model_copy(update={"stored_gib": 1.0}),
        servers=tuple(one for one in case.servers if one.name == "aws-c7i-large"),
    )  # fmt: skip

    def sources(strategy: Strategy) -> dict[str, str]:
        return {line.label: line.source for line in forecast(case, strategy).lines}

    assert instance.reserved is not None and instance.spot is not None
    for way, price in (
        ("on demand", instance.on_demand), ("reserved", instance.reserved), ("spot", instance.spot)
    ):  # fmt: skip
        found = sources(Strategy("large", purchase=way))
        assert found["machines that answer (cloud)"] == f"aws-c7i-large {way}; {price.cited}"
    assert "Spot Instance Advisor" in found["machines that answer (cloud)"]
    engineer, operator = (
        f"effort in the traffic file; {one.cited}"
        for one in (prices.people.engineer, prices.people.operator)
    )
    energy = f"{prices.energy.cited}; EUR → USD: {prices.rates.source}"
    place = f"{machine.purchase.cited}; {machine.hosting.cited}"
    training = f"a test; server-32-threads; {place}; {energy}"
    assert sources(Strategy("large", hosting="own")) == {
        "machines that answer (own)": f"server-32-threads: written off, and its place; {place}",
        "energy": f"server-32-threads, by its load; {energy}",
        "first training": training, "trainings again": training,
        "data": engineer, "choosing and shrinking": engineer, "bringing into operation": engineer,
        "watching and mending": operator, "checking new versions": engineer,
        "licence tool": f"a quote (2026-01-01); CHF → USD: {prices.rates.source}",
        "storage": prices.storage.object.cited,
    }  # fmt: skip


# --- what requests cost --------------------------------------------------------------------------

BOTH = Models(
    MODELS.large,
    replace(MODELS.large, model="small", tasks={"risk": TaskSpeed(0.001, 0.0001)}),
    Policy("s", "l", {"risk": TaskPolicy(
        task="risk", doubt=RowDoubt(((0.0, 1.0),), scale=1.0), threshold=0.2, bound="budget",
        budget=0.1, rate=0.1, deciles=tuple(place / 20 for place in range(1, 10)),
        calibration=Calibrations(small=PLAIN, large=PLAIN),
    )}),
)  # fmt: skip


@pytest.mark.parametrize("memory_gib", [1, 5])
def test_1000_requests_cost_what_many_of_a_plan_do(memory_gib):
    # Of 5 GiB three fit into a machine of 16 with eight threads: what they don't hold is paid too.
    server = Server("mine", 8, 0.3, 1.25, 16 * 2**30, "own", load_hourly=0.1)
    size = {"memory_bytes": memory_gib * 2.0**30}
    models = replace(BOTH, large=replace(BOTH.large, **size), small=replace(BOTH.small, **size))
    traffic = Traffic(latency_ms=60.0)
    bounds = Bounds(mean_rate=1e7, peak_rate=1e7, latency_ms=1e9)
    for route in routes_of(models, traffic).values():
        (plan,) = plans([server], [route], bounds)
        assert request_cost(route, server) == pytest.approx(
            1000 * plan.cost / bounds.requests, rel=1e-3
        )
    answers, count = answer_costs(models, traffic, server), traffic.candidates
    for way in ("small", "large"):
        fixed, each = answers[way][way]["risk"]
        route = lone(getattr(models, way), traffic)
        assert fixed + count * each == pytest.approx(request_cost(route, server))
    fixed, each = zip(*(answers["pair"][one]["risk"] for one in ("small", "large")), strict=True)
    asked = 1 - 0.9**count
    assert fixed[0] + count * each[0] + asked * fixed[1] + 0.1 * count * each[1] == pytest.approx(
        request_cost(routes_of(models, traffic)["cascade"], server)
    )


def test_where_a_process_does_not_fit_nothing_is_priced():
    models = replace(BOTH, large=replace(BOTH.large, memory_bytes=3e9))
    server = Server("mine", 2, 0.1, memory_bytes=2e9)
    assert answer_costs(models, Traffic(), server).keys() == {"small"}
    assert request_cost(lone(models.large, Traffic()), server) is None


def test_without_a_latency_limit_processes_may_be_busier(made):
    limited = Traffic(mean_rate=3000.0, latency_ms=20.0)  # busy for 0.2 of the time, of 0.9
    case = replace(made(), traffic=limited, routes=routes_of(MODELS, limited))
    options = partial(options_of, MODELS)
    found = find(case, options=options, currency="USD", num_draws=2)
    best, free = found.choice.best, found.relaxed
    assert best is not None and free is not None and best.key == free.key
    assert best.num_servers / free.num_servers == pytest.approx(0.9 / 0.2, rel=0.05)
    assert "If there were neither budget nor latency limit: " in " ".join(what_to_run(found))
