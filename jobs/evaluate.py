"""Judge a trained model on held-out rows, beside baselines and the best possible.

    python -m jobs.evaluate --checkpoint runs/demo [--split test] [--data data/demo] [--output DIR]

Prints a markdown table and writes evaluation.json and evaluation.md, by default into the run's
folder. Intervals are 95% of a bootstrap over queries or users; differences to baselines are paired.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch

from jobs.cli import JobParser, count, output_folder, run, run_folder
from rectrain.inference.evaluate import evaluate
from rectrain.inference.predictor import Predictor, open_prepared
from rectrain.report.evaluation import table, write_evaluation
from rectrain.train.storage import Store

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Run the job; see the module's docstring."""
    options = _parser().parse_args(argv)
    output = output_folder(options.output, checkpoint=options.checkpoint)
    predictor = Predictor.from_checkpoint(options.checkpoint, device=options.device)
    meta = predictor.checkpoint.meta
    paths = options.data or meta["config"]["data"]["paths"]
    data = open_prepared(predictor, paths, tasks=options.tasks or predictor.tasks)
    for task, prepared in data.items():
        rows = prepared.shards(task, options.split).num_rows
        print(f"evaluate: {task}: {rows:,} rows of {options.split} in {prepared.root}")
    place = f"step {predictor.checkpoint.step}{_choice(options.checkpoint, meta)}"
    print(f"evaluate: {predictor.checkpoint.path} ({place}) -> {output}")
    if options.dry_run:
        return 0
    Store.open(str(output)).make()  # before the work, not after it
    torch.set_num_threads(1)  # the tasks run side by side
    start = time.monotonic()
    results = evaluate(
        predictor,
        paths,
        split=options.split,
        tasks=list(data),
        num_resamples=options.num_resamples,
        num_threads=os.cpu_count() or 1,
        progress=lambda line: print(
            f"evaluate: {time.monotonic() - start:.0f} s, {line}", file=sys.stderr
        ),
    )
    write_evaluation(
        results,
        output,
        checkpoint=str(predictor.checkpoint.path),
        model_sha256=predictor.checkpoint.model_sha256,
        step=predictor.checkpoint.step,
        config=f"{run_folder(options.checkpoint)}/config.yaml",
        data=list(paths),
        split=options.split,
        rows_sha256={task: found.rows_sha256(task, options.split) for task, found in data.items()},
        seconds=round(time.monotonic() - start, 1),
    )
    print(f"{table(results)}\nevaluation: {output / 'evaluation.md'}, evaluation.json")
    return 0


def _choice(given: str, meta: Mapping[str, Any]) -> str:
    """Says so where the run's best checkpoint was taken, and not its last."""
    train = meta["config"]["train"]
    is_run = run_folder(given) == given.rstrip("/")
    if not is_run or train.get("early_stopping") is None:
        return ""
    if meta["score"] is None:
        return ", the newest: none is validated yet"
    return f", the best of validation: {train['watch']} {meta['score']:.4f}"


def _parser() -> JobParser:
    parser = JobParser(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a run's folder, or one checkpoint")
    parser.add_argument("--data", nargs="+", help="prepared directories (default: the run's)")
    parser.add_argument(
        "--split", default="test", choices=("validation", "test"), help="rows to judge by"
    )
    parser.add_argument("--tasks", nargs="+", help="only these (default: all of the model)")
    parser.add_argument("--output", help="folder of the files (default: the run's folder)")
    parser.add_argument(
        "--num-resamples", type=count, default=1000, help="resamples of the bootstrap, at most"
    )
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="auto: a GPU if there is"
    )
    return parser


if __name__ == "__main__":
    run(main)
