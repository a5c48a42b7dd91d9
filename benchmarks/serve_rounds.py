"""Rounds of the serving benchmark: every server in turn, each on the same core."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.load import Generator, Load, Outcome, Request, Summary, summarise
from benchmarks.serve_goodput import BOUND_S, find_goodput
from benchmarks.serve_models import INT8, Models
from benchmarks.serve_requests import PATH, Workload
from benchmarks.serve_scorer import TASK
from benchmarks.serve_servers import FLAGS, PEERS, Cluster, Loop, bentoml, litserve
from benchmarks.table import Figure, paired_ratio
from benchmarks.venv import make_venv
from serve.config import Settings

__all__ = ["Bench", "measure_batching", "measure_servers"]

_CONNECTIONS = 16
_TOGETHER = (1, 2, 4, 8)  # requests in one call of the loop; the best of them counts
_PORTS_APART = 10
# What a client says that waits 100 ms: five of them are for the way there and back.
_IMPATIENT = {"X-Deadline-Ms": "95"}
_PATIENT = {"X-Deadline-Ms": "30000"}
# What a peer may gather, in closed and in open loop, of which the best is taken: requests at most,
# and seconds. LitServe waits so long for them; BentoML, which waits by its own measure, refuses
# what would take longer.
_WAITING = ((4, 0.002), (8, 0.002), (16, 0.002), (8, 0.01), (16, 0.01))
_GATHERED = {
    "litserve": {"closed": _WAITING, "open": _WAITING},
    "bentoml": {
        "closed": ((4, 30.0), (8, 30.0), (16, 30.0)),
        "open": ((4, BOUND_S), (8, BOUND_S), (16, BOUND_S)),
    },
}
_TOLERANCE = 1e-4
_LATE_MS = 5.0  # of the generator itself, from which on a latency isn't the server's alone

Batches = Mapping[str, tuple[int, float]]
Samples = dict[str, list["_Sample"]]
Turn = Callable[[], dict[str, "_Sample"]]


@dataclass(frozen=True)
class _Sample:
    """One measurement.

    Attributes:
        rate: a second.
        summary: of the outcomes that it comes of, where there are any.
        every: of an open loop, the rate at which 99 of 100 of all requests are answered in time.
    """

    rate: float
    summary: Summary | None = None
    every: float | None = None


@dataclass(frozen=True)
class Bench:
    """What all measurements share.

    Attributes:
        models: that are served.
        generator: sends loads, on its own core.
        core: of the servers.
        port: HTTP; so are the next two, for HAProxy.
        folder: of logs and the peers' environments.
        rounds: of each comparison.
        seconds: of each load.
        halvings: of each search for the goodput.
        fixed, ragged: requests of 50 candidates of 24 tokens, and of 10 ragged ones.
    """

    models: Models
    generator: Generator
    core: int
    port: int
    folder: Path
    rounds: int
    seconds: float
    halvings: int
    fixed: Workload = field(repr=False)
    ragged: Workload = field(repr=False)

    def log(self, name: str) -> Path:
        """What a server prints."""
        return self.folder / f"{name}.log"

    @cached_property
    def expected(self) -> Mapping[str, list[float]]:
        """Model -> its scores of the first fixed request, without any server."""
        return {
            name: self.models.open(name).predict(TASK, self.fixed.rows[0]).tolist()
            for name in ("small", "large")
        }

    @cached_property
    def capacity(self) -> float:
        """Ragged requests a second that the small model alone can do in a loop."""
        with self.loop("small") as loop:
            return max(
                loop.measure(self.ragged, together=n, seconds=self.seconds / 2) for n in _TOGETHER
            )

    def loop(self, model: str) -> Loop:
        """A model in a loop."""
        path = str(getattr(self.models, model))
        return Loop(path, backend=INT8, core=self.core, log=self.log("loop"))

    def cluster(self, flags: str, *, is_peer: bool = False) -> Cluster:
        """Ray Serve, for ours with the layer in its proxies that ours has."""
        ours = Settings.model_validate(self.settings("small")).controller_options()
        return Cluster(
            port=self.port,
            flags=flags,
            controller_options={} if is_peer else ours,
            core=self.core,
            log=self.log(f"serve-{flags}"),
        )

    def settings(self, model: str) -> dict[str, Any]:
        """Settings of the graph with one model alone, and nothing kept of earlier requests."""
        return {
            "models": {"shop": {"small": str(getattr(self.models, model)), "small_backend": INT8}},
            "cache": {"answers": 0, "texts": 0},
            "http": {"port": self.port},
        }

    def closed(self, url: str, requests: Sequence[Request], *, seconds: float = 0) -> Summary:
        """A closed loop, warmed up; every request must succeed."""
        load = Load(url, connections=_CONNECTIONS, duration_s=seconds or self.seconds)
        self.generator.run(replace(load, duration_s=load.duration_s / 4), requests)
        outcomes = self.generator.run(load, requests)
        _all_ok(outcomes)
        return summarise(outcomes)

    def open(self, url: str, requests: Sequence[Request]) -> _Sample:
        """The goodput of ragged requests, and how it was at the best rate."""
        load = Load(url, rate=1.0, duration_s=self.seconds)
        found = find_goodput(
            self.generator, load, requests, capacity=self.capacity, halvings=self.halvings
        )
        return _Sample(found.answered, found.best.summary, every=found.every)

    def check(self, url: str, request: Request, model: str) -> None:
        """Refuses a server whose scores are not the model's."""
        (one,) = self.generator.run(
            Load(url, connections=1, num_requests=1, keep_answers=1), [request]
        )
        _all_ok([one])
        assert one.answer is not None
        found = _scores(json.loads(one.answer))
        if not np.allclose(found, self.expected[model], atol=_TOLERANCE):
            raise RuntimeError(f"{url} gives other scores than the model")


