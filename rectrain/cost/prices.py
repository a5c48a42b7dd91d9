"""Prices: a versioned file, every price with its date, currency and source; a user's file over it.

`prices.yaml` beside this module holds public list prices as a start. A user's file has the same
form and only what differs: a price replaces a price as a whole, so that an amount never stands
under a date or a source that isn't its own; machines and licences of other names are added, and
null removes one. A price has the unit of its place.
"""

from __future__ import annotations

import copy
import datetime
import math
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, PositiveInt, model_validator

from rectrain.config import Section, parse_yaml, yaml_mapping
from rectrain.cost.ledger import Behaviour, Entry, Kind, Number, Period, Rates, Stage, exact
from rectrain.errors import ConfigError

__all__ = [
    "HOURS_PER_MONTH",
    "Exchange",
    "Hourly",
    "Instance",
    "Machine",
    "Price",
    "Prices",
    "Spot",
    "Unit",
    "charge",
    "load_prices",
]

HOURS_PER_MONTH = 730  # 365 × 24 / 12: what cloud providers bill a whole month as
Unit = Literal["once", "hour", "month", "gib", "gib month", "kwh"]

_SHIPPED = Path(__file__).with_name("prices.yaml")
_CURRENCY = r"^[A-Z]{3}$"


class Price(Section):
    """One price, and how it is known."""

    amount: Decimal = Field(ge=0, description="of one unit, in the currency")
    unit: Unit = Field(description="what is priced")
    currency: str = Field(pattern=_CURRENCY, description="three capital letters (ISO 4217)")
    date: datetime.date = Field(description="when it was so")
    source: str = Field(min_length=1, description="where it was read, or why it is assumed")

    @property
    def value(self) -> Fraction:
        """The amount, exactly."""
        return Fraction(self.amount)

    @property
    def cited(self) -> str:
        """Source and date, for an entry of the ledger."""
        return f"{self.source} ({self.date.isoformat()})"


class Once(Price):
    """What is bought."""

    unit: Literal["once"]


class Monthly(Price):
    """What is paid month by month."""

    unit: Literal["month"]


class Hourly(Price):
    """What is paid by the hour."""

    unit: Literal["hour"]


class Kwh(Price):
    """Energy."""

    unit: Literal["kwh"]


class Gib(Price):
    """Bytes that are sent."""

    unit: Literal["gib"]


class GibMonth(Price):
    """Bytes that are kept."""

    unit: Literal["gib month"]


class Licence(Price):
    """Software, bought or rented."""

    unit: Literal["once", "month"]


class Spot(Hourly):
    """The price of capacity that its owner may take back."""

    interrupted_share: float = Field(
        ge=0, lt=1, description="share of instances that are interrupted within a month"
    )
    interrupted_source: str = Field(min_length=1, description="where that share was read")

    @property
    def interruptions_per_hour(self) -> float:
        """λ of an instance: 1 - exp(-λ · 730 h) is the share, if interruptions are independent."""
        return -math.log1p(-self.interrupted_share) / HOURS_PER_MONTH

    @property
    def cited(self) -> str:
        """Of the price, and of its interruptions."""
        return f"{super().cited}; interruptions: {self.interrupted_source}"


class _Hardware(Section):
    """What a machine has."""

    device: Literal["cpu", "gpu"] = Field(description="what computes")
    chip: str = Field(description="its name, for people")
    chips: tuple[str, ...] = Field(
        default=(), description="its names in records: of /proc/cpuinfo, or of torch.cuda"
    )
    num_devices: PositiveInt = Field(
        description="hardware threads (vCPUs) of a cpu machine, GPUs of a gpu machine"
    )
    memory_gib: float = Field(gt=0, description="main memory")
    device_memory_gib: float | None = Field(default=None, gt=0, description="of one GPU")
    speed: float = Field(
        default=1.0,
        gt=0,
        description="device-seconds of the machine that was measured which one of these does in a "
        "second; 1 takes them for equal: measure it (docs/cost.md)",
    )

    @model_validator(mode="after")
    def _gpu_memory(self) -> _Hardware:
        if (self.device == "gpu") != (self.device_memory_gib is not None):
            raise ConfigError(
                what=f"device_memory_gib of {self.chip}", got=self.device_memory_gib,
                rule="a gpu machine has it, a cpu machine has none",
                fix="add it, or leave it out",
            )  # fmt: skip
        return self

    def has(self, chip: str) -> bool:
        """Whether it has a chip of this name."""
        return chip in (self.chip, *self.chips)


