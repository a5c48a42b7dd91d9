"""Autoscaling: a step of load up and down; replicas over time, as figures and a picture.

    python -m benchmarks.autoscaling [--quick] [--small PACKAGE] [--large PACKAGE]

The load is 0.3 of what one ingress replica can do, then 1.2, then 0.3 again. There must be one
replica, then two, then one: one change up and one down. Every answer is compared with the offline
score (faults_oracle.py). The exit status is 1 where a bound of `BOUNDS` is broken. Nothing else
should run meanwhile.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from benchmarks.faults import add_packages, make_oracle, open_models, settings_of, within
from benchmarks.faults_graph import Watch, running
from benchmarks.faults_packages import prepare
from benchmarks.faults_rounds import Bench, Size, figure
from benchmarks.load import Generator, Outcome
from benchmarks.table import Figure, print_table, write_figures

__all__ = ["BOUNDS", "main"]

#: Figure -> the least and the most that it may be.
BOUNDS = {
    "autoscaling/wrong": (0, 0),
    "autoscaling/lost": (0, 0),
    "autoscaling/up": (1, 1),
    "autoscaling/down": (1, 1),
    "autoscaling/up_s": (0, float("inf")),
    "autoscaling/down_s": (0, float("inf")),
}
_INGRESS = "Ingress"
_DEFERRED = 0.1


@dataclass(frozen=True)
class _Step:
    """share: of what one replica can do; seconds: for so long."""

    share: float
    seconds: float


_STEPS = (_Step(0.3, 60), _Step(1.2, 150), _Step(0.3, 150))
_QUICK = (_Step(0.3, 10), _Step(1.2, 40), _Step(0.3, 45))


def main(argv: Sequence[str]) -> int:
    """Measures, prints the table, writes it as JSON with the picture beside it."""
    options = _parse(argv)
    output = Path(options.output)
    steps = _QUICK if options.quick else _STEPS
    packages = prepare(
        output / "autoscaling", small=options.small, large=options.large, deferred=_DEFERRED
    )
    models, backends = open_models(packages)
    oracle = make_oracle(models, candidates=options.candidates)
    settings = settings_of(packages, backends, port=options.port)
    scaled = settings.ingress.model_copy(
        update={
            "max_replicas": 2,
            "upscale_delay_s": 3.0 if options.quick else settings.ingress.upscale_delay_s,
            "downscale_delay_s": 10.0 if options.quick else 60.0,
        }
    )
    size = Size(measure_s=5.0 if options.quick else 15.0)
    with Generator(core=options.core) as generator:
        fixed, elastic = settings, settings.model_copy(update={"ingress": scaled})
        with running(fixed, num_cpus=os.cpu_count() or 1) as graph:
            bench = Bench(graph, generator, oracle, size)
            capacity = bench.capacity()
            print(f"one replica can do {capacity:.0f} requests a second", flush=True)
            graph.update(elastic)
            figures = _stepped(bench, steps, capacity, output / "autoscaling.png")
    print_table(figures)
    write_figures(output / "autoscaling.json", figures)
    return within(figures, BOUNDS)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_packages(parser)
    parser.add_argument("--quick", action="store_true", help="two minutes: does it run?")
    return parser.parse_args(argv)


def _stepped(bench: Bench, steps: Sequence[_Step], capacity: float, picture: Path) -> list[Figure]:
    parts: list[list[Outcome]] = []
    outcomes: list[Outcome] = []
    load = bench.load(rate=1.0)
    with Watch(bench.graph, deployments=(_INGRESS, "Large-shop")) as watch:
        for number, step in enumerate(steps):
            part = replace(
                load,
                rate=step.share * capacity,
                duration_s=step.seconds,
                prefix=f"{load.prefix}-{number}",
                seed=number,
            )
            parts.append(bench.run(part))
    outcomes = [one for part in parts for one in part]
    verdict = bench.judge(load.prefix, outcomes)
    print(f"{verdict}\nreasons {dict(verdict.reasons)}")
    starts = [min(one.due_s for one in part) for part in parts]
    _draw(picture, watch, outcomes, starts[0])
    seen = [(at, now[_INGRESS]) for at, now in watch.seen]
    changes = [
        (at, after - before) for (_, before), (at, after) in pairwise(seen) if after - before
    ]
    ups = [at for at, change in changes if change > 0]
    downs = [at for at, change in changes if change < 0]
    nowhere = float("nan")
    note = f"of {verdict.num_requests} requests"
    return [
        figure("autoscaling/wrong", len(verdict.wrong), "", note),
        figure("autoscaling/lost", len(verdict.lost), "", note),
        figure("autoscaling/refused", verdict.refused, "", f"{note}, with Retry-After"),
        figure("autoscaling/up", len(ups), "", "changes; more would be an oscillation"),
        figure("autoscaling/down", len(downs), "", "changes; more would be an oscillation"),
        figure("autoscaling/up_s", ups[0] - starts[1] if ups else nowhere, "s", "after the step"),
        figure(
            "autoscaling/down_s", downs[0] - starts[2] if downs else nowhere, "s", "after the step"
        ),
    ]


def _draw(path: Path, watch: Watch, outcomes: Sequence[Outcome], begin: float) -> None:
    """Requests a second and what became of them, latency, and replicas, over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    drawing, (rates, latency, replicas) = plt.subplots(
        3, 1, figsize=(8, 7), sharex=True, layout="constrained"
    )
    seconds: dict[int, list[Outcome]] = {}
    for one in outcomes:
        seconds.setdefault(int(one.due_s - begin), []).append(one)
    times = sorted(seconds)
    rates.plot(times, [len(seconds[at]) for at in times], color="0.6", label="sent")
    answered = [sum(one.is_ok for one in seconds[at]) for at in times]
    rates.plot(times, answered, color="tab:blue", label="answered")
    rates.set_ylabel("requests a second")
    rates.legend()
    slowest = [max(1000 * one.latency_s for one in seconds[at]) for at in times]
    latency.plot(times, slowest, color="tab:red")
    latency.set_ylabel("slowest of a second, ms")
    for name in watch.deployments:
        replicas.step(
            [at - begin for at, _ in watch.seen],
            [now[name] for _, now in watch.seen],
            where="post",
            label=name,
        )
    replicas.set_ylabel("replicas that take traffic")
    replicas.set_xlabel("seconds")
    replicas.set_ylim(bottom=0)
    replicas.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=110)
    plt.close(drawing)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
