"""The serving graph against its own large model, its own loop, and other servers: S1 to S5.

    python -m benchmarks.serve --large runs/demo --small runs/demo-small/package
    python -m benchmarks.serve --quick --only S2,S3

Servers run on one core, the load generator on another. Each round starts every server anew, one
after the other, every other round backwards. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import Generator
from benchmarks.serve_cascade import Cascade, draw_curves, measure_cascade
from benchmarks.serve_models import MAX_LENGTH, Models, prepare
from benchmarks.serve_requests import Workload, draw, titles
from benchmarks.serve_rounds import Bench, measure_batching, measure_servers
from benchmarks.serve_scorer import TASK
from benchmarks.table import Figure, print_table, write_figures
from rectrain.data.tokenize import load_tokenizer, reader
from rectrain.inference.packaged import load

__all__ = ["main"]

_OUTPUT = Path("runs/bench")
_PARTS = ("S1", "S2", "S3", "S4", "S5")


@dataclass(frozen=True)
class _Scale:
    """How much is done.

    Attributes:
        rounds: of each comparison.
        seconds: of each load.
        tokens: whose scoring S1 times.
        calibration: texts that calibrate the large model's int8 graphs.
        requests: different ones.
        grid: sizes and waits of @serve.batch that are tried.
        halvings: of each search for the goodput.
    """

    rounds: int
    seconds: float
    tokens: int
    calibration: int
    requests: int
    grid: tuple[tuple[int, float], ...]
    halvings: int


_GRID = tuple((size, wait_s) for size in (4, 16, 64) for wait_s in (0.0, 0.005, 0.02))
_FULL = _Scale(5, 3.0, 30_000, 512, 128, _GRID, 5)
_QUICK = _Scale(1, 0.5, 3_000, 40, 16, _GRID[:1], 1)


def main(argv: Sequence[str]) -> int:
    """Measures, prints the table, writes it as JSON."""
    options = _parser().parse_args(argv)
    parts = options.only.split(",")
    if unknown := set(parts) - set(_PARTS):
        raise SystemExit(f"error: --only {','.join(sorted(unknown))}: give some of {_PARTS}")
    scale = _QUICK if options.quick else _FULL
    name = f"serve{'-quick' if options.quick else ''}"
    server, sender = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(0, {server})
    models = prepare(
        _OUTPUT / f"{name}-models", large=options.large, small=options.small,
        data=options.data, num_texts=scale.calibration,
    )  # fmt: skip
    figures: list[Figure] = []
    if "S1" in parts:
        figures += _cascades(models, options, scale, picture=_OUTPUT / f"{name}.png")
        print_table(figures)
    if len(parts) > ("S1" in parts):
        with Generator(core=sender) as generator:
            bench = Bench(
                models, generator=generator, core=server, port=options.port,
                folder=_OUTPUT / name, rounds=scale.rounds, seconds=scale.seconds,
                halvings=scale.halvings, fixed=_workload(models, scale, ragged=False),
                ragged=_workload(models, scale, ragged=True),
            )  # fmt: skip
            if {"S2", "S3", "S5"} & set(parts):
                figures += measure_servers(bench, parts)
                print_table(figures)
            if "S4" in parts:
                figures += measure_batching(bench, scale.grid)
    print_table(figures)
    path = _OUTPUT / f"{name}.json"
    write_figures(path, figures)
    print(f"written: {path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="does it run? no figures to keep")
    parser.add_argument("--only", default=",".join(_PARTS), help="parts to run (default: all)")
    parser.add_argument("--large", default="runs/demo", help="a run (default: runs/demo)")
    parser.add_argument(
        "--small", default="runs/demo-small/package", help="the small model's package"
    )
    parser.add_argument("--data", nargs="+", default=[], help="prepared (default: the run's)")
    parser.add_argument("--budget", type=float, default=0.01, help="S1: share that may be deferred")
    parser.add_argument("--single", nargs="+", default=[], help="S1: packages of other models")
    parser.add_argument("--port", type=int, default=8100, help="the first of four (default: 8100)")
    return parser


def _cascades(
    models: Models, options: argparse.Namespace, scale: _Scale, *, picture: Path
) -> list[Figure]:
    small, large = models.open("small"), models.open("large")
    singles = {Path(path).name: load(path, threads=1, cached_texts=0) for path in options.single}
    figures, cascades = [], []
    for task, prepared in models.data.items():
        print(f"S1: {task}", flush=True)
        cascade = Cascade(
            task, small=small, large=large, prepared=prepared, budget=options.budget,
            singles=singles,
        )  # fmt: skip
        cascades.append(cascade)
        figures += measure_cascade(cascade, rounds=scale.rounds, num_tokens=scale.tokens)
    draw_curves(picture, cascades)
    print(f"written: {picture}", flush=True)
    return figures


def _workload(models: Models, scale: _Scale, *, ragged: bool) -> Workload:
    """50 candidates of 24 tokens a request, or 10 ragged ones."""
    read = reader(load_tokenizer(str(models.small / "encoder")), max_length=MAX_LENGTH)
    return draw(
        titles(models.data[TASK]),
        lambda texts: read(list(texts)).to_pylist(),
        num_requests=scale.requests, num_candidates=10 if ragged else 50, ragged=ragged, seed=1,
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
