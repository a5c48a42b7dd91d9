"""What an elastic search finds for a quarter of a full grid's cost (C2).

    python -m benchmarks.search [--quick] [--teacher runs/demo] [--data data/demo] [--folder …]

A grid of 27 shapes, each trained alone as `jobs.tune --way=separate` trains a trial; and one
super-network, whose 27 sub-networks are judged as they are. Twice more with other seeds. Grid,
random search and separate trials draw from the same models, and pay for each what it took.
Interrupted and run again, it goes on: what is finished is kept.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from benchmarks.search_replay import Curve, Pool, mean_volume, replay
from benchmarks.search_runs import SearchRuns, Shapes, Trained
from benchmarks.table import Figure, print_table, write_figures
from jobs import demo
from rectrain.config import load_config
from rectrain.train.build import load_model
from rectrain.tune.config import SearchConfig
from rectrain.tune.objective import Facts, objectives
from rectrain.tune.space import Space
from rectrain.tune.trials import Objectives

__all__ = ["main"]

Floats = NDArray[np.float64]

_OUTPUT = Path("runs/bench")
#: Lift, and cost and p99 as multiples of the largest shape's: what bounds the hypervolume.
_REFERENCE = (0.0, 1.1, 1.1)
_SHARE = 0.25  # of the grid's device-seconds
_REPLAYS = 20  # of a search whose sampler draws
_COLORS = {"elastic": "C0", "separate": "C1", "random": "C2", "grid": "0.4"}


@dataclass(frozen=True)
class _Scale:
    """How much is done.

    Attributes:
        preset: of the demo, whose large model is the teacher.
        settings: of the search.
        seeds: of the trainings.
    """

    preset: str
    settings: tuple[str, ...]
    seeds: tuple[int, ...]


_COMMON = (
    "--train.num_workers=1", "--train.zero_stage=0", "--train.checkpoint_interval=100000",
    "--tracking.tensorboard=false",
)  # fmt: skip
_FULL = _Scale(
    "demo",
    (
        "--space.layers=[1,2,3]", "--space.heads=[4,6,8]", "--space.intermediate=[96,192,384]",
        "--train.num_steps=100", "--train.evaluate_rows=100", "--refit_texts=400",
        "--measure.rows=8",
    ),
    seeds=(0, 1, 2),
)  # fmt: skip
_QUICK = _Scale(
    "tiny",
    (
        "--space.layers=[1,2]", "--space.heads=[1,2]", "--space.intermediate=[64]",
        "--train.num_steps=2", "--train.evaluate_rows=20", "--refit_texts=50",
        "--tokens_per_micro_batch=512", "--measure.requests=4", "--measure.rounds=1",
    ),
    seeds=(0, 1),
)  # fmt: skip


@dataclass(frozen=True)
class _Seed:
    """What came of one seed.

    Attributes:
        grid: models trained alone.
        elastic: sub-networks.
    """

    grid: Pool
    elastic: Pool

    @property
    def budget(self) -> float:
        """Device-seconds that all but the grid may spend."""
        return _SHARE * self.grid.total_s

    def lifts(self) -> tuple[Floats, Floats]:
        """Of each shape: the sub-network's, and that of the model trained alone."""
        sub, alone = (
            np.array([pool.found[name].mean_lift for name in self.grid.found])
            for pool in (self.elastic, self.grid)
        )
        return sub, alone


