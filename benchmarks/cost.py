"""Whether predicted costs come true: C1 (training, serving) and C3 (plans, orders of cost).

    python -m benchmarks.cost [--quick] [--only training,serving,plan]
        [--large runs/demo/package] [--small runs/demo-small/package]

C1/training predicts held-out runs from short ones, C1/serving the served graph at held-out rates
from the models' own calls and its overhead, both by the code of jobs.cost; C3/order compares
predicted and measured orders of large, small and cascade at three rates; C3/plan compares plans
with an oracle's. About 12 minutes; nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.cost_serving import Scale as ServingScale
from benchmarks.cost_serving import measure_serving
from benchmarks.cost_training import FULL as TRAINING
from benchmarks.cost_training import QUICK as QUICK_TRAINING
from benchmarks.cost_training import measure_training
from benchmarks.plan_oracle import best_plan
from benchmarks.table import Figure, print_table, write_figures
from rectrain.cost.machines import Route, Server, Stage
from rectrain.cost.plan import Bounds, choose

__all__ = ["main"]

_OUTPUT = Path("runs/bench")
_SETTINGS, _QUICK_SETTINGS = 1000, 100
_SERVING = ServingScale(requests=80, idle_s=12.0, rounds=3)
_QUICK_SERVING = ServingScale(requests=6, idle_s=2.0, rounds=1)


def main(argv: Sequence[str]) -> int:
    """Measures, prints the table, writes the figures."""
    options = _parser().parse_args(argv)
    name = f"cost{'-quick' if options.quick else ''}"
    figures: list[Figure] = []
    for part in options.only.split(","):
        if part == "plan":
            figures.append(agreement(_QUICK_SETTINGS if options.quick else _SETTINGS))
        elif part == "training":
            scale = QUICK_TRAINING if options.quick else TRAINING
            figures += measure_training(Path(f"runs/{name}"), scale)
        elif part == "serving":
            scale = _QUICK_SERVING if options.quick else _SERVING
            figures += measure_serving(
                Path(options.large), Path(options.small), scale=scale,
                log=_OUTPUT / f"{name}-serve.log",
            )  # fmt: skip
        else:
            raise SystemExit(f"no part {part}: training, serving, plan")
        write_figures(_OUTPUT / f"{name}.json", figures)
    print_table(figures)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="does it run? no figures to keep")
    parser.add_argument("--only", default="plan,training,serving", help="parts")
    parser.add_argument("--large", default="runs/demo/package")
    parser.add_argument("--small", default="runs/demo-small/package")
    return parser


# --- C3/plan -----------------------------------------------------------------------------------


def agreement(count: int, *, seed: int = 0) -> Figure:
    """The share of random settings in which the chosen plan is the oracle's."""
    draw, same, none = random.Random(seed), 0, 0
    for _ in range(count):
        servers, routes, bounds = _setting(draw)
        best = choose(servers, routes, bounds).best
        expected = best_plan(
            [asdict(one) for one in servers], [asdict(one) for one in routes], asdict(bounds)
        )
        found: Any = None
        if best is not None:
            server = best.server
            found = (server.name, server.purchase, best.route.name, best.num_servers)
        none += expected is None
        same += found == (None if expected is None else tuple(expected[:4]))
    return Figure(
        "C3/plan", same / count, f"of {count} settings ({none} have no plan)",
        "an oracle that tries everything", same / count, same / count, count,
    )  # fmt: skip


def _setting(draw: random.Random) -> tuple[list[Server], list[Route], Bounds]:
    """Instances on demand, reserved and spot, machines of one's own, the lone models and cascades
    of several thresholds, bounds over some months."""
    servers: list[Server] = []
    for name in "abcd"[: draw.randint(1, 4)]:
        hourly, speed = draw.choice([0.05, 0.1, 0.2, 0.4]), draw.choice([0.7, 1.0, 1.5])
        common = (name, draw.choice([1, 2, 4, 8, 16]))
        memory = draw.choice([2e9, 4e9, 32e9])
        servers.append(Server(*common, hourly, speed, memory))
        if draw.random() < 0.7:
            rate = draw.choice([1e-5, 1e-3, 0.02])
            servers.append(
                Server(*common, hourly * draw.uniform(0.2, 0.9), speed, memory, "spot", rate)
            )
        if draw.random() < 0.5:
            cheaper, term = hourly * draw.uniform(0.4, 0.9), draw.choice([2, 12])
            servers.append(Server(*common, cheaper, speed, memory, "reserved", term_months=term))
    if draw.random() < 0.5:
        own = Server("own", 16, draw.uniform(0.1, 0.6), 1.0, 64e9, "own", term_months=48)
        servers.append(replace(own, load_hourly=draw.uniform(0.0, 0.1)))
    slow, fast = draw.uniform(0.5, 10.0), draw.uniform(10.0, 200.0)
    worth = draw.choice([0.0, draw.uniform(0.0, 0.02)])
    small, making = Stage("small", 1.0, fast, 0.6e9), draw.choice([0.0, draw.uniform(0, 300)])
    routes = [
        Route("small", (small,), 0.0, draw.uniform(1, 60), worth * draw.uniform(0.8, 1.05), making),
        Route("large", (Stage("large", 1.0, slow, 1.2e9),), 1.0, draw.uniform(20, 200), worth),
    ]
    for share in draw.sample([0.01, 0.05, 0.1, 0.2, 0.5], draw.randint(0, 5)):
        large = Stage("large", share, slow * draw.uniform(1, 3), 1.2e9)
        between = routes[0].worth_per_1000 + share * (worth - routes[0].worth_per_1000)
        p99_ms = draw.uniform(30, 250)
        routes.append(Route(f"{share:.0%}", (small, large), share, p99_ms, between, making))
    routes = [replace(route, busy=draw.uniform(0.05, 0.9)) for route in routes]
    mean = 10 ** draw.uniform(-1, 3)
    bounds = Bounds(
        mean, mean * draw.uniform(1, 5), latency_ms=draw.choice([50.0, 100.0, 300.0]),
        budget=draw.choice([100.0, 1000.0, 1e9]), availability=draw.choice([0.99, 0.9999]),
        restart_h=draw.choice([0.05, 0.5]),
        months=tuple(draw.uniform(0.3, 2.0) for _ in range(draw.randint(1, 6))),
        day=draw.choice([(), (0.5, 1.0, 2.5, 0.0)]),
    )  # fmt: skip
    return servers, routes, bounds


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
