"""C1/serving and C3/order: core-seconds of the served graph, as the product predicts them.

One application serves the large package alone, the small one alone, and both as a cascade
(`shop`). A load is Poisson requests of /v1/rank; what it takes is the CPU time of every process of
the application, Ray's own included. Predicted is what `jobs.cost` computes with: models are timed
in a process of their own (`measure_served`), get the server's overhead (`to_speed`), and become a
route (`lone`, `cascade`):

    core-seconds = idle_share · cores · duration + requests · core-seconds of the route

The overhead is calibrated while nothing is asked, and by loads of the small model alone, at another
rate and other numbers of candidates than are held out. Models are timed next to the loads, in each
round.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import psutil

from benchmarks.cost_loads import TASK, Application, Loaded, Texts, texts_of, timer
from benchmarks.cost_training import device_second
from benchmarks.load import Generator
from benchmarks.table import Figure
from jobs.ask import served
from rectrain.cascade import Policy, read_policy
from rectrain.cost.overhead import Overhead
from rectrain.cost.routes import cascade, lone
from rectrain.cost.serving import Served, to_speed
from rectrain.cost.traffic import Traffic
from rectrain.package import open_package

__all__ = ["Round", "Scale", "calibrated", "figures", "measure_serving"]

_MIX = {TASK: 1.0}
_NAMES = ("small", "shop", "large")
_RATES, _CANDIDATES = (6.0, 9.0, 12.0), 10  # held out: requests a second, candidates of each
_KNOWN_RATE, _FEW, _MANY = 15.0, 6, 30  # of the calibration
_TRAFFIC = Traffic(mix=_MIX, candidates=_CANDIDATES)
_CORES = os.cpu_count() or 1
_MILLION = 1_000_000
_LEARN = 120  # requests after which the cascade holds its budget (rectrain.cascade.budget)


@dataclass(frozen=True)
class Scale:
    """requests: of a load; idle_s: without any; rounds."""

    requests: int
    idle_s: float
    rounds: int


@dataclass(frozen=True)
class Round:
    """Everything once.

    Attributes:
        idle: nothing is asked.
        known: candidates -> load of the calibration.
        loads: (model, rate) -> held-out load.
        calibration: the small model's calls with up to `_MANY` candidates.
        timed: "small", "large" -> calls with as many as are held out.
    """

    idle: Loaded
    known: Mapping[int, Loaded]
    loads: Mapping[tuple[str, float], Loaded]
    calibration: Served
    timed: Mapping[str, Served]


def measure_serving(large: Path, small: Path, *, scale: Scale, log: Path) -> list[Figure]:
    """Serves the packages and measures.

    Args:
        large, small: packages; the small one has a policy.
        scale: how long.
        log: takes what the server prints.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    packages = {"small": open_package(small), "large": open_package(large)}
    policy = read_policy(packages["small"], large=packages["large"])
    assert policy is not None, "the small package has no policy: jobs.calibrate"
    more = [
        f"--models.small.small={small.absolute()}", f"--models.large.small={large.absolute()}",
        "--cache.answers=0", "--cache.texts=0",
        # In a load of seconds they would come once or not at all.
        "--golden.period_s=86400",
    ]  # fmt: skip
    with ExitStack() as stack:
        generator = stack.enter_context(Generator())
        timers = {name: stack.enter_context(timer(package)) for name, package in packages.items()}
        others = frozenset(one.pid for one in psutil.Process().children(recursive=True))
        address = stack.enter_context(served(small=small, large=large, log=log, more=more))
        bench = _Bench(
            Application(address, generator, others=others), timers,
            texts_of(packages["small"], _CANDIDATES), scale,
        )  # fmt: skip
        bench.warm_up()
        rounds = [bench.round(number) for number in range(scale.rounds)]
    return figures(rounds, policy)


class _Bench:
    """Rounds of loads and timings."""

    def __init__(
        self,
        application: Application,
        timers: Mapping[str, Callable[[int, Texts], Served]],
        texts: Texts,
        scale: Scale,
    ) -> None:
        self._application, self._timers = application, timers
        self._texts, self._scale = texts, scale

    def warm_up(self) -> None:
        """First requests compile, and the cascade learns its traffic."""
        count = min(_LEARN, 3 * self._scale.requests)
        for name in _NAMES:
            number = count if name == "shop" else self._scale.requests
            self._load(name, _KNOWN_RATE, _CANDIDATES, requests=number, seed=0)

    def round(self, number: int) -> Round:
        """Everything once; every other round backwards."""
        timed = {
            name: time_now(_CANDIDATES, self._texts) for name, time_now in self._timers.items()
        }
        calibration = self._timers["small"](_MANY, self._texts)
        idle = self._application.idle(self._scale.idle_s)
        seed = 1 + number
        known = {
            size: self._load("small", _KNOWN_RATE, size, requests=self._scale.requests, seed=seed)
            for size in (_FEW, _MANY)
        }
        held_out = [(name, rate) for rate in _RATES for name in _NAMES]
        loads = {
            (name, rate): self._load(
                name, rate, _CANDIDATES, requests=self._scale.requests, seed=seed
            )
            for name, rate in (held_out if number % 2 == 0 else reversed(held_out))
        }
        return Round(idle, known, loads, calibration, timed)

    def _load(self, name: str, rate: float, candidates: int, *, requests: int, seed: int) -> Loaded:
        load = self._application.load(name, rate, candidates, requests=requests, seed=seed)
        print(
            f"{name} at {rate:g}/s of {candidates}: {1000 * load.cpu_s / load.requests:.1f} ms of"
            f" cores a request, {load.cpu_s / load.duration_s:.2f} cores busy,"
            f" {load.deferred / load.requests:.0%} deferred",
            flush=True,
        )
        return load


