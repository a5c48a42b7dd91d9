"""Prices: what is shipped is whole, and a user's file lies over it entry by entry."""

from __future__ import annotations

import math
import re
from datetime import date
from decimal import Decimal
from fractions import Fraction
from importlib import resources

import pytest

from rectrain.cost.ledger import Ledger
from rectrain.cost.prices import HOURS_PER_MONTH, Price, charge, load_prices
from rectrain.errors import ConfigError

PRICE = "{amount: 0.5, unit: hour, currency: EUR, date: 2026-02-03, source: our contract}"


@pytest.fixture
def own(tmp_path):
    """own(text): the prices with a user's file over them."""

    def load(text):
        path = tmp_path / "own.yaml"
        path.write_text(text)
        return load_prices(str(path))

    return load


def all_prices(value, path=""):
    """Every price in a section, with its dotted path."""
    if isinstance(value, Price):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from all_prices(inner, f"{path}.{key}")
    elif hasattr(type(value), "model_fields"):
        for key in type(value).model_fields:
            yield from all_prices(getattr(value, key), f"{path}.{key}")


def test_shipped_prices_have_date_currency_and_source():
    prices = load_prices()
    found = dict(all_prices(prices))
    assert len(found) > 20 and re.fullmatch(r"\d{4}\.\d+", prices.version)
    for price in found.values():
        assert date(2020, 1, 1) < price.date <= date.today()
        assert price.source in price.cited and price.date.isoformat() in price.cited
        assert prices.rates.factor(price.currency, "JPY") > 0  # each has a stated rate


def test_shipped_prices_hold_every_way_to_buy():
    prices = load_prices()
    assert {one.device for one in prices.instances.values()} == {"cpu", "gpu"}
    for one in prices.instances.values():
        hourly = [way.amount for way in (one.on_demand, one.reserved, one.spot)]
        assert hourly == sorted(hourly, reverse=True)
        assert 0 < one.spot.interrupted_share < 1
    assert prices.machines and prices.licences


def test_the_file_is_package_data():
    assert resources.files("rectrain.cost").joinpath("prices.yaml").is_file()
    pyproject = resources.files("rectrain").joinpath("../pyproject.toml").read_text()
    assert '"cost/prices.yaml"' in pyproject


def test_a_price_replaces_a_price_as_a_whole(own):
    before, prices = load_prices(), own(f"instances: {{aws-g5-xlarge: {{on_demand: {PRICE}}}}}")
    found = prices.instance("aws-g5-xlarge")
    assert found.on_demand.cited == "our contract (2026-02-03)"
    assert (found.on_demand.amount, found.on_demand.currency) == (Decimal("0.5"), "EUR")
    assert found.spot == before.instance("aws-g5-xlarge").spot
    assert prices.instances["aws-g6-xlarge"] == before.instances["aws-g6-xlarge"]
    assert prices.version == f"{before.version} + own.yaml"


def test_a_new_machine_and_a_new_currency(own):
    prices = own(
        "version: ours\n"
        "exchange: {CNY: {per_base: 7.8, date: 2026-02-03, source: bank}}\n"
        f"people: {{engineer: {PRICE.replace('EUR', 'CNY')}}}\n"
    )
    assert prices.version == "ours"
    assert prices.rates.factor("CNY", "EUR") == 1 / Fraction("7.8")
    assert "bank (2026-02-03)" in prices.rates.source


