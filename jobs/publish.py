"""Publish a trained model as a folder that any program can open, with its item index.

    python -m jobs.publish --checkpoint runs/demo --output runs/demo/package
    python -m jobs.publish --refresh-index --output runs/demo/package --data data/demo
    python -m jobs.publish --refresh-golden --output runs/demo/package

The folder holds the encoder as transformers and sentence-transformers read it, the heads, the
tokenizer, the tasks' fields, a model card, and the SHA-256 of every file (docs/package.md). Three
lines of Python use it:

    import rectrain
    model = rectrain.load("runs/demo/package")
    scores = model.predict("search_ranking", rows)

A model that recommends gets the vectors of its catalogue's items, so that

    model.recommend(rows, k=10)

needs no candidates. --refresh-index encodes the items of newly prepared data with the package's
model; the data's features must be encoded as the training data's were. --refresh-golden makes the
golden requests anew, with this machine's answers (a package of before there were any has none).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jobs.cli import JobParser, output_folder, run, run_folder
from rectrain.data.loader import open_tasks
from rectrain.data.shards import Prepared
from rectrain.errors import ConfigError, DataError
from rectrain.inference.golden import publish_golden, read_golden
from rectrain.inference.packaged import item_indexes, publish_index
from rectrain.metrics import Interval
from rectrain.model.spec import TaskSpec
from rectrain.package import Card, ModelParts, check_free, open_package, write_package
from rectrain.train.build import LoadedModel, load_model
from rectrain.train.checkpoint import manifest_sha256
from rectrain.train.export import base_model, history
from rectrain.train.selection import find_checkpoint
from rectrain.train.storage import Store

__all__ = ["main"]

Metrics = Mapping[str, Mapping[str, Interval]]


def main(argv: list[str]) -> int:
    """Run the job; see the module's docstring."""
    options = _parser().parse_args(argv)
    output = output_folder(options.output, checkpoint="")
    if options.refresh_golden:
        return _refresh_golden(options, output)
    return _refresh(options, output) if options.refresh_index else _publish(options, output)


def _parser() -> JobParser:
    parser = JobParser(__doc__)
    parser.add_argument("--output", required=True, help="the package's folder")
    parser.add_argument("--checkpoint", help="a run's folder, or one checkpoint")
    parser.add_argument("--data", nargs="+", help="prepared data with the catalogue"
                        " (default: what the model was trained on)")  # fmt: skip
    parser.add_argument(
        "--evaluation", metavar="FILE",
        help="evaluation.json for the model card (default: the run's, if it is of this checkpoint)",
    )  # fmt: skip
    parser.add_argument(
        "--refresh-index", action="store_true", help="only build the item index of --output anew"
    )
    parser.add_argument(
        "--refresh-golden", action="store_true",
        help="only make the golden requests of --output anew, answered by this machine",
    )  # fmt: skip
    parser.add_argument("--no-index", action="store_true", help="publish without an item index")
    parser.add_argument("--overwrite", action="store_true", help="replace the package of --output")
    return parser


def _publish(options: argparse.Namespace, output: Path) -> int:
    if options.checkpoint is None:
        raise _missing("--checkpoint", rule="a package is made of a trained model", fix="RUN")
    if options.no_index and options.data:
        raise ConfigError(
            what="--data",
            got="given with --no-index",
            rule="the data's catalogue is what the index is made of",
            fix="leave one of them out",
        )
    folder = find_checkpoint(Store.open(options.checkpoint))
    loaded = load_model(folder)
    parts = ModelParts.of(loaded)
    meta = loaded.checkpoint.meta
    paths = options.data or meta["config"]["data"]["paths"]
    data = {} if options.no_index else _catalogues(parts.specs, paths)
    metrics, measured = _metrics(options, loaded)
    check_free(output, overwrite=options.overwrite)
    print(f"publish: {', '.join(parts.specs)} of {folder.root} -> {output}")
    _say_metrics(metrics, measured)
    for task, prepared in data.items():
        print(f"publish: index of {prepared.items(task).num_rows:,} items of {prepared.root}")
    if options.dry_run:
        return 0
    card = Card(
        source=manifest_sha256(folder),
        made=[history(meta)],
        base_model=base_model(meta),
        metrics=metrics,
        measured=measured,
    )
    package = write_package(
        output,
        parts,
        card=card,
        indexes=partial(item_indexes, parts, data),
        overwrite=options.overwrite,
    )
    package = publish_golden(package)
    size = sum(facts["bytes"] for facts in package.files.values())
    print(f"package: {output}, {size / 1e6:,.1f} MB, version {package.version[:12]}")
    return 0