# --- what is predicted ---------------------------------------------------------------------------


def calibrated(one: Round, *, cores: int = _CORES) -> Overhead:
    """The server's overhead: what loads took beyond the small model's own calls.

    Args:
        one: a round.
        cores: of the machine.
    """
    idle = one.idle.cpu_s / one.idle.duration_s
    fixed, each = one.calibration.tasks[TASK]
    slow = float(np.mean(one.calibration.ratios))
    beyond = {}
    for size, load in one.known.items():
        request_s = (load.cpu_s - idle * load.duration_s) / load.requests
        beyond[size] = max(request_s - slow * (fixed + size * each), 0.0)
    few, many = sorted(beyond)
    slope = min(max((beyond[many] - beyond[few]) / (many - few), 0.0), beyond[many] / many)
    return Overhead(
        request_ms=1000 * (beyond[many] - slope * many), candidate_ms=1000 * slope,
        idle_share=idle / cores,
    )  # fmt: skip


def _middle(found: Sequence[Overhead]) -> Overhead:
    names = Overhead.model_fields
    return Overhead(**{name: median(getattr(one, name) for one in found) for name in names})


def _per_request(one: Round, policy: Policy, overhead: Overhead) -> dict[str, float]:
    """Model -> core-seconds of a request, by the product."""
    speeds = {
        name: to_speed(timed, name, _MIX, candidates=_CANDIDATES, overhead=overhead)
        for name, timed in one.timed.items()
    }
    return {
        "small": lone(speeds["small"], _TRAFFIC).busy_s,
        "large": lone(speeds["large"], _TRAFFIC).busy_s,
        "shop": cascade(speeds["small"], speeds["large"], policy, _TRAFFIC).busy_s,
    }


def figures(rounds: Sequence[Round], policy: Policy, *, cores: int = _CORES) -> list[Figure]:
    """Of all rounds.

    Args:
        rounds: at least one.
        policy: of the cascade.
        cores: of the machine.
    """
    overheads = [calibrated(one, cores=cores) for one in rounds]
    overhead = _middle(overheads)
    each = [_per_request(one, policy, overhead) for one in rounds]
    found = [
        Figure.of_rounds(
            f"C1/serving/overhead/{name}", [float(getattr(one, name)) for one in overheads],
            unit=unit, peer=f"the default of jobs.cost ({getattr(Overhead(), name):g})",
        )
        for name, unit in (
            ("request_ms", f"ms of a core a request, small at {_KNOWN_RATE:g}/s"),
            ("candidate_ms", f"ms of a core a candidate, of {_FEW} and {_MANY}"),
            ("idle_share", f"of each of {cores} cores, nothing is asked"),
        )
    ]  # fmt: skip
    for name in _NAMES:
        for rate in _RATES:
            found += _held_out(rounds, each, name, rate, idle=overhead.idle_share * cores)
    return [*found, _order(rounds, each, idle=overhead.idle_share * cores)]


def _held_out(
    rounds: Sequence[Round],
    each: Sequence[Mapping[str, float]],
    name: str,
    rate: float,
    *,
    idle: float,
) -> list[Figure]:
    """Predicted over measured core-seconds, and money, of a load."""
    loads = [one.loads[name, rate] for one in rounds]
    predicted = [
        idle * load.duration_s + load.requests * known[name]
        for load, known in zip(loads, each, strict=True)
    ]
    second, currency = device_second()
    shape = f"{name} at {rate:g} requests/s of {_CANDIDATES} candidates"
    price = _MILLION * second
    paid = median(price * load.cpu_s / load.requests for load in loads)
    return [
        Figure.of_rounds(
            f"C1/serving/{name}/{rate:g}",
            [ours / load.cpu_s for ours, load in zip(predicted, loads, strict=True)],
            unit=f"x device-seconds of {shape}",
            peer=f"measured ({median(load.cpu_s for load in loads):.2f} s)",
        ),
        Figure.of_rounds(
            f"C1/serving/{name}/{rate:g}/money",
            [price * ours / load.requests for ours, load in zip(predicted, loads, strict=True)],
            unit=f"{currency} predicted per 1,000,000, {shape}", peer=f"measured ({paid:.3f})",
        ),
    ]  # fmt: skip


def _mean(loads: Sequence[Loaded]) -> float:
    """Core-seconds of a request."""
    return sum(load.cpu_s for load in loads) / sum(load.requests for load in loads)


def _order(rounds: Sequence[Round], each: Sequence[Mapping[str, float]], *, idle: float) -> Figure:
    """The share of rates at which the predicted order of cost is the measured one."""
    same, said = 0, []
    for rate in _RATES:
        predicted = {
            name: idle / rate + float(np.mean([known[name] for known in each])) for name in _NAMES
        }
        # All requests of all rounds: the cascade takes little more than the small model.
        measured = {name: _mean([one.loads[name, rate] for one in rounds]) for name in _NAMES}
        orders = [sorted(_NAMES, key=by.__getitem__) for by in (predicted, measured)]
        same += orders[0] == orders[1]
        costs = ", ".join(
            f"{name} {1000 * measured[name]:.0f} ({1000 * predicted[name]:.0f})" for name in _NAMES
        )
        said.append(f"{rate:g}/s: {costs}")
    share = same / len(_RATES)
    return Figure(
        "C3/order", share, "of the rates have the predicted order (shop: the cascade)",
        "measured (predicted) ms of cores a request, " + "; ".join(said), share, share, len(_RATES),
    )  # fmt: skip
