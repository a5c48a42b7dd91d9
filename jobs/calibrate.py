"""Decide when a small model asks a large one, on held-out rows; the policy goes into its package.

    python -m jobs.calibrate --small runs/demo-small/package --large runs/demo/package \\
        --data data/demo --budget 0.1

Scores held-out rows with both packages, makes their probabilities come true (temperature, or
isotonic where that is better), and chooses for each task what is deferred: as little as keeps the
loss, with 95% certainty, below --max-loss of the large model's metric, or a share of --budget.
Prints one table, and writes policy.json and calibration.png into the small package, where other
tasks keep their policy for these two models (docs/cascade.md).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping

from jobs.cli import JobParser, count, run, seed
from rectrain.cascade import POLICY, Policy, TaskPolicy, read_policy
from rectrain.cascade.fit import Aim, Fitted, RowScores, fit_lists, fit_rows
from rectrain.cascade.scores import check_pair, score_held_out
from rectrain.cascade.thresholds import groups_to_prove
from rectrain.data.loader import open_tasks
from rectrain.data.shards import Prepared
from rectrain.errors import ConfigError, DataError, PackageError
from rectrain.inference.engine import steady_backend
from rectrain.inference.packaged import PackagedModel, load
from rectrain.package import open_package, update_package
from rectrain.report.calibration import calibration_table, draw_calibration

__all__ = ["main"]

_MAX_LOSS, _PICTURE = 0.001, "calibration.png"
_MOST, _USUAL = 0.5, 0.1  # shares deferred: from here on it is told why; what a cascade is for


def main(argv: list[str]) -> int:
    """Runs the job; see the module's docstring."""
    options = _parser().parse_args(argv)

    import matplotlib  # noqa: F401 - missing, it must be told now

    small, large = (
        load(path, backend=_backend(path, options.backend), threads=options.threads)
        for path in (options.small, options.large)
    )
    data = _data(small, large, options)
    aim = _aim(options)
    kept = _kept(small, large, data)
    print(_plan(small, large, data, options, kept=kept))
    if options.dry_run:
        return 0
    fitted = {
        task: _fit(small, large, prepared, task=task, split=options.split, aim=aim)
        for task, prepared in data.items()
    }
    policy = Policy(
        small=small.version,
        large=large.version,
        tasks={**kept, **{task: one.policy for task, one in fitted.items()}},
    )
    files = {POLICY: policy.to_json(), _PICTURE: draw_calibration(fitted)}
    update_package(small.package, files)
    print(f"\n{calibration_table(fitted)}\n\n{_hints(fitted, aim)}", end="")
    for name, file in (("policy", POLICY), ("picture", _PICTURE)):
        print(f"{name:10}{small.package.path / file}")
    return 0


def _backend(path: str, given: str) -> str:
    """Thresholds belong to the scores that will be served."""
    return steady_backend(open_package(path), given, device="cpu")


def _parser() -> JobParser:
    parser = JobParser(__doc__)
    parser.add_argument("--small", required=True, help="package that answers; gets the policy")
    parser.add_argument("--large", required=True, help="package that is asked in doubt")
    parser.add_argument("--data", nargs="+", required=True, help="prepared directories")
    parser.add_argument("--tasks", nargs="+", help="only these (default: all that both models"
                        " have and the data holds)")  # fmt: skip
    parser.add_argument(
        "--split", default="validation", choices=("validation", "test"),
        help="held-out rows to fit on; judge on the other",
    )  # fmt: skip
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--max-loss", type=_share, help="share of the large model's metric that may be lost"
        f" (default: {_MAX_LOSS}, without --budget)",
    )  # fmt: skip
    either.add_argument(
        "--budget", type=_share, help="instead: share of rows (of lists) that may be deferred"
    )
    parser.add_argument(
        "--confidence", type=_certainty, default=0.95, help="certainty of --max-loss"
    )
    parser.add_argument(
        "--num-resamples", type=count, default=1000, help="resamples of the bootstrap, at most"
    )
    parser.add_argument("--seed", type=seed, default=0, help="of halves and resamples")
    parser.add_argument(
        "--backend", default="auto", help="what runs the encoders; auto is what serving takes"
    )
    parser.add_argument("--threads", type=count, help="of the models (default: torch's)")
    return parser