def main(argv: Sequence[str]) -> int:
    """Makes what is not yet there, prints the table, writes figures and picture."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.data and not options.teacher:
        parser.error("--data goes with --teacher")
    logging.getLogger("ray").setLevel(logging.WARNING)
    name = f"search{'-quick' if options.quick else ''}"
    scale = _QUICK if options.quick else _FULL
    folder = Path(options.folder or f"runs/{name}").absolute()
    config = _config(scale, options)
    runs = SearchRuns(folder, config, seeds=scale.seeds)
    runs.make()
    shapes = runs.shapes()
    space = Space.of(config.space, load_model(config.teacher).model.encoder.config)
    seeds = [_seed(runs, shapes, config, seed) for seed in scale.seeds]
    curves = [_curves(one, space) for one in seeds]
    figures = _figures(seeds, curves)
    print_table(figures)
    path = _OUTPUT / f"{name}.json"
    write_figures(path, figures)
    _draw(path.with_suffix(".png"), seeds, curves)
    print(f"written: {path}, .png", flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="does it run? no figures to keep")
    parser.add_argument("--teacher", help="a large model's run, in the place of the demo's")
    parser.add_argument("--data", help="prepared data for --teacher, other than its own")
    parser.add_argument("--folder", help="of what is made (default: runs/search[-quick])")
    return parser


def _config(scale: _Scale, options: argparse.Namespace) -> SearchConfig:
    if not options.teacher:
        demo.main([f"--preset={scale.preset}"])  # nothing, when it is done
    teacher = Path(options.teacher or f"runs/{scale.preset}").absolute()
    settings = [f"--teacher={teacher}", "--output=."]
    if options.data:
        settings.append(f"--data=[{Path(options.data).absolute()}]")
    overrides = [*settings, *_COMMON, *scale.settings]
    return load_config(SearchConfig, file=None, overrides=overrides)


# ── what was found ───────────────────────────────────────────────────────────────────────────────


def _seed(runs: SearchRuns, shapes: Shapes, config: SearchConfig, seed: int) -> _Seed:
    def pool(models: Mapping[str, Trained], before_s: float) -> Pool:
        found = {name: _worth(model, shapes, name, config=config) for name, model in models.items()}
        seconds = {name: one.seconds + shapes.shapes[name].seconds for name, one in models.items()}
        return Pool(found, seconds, before_s, reference)

    alone = runs.alone(seed)
    largest = _worth(alone[list(shapes.shapes)[-1]], shapes, list(shapes.shapes)[-1], config=config)
    reference = (
        _REFERENCE[0], _REFERENCE[1] * largest.cost_per_1000, _REFERENCE[2] * largest.p99_ms,
    )  # fmt: skip
    trained_s = shapes.teacher_s + runs.supernet_s(seed)
    return _Seed(pool(alone, shapes.teacher_s), pool(runs.sub_networks(seed), trained_s))


def _worth(model: Trained, shapes: Shapes, name: str, *, config: SearchConfig) -> Objectives:
    shape = shapes.shapes[name]
    facts = Facts(
        values=model.values,
        request_s=shape.latency.request_s,
        p99_ms=shape.latency.p99_ms,
        threads=config.measure.threads,
        num_bytes=0,  # nothing here is bounded by it
    )
    return objectives(facts, standards=shapes.standards, price=config.price)


def _curves(one: _Seed, space: Space) -> dict[str, list[Curve]]:
    """System -> searches that differ in their sampler's seed alone."""

    def searches(pool: Pool, sampler: Literal["tpe", "random"]) -> list[Curve]:
        return [
            replay(pool, space, sampler=sampler, seed=seed, budget=one.budget)
            for seed in range(_REPLAYS)
        ]

    return {
        "elastic": searches(one.elastic, "tpe"),
        "separate": searches(one.grid, "tpe"),
        "random": searches(one.grid, "random"),
        "grid": [one.grid.curve(list(one.grid.found))],
    }


# ── figures ──────────────────────────────────────────────────────────────────────────────────────


