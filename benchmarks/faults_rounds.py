"""What is done to a graph under load, and what must come of it: R1, R2 (on one node), R3."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, cycle, islice
from pathlib import Path
from statistics import median

import requests

from benchmarks.faults_graph import Graph, Watch, wait_for
from benchmarks.faults_oracle import Oracle, Verdict, judge, logged_outcomes
from benchmarks.faults_packages import Packages, broken
from benchmarks.load import Generator, Load, Outcome, summarise
from benchmarks.table import Figure
from rectrain.errors import RectrainError
from rectrain.package import open_package

__all__ = [
    "Bench",
    "Size",
    "controller_killed",
    "figure",
    "proxy_killed",
    "replicas_killed",
    "updates",
]

_INGRESS, _LARGE = "Ingress", "Large-shop"
_SETTLED_S = 60.0
_CALM_MS = 20_000.0
_PART_S = 3.0
_PROXY_S = 10.0  # the bound of R2
_LOG_S = 2.0  # until the last lines are written
_PROXY, _NOBODY = "ProxyActor", "ClientConnectorError"
_names = count()


@dataclass(frozen=True)
class Size:
    """How long and how hard.

    Attributes:
        num_requests: of R1.
        overload: its rate, as a multiple of the capacity.
        kill_s: seconds between its kills.
        measure_s: seconds for which the capacity is measured.
        connections: of the closed loop that measures it.
        deadline_ms: of a request of R1; the others have time.
        num_updates: of R3.
        num_broken: versions of R3.
        steady_s: seconds of load before and after each fault of R2.
    """

    num_requests: int = 50_000
    overload: float = 2.0
    kill_s: float = 30.0
    measure_s: float = 15.0
    connections: int = 16
    deadline_ms: float = 1_000.0
    num_updates: int = 20
    num_broken: int = 5
    steady_s: float = 5.0


@dataclass(frozen=True)
class Bench:
    """A graph, its load and its judge."""

    graph: Graph
    generator: Generator
    oracle: Oracle
    size: Size

    def load(self, **given: object) -> Load:
        """A load on the graph that keeps all answers, with ids of its own."""
        name = f"fault{next(_names)}"
        return Load(self.graph.url, keep_answers=1, prefix=name, **given)  # type: ignore[arg-type]

    def run(self, load: Load) -> list[Outcome]:
        """Its outcomes, with time enough that none need be refused."""
        return self.generator.run(load, self.oracle.requests(deadline_ms=_CALM_MS))

    @contextmanager
    def under(self, load: Load, *, deadline_ms: float = _CALM_MS) -> Iterator[list[Outcome]]:
        """Sends a load meanwhile; its outcomes are in the list at the end."""
        outcomes: list[Outcome] = []
        self.generator.start(load, self.oracle.requests(deadline_ms=deadline_ms))
        try:
            yield outcomes
        finally:
            outcomes += self.generator.finish()

    def judge(self, prefix: str, outcomes: Sequence[Outcome]) -> Verdict:
        """With the server's log; `prefix` is that of the ids."""
        time.sleep(_LOG_S)
        log = logged_outcomes(self.graph.logs, prefix=f"{prefix}-")
        return judge(self.oracle, outcomes, log)

    def capacity(self) -> float:
        """Answers a second that the graph gives when it is kept busy, but no busier: nothing is
        refused, for a client that asks again at once would cost what is measured."""
        size = self.size
        load = self.load(connections=size.connections, duration_s=size.measure_s)
        self.run(replace(load, duration_s=size.measure_s / 3))  # warm
        return summarise(self.run(load)).ok_per_s