def _all_ok(outcomes: Sequence[Outcome]) -> None:
    bad = [one for one in outcomes if not one.is_ok]
    if bad:
        raise RuntimeError(f"{len(bad)} of {len(outcomes)} requests failed, such as {bad[0]}")


def _scores(answer: Any) -> list[float]:
    """Scores in the order of the candidates, from any server's answer."""
    if isinstance(answer, list):  # BentoML: one of a batch
        return list(answer[0])
    if "scores" in answer:
        return list(answer["scores"])
    return [item["score"] for item in sorted(answer["items"], key=lambda item: item["index"])]


# --- S2, S3, S5 --------------------------------------------------------------------------------


def measure_servers(bench: Bench, parts: Collection[str]) -> list[Figure]:
    """S2, S3 and S5, as far as they are among the parts."""
    turns: dict[str, Turn] = {
        flags: partial(_serve, bench, flags, parts)
        for flags in FLAGS
        if flags == "fast" or {"S2", "S3"} & set(parts)
    }
    if "S2" in parts:
        turns["loop"] = partial(_loops, bench)
    gathered: dict[str, Batches] = {}
    if "S5" in parts:
        for name, requirement in PEERS.items():
            python = make_venv(bench.folder / name, [requirement])
            gathered[name] = _best_batches(bench, name, python)
            turns[name] = partial(_peer, bench, name, python, gathered[name])
    samples = _in_turn(turns, rounds=bench.rounds)
    figures = []
    if "S2" in parts:
        figures += _served(samples)
    if "S3" in parts:
        figures += [
            _compare("S3" if flags == "default" else f"S3/{flags}", samples,
                     f"{flags}/noop", f"{flags}/bare", "requests/s", "bare deployment")
            for flags in FLAGS
        ]  # fmt: skip
    if "S5" in parts:
        for name, best in gathered.items():
            closed = "requests/s, closed loop, 50 candidates"
            goodput = f"answers/s in {1000 * BOUND_S:g} ms, open loop, ragged"
            peer = {
                loop: f"{name}, {size} in {wait_s:g} s" for loop, (size, wait_s) in best.items()
            }
            figures += [
                _compare(f"S5/{name}", samples, "fast/small", name, closed, peer["closed"]),
                _compare(
                    f"S5/{name}/open", samples, "fast/open", f"{name}/open", goodput, peer["open"]
                ),
            ]
    return figures


def _in_turn(turns: Mapping[str, Turn], *, rounds: int) -> Samples:
    samples: Samples = {}
    for number in range(rounds):
        for name in list(turns) if number % 2 == 0 else list(turns)[::-1]:
            for key, sample in turns[name]().items():
                samples.setdefault(key, []).append(sample)
                print(f"{number + 1}/{rounds} {key}: {sample.rate:,.1f}", flush=True)
    return samples