def test_another_base_currency_has_rates_of_its_own_alone(own):
    euro = "exchange: {EUR: {per_base: 0.92, date: 2026-02-03, source: bank}}"
    for prices in (own("base_currency: USD"), own(f"base_currency: USD\n{euro}")):
        with pytest.raises(ConfigError, match="exchange rate of GBP"):
            prices.rates.factor("GBP", "USD")
    assert prices.rates.factor("EUR", "USD") == 1 / Fraction("0.92")
    same = own(f"base_currency: EUR\n{euro.replace('EUR', 'CNY')}")
    assert same.exchange.keys() - {"CNY"} == load_prices().exchange.keys()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("enrgy: {}", "enrgy in .*unknown key"),
        (f"instances: {{aws-g5-xlarge: {{on_demnd: {PRICE}}}}}", "on_demnd.*unknown key"),
        ("energy: {amount: 1}", r"energy\.unit .*got nothing; is required"),
        ("energy: {amount: .nan, unit: kwh, currency: EUR, date: 2026-01-01, source: a}", "finite"),
        (f"energy: {PRICE.replace('0.5', '-1')}", "greater than or equal to 0"),
        (f"energy: {PRICE.replace('EUR', 'euro')}", "energy.currency"),
        (f"energy: {PRICE.replace('2026-02-03', 'soon')}", "energy.date"),
        (f"instances: {{aws-g5-xlarge: {{on_demand: {PRICE.replace('hour', 'month')}}}}}",
         "on_demand.unit in .*got 'month'; should be 'hour'"),
        (f"people: {{engineer: {PRICE.replace('hour', 'month')}}}",
         "people.engineer.unit in .*got 'month'; should be 'hour'"),
        (f"people: {{labeller: {PRICE}}}", "people.labeller in .*unknown key"),
        (f"energy: {PRICE.replace('hour', 'gib')}", "energy.unit in .*should be 'kwh'"),
        (f"storage: {{object: {PRICE}}}", "storage.object.unit in .*should be 'gib month'"),
        (f"traffic: {{internet: {PRICE}}}", "traffic.internet.unit in .*should be 'gib'"),
        (f"licences: {{tool: {PRICE}}}", "licences.tool.unit in .*should be 'once' or 'month'"),
        (f"machines: {{server-1-l4: {{purchase: {PRICE}}}}}", "purchase.unit in .*be 'once'"),
        (f"machines: {{server-1-l4: {{hosting: {PRICE}}}}}", "hosting.unit in .*be 'month'"),
        ("people: {engineer: null}", r"people\.engineer.*got nothing; is required"),
        ("instances: {aws-c7i-larg: null}", "aws-c7i-larg"),
        ("instances: {aws-g5-xlarge: {device: cpu}}", "a gpu machine has it, a cpu machine has"),
        ("exchange: {USD: {per_base: 0, date: 2026-01-01, source: a}}", "greater than 0"),
        ("machines: {server-32-threads: {watts: 60}}", "idle_watts of .*got 90.*above watts, 60"),
        ("a: 1\na: 2", "stands twice"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_in_one_line(own, text, said):
    with pytest.raises(ConfigError, match=said) as caught:
        own(text)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="must be a readable file"):
        load_prices("/nowhere/prices.yaml")


def test_an_unknown_name_says_which_there_are():
    with pytest.raises(ConfigError, match="must be one of aws-c7i-2xlarge, "):
        load_prices().instance("c7i")


def test_null_takes_away_what_was_shipped(own):
    before = load_prices()
    prices = own("instances: {aws-c7i-large: null}\nmachines: null\nexchange: {JPY: null}")
    assert before.instances.keys() - prices.instances.keys() == {"aws-c7i-large"}
    assert before.machines and not prices.machines
    assert before.exchange.keys() - prices.exchange.keys() == {"JPY"}


def test_of_a_chip_that_no_instance_has_the_files_first_of_its_kind_stands_in(own):
    more = ("{provider: a, region: b, device: cpu, chip: c, num_devices: 1, memory_gib: 1, "
            f"on_demand: {PRICE}}}")  # fmt: skip
    prices = own(f"instances: {{a-machine: {more}}}")
    assert list(prices.of_chip("cpu", "unheard of")) == ["aws-c7i-large"]
    assert list(prices.of_chip("cpu", "c")) == ["a-machine"]
    assert own("instances: null").of_chip("gpu", "NVIDIA L4") == {}


def test_interruptions_an_hour_make_the_share_of_a_month():
    spot = load_prices().instance("aws-g5-xlarge").spot
    survived = math.exp(-spot.interruptions_per_hour * HOURS_PER_MONTH)
    assert survived == pytest.approx(1 - spot.interrupted_share)


def test_own_hardware_is_written_off_evenly():
    machine = load_prices().machines["server-32-threads"]  # over 48 months
    assert machine.monthly_share == Fraction(1, 48)
    sold = machine.model_copy(update={"resale_share": 0.25})
    assert sold.monthly_share == Fraction(3, 48 * 4)


def test_a_price_in_another_currency_names_the_rate():
    prices = load_prices()
    energy, instance = prices.energy, prices.instance("aws-c7i-2xlarge")
    assert prices.amount(energy, "EUR") == 0.20 and prices.cited(energy, "EUR") == energy.cited
    assert prices.amount(energy, "USD") == pytest.approx(0.20 * 1.0889)
    cited = prices.cited(energy, "USD")
    assert cited == f"{energy.cited}; EUR → USD: ECB euro reference rate (2025-03-14)"
    faster = instance.model_copy(update={"speed": 2.0})
    for one, devices in ((instance, 8), (faster, 16)):
        assert prices.device_second(one, "USD") == pytest.approx(0.357 / 3600 / devices)


def test_a_charge_is_price_times_quantity_with_its_source():
    price = load_prices().instance("aws-c7i-large").on_demand
    entry = charge(
        price, 730, stage="deployment", part="hardware", kind="hardware", behaviour="fixed",
        label="small", period="month", note="1 replica",
    )  # fmt: skip
    assert entry.amount == Fraction("0.08925") * 730
    assert entry.source == f"1 replica; {price.cited}"
    assert Ledger((entry,)).total() == entry.amount
