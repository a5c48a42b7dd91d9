"""The traffic file: what is asked of the models, for how long, and what an answer is worth."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from rectrain.config import Section, load_config
from rectrain.cost.overhead import Overhead
from rectrain.cost.prices import HOURS_PER_MONTH
from rectrain.errors import ConfigError

__all__ = ["SECONDS_PER_MONTH", "Effort", "Floats", "Spread", "Traffic", "Worth", "load_traffic"]

Floats = NDArray[np.float64]

SECONDS_PER_MONTH = 3600.0 * HOURS_PER_MONTH
_HOURS = 24
_PEAK = 3.0  # times the mean, where only that is given
_ROUNDING = 1e-9
_MOST = 1e6  # requests a second: beyond, something was mistyped

AboveZero = Annotated[float, Field(gt=0)]
AtLeastZero = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Change = Annotated[float, Field(gt=-1, le=10)]


#: Which event an answer of a task may bring, where the file doesn't say what one is worth.
_EVENTS = {
    "ad_ctr": "click", "ad_headline": "click", "recommendation": "order",
    "search_ranking": "order", "risk": "fraud", "risk_text": "fraud",
}  # fmt: skip


class Worth(Section):
    """What answers bring: events, and what one of them is worth.

    A model gains `events` times the share of the first model's lift that it has.
    """

    click: AtLeastZero = Field(default=0.0, description="of a click (tasks ad_ctr, ad_headline)")
    order: AtLeastZero = Field(
        default=0.0, description="of an order (tasks recommendation, search_ranking)"
    )
    fraud: AtLeastZero = Field(
        default=0.0, description="of a fraud that is prevented (tasks risk, risk_text)"
    )
    money: dict[str, AtLeastZero] = Field(
        default={}, description="task -> of one of its events, where it is none of these three"
    )
    events: dict[str, AtLeastZero] = Field(
        default={},
        description="task -> events gained by 1,000 requests to the first model, over no model",
    )

    def per_1000(self, task: str) -> float:
        """What 1,000 answers of the first model to a task's requests are worth."""
        if task not in self.events:
            return 0.0
        event = _EVENTS.get(task)
        one = self.money.get(task, getattr(self, event) if event else 0.0)
        return self.events[task] * float(one)

    def check(self, tasks: Sequence[str], *, asked: Sequence[str]) -> None:
        """That what is said counts for something.

        Args:
            tasks: that the models have.
            asked: those of them that get requests.

        Raises:
            ConfigError: a task that the models lack or nobody asks, events that nothing says the
                worth of, or the worth of an event without any.
        """
        for name, given in (("events", self.events), ("money", self.money)):
            if unknown := sorted(set(given) - set(tasks)):
                raise _wrong(
                    f"worth.{name}", ", ".join(unknown), f"the models have {', '.join(tasks)}",
                    "leave it out, or give packages that have it",
                )  # fmt: skip
        for task in self.events:
            event = _EVENTS.get(task)
            if task not in asked:
                raise _wrong(
                    f"worth.events.{task}", self.events[task],
                    f"counts for nothing: the mix asks {', '.join(asked)} alone",
                    f"give {task} a share of the mix, or leave it out",
                )  # fmt: skip
            if task not in self.money and not (event and event in self.model_fields_set):
                raise _wrong(
                    f"worth.events.{task}", self.events[task],
                    "counts for nothing until one event has a worth",
                    f"set worth.{event or f'money.{task}'}, or leave it out",
                )  # fmt: skip
        brought = {_EVENTS.get(task) for task in self.events if task not in self.money}
        events = {"click", "order", "fraud"} - brought
        idle = {event: getattr(self, event) for event in events}
        idle |= {f"money.{task}": self.money[task] for task in self.money.keys() - self.events}
        for name, one in sorted(idle.items()):
            if one:
                raise _wrong(
                    f"worth.{name}", one, "counts for nothing until requests bring such events",
                    "set worth.events of a task, or leave it out",
                )  # fmt: skip


class Effort(Section):
    """People's hours, which the machines can't measure."""

    data: AtLeastZero = Field(default=40.0, description="once: collecting and checking rows")
    labelling: AtLeastZero = Field(default=0.0, description="once: labelling by hand")
    tuning: AtLeastZero = Field(default=16.0, description="once: choosing settings")
    shrinking: AtLeastZero = Field(default=8.0, description="once: making a small model")
    deployment: AtLeastZero = Field(default=16.0, description="once: bringing it into operation")
    maintenance: AtLeastZero = Field(default=8.0, description="a month: watching and mending")
    retraining: AtLeastZero = Field(default=2.0, description="each time: checking a new version")


class Spread(Section):
    """How uncertain inputs are: one standard deviation, as a share of the input."""

    traffic: Share = Field(default=0.2, description="of the mean rate")
    growth: Share = Field(default=0.01, description="of growth_per_month, in absolute terms")
    throughput: Share = Field(default=0.1, description="of what a core serves")
    deferred: Share = Field(default=0.2, description="of the share that goes to the large model")
    training: Share = Field(default=0.1, description="of the device hours of a training")
    prices: Share = Field(default=0.1, description="of hardware and energy")
    effort: Share = Field(default=0.25, description="of people's hours")
    worth: Share = Field(default=0.3, description="of the events gained")


