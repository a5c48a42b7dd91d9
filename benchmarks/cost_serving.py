"""C1/serving and C3/order: seconds of all serving processes' cores over HTTP, fitted, predicted.

One application serves the large package alone, the small one alone, and both as a cascade. A load
is Poisson requests of /v1/rank with so many candidates; what it takes is the CPU time of every
process of the application, Ray's own included, over the load.

    seconds = a · duration + requests · (b + c · candidates)

is fitted for each model by non-negative least squares on relative residuals to two rates and two
numbers of candidates; the held-out load has another rate and another number. A cascade's request is
predicted as the small model's and, in the share of its policy, the large one's of the head.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import psutil

from benchmarks.cost_training import relative_fit
from benchmarks.load import Generator, Load, Request, summarise
from benchmarks.table import Figure
from jobs.ask import served
from rectrain.cascade import read_policy
from rectrain.cost.prices import load_prices
from rectrain.data.simulate import SIZES
from rectrain.data.simulate.catalogue import make_catalogue
from rectrain.package import open_package

__all__ = ["Scale", "measure_serving"]

_PATH, _TASK = "/v1/rank", "search_ranking"
_FEW, _MANY, _BETWEEN = 5, 40, 20  # candidates: fitted, fitted, held out
_SLOW, _FAST, _OTHER = 1.0, 3.0, 2.0  # requests a second
_RATES = (1.0, 2.0, 3.0)  # of the order
_REQUESTS = 400  # different ones


@dataclass(frozen=True)
class Scale:
    """seconds: of a load; rounds."""

    seconds: float
    rounds: int


@dataclass(frozen=True)
class _Loaded:
    """What a load took: cpu_s of all processes, duration_s, requests that were answered."""

    cpu_s: float
    duration_s: float
    requests: int
    candidates: int

    @property
    def terms(self) -> list[float]:
        return [self.duration_s, float(self.requests), float(self.requests * self.candidates)]


def measure_serving(large: Path, small: Path, *, scale: Scale, log: Path) -> list[Figure]:
    """Serves the packages and measures.

    Args:
        large, small: packages; the small one has a policy.
        scale: how long.
        log: takes what the server prints.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    more = [
        f"--models.small.small={small.absolute()}", f"--models.large.small={large.absolute()}",
        "--cache.answers=0", "--cache.texts=0",
    ]  # fmt: skip
    with served(small=small, large=large, log=log, more=more) as address, Generator() as generator:
        bench = _Bench(address, generator, scale)
        bench.load("small", _OTHER, _FEW)  # the first requests compile
        bench.load("large", _OTHER, _FEW)
        rounds = [bench.round() for _ in range(scale.rounds)]
    return [*_held_out(rounds), *_order(rounds, large=large, small=small)]


_Round = Mapping[tuple[str, float, int], _Loaded]


class _Bench:
    """Loads of one application."""

    def __init__(self, address: str, generator: Generator, scale: Scale) -> None:
        self._address, self._generator, self._scale = address, generator, scale
        self._number = 0

    def round(self) -> _Round:
        """Every load once."""
        fitted = [(rate, size) for rate in (_SLOW, _FAST) for size in (_FEW, _MANY)]
        wanted = [(name, *one) for name in ("small", "large") for one in fitted]
        wanted += [(name, rate, _BETWEEN) for rate in _RATES for name in ("small", "large", "shop")]
        return {one: self.load(*one) for one in wanted}

    def load(self, model: str, rate: float, candidates: int) -> _Loaded:
        """One of them."""
        self._number += 1
        requests = _requests(model, candidates, seed=self._number)
        load = Load(self._address, rate=rate, duration_s=self._scale.seconds, seed=self._number)
        begun, before = time.monotonic(), self._cpu_s()
        outcomes = self._generator.run(load, requests)
        cpu_s, duration_s = self._cpu_s() - before, time.monotonic() - begun
        answered = summarise(outcomes).num_ok
        assert answered == len(outcomes), f"{len(outcomes) - answered} requests failed"
        return _Loaded(cpu_s, duration_s, answered, candidates)

    def _cpu_s(self) -> float:
        """Of all processes below this one, the generator's left out."""
        total = 0.0
        for process in psutil.Process().children(recursive=True):
            try:
                if process.pid != self._generator.pid:
                    spent = process.cpu_times()
                    total += spent.user + spent.system
            except psutil.NoSuchProcess:
                continue
        return total


