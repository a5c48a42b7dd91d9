"""What a small model keeps of a large one, and what it costs (I3).

    python -m benchmarks.small_model [--quick] [--only demo,real] [--teacher runs/demo] [--data …]

Demo: the small model of the demo's run (made first if it isn't there), as `jobs.compress` makes it.
Real: that of a joint model of `../shared/data`. Both beside the large one, each step on the way,
and two rivals that are trained on the same rows: the large model's first layers fine-tuned, and a
BERT of the small one's shape from scratch. Interrupted and run again, it goes on: what is finished
is kept. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.lift import Lifts
from benchmarks.picture import draw_steps
from benchmarks.quality_runs import Scale as TeacherScale
from benchmarks.quality_runs import Study
from benchmarks.small_runs import RIVALS, STEPS, SmallStudy, open_pipeline
from benchmarks.small_speed import compare_speed
from benchmarks.table import Figure, print_table, write_figures
from jobs import demo
from rectrain.compress.config import CompressConfig
from rectrain.compress.measure import Measured
from rectrain.compress.pipeline import LARGE, SMALL
from rectrain.config import load_config
from rectrain.data.shards import Prepared
from rectrain.inference.recommend import Shoppers
from rectrain.metrics import Interval
from rectrain.report.compression import compression_table
from rectrain.tasks import TASKS

__all__ = ["main"]

_OUTPUT = Path("runs/bench")
_SHARED = Path("../shared/data")
_WANTED_SHARE = 0.97
_REAL_TASKS = ("recommendation", "risk", "search_ranking")
_REAL_SOURCES = ("retail", "chorus-0")


@dataclass(frozen=True)
class _Scale:
    """How much is done.

    Attributes:
        preset: of the demo, whose settings of `jobs.compress` are taken for other runs, too.
        real: other such settings for the real data.
        teacher: sizes of the real data's large model.
        rounds: of the measurement of speed.
        num_texts: of each side of each task, whose speed is measured.
    """

    preset: str
    real: tuple[str, ...]
    teacher: TeacherScale
    rounds: int
    num_texts: int


def _teacher(encoder_steps: int, head_steps: int) -> TeacherScale:
    return TeacherScale(encoder_steps, head_steps, seeds=(0,), folds=1, market_steps=1)


# Histories have 300 tokens: of fewer tokens, a micro-batch would hold two or three of them.
_FULL = _Scale(
    "demo", ("--tokens_per_micro_batch=4096",), _teacher(40, 440), rounds=7, num_texts=500
)
_QUICK = _Scale("tiny", ("--train.num_steps=6",), _teacher(3, 20), rounds=1, num_texts=50)


def main(argv: Sequence[str]) -> int:
    """Makes what is not yet there, measures, prints the tables, writes figures and pictures."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.data and not options.teacher:
        parser.error("--data goes with --teacher")
    logging.getLogger("ray").setLevel(logging.WARNING)
    name = f"small_model{'-quick' if options.quick else ''}"
    scale = _QUICK if options.quick else _FULL
    folder = Path(options.folder or f"runs/{name}")
    for part in options.only.split(","):
        if part == "real" and not _SHARED.is_dir():
            print(f"skipped: real, for {_SHARED} is not here", file=sys.stderr)
            continue
        if part == "real":
            config = _of_real_data(folder / part, scale)
        else:
            config = _of_demo(folder / part, scale, options)
        study = SmallStudy(open_pipeline(config))
        rows = study.make()
        path = _OUTPUT / f"{name}{'' if part == 'demo' else f'-{part}'}.json"
        _report(study, rows, scale=scale, path=path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="does it run? no figures to keep")
    parser.add_argument("--only", default="demo,real", help="parts to run (default: both)")
    parser.add_argument("--teacher", help="demo: another run, whose small model is made here")
    parser.add_argument("--data", help="prepared data for --teacher, other than its own")
    parser.add_argument("--folder", help="of what is made (default: runs/small_model[-quick])")
    return parser


def _of_demo(folder: Path, scale: _Scale, options: argparse.Namespace) -> CompressConfig:
    """How the small model of the demo, or of another run, is made."""
    if not options.teacher:
        demo.main([f"--preset={scale.preset}"])  # nothing, when it is done
        made = Path("runs") / f"{scale.preset}-small" / "compress.yaml"
        return load_config(CompressConfig, file=str(made), overrides=[])
    settings = [f"--teacher={options.teacher}"]
    settings += [f"--data=[{options.data}]"] if options.data else []
    return _config(folder, scale, settings)


def _of_real_data(folder: Path, scale: _Scale) -> CompressConfig:
    """How the small model of a joint model of the real data is made; trains that one first."""
    study = Study(folder, scale=scale.teacher, shared=_SHARED)
    teacher = study.joint("teacher", _REAL_TASKS, sources=_REAL_SOURCES)
    return _config(folder, scale, [f"--teacher={teacher}", *scale.real])


def _config(folder: Path, scale: _Scale, settings: Sequence[str]) -> CompressConfig:
    """The settings of the demo's small model under others."""
    file = str(demo.CONFIGS / f"{scale.preset}-small.yaml")
    overrides = [f"--output={folder / 'small'}", *settings]
    return load_config(CompressConfig, file=file, overrides=overrides)


