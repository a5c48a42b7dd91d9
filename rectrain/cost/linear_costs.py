"""From what was measured to the linear cost model: its points, its fit, the cheapest model by it.

Two costs are modelled, H + S + L of each in P (millions of parameters of the encoder) and C (its
forward GFLOP per 1,000 tokens):

    1,000 requests           the machines that answer, of each model that was measured
    training on 1M tokens    devices held / real tokens a second, of each run that trained a whole
                             encoder; starting, validating and saving are not in it

Measured is hardware alone; what software and people cost by P and C a settings file may say, and
the hardware, too. Without enough points and without coefficients the model is left out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field
from transformers import BertConfig

from rectrain.config import Section, load_config, yaml_mapping
from rectrain.cost.flops import complexity, encoder_parameters
from rectrain.cost.ledger import Kind, Rates
from rectrain.cost.linear import Candidate, Coefficients, Fit, LinearCost, Run, fit, minimum
from rectrain.cost.measure import Device, Past, instance_for, runs_of
from rectrain.cost.prices import Prices
from rectrain.errors import ConfigError, DataError
from rectrain.train.storage import Store
from rectrain.train.tracking import read_records
from rectrain.train.usage import read_usage

__all__ = [
    "Given",
    "Linear",
    "LinearSettings",
    "linear",
    "load_linear",
    "training_runs",
]

_Amount = Annotated[float, Field(ge=0)]
_Pair = tuple[_Amount, _Amount]
_LEVEL = 0.95


class Given(Section):
    """Coefficients that are stated: of a million parameters, and of a GFLOP per 1,000 tokens."""

    hardware: _Pair | None = Field(default=None, description="[k_P, k_C] (default: fitted)")
    software: _Pair = Field(default=(0.0, 0.0), description="[m_P, m_C]")
    labour: _Pair = Field(default=(0.0, 0.0), description="[n_P, n_C]")

    def times(self, factor: float) -> Given:
        """The same with multiples of them."""
        pairs = {name: pair for name, pair in dict(self).items() if pair is not None}
        changed = {name: (factor * of_p, factor * of_c) for name, (of_p, of_c) in pairs.items()}
        return self.model_copy(update=changed)


class LinearSettings(Section):
    """What is stated of the linear cost model."""

    currency: str | None = Field(
        default=None,
        pattern="^[A-Z]{3}$",
        description="of the coefficients (default: the report's)",
    )
    requests: Given = Field(default=Given(), description="of 1,000 requests")
    training: Given = Field(default=Given(), description="of training on a million real tokens")
    least_lift: float | None = Field(
        default=None, description="share of the large model's lift that the cheapest must have"
    )

    def into(self, currency: str, rates: Rates) -> LinearSettings:
        """The same with coefficients in another currency.

        Raises:
            ConfigError: a currency without a rate.
        """
        factor = float(rates.factor(self.currency or currency, currency))
        changed = {name: getattr(self, name).times(factor) for name in ("requests", "training")}
        return self.model_copy(update={"currency": currency, **changed})


def load_linear(file: str | None) -> LinearSettings:
    """Reads a file of coefficients; without one, nothing is stated.

    Raises:
        ConfigError: it can't be read, or what it says is wrong.
    """
    if file is not None and not Path(file).is_file():
        raise ConfigError(
            what="--linear", got=file, rule="must be a readable file", fix="give a YAML file"
        )
    return load_config(LinearSettings, file=file, overrides=[])


@dataclass(frozen=True)
class Linear:
    """The linear model of one cost.

    Attributes:
        of: what is paid for.
        runs: its points, as measured.
        model: None where it is left out.
        fit: of its hardware; None where that is stated, or the model left out.
        how: how the coefficients are known, or why there are none.
        cheapest: the candidate of the least H + S + L under the bounds; None: see `bounds`.
        bounds: the bounds in words, and what keeps the candidates from them.
    """

    of: str
    runs: tuple[Run, ...]
    model: LinearCost | None
    fit: Fit | None
    how: str
    cheapest: Candidate | None = None
    bounds: str = ""

    def interval(self, p: float, c: float) -> tuple[float, float] | None:
        """95% of the bootstrap's draws of the cost of a model; None where nothing was fitted."""
        if self.fit is None or self.model is None:
            return None
        stated = self.model.total(p, c) - self.model.hardware.cost(p, c)
        low, high = self.fit.interval(p, c, level=_LEVEL)
        return low + stated, high + stated

    def to_json(self) -> dict[str, Any]:
        """All of it, JSON-serialisable."""
        found: dict[str, Any] = {"of": self.of, "how": self.how, "bounds": self.bounds}
        if self.model is not None:
            kinds: tuple[Kind, ...] = ("hardware", "software", "labour")
            found["coefficients"] = {kind: list(getattr(self.model, kind)) for kind in kinds}
        if self.fit is not None:
            tails = [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]
            found["hardware_range"] = np.quantile(self.fit.draws[:, 0], tails, axis=0).T.tolist()
            found["relative_error"] = self.fit.relative_error.get("hardware")
        found["cheapest"] = None if self.cheapest is None else self.cheapest.name
        found["points"] = [
            {"name": run.name, "p": run.p, "c": run.c, "measured": run.costs["hardware"],
             "modelled": None if self.model is None else self.model.total(run.p, run.c),
             "range": self.interval(run.p, run.c)}
            for run in self.runs
        ]  # fmt: skip
        return found