def _serve(bench: Bench, flags: str, parts: Collection[str]) -> dict[str, _Sample]:
    """Our graph, and after it a bare deployment."""
    found = {}
    fixed = [replace(one, headers=_PATIENT) for one in bench.fixed.requests]
    with bench.cluster(flags) as cluster:
        ours = cluster.deploy("ours", settings=bench.settings("small"))
        bench.check(ours, fixed[0], "small")
        found[f"{flags}/small"] = _sample(bench.closed(ours, fixed))
        if "S3" in parts:
            found[f"{flags}/noop"] = _sample(bench.closed(*_split(ours, "/healthz")))
        if "S5" in parts and flags == "fast":
            hurried = [replace(one, headers=_IMPATIENT) for one in bench.ragged.requests]
            found[f"{flags}/open"] = bench.open(ours, hurried)
        if "S2" in parts:
            url, requests = _split(
                cluster.deploy("large", settings=bench.settings("large")), *fixed
            )
            bench.check(url, requests[0], "large")
            seconds = 2 * bench.seconds  # some ten requests a second
            found[f"{flags}/large"] = _sample(bench.closed(url, requests, seconds=seconds))
    if "S3" in parts:
        with bench.cluster(flags, is_peer=True) as cluster:
            url = cluster.deploy("bare")
            found[f"{flags}/bare"] = _sample(bench.closed(*_split(url, "/healthz")))
    return found


def _split(url: str, *requests: Request | str) -> tuple[str, list[Request]]:
    """An address below a host as the host and requests below the address."""
    host, _, prefix = url.removeprefix("http://").partition("/")
    below = f"/{prefix}" if prefix else ""
    asked = [Request(one) if isinstance(one, str) else one for one in requests]
    return f"http://{host}", [replace(one, path=below + one.path) for one in asked]


def _sample(summary: Summary) -> _Sample:
    return _Sample(summary.ok_per_s, summary)


def _loops(bench: Bench) -> dict[str, _Sample]:
    found = {}
    for model in ("small", "large"):
        with bench.loop(model) as loop:
            rates = [
                loop.measure(bench.fixed, together=n, seconds=bench.seconds / 2) for n in _TOGETHER
            ]
            found[f"loop/{model}"] = _Sample(max(rates))
    return found


def _best_batches(bench: Bench, name: str, python: Path) -> Batches:
    """Of closed and of open loop, what a peer had best gather; each tried once."""
    best = {}
    for loop, tried in _GATHERED[name].items():
        rates = {}
        for batch in tried:
            found = _peer(bench, name, python, {loop: batch})
            (rates[batch],) = (sample.rate for sample in found.values())
            print(f"{name} {loop}, {batch[0]} in {batch[1]:g} s: {rates[batch]:,.1f}", flush=True)
        best[loop] = max(rates, key=lambda batch: rates[batch])
    return best


def _peer(bench: Bench, name: str, python: Path, batches: Batches) -> dict[str, _Sample]:
    """A peer, started anew for the open loop where its best settings for that are others.

    Args:
        batches: of "closed", "open" or both: what it gathers.
    """
    start = {"litserve": litserve, "bentoml": bentoml}[name]
    fixed, ragged = (
        [_wrapped(one) if name == "bentoml" else one for one in workload.requests]
        for workload in (bench.fixed, bench.ragged)
    )
    found = {}
    for size, wait_s in dict.fromkeys(batches.values()):
        given = {
            "model": str(bench.models.small), "backend": INT8, "size": size, "wait_s": wait_s,
            "port": bench.port + _PORTS_APART,
        }  # fmt: skip
        with start(python, given, core=bench.core, log=bench.log(name)) as server:
            bench.check(server.url, fixed[0], "small")
            if batches.get("closed") == (size, wait_s):
                found[name] = _sample(bench.closed(server.url, fixed))
            if batches.get("open") == (size, wait_s):
                found[f"{name}/open"] = bench.open(server.url, ragged)
    return found


def _wrapped(request: Request) -> Request:
    """BentoML names its argument, and batches lists."""
    assert request.body is not None
    return Request(PATH, b'{"bodies": [' + request.body + b"]}")