def _share(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{value:g} is no share, 0 to 1")
    return value


def _certainty(text: str) -> float:
    value = _number(text)
    if not 0.5 <= value < 1:
        raise argparse.ArgumentTypeError(f"{value:g} is not in 0.5 to 1")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def _aim(options: argparse.Namespace) -> Aim:
    unset = options.budget is None and options.max_loss is None
    return Aim(
        max_loss=_MAX_LOSS if unset else options.max_loss,
        budget=options.budget,
        level=options.confidence,
        num_resamples=options.num_resamples,
        seed=options.seed,
    )


def _data(
    small: PackagedModel, large: PackagedModel, options: argparse.Namespace
) -> dict[str, Prepared]:
    """The prepared data of the tasks, checked against both models."""
    if small.version == large.version:
        raise ConfigError(
            what="--small and --large",
            got=f"both of version {small.version[:12]}",
            rule="a cascade has two models",
            fix="give the small model's package and the large one's",
        )
    held = {task for path in options.data for task in Prepared.open(path).tasks}
    common = [task for task in small.tasks if task in large.tasks and task in held]
    tasks = options.tasks or common
    if not tasks:
        raise DataError(
            what="tasks",
            got=f"{', '.join(small.tasks)} of small, {', '.join(large.tasks)} of large",
            rule=f"the data holds {', '.join(sorted(held))}; none is in all three",
            fix="give packages and data of the same task",
        )
    data = open_tasks(options.data, tasks=tasks)
    for task, prepared in data.items():
        check_pair(small.predictor, large.predictor, prepared, task=task)
    return data


def _plan(
    small: PackagedModel,
    large: PackagedModel,
    data: dict[str, Prepared],
    options: argparse.Namespace,
    *,
    kept: Mapping[str, TaskPolicy],
) -> str:
    lines = [
        f"calibrate: {name} {model.package.path}, version {model.version[:12]},"
        f" {model.engine.encoder.name}"
        for name, model in (("small", small), ("large", large))
    ]
    for task, prepared in data.items():
        rows = prepared.shards(task, options.split).num_rows
        lines.append(f"calibrate: {task}: {rows:,} rows of {options.split} in {prepared.root}")
    had = "replaces the policy of" if POLICY in small.package.files else "writes a policy into"
    lines.append(f"calibrate: {had} {small.package.path}")
    if kept:
        lines.append(f"calibrate: keeps there what it decides for {', '.join(kept)}")
    return "\n".join(lines)


def _kept(
    small: PackagedModel, large: PackagedModel, data: Mapping[str, Prepared]
) -> dict[str, TaskPolicy]:
    """What is there for other tasks than these, where it was made for the same two models."""
    try:
        before = read_policy(small.package, large=large.package)
    except PackageError:
        return {}
    return {task: one for task, one in before.tasks.items() if task not in data} if before else {}


def _fit(
    small: PackagedModel,
    large: PackagedModel,
    prepared: Prepared,
    *,
    task: str,
    split: str,
    aim: Aim,
) -> Fitted:
    print(f"calibrate: {task}", flush=True)
    scores = score_held_out(small.predictor, large.predictor, prepared, task=task, split=split)
    primary = small.predictor.spec(task).primary
    if isinstance(scores, RowScores):
        return fit_rows(task, scores, metric=primary, aim=aim)
    return fit_lists(task, scores, metric=primary, aim=aim)


def _hints(fitted: dict[str, Fitted], aim: Aim) -> str:
    """What the user should know of tasks that defer most requests for want of a proof."""
    if aim.max_loss is None:
        return ""
    told = (
        _hint(task, one, max_loss=aim.max_loss, level=aim.level)
        for task, one in fitted.items()
        if one.choice.rate > _MOST
    )
    return "".join(told)


def _hint(task: str, one: Fitted, *, max_loss: float, level: float) -> str:
    wanted = groups_to_prove(one.choice, max_loss=max_loss, num_groups=one.num_groups, rate=_USUAL)
    rows = "more held-out rows"
    if math.isfinite(wanted):
        rows += f" (about {float(f'{wanted:.1e}'):,.0f} groups for {_USUAL:.0%},"
        rows += " if both models are equally good)"
    return (
        f"{task}: {one.num_groups:,} held-out groups can't prove with {level:.0%} certainty that"
        f" deferring less than {one.choice.rate:.0%} loses at most {max_loss:.2%};"
        f" fix: {rows}, or --budget\n"
    )


if __name__ == "__main__":
    run(main)