def replicas_killed(bench: Bench, *, capacity: dict[int, float]) -> list[Figure]:
    """R1: overload, and a replica killed again and again, of the two deployments by turns.

    Args:
        bench: its graph has as many ingress replicas as `capacity` has entries.
        capacity: ingress replicas -> good answers a second.
    """
    size, most = bench.size, max(capacity)
    rate = size.overload * capacity[most]
    duration_s = size.num_requests / rate
    load = bench.load(
        rate=rate, num_requests=size.num_requests, duration_s=2 * duration_s, timeout_s=60
    )
    kills = max(1, round(duration_s / size.kill_s))
    under = bench.under(load, deadline_ms=size.deadline_ms)
    with Watch(bench.graph) as watch, under as outcomes:
        begun = time.monotonic()
        for number, title in zip(range(kills), cycle((_INGRESS, _LARGE)), strict=False):
            due = begun + (number + 0.5) * duration_s / kills  # the last of them under load, too
            time.sleep(max(0.0, due - time.monotonic()))
            bench.graph.kill(title)
    lasted = watch.seconds(_INGRESS, begin=begun, end=begun + duration_s)
    possible = sum(capacity.get(n, 0.0) * seconds for n, seconds in lasted.items())
    good = summarise(outcomes, within_s=size.deadline_ms / 1000).num_good
    verdict = bench.judge(load.prefix, outcomes)
    print(f"R1 {kills} kills, {rate:.0f} requests/s, replicas {_rounded(lasted)} s: {verdict}")
    print(f"   reasons {dict(verdict.reasons)}, deferred {dict(verdict.deferred)}", flush=True)
    wait_for(lambda: bench.graph.replicas(_INGRESS) == most, within_s=_SETTLED_S, what="replicas")
    note = f"{kills} kills in {size.num_requests} requests at {size.overload:g}x capacity"
    return [
        _number("R1/wrong", len(verdict.wrong), note),
        _number("R1/lost", len(verdict.lost), note),
        _number("R1/unlogged", len(verdict.unlogged), "ids without just one outcome in the log"),
        _number("R1/undeferred", len(verdict.undeferred), "endpoints that large had no part in"),
        figure("R1/goodput", good / possible, "x", f"what those alive can do ({possible:.0f})"),
    ]


def _rounded(lasted: dict[int, float]) -> dict[int, float]:
    return {number: round(seconds, 1) for number, seconds in sorted(lasted.items())}


def proxy_killed(bench: Bench, *, rate: float) -> list[Figure]:
    """R2: the HTTP proxy is killed. While there is none nobody can connect; such an attempt is no
    request that was lost, and is counted apart.

    Args:
        bench: its graph has one proxy.
        rate: requests a second meanwhile.
    """
    load = bench.load(rate=rate, duration_s=2 * bench.size.steady_s + _PROXY_S)
    with bench.under(load) as outcomes:
        time.sleep(bench.size.steady_s)
        killed = time.monotonic()
        bench.graph.kill(_PROXY)
    refused = [one for one in outcomes if _NOBODY in one.error]
    reached = [one for one in outcomes if _NOBODY not in one.error]
    lost = sum(one.status == 0 for one in reached)
    in_flight = sum(one.sent_s <= killed <= one.done_s for one in outcomes)
    later = [one.done_s for one in outcomes if one.is_ok and one.sent_s > killed]
    back_s = min(later, default=float("inf")) - killed
    verdict = bench.judge(load.prefix, [one for one in reached if one.status])
    print(f"R2 proxy killed, back after {back_s:.1f} s; of what it answered: {verdict}", flush=True)
    return [
        figure("R2/proxy_s", back_s, "s", "until a request was answered again"),
        _number("R2/proxy_errors", lost, f"{in_flight} were in flight"),
        _number("R2/proxy_excess", max(0, lost - in_flight), "errors beyond those in flight"),
        _number("R2/proxy_refused", len(refused), "attempts to connect while there was none"),
        _number("R2/proxy_wrong", len(verdict.wrong) + len(verdict.lost), "of what it answered"),
    ]


