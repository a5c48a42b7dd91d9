"""Faults under load: R1 (replicas killed), R2 (proxy, controller, head killed), R3 (updates).

    python -m benchmarks.faults [--only R1 R2 R3] [--quick]
    python -m benchmarks.faults --small runs/demo-small/package --large runs/demo/package

Every answer is compared with the offline scores and probabilities of the versions that it names,
and with what it says of itself, every request id with the server's log (faults_oracle.py). The exit
status is 1 where a bound of `BOUNDS` is broken. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import rectrain
from benchmarks.faults_graph import running
from benchmarks.faults_head import head_killed
from benchmarks.faults_oracle import Oracle, make_bodies
from benchmarks.faults_packages import Packages, prepare
from benchmarks.faults_rounds import (
    Bench,
    Size,
    controller_killed,
    proxy_killed,
    replicas_killed,
    updates,
)
from benchmarks.load import Generator
from benchmarks.table import Figure, print_table, write_figures
from rectrain.cascade import read_policy
from rectrain.inference.packaged import PackagedModel
from serve.config import Settings

__all__ = ["BOUNDS", "add_packages", "main", "make_oracle", "open_models", "settings_of", "within"]

#: Figure -> the least and the most that it may be.
BOUNDS = {
    "R1/wrong": (0, 0),
    "R1/lost": (0, 0),
    "R1/unlogged": (0, 0),
    "R1/undeferred": (0, 0),
    "R1/goodput": (0.8, float("inf")),
    "R2/proxy_s": (0, 10),
    "R2/proxy_excess": (0, 0),
    "R2/proxy_wrong": (0, 0),
    "R2/controller_failed": (0, 0),
    "R2/head_failed": (0, 0),
    "R2/head_s": (0, 60),
    "R3/failed": (0, 0),
    "R3/broken_failed": (0, 0),
    "R3/broken_taken": (0, 0),
}
_OUTPUT = Path("runs/bench")
_ROUNDS = ("R1", "R2", "R3")
_QUICK = Size(
    num_requests=300, overload=0.5, kill_s=8.0, measure_s=2.0, connections=8, deadline_ms=20_000.0,
    num_updates=1, num_broken=1, steady_s=1.0,
)  # fmt: skip
_LIGHT = 0.3  # of the capacity: the load under an update, which needs cores of its own
_DEFERRED = 0.2  # share of deferred requests


def main(argv: Sequence[str]) -> int:
    """Does the faults, prints the table, writes it as JSON."""
    options = _parse(argv)
    folder = Path(options.output) / "faults"
    packages = prepare(folder, small=options.small, large=options.large, deferred=_DEFERRED)
    figures = list(_figures(options, packages, folder))
    print_table(figures)
    write_figures(Path(options.output) / "faults.json", figures)
    # A load of seconds has no goodput to speak of.
    passed_over = {"R1/goodput"} if options.quick else set()
    return within([one for one in figures if one.id not in passed_over], BOUNDS)


def within(figures: Sequence[Figure], bounds: Mapping[str, tuple[float, float]]) -> int:
    """An exit status: 1 where a figure is out of its bounds, after saying which."""
    out = [
        one
        for one in figures
        if one.id in bounds and not bounds[one.id][0] <= one.value <= bounds[one.id][1]
    ]
    for one in out:
        print(f"out of bounds: {one.id} {one.value:g}, wanted {bounds[one.id]}", file=sys.stderr)
    return 1 if out else 0


def add_packages(parser: argparse.ArgumentParser) -> None:
    """The options of benchmarks that harm a graph."""
    parser.add_argument("--small", default="runs/demo-small/package", help="package")
    parser.add_argument("--large", default="runs/demo/package", help="package")
    parser.add_argument("--candidates", type=int, default=20, help="of a request (default: 20)")
    parser.add_argument("--port", type=int, default=8000, help="of HTTP (default: 8000)")
    parser.add_argument("--core", type=int, help="of the load generator (default: any)")
    parser.add_argument("--output", default=str(_OUTPUT), help=f"folder (default: {_OUTPUT})")


def open_models(packages: Packages) -> tuple[list[PackagedModel], tuple[str, str]]:
    """All three models, and the backends that are fastest here: of the small ones, of the large."""
    small, large = (rectrain.load(path, threads=1) for path in (packages.first, packages.large))
    backends = small.engine.encoder.name, large.engine.encoder.name
    second = rectrain.load(packages.second, threads=1, backend=backends[0])
    return [small, second, large], backends


def make_oracle(models: Sequence[PackagedModel], *, candidates: int) -> Oracle:
    """Of 64 requests that the first of the models can answer, and the policies in the packages."""
    policies = [read_policy(model.package) for model in models]
    bodies = make_bodies(models[0], count=64, candidates=candidates)
    return Oracle(bodies, models, [one for one in policies if one is not None])


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=_ROUNDS, default=_ROUNDS, help="default: all")
    parser.add_argument(
        "--quick", action="store_true", help="two to three minutes: no figures to keep"
    )
    add_packages(parser)
    parser.add_argument("--requests", type=int, help="of R1 (default: 50,000)")
    parser.add_argument("--updates", type=int, help="of R3 (default: 20)")
    parser.add_argument("--no-head", action="store_true", help="leave the head's death out of R2")
    return parser.parse_args(argv)


def _figures(options: argparse.Namespace, packages: Packages, folder: Path) -> Iterator[Figure]:
    size = _QUICK if options.quick else Size()
    size = replace(
        size,
        num_requests=options.requests or size.num_requests,
        num_updates=options.updates or size.num_updates,
    )
    models, backends = open_models(packages)
    oracle = make_oracle(models, candidates=options.candidates)
    settings = settings_of(packages, backends, port=options.port)
    with Generator(core=options.core) as generator:
        make = partial(Bench, generator=generator, oracle=oracle, size=size)
        first = _replicated(settings, _counts(options)[0])
        with running(first, num_cpus=os.cpu_count() or 1) as graph:
            yield from _rounds(options, make(graph=graph), packages, folder)
        if "R2" in options.only and not (options.no_head or options.quick):
            yield from head_killed(make, settings)


def _rounds(
    options: argparse.Namespace, bench: Bench, packages: Packages, folder: Path
) -> Iterator[Figure]:
    """Those of one node, with two ingress replicas; what one alone can do is measured before."""
    capacity = {}
    for count in _counts(options):
        wanted = _replicated(bench.graph.settings, count)
        if wanted != bench.graph.settings:  # the same once more would replace all replicas
            bench.graph.update(wanted)
        capacity[count] = bench.capacity()
    print(f"ingress replicas -> good answers a second: {capacity}", flush=True)
    light = _LIGHT * capacity[2]
    if "R1" in options.only:
        yield from replicas_killed(bench, capacity=capacity)
    if "R2" in options.only:
        yield from controller_killed(bench, rate=light)
        yield from proxy_killed(bench, rate=light)
    if "R3" in options.only:
        yield from updates(bench, packages, folder=folder, rate=light)


def _counts(options: argparse.Namespace) -> tuple[int, ...]:
    """Ingress replicas, with which the capacity is measured; all faults meet the last."""
    return (2,) if options.quick else (1, 2)


def _replicated(settings: Settings, count: int) -> Settings:
    ingress = settings.ingress.model_copy(update={"min_replicas": count, "max_replicas": count})
    return settings.model_copy(update={"ingress": ingress})


def settings_of(packages: Packages, backends: tuple[str, str], *, port: int) -> Settings:
    """A graph of the first version and the large model, one replica each."""
    return Settings.model_validate(
        {
            "models": {
                "shop": {
                    "small": str(packages.first),
                    "large": str(packages.large),
                    "small_backend": backends[0],
                    "large_backend": backends[1],
                }
            },
            "http": {"port": port},
            "cache": {"answers": 0, "texts": 0},  # the same requests come again and again
            "golden": {"required": True},
        }
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
