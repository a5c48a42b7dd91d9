"""The ledger: what was or will be paid, entry by entry, in exact fractions.

C_total = C_pretraining (data + labelling + training) + C_tuning (time + resources)
        + C_deployment (hardware + software) + C_maintenance (time + resources)

Each entry is also hardware, software or labour, and fixed or marginal. An amount is no number of
its own but unit price × quantity, both exact fractions, so that any grouping, any split over kinds
and any conversion adds up to the whole without a remainder.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal, get_args

from rectrain.errors import ConfigError, DataError

__all__ = [
    "DIMENSIONS",
    "PARTS",
    "Behaviour",
    "Dimension",
    "Entry",
    "Kind",
    "Ledger",
    "Number",
    "Period",
    "Rates",
    "Stage",
    "exact",
]

Number = int | float | str | Decimal | Fraction
Stage = Literal["pretraining", "tuning", "deployment", "maintenance"]
Kind = Literal["hardware", "software", "labour"]
Behaviour = Literal["fixed", "marginal"]
Period = Literal["once", "month", "1000 requests"]
Dimension = Literal[
    "scenario", "stage", "part", "kind", "behaviour", "label", "unit", "currency", "period"
]

DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)
PARTS: Mapping[Stage, tuple[str, ...]] = {
    "pretraining": ("data", "labelling", "training"),
    "tuning": ("time", "resources"),
    "deployment": ("hardware", "software"),
    "maintenance": ("time", "resources"),
}
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "stage": tuple(PARTS),
    "kind": get_args(Kind),
    "behaviour": get_args(Behaviour),
    "period": get_args(Period),
}
_FORMAT = "rectrain-ledger"
_VERSION = 1
_SHOWN = Fraction(1, 10**9)  # what the column of amounts in a CSV is rounded to


def exact(value: Number) -> Fraction:
    """The number as a fraction; a float is the decimal that it is written as, so 0.1 is 1/10.

    Raises:
        DataError: it is no finite number.
    """
    try:
        return Fraction(repr(value)) if isinstance(value, float) else Fraction(value)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise DataError(
            what="a number of the ledger",
            got=repr(value),
            rule="must be a finite number, as 12, 0.25 or 5/3",
            fix="mend it",
        ) from None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line: what is paid, what for, how often, and how that is known.

    Attributes:
        scenario: what it is a part of: what was spent, or one of several futures, of which one
            comes. Entries of two are never added up.
        stage: of the model's life.
        part: of the stage, see `PARTS`.
        kind: hardware, software or labour.
        behaviour: fixed (whatever the traffic) or marginal (grows with use).
        label: what it is, for people.
        quantity: how many units, any sign.
        unit: of the quantity, as "core hour".
        unit_price: of one unit, in the currency.
        currency: three capital letters.
        period: what one payment covers: once, a month, or 1,000 requests.
        source: where price and quantity come from.

    Raises:
        DataError: a word that isn't one of these.
    """

    scenario: str = ""
    stage: Stage
    part: str
    kind: Kind
    behaviour: Behaviour
    label: str
    quantity: Fraction
    unit: str
    unit_price: Fraction
    currency: str
    period: Period
    source: str

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            self._check(name, choices)
        self._check("part", PARTS[self.stage])
        if len(self.currency) != 3 or not (self.currency.isascii() and self.currency.isupper()):
            raise _wrong("currency", self.currency, "must be three capital letters (ISO 4217)")
        for name in ("quantity", "unit_price"):
            object.__setattr__(self, name, exact(getattr(self, name)))

    def _check(self, name: str, choices: Sequence[str]) -> None:
        if (value := getattr(self, name)) not in choices:
            raise _wrong(name, value, f"must be one of {', '.join(choices)}")

    @property
    def amount(self) -> Fraction:
        """What is paid in one period: unit price × quantity, exactly."""
        return self.unit_price * self.quantity

    def times(self, factor: Number) -> Entry:
        """The same with a multiple of the quantity."""
        return replace(self, quantity=self.quantity * exact(factor))

    def split(self, weights: Mapping[Kind, Number]) -> tuple[Entry, ...]:
        """The entry over several kinds, in proportion to weights; the parts add to it exactly.

        Args:
            weights: kind -> its weight, >= 0; they need not sum to 1.

        Raises:
            DataError: a negative weight, or none above zero.
        """
        given = {kind: exact(weight) for kind, weight in weights.items()}
        whole = sum(given.values(), Fraction(0))
        if whole <= 0 or min(given.values()) < 0:
            raise _wrong("weights", dict(weights), "must be >= 0 and not all zero")
        return tuple(
            replace(self, kind=kind, quantity=self.quantity * weight / whole)
            for kind, weight in given.items()
        )


