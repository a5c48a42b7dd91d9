"""A case of a user's files: machines in every way to buy, licences, and what is refused."""

from __future__ import annotations

import pytest

from rectrain.cost.assemble import Models, make_case
from rectrain.cost.case import Case, Training
from rectrain.cost.ledger import exact
from rectrain.cost.prices import load_prices
from rectrain.cost.routes import Speed, TaskSpeed
from rectrain.cost.traffic import Traffic
from rectrain.errors import ConfigError

MODELS = Models(Speed("large", {"risk": TaskSpeed(0.01, 0.001)}, ((0.1, 10.0), (0.9, 90.0)), 1e9))
TRAINING = Training(1.0, 0.0, {"full": 1.0, "lora": 0.5, "adalora": 0.6}, "a test")


@pytest.fixture
def made(tmp_path):
    """made(text): the case, in dollars, of the shipped prices with this over them."""

    def make(text: str = "", *, device: str = "cpu") -> Case:
        path = tmp_path / "own.yaml"
        path.write_text(text)
        case, _ = make_case(MODELS, Traffic(), load_prices(str(path)), TRAINING, device=device)
        return case

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
    assert case.licences["tool"] == (109.0, "once") and case.licences["help"] == (109.0, "month")