def _refresh_golden(options: argparse.Namespace, output: Path) -> int:
    _alone(options, "--refresh-golden", but=("data", "refresh_index"))
    package = open_package(output)
    print(f"publish: golden requests of {', '.join(package.tasks)} in {output}")
    if options.dry_run:
        return 0
    refreshed = publish_golden(package, anew=True)
    golden = read_golden(refreshed)
    assert golden is not None
    same = refreshed.files == package.files
    print(f"golden: {', '.join(golden.backends)} {'as before' if same else 'answered'}")
    return 0


def _alone(options: argparse.Namespace, flag: str, *, but: tuple[str, ...] = ()) -> None:
    """Refuses what has no meaning beside a flag that refreshes one file."""
    for name in ("checkpoint", "evaluation", "no_index", "overwrite", *but):
        if getattr(options, name):
            raise ConfigError(
                what=f"--{name.replace('_', '-')}",
                got=f"given with {flag}",
                rule="that refreshes one part of a package that is there, and nothing else",
                fix="leave one of them out",
            )


def _refresh(options: argparse.Namespace, output: Path) -> int:
    _alone(options, "--refresh-index")
    if not options.data:
        raise _missing("--data", rule="an index is of a catalogue", fix="PREPARED")
    package = open_package(output)
    data = _catalogues(package.read().specs, options.data)
    if not data:
        raise DataError(
            what=f"package {output}",
            got=f"tasks {', '.join(package.tasks)}",
            rule="none of them ranks a catalogue",
            fix="publish a model of recommendation",
        )
    for task, prepared in data.items():
        print(f"publish: index of {prepared.items(task).num_rows:,} items of {prepared.root}")
    if options.dry_run:
        return 0
    start = time.monotonic()
    refreshed = publish_index(package, data)
    same = refreshed.files == package.files
    said = "was up to date" if same else f"built in {time.monotonic() - start:.1f} s"
    print(f"index: {', '.join(refreshed.indexes)} of {output} {said}")
    return 0


def _catalogues(specs: Mapping[str, TaskSpec], paths: list[str]) -> dict[str, Prepared]:
    """The prepared data of the tasks that rank a catalogue."""
    tasks = [task for task, spec in specs.items() if spec.has_catalogue]
    return open_tasks(paths, tasks=tasks) if tasks else {}


def _metrics(options: argparse.Namespace, loaded: LoadedModel) -> tuple[Metrics, str]:
    """The figures of an evaluation of this checkpoint, and what they were measured on."""
    given = options.evaluation
    path = Path(given or f"{run_folder(options.checkpoint)}/evaluation.json")
    if not given and not path.is_file():
        return {}, ""
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        metrics = {task: _intervals(facts["metrics"]) for task, facts in found["tasks"].items()}
        step, split, sha256 = found["step"], found["split"], found["model_sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            what=f"evaluation {path}",
            got=f"{type(error).__name__} {error}",
            rule="must be an evaluation.json of jobs.evaluate",
            fix="run jobs.evaluate again",
        ) from error
    if sha256 != loaded.checkpoint.model_sha256:
        if not given:
            return {}, ""
        raise DataError(
            what=f"evaluation {path}",
            got=f"figures of another model, of step {step}",
            rule=f"the card is of this checkpoint, of step {loaded.checkpoint.step}",
            fix="run jobs.evaluate on this checkpoint",
        )
    return metrics, f"On the {split} split; intervals are 95% of a bootstrap over groups."


def _intervals(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Interval]:
    return {
        name: Interval(*(_number(facts[key]) for key in Interval._fields))
        for name, facts in metrics.items()
        if facts["value"] is not None
    }


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _say_metrics(metrics: Metrics, measured: str) -> None:
    if not metrics:
        print("publish: no evaluation of this checkpoint: the card says not measured")
        return
    print(f"publish: card with metrics of {', '.join(metrics)}. {measured}")


def _missing(what: str, *, rule: str, fix: str) -> ConfigError:
    return ConfigError(what=what, got="nothing", rule=rule, fix=f"{what} {fix}")


if __name__ == "__main__":
    run(main)