def _requests(model: str, candidates: int, *, seed: int) -> list[Request]:
    """Searches with products of the simulated catalogue; texts differ between requests."""
    draw = np.random.default_rng(seed)
    texts = np.array(make_catalogue(SIZES["demo"].num_items, seed=0).text.to_pylist())
    found = []
    for _ in range(_REQUESTS):
        chosen = draw.choice(texts, candidates, replace=False)
        query = " ".join(draw.choice(str(draw.choice(texts)).split(), 3))
        items = [{"item_id": str(n), "item_text": str(text)} for n, text in enumerate(chosen)]
        body = {"query": query, "candidates": items, "options": {"model": model}}
        found.append(Request(_PATH, json.dumps(body).encode()))
    return found


def _coefficients(one: _Round, model: str) -> np.ndarray:
    loads = [
        found
        for (name, _, size), found in one.items()
        if name == model and size in (_FEW, _MANY)
    ]  # fmt: skip
    return relative_fit(
        np.array([load.terms for load in loads]), np.array([load.cpu_s for load in loads])
    )


def _held_out(rounds: list[_Round]) -> list[Figure]:
    prices = load_prices()
    instance = next(one for one in prices.instances.values() if one.device == "cpu")
    second = float(instance.on_demand.value) / instance.num_devices / 3600
    figures = []
    for model in ("small", "large"):
        loads = [one[model, _OTHER, _BETWEEN] for one in rounds]
        predicted = [
            float(np.array(load.terms) @ _coefficients(one, model))
            for one, load in zip(rounds, loads, strict=True)
        ]
        measured = [load.cpu_s for load in loads]
        per_1000 = [
            1000 * p / load.requests * second for p, load in zip(predicted, loads, strict=True)
        ]
        paid = median(1000 * load.cpu_s / load.requests * second for load in loads)
        shape = f"{_OTHER:g} requests/s of {_BETWEEN} candidates, {model}"
        figures += [
            Figure.of_rounds(
                f"C1/serving/{model}", [p / m for p, m in zip(predicted, measured, strict=True)],
                unit=f"x device-seconds at {shape}", peer=f"measured ({median(measured):.2f} s)",
            ),
            Figure.of_rounds(
                f"C1/serving/{model}/money", per_1000,
                unit=f"{instance.on_demand.currency} predicted per 1,000, {shape}",
                peer=f"measured ({paid:.6f})",
            ),
        ]  # fmt: skip
    return figures


def _order(rounds: list[_Round], *, large: Path, small: Path) -> list[Figure]:
    """The share of rates at which the predicted order of cost is the measured one."""
    opened = open_package(small)
    policy = read_policy(opened, large=open_package(large))
    assert policy is not None, "the small package has no policy: jobs.calibrate"
    task = policy.tasks[_TASK]
    head = min(task.head or _BETWEEN, _BETWEEN)
    names, same, said = ("small", "shop", "large"), 0, []
    for rate in _RATES:
        predicted = dict.fromkeys(names, 0.0)
        for one in rounds:
            of = {name: _coefficients(one, name) for name in ("small", "large")}
            duration = one["small", rate, _BETWEEN].duration_s
            each = {name: of[name][1] + of[name][2] * _BETWEEN for name in of}
            deferred = of["large"][1] + of["large"][2] * head
            count = rate * duration
            predicted["small"] += of["small"][0] * duration + count * each["small"]
            predicted["large"] += of["large"][0] * duration + count * each["large"]
            predicted["shop"] += of["small"][0] * duration + count * (
                each["small"] + task.rate * deferred
            )
        measured = {
            name: median(
                one[name, rate, _BETWEEN].cpu_s / one[name, rate, _BETWEEN].requests
                for one in rounds
            )
            for name in names
        }
        orders = [sorted(names, key=lambda name, by=by: by[name]) for by in (predicted, measured)]
        same += orders[0] == orders[1]
        costs = ", ".join(f"{name} {1000 * measured[name]:.0f} ms" for name in names)
        said.append(f"{rate:g}/s: {costs}")
    share = same / len(_RATES)
    return [
        Figure(
            "C3/order", share, "of the rates have the predicted order (shop: the cascade)",
            "measured seconds of a core a request: " + "; ".join(said), share, share, len(_RATES),
        )
    ]  # fmt: skip