def controller_killed(bench: Bench, *, rate: float) -> list[Figure]:
    """R2: Serve's controller is killed; requests do not need it.

    Args:
        bench: its graph runs.
        rate: requests a second meanwhile.
    """
    load = bench.load(rate=rate, duration_s=2 * bench.size.steady_s + _PROXY_S)
    with bench.under(load) as outcomes:
        time.sleep(bench.size.steady_s)
        pid = bench.graph.kill("ServeController")
        back_s = wait_for(
            lambda: bench.graph.pids("ServeController") not in ([], [pid]),
            within_s=_SETTLED_S,
            what="a controller",
        )
    verdict = bench.judge(load.prefix, outcomes)
    print(f"R2 controller killed, another after {back_s:.1f} s: {verdict}", flush=True)
    failed = verdict.num_requests - verdict.num_ok
    return [_number("R2/controller_failed", failed, f"of {verdict.num_requests} requests")]


def updates(bench: Bench, packages: Packages, *, folder: Path, rate: float) -> list[Figure]:
    """R3: rolling updates between two versions, then versions that are broken.

    Args:
        bench: its graph serves the first version.
        packages: two versions.
        folder: for the broken ones.
        rate: requests a second meanwhile.
    """
    size, verdicts, versions = bench.size, [], cycle((packages.second, packages.first))
    live, took = packages.first, []
    for _ in range(size.num_updates):
        live, begun = next(versions), time.monotonic()
        verdicts.append(_during(bench, partial(_deploy, bench, live), rate=rate))
        took.append(time.monotonic() - begun)
        assert _served(bench) == open_package(live).version, "the update did not take"
    refused, broken_verdicts = 0, []
    for what, path in islice(broken(live, folder), size.num_broken):
        errors: list[str] = []
        broken_verdicts.append(_during(bench, partial(_refused, bench, path, errors), rate=rate))
        kept = _served(bench) == open_package(live).version
        refused += bool(errors) and kept
        print(f"R3 {what}: {errors[0] if errors else 'taken'}; the old one stays: {kept}")
    for verdict in (*verdicts, *broken_verdicts):
        print(f"R3 {verdict}", flush=True)
    return [
        _number("R3/failed", _failed(verdicts), f"{len(took)} updates, {median(took):.0f} s each"),
        _number("R3/broken_failed", _failed(broken_verdicts), f"{size.num_broken} broken versions"),
        _number("R3/broken_taken", size.num_broken - refused, "broken versions that came to serve"),
    ]


def _deploy(bench: Bench, small: Path) -> None:
    settings = bench.graph.settings
    pair = settings.models["shop"].model_copy(update={"small": str(small)})
    bench.graph.update(settings.model_copy(update={"models": {"shop": pair}}))


def _refused(bench: Bench, small: Path, errors: list[str]) -> None:
    try:
        _deploy(bench, small)
    except (RectrainError, RuntimeError) as error:
        errors.append(" ".join(str(error).split())[:200])


def _during(bench: Bench, action: Callable[[], None], *, rate: float) -> Verdict:
    """Loads one after another until an action in another thread is over."""
    outcomes, name = [], f"fault{next(_names)}"
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(action)
        for part in count():
            load = replace(
                bench.load(rate=rate, duration_s=_PART_S), prefix=f"{name}-{part}", seed=part
            )
            outcomes += bench.run(load)
            if under_way.done():
                break
        under_way.result()
    return bench.judge(name, outcomes)


def _served(bench: Bench) -> str:
    """Version of the small model that a new request meets."""
    (facts,) = requests.get(f"{bench.graph.url}/v1/models", timeout=60).json()
    return str(facts["versions"]["small"])


def _failed(verdicts: Sequence[Verdict]) -> int:
    """Requests that were not answered rightly, refusals among them: the load is light."""
    return sum(one.num_requests - one.num_ok + len(one.unlogged) for one in verdicts)


def _number(name: str, value: float, note: str) -> Figure:
    return figure(name, value, "", note)


def figure(name: str, value: float, unit: str, note: str) -> Figure:
    """A figure that was measured once."""
    return Figure(id=name, value=value, unit=unit, peer=note, low=value, high=value, n=1)