def _figures(
    seeds: Sequence[_Seed], curves: Sequence[Mapping[str, Sequence[Curve]]]
) -> list[Figure]:
    num = len(seeds[0].grid.found)
    of_grid = f"of the grid of {num}, each trained alone"
    reached = {
        system: [
            float(mean_volume(found[system], one.budget)) / one.grid.whole
            for one, found in zip(seeds, curves, strict=True)
        ]
        for system in ("elastic", "separate", "random", "grid")
    }
    unit = f"share of hypervolume for {_SHARE:.0%} of the device-seconds"
    figures = [_figure(f"C2/{system}", values, unit, of_grid) for system, values in reached.items()]
    for rival in ("separate", "random"):
        gaps = np.subtract(reached["elastic"], reached[rival])
        figures.append(_figure(f"C2/elastic-{rival}", gaps, "difference of these shares", rival))
    whole = [one.elastic.whole / one.grid.whole for one in seeds]
    spent = [one.elastic.total_s / one.grid.total_s for one in seeds]
    trained = [one.elastic.before_s / one.grid.total_s for one in seeds]
    figures += [
        _figure("C2/elastic/all", whole, f"share of hypervolume, all {num} judged", of_grid),
        _figure("C2/elastic/all/budget", spent, "share of device-seconds, all judged", of_grid),
        _figure("C2/elastic/training/budget", trained, "share of device-seconds", of_grid),
        _figure("C2/grid/seconds", [one.grid.total_s for one in seeds], "device-seconds", "none"),
    ]
    return figures + _agreement(seeds)


def _agreement(seeds: Sequence[_Seed]) -> list[Figure]:
    """Sub-networks beside the same shapes trained alone, and these beside one another."""
    pairs = [one.lifts() for one in seeds]
    gaps = [float(np.mean(sub - alone)) for sub, alone in pairs]
    ranks = [_rank(sub, alone) for sub, alone in pairs]
    others = [
        _rank(pairs[a][1], pairs[b][1]) for a in range(len(pairs)) for b in range(a + 1, len(pairs))
    ]
    same = "the same shapes trained alone"
    return [
        _figure("C2/sub/rank", ranks, "Spearman's correlation of mean lifts", same),
        _figure("C2/alone/rank", others, "the same of two seeds trained alone", "each other"),
        _figure("C2/sub/gap", gaps, "mean difference of mean lifts", same),
    ]


def _rank(first: Floats, second: Floats) -> float:
    return float(spearmanr(first, second).statistic)


def _figure(name: str, values: Sequence[float], unit: str, peer: str) -> Figure:
    return Figure.of_rounds(name, [float(value) for value in values], unit=unit, peer=peer)


def _draw(
    path: Path, seeds: Sequence[_Seed], curves: Sequence[Mapping[str, Sequence[Curve]]]
) -> None:
    """Hypervolume against budget, and sub-networks against the same shapes trained alone."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    drawing, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    shares = np.linspace(0, 1, 400)
    for system, color in _COLORS.items():
        lines = np.array(
            [
                mean_volume(found[system], shares * one.grid.total_s) / one.grid.whole
                for one, found in zip(seeds, curves, strict=True)
            ]
        )
        shown = shares <= (1.0 if system == "grid" else _SHARE)
        label = "grid, in its order" if system == "grid" else system
        left.plot(shares[shown], lines.mean(axis=0)[shown], color=color, label=label)
        left.fill_between(
            shares[shown], lines.min(axis=0)[shown], lines.max(axis=0)[shown],
            color=color, alpha=0.2, linewidth=0,
        )  # fmt: skip
    left.axvline(_SHARE, color="0.6", linestyle="--", linewidth=1)
    left.set_xlabel("share of the grid's device-seconds, training of the super-network included")
    left.set_ylabel("share of the grid's hypervolume")
    left.legend()
    for number, one in enumerate(seeds):
        sub, alone = one.lifts()
        right.plot(alone, sub, "o", markersize=4, color=f"C{number}", label=f"seed {number}")
    ends = [
        min(right.get_xlim()[0], right.get_ylim()[0]),
        max(right.get_xlim()[1], right.get_ylim()[1]),
    ]
    right.plot(ends, ends, color="0.6", linewidth=1)
    right.set_xlabel("mean lift of the shape trained alone")
    right.set_ylabel("mean lift of the sub-network")
    right.legend()
    for axis in (left, right):
        axis.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=110)
    plt.close(drawing)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
