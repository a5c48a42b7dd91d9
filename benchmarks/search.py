"""What an elastic search finds for a quarter of a full grid's cost (C2).

    python -m benchmarks.search [--quick] [--teacher runs/demo] [--data data/demo] [--folder …]

A grid of 27 shapes, each trained alone as `jobs.tune --way=separate` trains a trial; and one
super-network, whose 27 sub-networks are judged as they are, and those that a search chooses with
heads of their own. Twice more with other seeds. Grid, random search and separate trials draw from
the same models, and pay for each what it took. Interrupted and run again, it goes on.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from benchmarks.search_replay import Curve, Pool, Priced, chosen, mean_volume, replay
from benchmarks.search_runs import SearchRuns, Shapes, Trained
from benchmarks.table import Figure, print_table, write_figures
from jobs import demo
from rectrain.config import load_config
from rectrain.train.build import load_model
from rectrain.tune.config import FinishConfig, SearchConfig
from rectrain.tune.objective import Facts, objectives
from rectrain.tune.space import Space
from rectrain.tune.trials import Objectives

__all__ = ["main"]

Floats = NDArray[np.float64]

_OUTPUT = Path("runs/bench")
#: Lift, and cost and p99 as multiples of the largest shape's: what bounds the hypervolume.
_REFERENCE = (0.0, 1.1, 1.1)
_SHARE = 0.25  # of the grid's device-seconds
_TRIALS_SHARE = 0.8  # of these, after which an elastic search finishes what it has chosen
_REPLAYS = 20  # of a search whose sampler draws
_COLORS = {"elastic": "C0", "elastic/judged": "C4", "separate": "C1", "random": "C2", "grid": "0.4"}


@dataclass(frozen=True)
class _Scale:
    """How much is done.

    Attributes:
        preset: of the demo, whose large model is the teacher.
        settings: of both ways to search.
        elastic: of the one with a super-network alone.
        seeds: of the trainings.
    """

    preset: str
    settings: tuple[str, ...]
    elastic: tuple[str, ...]
    seeds: tuple[int, ...]


_COMMON = (
    "--train.num_workers=1", "--train.zero_stage=0", "--train.checkpoint_interval=100000",
    "--tracking.tensorboard=false", "--finish.package=plain",
)  # fmt: skip
_FULL = _Scale(
    "demo",
    (
        "--space.layers=[1,2,3]", "--space.heads=[4,6,8]", "--space.intermediate=[96,192,384]",
        "--train.num_steps=100", "--train.evaluate_rows=100", "--refit_texts=400",
        "--measure.rows=8",
    ),
    ("--train.num_steps=50", "--finish.head_steps=50", "--finish.least_lift=0.8"),
    seeds=(0, 1, 2),
)  # fmt: skip
_QUICK = _Scale(
    "tiny",
    (
        "--space.layers=[1,2]", "--space.heads=[1,2]", "--space.intermediate=[64]",
        "--train.num_steps=2", "--train.evaluate_rows=20", "--refit_texts=50",
        "--tokens_per_micro_batch=512", "--measure.requests=4", "--measure.rounds=1",
    ),
    ("--finish.head_steps=2",),
    seeds=(0, 1),
)  # fmt: skip


@dataclass(frozen=True)
class _Seed:
    """What came of one seed.

    Attributes:
        grid: models trained alone.
        elastic: sub-networks.
        finished: name of a point -> its sub-network with heads of its own.
    """

    grid: Pool
    elastic: Pool
    finished: Mapping[str, Priced]

    @property
    def budget(self) -> float:
        """Device-seconds that all but the grid may spend."""
        return _SHARE * self.grid.total_s

    def lifts(self) -> tuple[Floats, Floats, Floats]:
        """Of each shape: the sub-network's, the same with heads of its own, and that of the model
        trained alone."""
        finished = {name: one.objectives for name, one in self.finished.items()}
        sub, own, alone = (
            np.array([found[name].mean_lift for name in self.grid.found])
            for found in (self.elastic.found, finished, self.grid.found)
        )
        return sub, own, alone


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
    separate, elastic = _configs(scale, options)
    runs = SearchRuns(folder, separate=separate, elastic=elastic, seeds=scale.seeds)
    runs.make()
    shapes = runs.shapes()
    space = Space.of(separate.space, load_model(separate.teacher).model.encoder.config)
    seeds = [_seed(runs, shapes, separate, seed) for seed in scale.seeds]
    curves = [_curves(one, space, elastic.finish) for one in seeds]
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


def _configs(scale: _Scale, options: argparse.Namespace) -> tuple[SearchConfig, SearchConfig]:
    """Of separate trials, and of the elastic search."""
    if not options.teacher:
        demo.main([f"--preset={scale.preset}"])  # nothing, when it is done
    teacher = Path(options.teacher or f"runs/{scale.preset}").absolute()
    settings = [f"--teacher={teacher}", "--output=."]
    if options.data:
        settings.append(f"--data=[{Path(options.data).absolute()}]")
    overrides = [*settings, *_COMMON, *scale.settings]
    separate = load_config(SearchConfig, file=None, overrides=overrides)
    return separate, load_config(SearchConfig, file=None, overrides=[*overrides, *scale.elastic])


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
    finished = pool(runs.finished(seed), trained_s)
    return _Seed(
        pool(alone, shapes.teacher_s),
        pool(runs.sub_networks(seed), trained_s),
        {name: Priced(one, finished.seconds[name]) for name, one in finished.found.items()},
    )


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


def _curves(one: _Seed, space: Space, finish: FinishConfig) -> dict[str, list[Curve]]:
    """System -> searches that differ in their sampler's seed alone."""

    def orders(
        pool: Pool, sampler: Literal["tpe", "random"], share: float = 1.0
    ) -> Iterator[list[str]]:
        for seed in range(_REPLAYS):
            yield replay(pool, space, sampler=sampler, seed=seed, budget=share * one.budget)

    def finished(order: Sequence[str]) -> Curve:
        then = [one.finished[name] for name in chosen(one.elastic, order, finish)]
        return one.elastic.curve(order, then=then)

    return {
        "elastic": [finished(order) for order in orders(one.elastic, "tpe", _TRIALS_SHARE)],
        "elastic/judged": [one.elastic.curve(order) for order in orders(one.elastic, "tpe")],
        "separate": [one.grid.curve(order) for order in orders(one.grid, "tpe")],
        "random": [one.grid.curve(order) for order in orders(one.grid, "random")],
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
        for system in curves[0]
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
    alone = [one for _, _, one in pairs]
    others = [
        _rank(alone[a], alone[b]) for a in range(len(alone)) for b in range(a + 1, len(alone))
    ]
    rank, gap = "Spearman's correlation of mean lifts", "mean difference of mean lifts"
    same = "the same shapes trained alone"
    figures = [
        _figure("C2/alone/rank", others, "the same of two seeds trained alone", "each other")
    ]
    for place, kind in enumerate(("sub", "finished")):
        figures += [
            _figure(f"C2/{kind}/rank", [_rank(one[place], one[-1]) for one in pairs], rank, same),
            _figure(f"C2/{kind}/gap", [np.mean(one[place] - one[-1]) for one in pairs], gap, same),
        ]
    return figures


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
        sub, own, alone = one.lifts()
        color = f"C{number}"
        right.plot(alone, sub, "o", markersize=4, color=color, label=f"seed {number}")
        right.plot(alone, own, "^", markersize=4, color=color, mfc="none", label="heads of its own")
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
