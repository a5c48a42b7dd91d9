"""The ledger adds up: the worked figures, and any entries, split and currency."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectrain.cost.ledger import DIMENSIONS, PARTS, Entry, Ledger, Rates, exact
from rectrain.errors import ConfigError, DataError


def entry(amount=1, **changes):
    values = {
        "stage": "pretraining",
        "part": "data",
        "kind": "hardware",
        "behaviour": "fixed",
        "label": "an entry",
        "quantity": exact(amount),
        "unit": "hour",
        "unit_price": exact(1),
        "currency": "EUR",
        "period": "once",
        "source": "a test",
    }
    return Entry(**{**values, **changes})


def of(stage, **parts):
    return [entry(amount, stage=stage, part=part) for part, amount in parts.items()]


# --- the worked figures --------------------------------------------------------------------------


def test_the_first_worked_figure():
    stages = {"pretraining": 20, "tuning": 10, "deployment": 30, "maintenance": 40}
    ledger = Ledger(tuple(entry(amount, stage=s, part=PARTS[s][0]) for s, amount in stages.items()))
    assert ledger.totals("stage") == {(stage,): amount for stage, amount in stages.items()}
    assert ledger.total() == 100


def test_the_second_worked_figure():
    ledger = Ledger(
        (
            *of("pretraining", data=10, labelling=5, training=15),
            *of("tuning", time=5, resources=3),
            *of("deployment", hardware=20, software=5),
            *of("maintenance", time=10, resources=7),
        )
    )
    assert ledger.totals("stage") == {
        ("pretraining",): 30, ("tuning",): 8, ("deployment",): 25, ("maintenance",): 17
    }  # fmt: skip
    assert ledger.totals("stage", "part")["tuning", "resources"] == 3
    assert ledger.total() == 80


# --- any ledger ----------------------------------------------------------------------------------

numbers = st.one_of(
    st.integers(-(10**9), 10**9),
    st.floats(-1e12, 1e12),
    st.decimals(-(10**9), 10**9, places=6),
    st.fractions(max_denominator=997),
)
currencies = st.sampled_from(["EUR", "USD", "JPY", "XAU"])
labels = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)


@st.composite
def entries(draw):
    stage = draw(st.sampled_from(list(PARTS)))
    return entry(
        stage=stage,
        part=draw(st.sampled_from(PARTS[stage])),
        kind=draw(st.sampled_from(["hardware", "software", "labour"])),
        behaviour=draw(st.sampled_from(["fixed", "marginal"])),
        label=draw(labels),
        unit=draw(st.sampled_from(["hour", "gib", "month"])),
        quantity=exact(draw(numbers)),
        unit_price=exact(draw(numbers)),
        currency=draw(currencies),
        period=draw(st.sampled_from(["once", "month", "1000 requests"])),
    )


ledgers = st.builds(
    lambda found, scenario: Ledger(tuple(found)).of(scenario),
    st.lists(entries(), max_size=12),
    labels,
)
rates = st.fixed_dictionaries(
    {
        name: st.fractions(min_value=Fraction(1, 10**6), max_value=10**6)
        for name in ("EUR", "USD", "JPY", "XAU")
    }
).map(lambda worth: Rates(worth, "stated"))
weights = st.dictionaries(
    st.sampled_from(["hardware", "software", "labour"]),
    st.floats(0, 1e6) | st.integers(0, 10**6) | st.fractions(0, 10),
    min_size=1,
).filter(lambda found: sum(map(exact, found.values())) > 0)


@given(ledgers, rates, currencies, numbers, numbers)
def test_every_grouping_adds_to_the_whole(ledger, rates, currency, months, requests):
    one = ledger.convert(currency, rates).over(months=months, requests=requests)
    whole = sum((e.amount for e in one), Fraction(0))
    assert one.total() == whole
    for size in (1, 2, 3):
        for by in combinations(DIMENSIONS, size):
            assert sum(one.totals(*by).values(), Fraction(0)) == whole


@given(ledgers)
def test_groups_of_one_money_add_up_without_conversion(ledger):
    finer = ledger.totals("currency", "period", "stage", "part", "kind")
    for key, amount in ledger.totals("currency", "period").items():
        parts = [value for other, value in finer.items() if other[:2] == key]
        assert sum(parts, Fraction(0)) == amount


@given(entries(), weights)
def test_a_split_adds_to_the_entry(found, weights):
    parts = found.split(weights)
    assert [part.kind for part in parts] == list(weights)
    assert sum((part.amount for part in parts), Fraction(0)) == found.amount


@given(ledgers, weights, rates, currencies)
def test_a_split_ledger_has_the_same_totals_by_all_but_kind(ledger, weights, rates, currency):
    one = ledger.convert(currency, rates)
    for period in ("once", "month", "1000 requests"):
        part = one.where(period=period)
        assert part.split(weights).totals("stage", "part") == part.totals("stage", "part")


@given(ledgers, rates, currencies, currencies)
def test_converting_there_and_back_changes_no_amount(ledger, rates, there, back):
    first = ledger.convert(back, rates)
    again = first.convert(there, rates).convert(back, rates)
    assert [e.amount for e in again] == [e.amount for e in first]


@given(ledgers)
def test_files_give_the_same_ledger_back(ledger):
    assert Ledger.from_json(ledger.to_json(), name="l.json") == ledger
    assert Ledger.from_csv(ledger.to_csv(), name="l.csv") == ledger


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("other", [{"currency": "USD"}, {"period": "month"}, {"scenario": "large"}])
def test_different_money_is_not_added(other):
    ledger = Ledger((entry(1), entry(2, **other)))
    with pytest.raises(DataError, match="one currency, one period and one scenario"):
        ledger.total()
    assert len(ledger.totals(*other)) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stage": "play"}, "stage of an entry"),
        ({"part": "hardware"}, "must be one of data, labelling, training"),
        ({"kind": "gold"}, "must be one of hardware, software, labour"),
        ({"behaviour": "odd"}, "fixed, marginal"),
        ({"period": "year"}, "once, month, 1000 requests"),
        ({"currency": "eur"}, "three capital letters"),
        ({"quantity": float("nan")}, "finite number"),
        ({"unit_price": "one"}, "finite number"),
    ],
)
def test_a_wrong_entry_is_refused(changes, said):
    with pytest.raises(DataError, match=said):
        entry(**changes)


@pytest.mark.parametrize("weights", [{}, {"labour": 0}, {"labour": -1, "software": 3}])
def test_weights_that_split_nothing_are_refused(weights):
    with pytest.raises(DataError, match="weights"):
        entry().split(weights)


def test_a_currency_without_a_rate_is_refused():
    with pytest.raises(ConfigError, match=r"exchange rate of CHF.*add exchange\.CHF"):
        Ledger((entry(currency="CHF"),)).convert("EUR", Rates({"EUR": Fraction(1)}, "stated"))


def test_a_conversion_says_its_rate():
    found = Ledger((entry(2, currency="USD"),)).convert(
        "EUR", Rates({"EUR": Fraction(2), "USD": Fraction(1)}, "ECB (2025-03-14)")
    )
    assert found.total() == 1
    assert found.entries[0].source == "a test; USD → EUR: ECB (2025-03-14)"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.1, Fraction(1, 10)), (Decimal("0.10"), Fraction(1, 10)), ("5/3", Fraction(5, 3)), (7, 7)],
)
def test_numbers_are_what_they_are_written_as(value, expected):
    assert exact(value) == expected


# --- files ---------------------------------------------------------------------------------------


def test_a_csv_shows_amounts_that_people_can_read():
    text = Ledger((entry(unit_price=Fraction(1, 3), quantity=Fraction(2)),)).to_csv()
    header, row = text.splitlines()
    assert header.endswith(",source,amount") and row.endswith(",a test,0.666666667")
    assert ",2,hour,1/3," in row


def test_a_csv_may_leave_scenario_and_amount_out():
    ledger = Ledger((entry(3),))
    lines = [line.rpartition(",")[0].partition(",")[2] for line in ledger.to_csv().splitlines()]
    assert lines[0].startswith("stage,") and lines[0].endswith(",source")
    assert Ledger.from_csv("\n".join(lines), name="l.csv") == ledger


def test_futures_are_not_added_up_and_each_has_its_sum():
    spent, large, small = (Ledger((entry(n),)).of(name) for n, name in
                           ((1, "spent"), (20, "large"), (3, "small")))  # fmt: skip
    every = spent + large + small
    with pytest.raises(DataError, match=r"EUR a once of spent and EUR a once of large"):
        every.total()
    assert every.totals("scenario") == {("spent",): 1, ("large",): 20, ("small",): 3}
    assert every.where(scenario="large").total() == 20


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (",3\n", ",4\n", "amount in l.csv, row 2: got 4; must be unit_price × quantity, 3"),
        ("pretraining", "training", "stage of an entry in l.csv, row 2"),
        (",kind,", ",sort,", "ledger l.csv: got columns"),
        (",EUR,", ",EUR,more,", "ledger l.csv, row 2"),
        ("scenario,", "source,", "ledger l.csv: got columns"),
    ],
)
def test_a_wrong_csv_is_refused_with_its_row(old, new, said):
    text = Ledger((entry(3),)).to_csv().replace(old, new)
    with pytest.raises(DataError, match=said):
        Ledger.from_csv(text, name="l.csv")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "rectrain-ledger", "version": 9}',
             '{"format": "rectrain-ledger", "version": 1, "entries": [{"stage": 1}]}'],
)  # fmt: skip
def test_a_wrong_json_is_refused(text):
    with pytest.raises(DataError, match=r"ledger l\.json"):
        Ledger.from_json(text, name="l.json")