class Instance(_Hardware):
    """A machine of a cloud, by the hour."""

    provider: str = Field(description="whose cloud")
    region: str = Field(description="where: prices differ by region")
    on_demand: Hourly = Field(description="by the hour")
    reserved: Hourly | None = Field(default=None, description="by the hour, bound for a term")
    reserved_months: PositiveInt = Field(default=12, description="that term")
    spot: Spot | None = Field(default=None, description="by the hour, may be taken back")


class Machine(_Hardware):
    """A machine of one's own: bought once, written off evenly, fed with energy."""

    purchase: Once = Field(description="once")
    life_months: PositiveInt = Field(description="over which it is written off")
    resale_share: float = Field(default=0.0, ge=0, lt=1, description="of the price, at the end")
    watts: float = Field(gt=0, description="it draws under load")
    idle_watts: float = Field(default=0.0, ge=0, description="it draws without load")
    power_usage_effectiveness: float = Field(
        default=1.0, ge=1, description="of the building: all its energy over the machines'"
    )
    hosting: Monthly | None = Field(default=None, description="a month: room, network, upkeep")

    @model_validator(mode="after")
    def _draws_more_at_work(self) -> Machine:
        if self.idle_watts > self.watts:
            raise ConfigError(
                what=f"idle_watts of {self.chip}", got=self.idle_watts,
                rule=f"can't be above watts, {self.watts:g}: work would save energy",
                fix="give both as they were measured, idle and under load",
            )  # fmt: skip
        return self

    @property
    def monthly_share(self) -> Fraction:
        """Of the purchase, that a month writes off in a straight line: (1 - resale) / life."""
        return (1 - exact(self.resale_share)) / self.life_months


class Exchange(Section):
    """A stated exchange rate."""

    per_base: Decimal = Field(gt=0, description="units of this currency for one of the base")
    date: datetime.date = Field(description="when it was so")
    source: str = Field(min_length=1, description="where it was read")


class Storage(Section):
    """What is kept."""

    object: GibMonth = Field(description="data, checkpoints, packages, logs")


class Network(Section):
    """What leaves a cloud."""

    internet: Gib = Field(description="answers")


class People(Section):
    """An hour of people, all that an employer pays."""

    engineer: Hourly = Field(description="who trains, shrinks and deploys")
    operator: Hourly = Field(description="who watches and mends")