def _served(samples: Samples) -> list[Figure]:
    """S2: served over what the loop does, in requests, which have equal tokens."""
    return [
        _compare(
            f"S2/{model}" + ("" if flags == "default" else f"/{flags}"), samples,
            f"{flags}/{model}", f"loop/{model}", "requests of 50 × 24 tokens a second",
            "the model in a loop on the same core",
        )
        for model in ("small", "large")
        for flags in FLAGS
    ]  # fmt: skip


# --- S4 ----------------------------------------------------------------------------------------


def measure_batching(bench: Bench, grid: Sequence[tuple[int, float]]) -> list[Figure]:
    """S4: goodput beside the best of a grid of @serve.batch sizes and waits."""
    with bench.cluster("default", is_peer=True) as cluster:
        tried = {}
        for batch in grid:
            tried[batch] = _batched(bench, cluster, batch).rate
            print(
                f"@serve.batch {batch[0]}, {1000 * batch[1]:g} ms: {tried[batch]:,.1f}", flush=True
            )
    best = max(tried, key=lambda batch: tried[batch])

    def batched() -> dict[str, _Sample]:
        with bench.cluster("default", is_peer=True) as cluster:
            return {"batched": _batched(bench, cluster, best)}

    def ours() -> dict[str, _Sample]:
        hurried = [replace(one, headers=_IMPATIENT) for one in bench.ragged.requests]
        with bench.cluster("default") as cluster:
            return {
                "ours": bench.open(
                    cluster.deploy("ours", settings=bench.settings("small")), hurried
                )
            }

    samples = _in_turn({"ours": ours, "batched": batched}, rounds=bench.rounds)
    peer = f"best of {len(grid)} @serve.batch: {best[0]} requests, {1000 * best[1]:g} ms"
    unit = f"answers/s in {1000 * BOUND_S:g} ms"
    return [_compare("S4", samples, "ours", "batched", unit, peer)]


def _batched(bench: Bench, cluster: Cluster, batch: tuple[int, float]) -> _Sample:
    """The peer's goodput."""
    model, (size, wait_s) = str(bench.models.small), batch
    address = cluster.deploy("batched", model=model, backend=INT8, size=size, wait_s=wait_s)
    url, requests = _split(address, *bench.ragged.requests)
    check = _split(address, bench.fixed.requests[0])[1][0]
    bench.check(url, check, "small")
    return bench.open(url, requests)


# --- figures -----------------------------------------------------------------------------------


def _compare(
    title: str, samples: Samples, ours: str, peer: str, unit: str, peer_name: str
) -> Figure:
    """Ours over the peer's, round by round. Beside a peer that answered nothing in time in some
    round there is no ratio, and the figure is ours alone."""
    rates, theirs = ([one.rate for one in samples[key]] for key in (ours, peer))
    if min(theirs) > 0:
        found = paired_ratio(title, ours=rates, peer=theirs, unit=unit, peer_name=peer_name)
    else:
        found = Figure.of_rounds(
            title,
            rates,
            unit=f"{unit}, no ratio",
            peer=f"{peer_name} ({median(theirs):,.1f}; none in time in {theirs.count(0)} rounds)",
        )
    return replace(
        found, unit=found.unit + _latency(samples[ours]), peer=found.peer + _latency(samples[peer])
    )


def _latency(samples: Sequence[_Sample]) -> str:
    """p50 and p99 as medians of the rounds, and the longest of all; in an open loop also the rate
    at which nothing is refused either."""
    known = [one.summary for one in samples if one.summary is not None]
    if not known:
        return ""
    kept = [one.every for one in samples if one.every is not None]
    p50, p99 = (
        median(getattr(one, name) for one in known) for name in ("p50_ms", "p99_ms")
    )  # fmt: skip
    longest = max(one.max_ms for one in known)
    every = f"; every request in time at {median(kept):,.1f}/s" if kept else ""
    late_ms = max(one.late_ms for one in known) if kept else 0.0
    late = f"; SENT UP TO {late_ms:,.0f} ms LATE" if late_ms > _LATE_MS else ""
    return f"; p50 {p50:,.0f}, p99 {p99:,.0f}, max {longest:,.0f} ms{every}{late}"