def linear(
    of: str,
    runs: Sequence[Run],
    given: Given,
    candidates: Sequence[Candidate],
    *,
    least_lift: float | None = None,
    latency_ms: float,
) -> Linear:
    """The model of one cost: stated where it is, else fitted, else left out.

    Args:
        of: what is paid for.
        runs: measured points, of hardware; equal ones count once.
        given: coefficients that are stated.
        candidates: models to choose the cheapest from.
        least_lift: bound of their quality; None: there is none.
        latency_ms: bound of their latency.
    """
    runs = _distinct(runs)
    found: Fit | None = None
    if given.hardware is not None:
        hardware, how = Coefficients(*given.hardware), "stated"
    else:
        try:
            found = fit(runs)
        except DataError as error:
            how = f"left out: {error.rule}; points: {len(runs)}"
            return Linear(of, tuple(runs), None, None, how)
        hardware, how = found.model.hardware, f"fitted to {len(runs)} of them"
    model = LinearCost(hardware, Coefficients(*given.software), Coefficients(*given.labour))
    lift = "" if least_lift is None else f" and {least_lift:g} of the large model's lift"
    bounds = f"{latency_ms:g} ms{lift}"
    try:
        best = minimum(
            candidates, model, most_latency_ms=latency_ms,
            least_quality=-np.inf if least_lift is None else least_lift,
        )  # fmt: skip
    except ConfigError as error:
        return Linear(of, tuple(runs), model, found, how, None, f"{bounds}: {error.rule}")
    return Linear(of, tuple(runs), model, found, how, best, bounds)


def _distinct(runs: Sequence[Run]) -> list[Run]:
    """Each point once: a package that has two names was measured once."""
    points: dict[tuple[object, ...], Run] = {}
    for run in runs:
        points.setdefault((run.p, run.c, *sorted(run.costs.items())), run)
    return list(points.values())


# --- points of training --------------------------------------------------------------------------


class _Trained(NamedTuple):
    """A run: what it computed on, and device-seconds for a real token."""

    name: str
    device: Device
    chip: str
    bert: BertConfig
    device_s: float


def training_runs(
    pasts: Sequence[Past], prices: Prices, *, currency: str, tokens: int
) -> list[Run]:
    """What training on a million real tokens costs, of runs on the chip that most were on.

    Args:
        pasts: works; their runs, and those within them, count once.
        prices: of instances.
        currency: of the costs.
        tokens: of a text, for C.
    """
    stores = {store.root: store for past in pasts for store in runs_of(past)}
    found = [one for one in map(_trained, stores.values()) if one is not None]
    if not found:
        return []
    (place, _), *_ = Counter((one.device, one.chip) for one in found).most_common(1)
    _, instance = instance_for(prices, *place, folder=found[0].name)
    second = prices.device_second(instance, currency)
    return [
        Run(
            one.name,
            encoder_parameters(one.bert) / 1e6,
            complexity(one.bert, [tokens]),
            {"hardware": 1e6 * one.device_s * second},
        )
        for one in found
        if (one.device, one.chip) == place
    ]


def _trained(store: Store) -> _Trained | None:
    """None of one that is not comparable, has not ended, or has no records."""
    train = yaml_mapping(store.read("config.yaml"), name=f"{store.root}/config.yaml").get("train")
    if not train or not _is_plain(train) or store.local is None:
        return None
    lives = [life for life in read_usage(store) if life.work == "train"]
    groups = {(life.device, life.chip, life.num_devices * life.world_size) for life in lives}
    logs = [one for one in read_records(store.local / "metrics.jsonl") if one["kind"] == "log"]
    if len(groups) != 1 or not logs or not store.exists("encoder/config.json"):
        return None
    ((device, chip, devices),) = groups
    # The first line is a sign of life of one step, which the next line's mean holds, too.
    later = logs[1:] or logs
    bert = BertConfig.from_dict(json.loads(store.read("encoder/config.json")))
    seconds = float(np.mean([1 / one["tokens_per_second"] for one in later]))
    return _Trained("/".join(store.root.split("/")[-2:]), device, chip, bert, devices * seconds)


def _is_plain(train: dict[str, Any]) -> bool:
    """Whether a step is a forward and a backward pass of the whole encoder, and no more."""
    return (
        train.get("freeze", "none") == "none"
        and train.get("adapter", "none") == "none"
        and not train.get("activation_checkpointing")
        and not any(train.get(f"elastic_{part}") for part in ("layers", "heads", "intermediate"))
    )