# ── figures ──────────────────────────────────────────────────────────────────────────────────────


def _report(study: SmallStudy, rows: Sequence[Measured], *, scale: _Scale, path: Path) -> None:
    """Measures and judges what was made; prints and writes it."""
    small = next(row for row in rows if row.name == SMALL)
    figures = compare_speed(
        study, backend=small.backend, rounds=scale.rounds, num_texts=scale.num_texts
    )
    figures.append(_bytes(small, large=rows[0]))
    tasks = {task: _judged(study, task, backend=small.backend) for task in study.pipeline.data}
    for task, judged in tasks.items():
        figures += _lift_figures(task, judged)
    figures += _costs(rows)
    print(
        compression_table(rows, metrics={task: TASKS[task].primary for task in tasks}), end="\n\n"
    )
    print_table(figures)
    write_figures(path, figures)
    draw_steps(
        path.with_suffix(".png"), _lines(tasks), _times(rows), apart=RIVALS, wanted=_WANTED_SHARE
    )
    print(f"written: {path}, .png", flush=True)


def _judged(study: SmallStudy, task: str, *, backend: str) -> Lifts:
    prepared = study.pipeline.data[task]
    num_ranked = None
    if TASKS[task].has_catalogue:
        num_ranked = _num_ranked(prepared, task, split=study.pipeline.config.split)
    systems = study.scores(task, backend=backend)
    return Lifts(TASKS[task].primary, systems, large=LARGE, num_ranked=num_ranked)


def _num_ranked(prepared: Prepared, task: str, *, split: str) -> np.ndarray:
    """Items that are ranked for each user: all that the user doesn't have."""
    items = prepared.items(task).table().column("item_id").to_pylist()
    bought = Shoppers.of(prepared.shards(task, split).table(), items).bought
    return np.array([len(set(items).difference(ids)) for ids in bought])


def _bytes(small: Measured, *, large: Measured) -> Figure:
    unit = f"x bytes of weights ({small.num_bytes / 1e6:.2f} MB, {small.backend} and heads)"
    peer = f"large model in fp32 ({large.num_bytes / 1e6:.1f} MB)"
    return _exact("I3/bytes", small.num_bytes / large.num_bytes, unit, peer)


def _lift_figures(task: str, judged: Lifts) -> list[Figure]:
    """Shares of the large model's lift, and how far the small model is ahead of its rivals."""
    large = judged.value(LARGE).value
    if large <= judged.chance:
        _say(f"{task}: no lift to share, for the large model has {large:.4f} {judged.metric}, a "
             f"random order {judged.chance:.4f}")  # fmt: skip
        return []
    peer = f"large model ({judged.metric} {large:.4f}; random order {judged.chance:.4f})"
    if judged.undefined:
        peer += f"; without the {judged.undefined:.1%} of draws in which it has no lift"
    names = {SMALL: f"I3/lift/{task}"}
    names |= {step: f"I3/curve/{step}/{task}" for step in STEPS if step not in (LARGE, SMALL)}
    names |= {rival: f"I3/rival/{rival}/{task}" for rival in RIVALS}
    figures = []
    for system, title in names.items():
        unit = f"share of lift ({judged.value(system).value:.4f})"
        figures.append(_interval(title, judged.share(system), unit, peer))
    for rival in RIVALS:
        ahead = judged.difference(SMALL, rival)
        figures.append(_interval(f"I3/ahead/{rival}/{task}", ahead, judged.metric, rival))
    return figures


def _costs(rows: Sequence[Measured]) -> list[Figure]:
    """Speed and size of each model on the way, in torch but for the small one, which is in int8."""
    large = rows[0]
    figures = []
    for row in rows[1:]:
        speed = row.tokens_per_s / large.tokens_per_s
        size = row.num_bytes / large.num_bytes
        figures += [
            _exact(f"I3/curve/{row.name}/speed", speed, "x real tokens/s", "large model, fp32"),
            _exact(f"I3/curve/{row.name}/bytes", size, "x bytes of weights", "large model, fp32"),
        ]
    return figures


def _interval(title: str, found: Interval, unit: str, peer: str) -> Figure:
    return Figure(title, found.value, unit, peer, found.low, found.high, 1)


def _exact(title: str, value: float, unit: str, peer: str) -> Figure:
    return Figure(title, value, unit, peer, value, value, 1)


# ── picture ──────────────────────────────────────────────────────────────────────────────────────


def _lines(tasks: Mapping[str, Lifts]) -> dict[str, dict[str, Interval]]:
    """Task -> model -> its share of the lift; tasks without a lift are left out."""
    return {
        f"{task} {judged.metric}": {name: judged.share(name) for name in (*STEPS, *RIVALS)}
        for task, judged in tasks.items()
        if judged.value(LARGE).value > judged.chance
    }


def _times(rows: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """What is saved -> model -> how many times over, of the large one."""
    large = rows[0]
    return {
        "speed (real tokens/s)": {row.name: row.tokens_per_s / large.tokens_per_s for row in rows},
        "size (bytes of weights)": {row.name: large.num_bytes / row.num_bytes for row in rows},
    }


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
