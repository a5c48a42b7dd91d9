"""What a package takes to answer here: seconds of a core by task, and latency by load.

Requests are made up of the model's own vocabulary, with as many words and candidates as are asked
for, and go through the whole of `PackagedModel.predict` or `recommend`: checks, tokens, encoder,
heads. Texts differ, so no cache helps. One thread, and seconds are the process's CPU time: what
other work on the machine takes away in the meantime is not this model's cost.

    seconds of a request = fixed_s + candidates · candidate_s      (a line through two sizes)

What the served graph takes besides, HTTP and Ray, is added to each model in `to_speed`, and there
alone (`rectrain.cost.overhead`); so the way to a second model counts as a request over HTTP does.

Latency comes of a queue that is simulated as the server keeps it: Poisson arrivals; whenever the
model is free it takes what waits, in order, up to a batch of `_BATCH_S`; all of a batch are
answered at its end. A request's seconds are the line's, times the ratio of a measured call, drawn
at random, and the overhead, as if the same process spent all of it. Of a core that Ray's own
processes keep busy for the share i of the time a model has the rest: it is busy for at most 1 - i
of the time, and its p99 is 1 / (1 - i) times as long. Left out: the network, what requests scored
in one call save.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from rectrain.cost.overhead import Overhead
from rectrain.cost.routes import Speed, TaskSpeed
from rectrain.inference.golden import made_up_rows
from rectrain.inference.packaged import PackagedModel

__all__ = ["SPREAD", "Served", "latency_curve", "measure_served", "to_speed"]

Floats = NDArray[np.float64]

_SHARE = 5  # the smaller of two sizes is this part of the candidates
_CALLS, _SECONDS = 64, 2.5  # of each task and size, on average: so many, or what goes into this
_FEWEST = 5
_WARM_UP = 2
_K = 10  # items recommended
#: Standard deviation of texts' tokens over their mean: Online Retail's products 0.20, Upworthy's
#: headlines 0.22 (docs/data.md names both).
SPREAD = 0.2
_MARKS = 2  # [CLS] and [SEP]
_BATCH_S = 0.1  # as serve's batching.max_ms
_ARRIVALS = 6000
_NO_OVERHEAD = Overhead(request_ms=0, candidate_ms=0, idle_share=0)
_BUSY = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9)


@dataclass(frozen=True)
class Served:
    """What was measured of a package on this machine.

    Attributes:
        version, backend: of the package, and what ran its encoder.
        tasks: task -> (fixed_s, candidate_s).
        ratios: of single calls to the line, all tasks together.
        memory_bytes: of the process that held this model, at its end.
        candidates, tokens: of the requests.
    """

    version: str
    backend: str
    tasks: Mapping[str, tuple[float, float]]
    ratios: tuple[float, ...]
    memory_bytes: int
    candidates: int
    tokens: int

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Served:
        """Of `vars`, as JSON gives it back."""
        tasks = {task: (float(a), float(b)) for task, (a, b) in stored["tasks"].items()}
        return cls(**{**stored, "tasks": tasks, "ratios": tuple(stored["ratios"])})


def measure_served(
    model: PackagedModel,
    *,
    candidates: int,
    tokens: int,
    spread: float = SPREAD,
    tasks: Sequence[str] = (),
    seed: int = 0,
    clock: Callable[[], float] = time.process_time,
) -> Served:
    """Times requests.

    Args:
        model: opened with one thread, and no cache of texts.
        candidates: of a request.
        tokens: of a text on average, [CLS] and [SEP] included.
        spread: standard deviation of a text's tokens, as a share of that: texts of one length are
            scored faster than those of many.
        tasks: of the model; none: all.
        seed: of the texts.
        clock: seconds of the process.
    """
    texts = _Texts(tokens, spread, np.random.default_rng(seed))
    tasks = tasks or model.tasks
    asked = [
        (task, size)
        for task in tasks
        for size in _sizes(candidates, catalogue=model.predictor.spec(task).has_catalogue)
    ]
    seconds = _time(model, asked, texts, clock)
    middle = {kind: float(np.median(taken)) for kind, taken in seconds.items()}
    return Served(
        version=model.version,
        backend=model.engine.encoder.name,
        tasks={
            task: _line({size: each for (one, size), each in middle.items() if one == task})
            for task in tasks
        },
        ratios=tuple(each / middle[kind] for kind, taken in seconds.items() for each in taken),
        memory_bytes=psutil.Process().memory_info().rss,
        candidates=candidates,
        tokens=tokens,
    )


@dataclass(frozen=True)
class _Texts:
    """Lengths of made-up texts: log-normal, with this mean and relative standard deviation."""

    tokens: int
    spread: float
    random: np.random.Generator

    def words(self, count: int) -> list[int]:
        """Of so many texts; each word is a token."""
        deviation = math.sqrt(math.log1p(self.spread**2))
        center = math.log(self.tokens) - deviation**2 / 2
        tokens = np.rint(self.random.lognormal(center, deviation, count))
        return [max(1, int(length) - _MARKS) for length in tokens]


def _sizes(candidates: int, *, catalogue: bool) -> list[int]:
    """Candidates of the requests that are timed: two sizes, or of a catalogue one request."""
    return [1] if catalogue else sorted({max(1, candidates // _SHARE), candidates})


def _line(middle: Mapping[int, float]) -> tuple[float, float]:
    """(fixed_s, candidate_s) through the two sizes, neither below 0; of one size, all is fixed."""
    if len(middle) == 1:
        return next(iter(middle.values())), 0.0
    (few, less), (many, more) = sorted(middle.items())
    slope = min(max((more - less) / (many - few), 0.0), more / many)
    return more - slope * many, slope


def _time(
    model: PackagedModel,
    asked: Sequence[tuple[str, int]],
    texts: _Texts,
    clock: Callable[[], float],
) -> dict[tuple[str, int], list[float]]:
    """Seconds of each call, by task and size; the first ones left out.

    One of each in turn, so that a slow moment of the machine falls on all alike.
    """
    seconds: dict[tuple[str, int], list[float]] = {kind: [] for kind in asked}
    rounds, spent = 0, 0.0
    while rounds < _WARM_UP + _FEWEST or (
        rounds < _WARM_UP + _CALLS and spent < _SECONDS * len(asked)
    ):
        for kind in asked:
            call = _request(model, *kind, texts)
            begun = clock()
            call()
            seconds[kind].append(clock() - begun)
            spent += seconds[kind][-1]
        rounds += 1
    return {kind: taken[_WARM_UP:] for kind, taken in seconds.items()}


def _request(model: PackagedModel, task: str, size: int, texts: _Texts) -> Callable[[], object]:
    rows = made_up_rows(model, task, texts.words(size), random=texts.random)
    spec = model.predictor.spec(task)
    if spec.has_catalogue:
        return partial(model.recommend, rows, k=_K, task=task)
    beside = {*spec.query, *(f.name for f in model.fields(task).fields if f.kind == "group")}
    shared = {name: value for name, value in rows[0].items() if name in beside}
    return partial(model.predict, task, [{**row, **shared} for row in rows])


def latency_curve(
    served: Served,
    mix: Mapping[str, float],
    *,
    candidates: int,
    overhead: Overhead = _NO_OVERHEAD,
    seed: int = 0,
) -> tuple[tuple[float, float], ...]:
    """(share of the time that the process is busy, p99 in ms), from nearly idle to nearly full.

    Args:
        served: what was measured.
        mix: task -> share of the requests.
        candidates: of a request.
        overhead: of the server.
        seed: of arrivals, tasks and ratios: the same for all loads.
    """
    random = np.random.default_rng(seed)
    tasks = list(mix)
    seconds = np.array([served.tasks[t][0] + candidates * served.tasks[t][1] for t in tasks])
    drawn = random.choice(len(tasks), _ARRIVALS, p=np.array([mix[task] for task in tasks]))
    work = seconds[drawn] * random.choice(np.array(served.ratios), _ARRIVALS)
    work += overhead.seconds(candidates)
    gaps = random.exponential(1.0, _ARRIVALS)
    mean = float(work.mean())
    # Of the same draws more load never is less latency, but for the luck of a batch's end.
    p99 = [_p99(np.cumsum(gaps) * mean / busy, work) for busy in _BUSY]
    left = 1 - overhead.idle_share
    risen = np.maximum.accumulate(p99)
    return tuple(zip((left * np.array(_BUSY)).tolist(), (risen / left).tolist(), strict=True))


def _p99(arrivals: Floats, work: Floats) -> float:
    """In ms, of requests that arrive so and take so long."""
    return float(1000 * np.quantile(_latencies(arrivals, work), 0.99))


def _latencies(arrivals: Floats, work: Floats) -> Floats:
    """In seconds, of each of them."""
    latency = np.empty(len(work))
    free, first = 0.0, 0
    times, seconds = arrivals.tolist(), work.tolist()
    while first < len(seconds):
        start = max(free, times[first])
        end, last = start + seconds[first], first + 1
        while (
            last < len(seconds) and times[last] <= start
            and end + seconds[last] - start <= _BATCH_S
        ):  # fmt: skip
            end, last = end + seconds[last], last + 1
        latency[first:last] = end - arrivals[first:last]
        free, first = end, last
    return latency


def to_speed(
    served: Served,
    name: str,
    mix: Mapping[str, float],
    *,
    candidates: int,
    overhead: Overhead | None = None,
) -> Speed:
    """What routes are made of: the model as it is served.

    Args:
        served: what was measured.
        name: of the model in routes.
        mix: task -> share of the requests.
        candidates: of a request.
        overhead: of the server; None: what was measured of ours.
    """
    overhead = overhead or Overhead()
    # By the mean, not the median call: that is what adds up to a core's time.
    slow = float(np.mean(served.ratios))
    fixed_s, candidate_s = overhead.request_ms / 1000, overhead.candidate_ms / 1000
    tasks = {
        task: TaskSpeed(fixed * slow + fixed_s, each * slow + candidate_s)
        for task, (fixed, each) in served.tasks.items()
    }
    curve = latency_curve(served, mix, candidates=candidates, overhead=overhead)
    return Speed(name, tasks, curve, float(served.memory_bytes))