class Prices(Section):
    """All prices of a calculation."""

    version: str = Field(description="of the file, named in every report")
    currency: str = Field(pattern=_CURRENCY, description="that reports are in")
    base_currency: str = Field(pattern=_CURRENCY, description="that exchange rates are for")
    exchange: dict[str, Exchange] = Field(default={}, description="currency -> rate")
    instances: dict[str, Instance] = Field(default={}, description="name -> cloud instance")
    machines: dict[str, Machine] = Field(default={}, description="name -> machine of one's own")
    energy: Kwh = Field(description="a kWh")
    storage: Storage = Field(description="a GiB a month")
    traffic: Network = Field(description="a GiB")
    licences: dict[str, Licence] = Field(default={}, description="name -> a month, or once")
    people: People = Field(description="an hour")

    @property
    def rates(self) -> Rates:
        """Exchange rates as the ledger wants them."""
        worth = {name: 1 / Fraction(rate.per_base) for name, rate in self.exchange.items()}
        sources = sorted({f"{r.source} ({r.date.isoformat()})" for r in self.exchange.values()})
        return Rates({**worth, self.base_currency: Fraction(1)}, "; ".join(sources))

    def amount(self, price: Price, currency: str) -> float:
        """A price in a currency.

        Raises:
            ConfigError: a currency without a rate.
        """
        return float(price.value * self.rates.factor(price.currency, currency))

    def cited(self, price: Price, currency: str) -> str:
        """Where a price in a currency comes from: its source, and the rate's where it needs one."""
        return self.rates.cited(price.cited, price.currency, currency)

    def device_second(self, instance: Instance, currency: str) -> float:
        """What a second of the measured device costs on an instance, on demand."""
        devices = instance.num_devices * instance.speed
        return self.amount(instance.on_demand, currency) / 3600 / devices

    def of_chip(self, device: Literal["cpu", "gpu"], chip: str) -> dict[str, Instance]:
        """Name -> instance with this chip; where there is none, the first of its kind alone; none
        of a kind that the prices lack."""
        kind = {name: one for name, one in self.instances.items() if one.device == device}
        found = {name: one for name, one in kind.items() if one.has(chip)}
        return found or dict(list(kind.items())[:1])

    def instance(self, name: str) -> Instance:
        """An instance by name.

        Raises:
            ConfigError: there is none.
        """
        if name not in self.instances:
            raise ConfigError(
                what="instances of the prices",
                got=name,
                rule=f"must be one of {', '.join(sorted(self.instances)) or 'none that is there'}",
                fix=f"choose one, or add instances.{name} to your prices file",
            )
        return self.instances[name]


def load_prices(file: str | None = None) -> Prices:
    """The shipped prices, with a user's file over them, entry by entry.

    Args:
        file: YAML of the same form, with only what differs; a price in it is whole, and null takes
            away what stands there. Another `base_currency` takes away the shipped exchange rates.

    Raises:
        ConfigError: the file can't be read, or what it says is wrong.
    """
    shipped = yaml_mapping(_SHIPPED.read_bytes(), name=str(_SHIPPED))
    if file is None:
        return _parsed(shipped, name=str(_SHIPPED))
    try:
        own = yaml_mapping(Path(file).read_bytes(), name=file)
    except OSError as error:
        raise ConfigError(
            what="prices", got=file, rule=f"must be a readable file ({error.strerror})",
            fix="give the path of a YAML file",
        ) from None  # fmt: skip
    base = shipped["base_currency"]
    if own.get("base_currency", base) != base:  # the shipped rates are for one of that
        shipped = {key: value for key, value in shipped.items() if key != "exchange"}
    merged = _over(shipped, own)
    if "version" not in own:
        merged["version"] = f"{shipped['version']} + {Path(file).name}"
    return _parsed(merged, name=file)


def _parsed(content: Mapping[str, Any], *, name: str) -> Prices:
    return parse_yaml(Prices, yaml.safe_dump(dict(content), sort_keys=False).encode(), name=name)


def _over(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The old tree with the new one over it; prices and exchange rates are replaced whole, null
    removes."""
    merged = copy.deepcopy(dict(old))
    for key, value in new.items():
        before = merged.get(key)
        whole = {"amount", "per_base"}
        if value is None and key in merged:
            del merged[key]
        elif isinstance(before, dict) and isinstance(value, dict) and not whole & {*before, *value}:
            merged[key] = _over(before, value)
        else:
            merged[key] = value
    return merged


def charge(
    price: Price,
    quantity: Number,
    *,
    stage: Stage,
    part: str,
    kind: Kind,
    behaviour: Behaviour,
    label: str,
    period: Period,
    note: str = "",
) -> Entry:
    """An entry of the ledger: so many units at this price.

    Args:
        price: of a unit.
        quantity: of units in one period.
        stage, part, kind, behaviour, label, period: as of `Entry`.
        note: how the quantity is known; stands before the price's source.
    """
    return Entry(
        stage=stage,
        part=part,
        kind=kind,
        behaviour=behaviour,
        label=label,
        quantity=exact(quantity),
        unit=price.unit,
        unit_price=price.value,
        currency=price.currency,
        period=period,
        source=f"{note}; {price.cited}" if note else price.cited,
    )