@lru_cache(maxsize=64)  # the same in all draws of a forecast
def _wave(mean: float) -> Floats:
    """See `Traffic.day`, by its mean over its peak."""
    wave = (1 + np.cos(2 * np.pi * np.arange(_HOURS) / _HOURS)) / 2
    wave = np.maximum(wave, 1e-12)  # 0 to the power of almost 0 is 0: no day would be flat
    # A peak of one hour alone has 1/24 of its rate as the mean: no day has less.
    wanted = max(mean, (1 + _ROUNDING) / _HOURS)
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (wave**middle).mean() > wanted else (low, middle)
    shape: Floats = wave**high
    return shape / float(shape.mean())


class Traffic(Section):
    """What is asked, and under which bounds. Rates are requests a second."""

    mean_rate: AboveZero | None = Field(
        default=None, description="requests a second, on average (default: 5)"
    )
    peak_rate: AboveZero | None = Field(
        default=None, description="in the busiest hour of a day (default: three times the mean)"
    )
    hourly_rates: tuple[AtLeastZero, ...] = Field(
        default=(), description="instead of both: the rate of each of the 24 hours"
    )
    growth_per_month: Change = Field(default=0.02, description="of the rate; 0.02: 2% a month")
    seasons: tuple[AtLeastZero, ...] = Field(
        default=(), description="12 factors, January first (default: no seasons)"
    )
    start_month: int = Field(default=1, ge=1, le=12, description="calendar month of the first")
    mix: dict[str, AtLeastZero] = Field(
        default={}, description="task -> its share of the requests (default: all tasks alike)"
    )
    candidates: int = Field(default=50, ge=1, le=10_000, description="of a request")
    tokens: int | None = Field(
        default=None, ge=3, le=512, description="of a candidate's text (default: as in the data)"
    )
    latency_ms: AboveZero = Field(default=100.0, description="99 of 100 answers come within this")
    currency: str | None = Field(
        default=None, pattern="^[A-Z]{3}$", description="of worth and budget (default: the prices')"
    )
    horizon_months: int = Field(default=24, ge=1, le=120, description="months that are looked at")
    retrain_every_months: int = Field(
        default=3, ge=0, le=120, description="months between trainings; 0: only once"
    )
    training_hours: dict[Literal["large", "small"], AtLeastZero] = Field(
        default={}, description="device hours of a training (default: as the runs recorded)"
    )
    budget_per_month: AboveZero | None = Field(
        default=None, description="that the machines which serve may cost"
    )
    scales_hourly: bool = Field(
        default=False, description="machines follow each hour's rate, else the peak's"
    )
    availability: float = Field(
        default=0.9999, gt=0, lt=1, description="share of the time in which enough machines run"
    )
    restart_minutes: AtLeastZero = Field(
        default=10.0, description="until another machine stands in for one that was taken back"
    )
    checkpoint_minutes: AtLeastZero = Field(
        default=10.0, description="of training between two checkpoints: what an interruption loses"
    )
    stored_gib: AtLeastZero = Field(
        default=0.0, description="of data, checkpoints and logs, kept all of the time"
    )
    answer_kib: AtLeastZero = Field(
        default=0.0, description="of an answer that leaves the cloud and is charged for"
    )
    hardware_price_change: Change = Field(default=-0.05, description="a year")
    labour_price_change: Change = Field(default=0.03, description="a year")
    overhead: Overhead = Overhead()
    worth: Worth = Worth()
    effort: Effort = Effort()
    spread: Spread = Spread()

    @model_validator(mode="after")
    def _check(self) -> Traffic:
        if self.hourly_rates and (self.mean_rate or self.peak_rate):
            raise _wrong(
                "hourly_rates", "mean_rate or peak_rate, too", "they say the same",
                "give one of the two",
            )  # fmt: skip
        for name, count in (("hourly_rates", _HOURS), ("seasons", 12)):
            values = getattr(self, name)
            if values and (len(values) != count or not sum(values)):
                raise _wrong(
                    name, f"{len(values)} numbers, {sum(values):g} in all",
                    f"must be {count}, not all of them 0", "mend the list",
                )  # fmt: skip
        if self.mix and not sum(self.mix.values()):
            raise _wrong("mix", "no requests", "some task must be asked", "give a share above 0")
        if self.peak_rate is not None and self.peak_rate < self.mean:
            raise _wrong(
                "peak_rate", self.peak_rate, f"must be at least mean_rate ({self.mean:g})",
                "raise peak_rate or lower mean_rate",
            )  # fmt: skip
        most = _HOURS * self.mean * (1 + _ROUNDING)
        if self.peak > most:
            raise _wrong(
                "peak_rate", self.peak_rate,
                f"one hour of it alone makes a mean of 1/{_HOURS}, which is above mean_rate "
                f"({self.mean:g})",
                "lower peak_rate or raise mean_rate",
            )  # fmt: skip
        if not self.months().any():
            raise _wrong(
                "seasons", f"0 in all {self.horizon_months} months from month {self.start_month}",
                "some month of the horizon must have requests",
                "mend seasons or start_month, or look further ahead (horizon_months)",
            )  # fmt: skip
        self._check_size()
        return self

    def _check_size(self) -> None:
        months = self.peak * self.months()
        if (most := float(months.max())) <= _MOST:
            return
        month = int(months.argmax()) + 1
        rule = f"must stay below {_MOST:,.0f} requests a second in every month"
        if self.peak > _MOST:
            given = ("hourly_rates", "peak_rate", "mean_rate")
            key = next(name for name in given if getattr(self, name))
            raise _wrong(
                key, f"{self.peak:g} requests a second at the peak", rule, "give requests a second"
            )
        there = f"{most:.3g} requests a second in month {month}"
        if self.peak * (1 + self.growth_per_month) ** (month - 1) <= _MOST:
            raise _wrong("seasons", there, rule, "give factors: 1 is an ordinary month")
        growth = f"{self.growth_per_month:g} is {self.growth_per_month:.0%} a month"
        raise _wrong(
            "growth_per_month", f"{growth}: {there}", rule,
            "lower it (0.02: 2% a month), or look less far ahead (horizon_months)",
        )  # fmt: skip

    @property
    def mean(self) -> float:
        """Requests a second, on average, in the first month without its season."""
        if self.hourly_rates:
            return sum(self.hourly_rates) / _HOURS
        return self.mean_rate or 5.0

    @property
    def peak(self) -> float:
        """Requests a second in the busiest hour of such a day."""
        if self.hourly_rates:
            return max(self.hourly_rates)
        return self.peak_rate or _PEAK * self.mean

    @property
    def restart_h(self) -> float:
        """Hours until another machine stands in for one that was taken back."""
        return self.restart_minutes / 60

    def times(self, factor: float) -> Traffic:
        """The same at a multiple of the rate."""
        if self.hourly_rates:
            rates = tuple(rate * factor for rate in self.hourly_rates)
            return self.model_copy(update={"hourly_rates": rates})
        changed = {"mean_rate": self.mean * factor, "peak_rate": self.peak * factor}
        return self.model_copy(update=changed)

    def day(self) -> Floats:
        """float64 [24], the rate of each hour over the mean; their mean is 1.

        Where only mean and peak are known, the hours are ((1 + cos) / 2) ** p, with p such that
        both are met: one rise and one fall a day, and never below 0.
        """
        if self.hourly_rates:
            return np.array(self.hourly_rates) / self.mean
        return _wave(self.mean / self.peak).copy()

    def months(self) -> Floats:
        """float64 [horizon_months], each month's rate over the first one's without its season:
        growth compounds, and seasons multiply."""
        month = np.arange(self.horizon_months)
        seasons = np.array(self.seasons or (1.0,) * 12)[(self.start_month - 1 + month) % 12]
        return np.asarray((1 + self.growth_per_month) ** month * seasons)

    def rates(self, *, hourly: bool) -> Floats:
        """Requests a second: float64 [horizon_months, 24], or [horizon_months, 1] of the peak."""
        day = self.mean * self.day() if hourly else np.array([self.peak])
        return np.asarray(day * self.months()[:, None])

    def trainings(self) -> tuple[Floats, Floats]:
        """float64 [horizon_months] of 0 and 1: whether the models are trained for the first time at
        the beginning of a month, and whether they are trained again."""
        month = np.arange(self.horizon_months)
        again = month % (self.retrain_every_months or self.horizon_months) == 0
        again[0] = False
        return (month == 0).astype(np.float64), again.astype(np.float64)

    def shares(self, tasks: Sequence[str]) -> dict[str, float]:
        """Task -> its share of the requests; they sum to 1.

        Args:
            tasks: that the models have.

        Raises:
            ConfigError: the mix names another one, or something said of worth counts for nothing.
        """
        given = self.mix or dict.fromkeys(tasks, 1.0)
        if unknown := sorted(set(given) - set(tasks)):
            raise _wrong(
                "mix", ", ".join(unknown), f"the models have {', '.join(tasks)}",
                "leave it out, or give packages that have it",
            )  # fmt: skip
        whole = sum(given.values())
        shares = {task: share / whole for task, share in given.items() if share}
        self.worth.check(tasks, asked=tuple(shares))
        return shares


def load_traffic(file: str | None, *, overrides: Sequence[str] = ()) -> Traffic:
    """Reads a traffic file; without one, the defaults.

    Args:
        file: YAML.
        overrides: dotted settings, as of `rectrain.config.load_config`.

    Raises:
        ConfigError: anything wrong, with its key.
    """
    if file is not None and not Path(file).is_file():
        raise ConfigError(
            what="--traffic", got=file, rule="must be a readable file", fix="give a YAML file"
        )
    return load_config(Traffic, file=file, overrides=overrides)


def _wrong(key: str, got: object, rule: str, fix: str) -> ConfigError:
    return ConfigError(what=f"{key} of the traffic", got=got, rule=rule, fix=fix)