@dataclass(frozen=True)
class Rates:
    """Exchange rates, stated: what one unit of each currency is worth in a common one.

    Attributes:
        worth: currency -> worth > 0 of one unit.
        source: of the rates, with their date.
    """

    worth: Mapping[str, Fraction]
    source: str

    def factor(self, old: str, new: str) -> Fraction:
        """What an amount in the old currency is multiplied by.

        Raises:
            ConfigError: a currency without a rate.
        """
        if old == new:
            return Fraction(1)
        for currency in (old, new):
            if currency not in self.worth:
                raise ConfigError(
                    what=f"exchange rate of {currency}",
                    got=f"rates of {', '.join(sorted(self.worth)) or 'no currency'}",
                    rule="every currency in use needs a stated rate",
                    fix=f"add exchange.{currency} to your prices file",
                )
        return self.worth[old] / self.worth[new]

    def cited(self, source: str, old: str, new: str) -> str:
        """A source of an amount in the old currency, and these rates where the new one differs."""
        note = "" if old == new else f"{old} → {new}: {self.source}"
        return "; ".join(filter(None, (source, note)))


@dataclass(frozen=True)
class Ledger:
    """Entries, and their sums."""

    entries: tuple[Entry, ...] = ()

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __add__(self, other: Ledger) -> Ledger:
        return Ledger(self.entries + other.entries)

    def add(self, *entries: Entry) -> Ledger:
        """A ledger with these entries, too."""
        return Ledger(self.entries + entries)

    def where(self, **values: str) -> Ledger:
        """The entries with these values, as `stage="tuning"`."""
        assert set(values) <= set(DIMENSIONS), values
        wanted = values.items()
        return Ledger(tuple(e for e in self if all(getattr(e, k) == v for k, v in wanted)))

    def totals(self, *by: Dimension) -> dict[tuple[str, ...], Fraction]:
        """Sums of the entries that share these values; they add to `total()` exactly.

        Raises:
            DataError: entries of different currencies, periods or scenarios would be added up.
        """
        assert set(by) <= set(DIMENSIONS), by
        sums: dict[tuple[str, ...], Fraction] = defaultdict(Fraction)
        first: dict[tuple[str, ...], Entry] = {}
        for entry in self:
            key = tuple(str(getattr(entry, name)) for name in by)
            one = first.setdefault(key, entry)
            if _sum(one) != _sum(entry):
                raise DataError(
                    what="a sum of the ledger",
                    got=f"{_sum(one)} and {_sum(entry)}",
                    rule="amounts of one currency, one period and one scenario can be added",
                    fix="convert the currencies, take a horizon (`Ledger.over`), or sum each "
                    "scenario by itself",
                )
            sums[key] += entry.amount
        return dict(sums)

    def total(self) -> Fraction:
        """The sum of all entries; 0 of none. Raises as `totals`."""
        return self.totals().get((), Fraction(0))

    def split(
        self, weights: Mapping[Kind, Number], *, of: Callable[[Entry], bool] = lambda _: True
    ) -> Ledger:
        """With the entries that `of` chooses split over kinds (`Entry.split`)."""
        return Ledger(tuple(part for e in self for part in (e.split(weights) if of(e) else (e,))))

    def of(self, scenario: str) -> Ledger:
        """The same entries as a part of this scenario."""
        return Ledger(tuple(replace(entry, scenario=scenario) for entry in self))

    def convert(self, currency: str, rates: Rates) -> Ledger:
        """All in one currency; sources name the rates.

        Raises:
            ConfigError: a currency without a rate.
        """

        def converted(entry: Entry) -> Entry:
            if entry.currency == currency:
                return entry
            return replace(
                entry,
                unit_price=entry.unit_price * rates.factor(entry.currency, currency),
                currency=currency,
                source=rates.cited(entry.source, entry.currency, currency),
            )

        return Ledger(tuple(map(converted, self)))

    def over(self, *, months: Number, requests: Number) -> Ledger:
        """What a horizon costs: every entry once, its quantity times the periods in it.

        Args:
            months: of the horizon.
            requests: in all of it.
        """
        periods: dict[Period, Fraction] = {
            "once": Fraction(1),
            "month": exact(months),
            "1000 requests": exact(requests) / 1000,
        }
        return Ledger(tuple(replace(e.times(periods[e.period]), period="once") for e in self))

    # --- files -----------------------------------------------------------------------------------

    def to_csv(self) -> str:
        """A table with a header; fractions in full, and an amount that is rounded to 1e-9."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*_COLUMNS, "amount"])
        for entry in self:
            writer.writerow([*_cells(entry).values(), _text(_rounded(entry.amount))])
        return text.getvalue()

    @classmethod
    def from_csv(cls, text: str, *, name: str) -> Ledger:
        """What `to_csv` wrote, or a spreadsheet with the same columns; `scenario` and `amount` may
        be left out.

        Args:
            text: of the file.
            name: of the file, for errors.

        Raises:
            DataError: columns, words or numbers that it can't be, with their row; or an amount
                that isn't unit price × quantity.
        """
        reader = csv.DictReader(io.StringIO(text), strict=True)
        try:
            rows = list(reader)
        except csv.Error as error:
            raise _broken(name, str(error)) from None
        header = list(reader.fieldnames or ())
        required = [sorted(c for c in one if c not in _OPTIONAL) for one in (header, _COLUMNS)]
        if required[0] != required[1]:
            raise _broken(name, f"columns {', '.join(header)}")
        return cls(tuple(_parsed(row, where=f"{name}, row {n}") for n, row in enumerate(rows, 2)))

    def to_json(self) -> str:
        """As JSON; fractions as text, in full."""
        content = {"format": _FORMAT, "version": _VERSION, "entries": [_cells(e) for e in self]}
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, name: str) -> Ledger:
        """What `to_json` wrote; arguments and errors as of `from_csv`."""
        try:
            content = json.loads(text)
        except ValueError as error:
            raise _broken(name, str(error)) from None
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise _broken(name, "another format")
        if content.get("version") != _VERSION:
            raise _broken(name, f"version {content.get('version')}")
        rows = content.get("entries")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise _broken(name, "no list of entries")
        return cls(tuple(_parsed(row, where=f"{name}, entry {n}") for n, row in enumerate(rows)))


_COLUMNS = tuple(field.name for field in fields(Entry))
_OPTIONAL = ("scenario", "amount")


def _sum(entry: Entry) -> str:
    """What the sum is of that an entry may be in."""
    scenario = f" of {entry.scenario}" if entry.scenario else ""
    return f"{entry.currency} a {entry.period}{scenario}"


def _cells(entry: Entry) -> dict[str, str]:
    values = {name: getattr(entry, name) for name in _COLUMNS}
    return {k: _text(v) if isinstance(v, Fraction) else v for k, v in values.items()}


def _text(value: Fraction) -> str:
    """As a decimal where it is one, else as p/q; `Fraction` reads both back."""
    twos_and_fives = value.denominator
    for prime in (2, 5):
        while twos_and_fives % prime == 0:
            twos_and_fives //= prime
    if twos_and_fives != 1:
        return str(value)
    places = 0
    while (value * 10**places).denominator != 1:
        places += 1
    digits = f"{abs(value * 10**places).numerator:0{places + 1}d}"
    sign = "-" if value < 0 else ""
    return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)


def _rounded(value: Fraction) -> Fraction:
    return math.floor(value / _SHOWN + Fraction(1, 2)) * _SHOWN


def _parsed(row: Mapping[str, Any], *, where: str) -> Entry:
    """An entry of texts."""
    given = {"scenario": "", **row}
    given.pop("amount", None)
    if given.keys() != set(_COLUMNS) or not all(isinstance(v, str) for v in given.values()):
        raise _broken(where, f"{', '.join(map(str, given))}")
    try:
        entry = Entry(**given)
        amount = exact(row["amount"]) if row.get("amount") else None
    except DataError as error:
        raise DataError(
            what=f"{error.what} in {where}", got=error.got, rule=error.rule, fix=error.fix
        ) from None
    if amount is not None and abs(amount - entry.amount) > _SHOWN:
        raise DataError(
            what=f"amount in {where}",
            got=row["amount"],
            rule=f"must be unit_price × quantity, {float(entry.amount):g}",
            fix="change unit_price or quantity, or leave the column out",
        )
    return entry


def _wrong(name: str, got: object, rule: str) -> DataError:
    return DataError(what=f"{name} of an entry", got=repr(got), rule=rule, fix="mend it")


def _broken(name: str, got: str) -> DataError:
    return DataError(
        what=f"ledger {name}",
        got=got,
        rule=f"must have an entry's values as text: {', '.join(_COLUMNS)}",
        fix="give a file that `Ledger.to_csv` or `Ledger.to_json` wrote",
    )
