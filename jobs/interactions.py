"""Report what each task of a joint model gains or loses from the others.

    python -m jobs.interactions --checkpoint runs/demo [--single runs/risk runs/ad_ctr]

Prints cosines between the tasks' gradients at the shared encoder over some micro-batches, and, with
--single, each task's metric in the joint run beside that of a run of its own (both must have been
evaluated). Writes interactions.json, .md and .png, by default into the run's folder.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.cli import JobParser, count, output_folder, run, run_folder
from rectrain.data.loader import Loader, catalogues, plan_training
from rectrain.data.shards import Prepared
from rectrain.errors import ConfigError
from rectrain.inference.predictor import Predictor, open_prepared
from rectrain.report.interaction import (
    GradientReport,
    GradientSums,
    compare_runs,
    markdown,
    write_interactions,
)
from rectrain.train.config import RunConfig

__all__ = ["main"]

_EVALUATION = "evaluation.json"


def main(argv: list[str]) -> int:
    """Run the job; see the module's docstring."""
    options = _parser().parse_args(argv)
    output = output_folder(options.output, checkpoint=options.checkpoint)
    import matplotlib  # noqa: F401 - missing, it must be told before the work

    predictor = Predictor.from_checkpoint(options.checkpoint, device=options.device)
    checkpoint = predictor.checkpoint
    config = RunConfig.model_validate(checkpoint.meta["config"])
    paths = options.data or config.data.paths
    data = open_prepared(predictor, paths, tasks=predictor.tasks)
    singles = {folder: _evaluation(folder) for folder in map(run_folder, options.single or ())}
    gains = compare_runs(_evaluation(run_folder(options.checkpoint)), singles) if singles else []
    print(f"interactions: {', '.join(data)}: {options.micro_batches} of {options.split}")
    print(f"interactions: {checkpoint.path} (step {checkpoint.step}) -> {output}")
    if options.dry_run:
        return 0
    gradients = _measure(
        predictor, data, config=config, split=options.split, limit=options.micro_batches
    )
    facts = {"checkpoint": str(checkpoint.path), "step": checkpoint.step, "split": options.split}
    write_interactions(gradients, gains, output, **facts, data=list(paths), singles=list(singles))
    print(markdown(gradients, gains))
    print(f"interactions: {output / 'interactions.md'}, .json, .png")
    return 0


def _measure(
    predictor: Predictor,
    data: Mapping[str, Prepared],
    *,
    config: RunConfig,
    split: str,
    limit: int,
) -> GradientReport:
    """Gradients of micro-batches as training makes them; of those it would take next, if train."""
    shards = {task: prepared.shards(task, split) for task, prepared in data.items()}
    plan = plan_training(shards, config=config.data, seed=config.seed, num_micro_batches=1)
    start = predictor.checkpoint.step * config.train.micro_batches if split == "train" else 0
    limit = min(limit, max(plan.num_slots(task) for task in data))  # then rows come again
    weights = [config.train.loss_weights.get(task, 1.0) for task in data]
    sums = GradientSums(list(data), weights=weights)
    device = next(predictor.model.parameters()).device
    with Loader(
        shards, plan=plan, items=catalogues(data), start_step=start, num_steps=start + limit
    ) as loader:
        for step, (batch,) in loader:
            sums.add_batch(predictor.model, batch.to(device))
            print(f"interactions: micro-batch {step - start + 1}/{limit}", file=sys.stderr)
    return sums.report()


def _evaluation(folder: str) -> dict[str, Any]:
    path = Path(folder) / _EVALUATION
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            what=str(path),
            got=error,
            rule="runs are compared by their evaluations",
            fix=f"python -m jobs.evaluate --checkpoint {folder}",
        ) from error
    if not isinstance(found, dict) or not isinstance(found.get("tasks"), dict):
        raise ConfigError(
            what=str(path),
            got="no tasks",
            rule="runs are compared by their evaluations",
            fix=f"python -m jobs.evaluate --checkpoint {folder}",
        )
    return found


def _parser() -> JobParser:
    parser = JobParser(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a run's folder, or one checkpoint")
    parser.add_argument(
        "--single",
        nargs="+",
        metavar="RUN",
        help="folders of evaluated runs of single tasks (default: none)",
    )
    parser.add_argument("--data", nargs="+", help="prepared directories (default: the run's)")
    parser.add_argument(
        "--split", default="train", choices=("train", "validation"), help="rows to look at"
    )
    parser.add_argument("--micro-batches", type=count, default=20, help="how many to look at")
    parser.add_argument("--output", help="folder of the files (default: the run's folder)")
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="auto: a GPU if there is"
    )
    return parser


if __name__ == "__main__":
    run(main)
