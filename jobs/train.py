"""Trains one encoder on all tasks of the prepared data, on Ray.

    python -m jobs.train --config run.yaml --train.zero_stage=3 --train.num_workers=8
    ray job submit --working-dir . -- python -m jobs.train --config run.yaml --output=/shared/runs

Run again after an interruption, it goes on from the last complete checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence

from jobs.cli import JobParser, lasting, parse_config, run
from rectrain.cluster import connect, resources
from rectrain.errors import without_credentials
from rectrain.train.config import RunConfig

__all__ = ["main", "run_training"]


def main(argv: list[str]) -> int:
    """Runs the job; see the module's docstring."""
    return run_training(RunConfig, argv, doc=__doc__)


def run_training(cls: type[RunConfig], argv: Sequence[str], *, doc: str | None) -> int:
    """Checks, prints and carries out a run of any kind.

    Args:
        cls: the configuration, which says what is trained.
        argv: the arguments after the program's name.
        doc: the job's docstring, for `--help`.
    """
    parser = JobParser(doc)
    parser.add_argument("--overwrite", action="store_true", help="remove the run's folder first")
    config, options = parse_config(cls, argv, parser=parser)
    lasting(config.output, what="output")

    from rectrain.train import launch, preflight  # after --help: it imports torch and Ray
    from rectrain.train.build import load_trained_encoder
    from rectrain.train.export import export_encoder

    config = preflight.resolve_paths(config, overwrite=options.overwrite)
    config = preflight.resolve_micro_batch(config, overwrite=options.overwrite)
    _say(preflight.describe(config, overwrite=options.overwrite))
    place = preflight.claim(config, overwrite=options.overwrite)
    if options.dry_run:
        where, have = resources()
        _say(f"cluster: {where}: {have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs")
        launch.check_resources(config, have)
        return 0
    if place.result is not None:
        # A kill may have come between the last checkpoint and the export.
        export_encoder(load_trained_encoder(place.result), place.store)
        _say(f"already finished: {place.result.root} (--overwrite trains anew)")
        return 0
    connect()
    result = launch.launch(config, place, say=_say)
    _say(_summary(config, place.store.root, result=result.root))
    return 0


def _summary(config: RunConfig, root: str, *, result: str) -> str:
    from rectrain.train.tracking import mlflow_uri

    lines = [f"checkpoints   {root}/checkpoints"]
    if config.train.early_stopping is not None:
        lines.append(f"best          {result}: jobs.evaluate, jobs.predict and encoder/ have it")
    lines += [
        f"encoder       {root}/encoder",
        f"curves        {root}/curves.png",
        f"metrics       {root}/metrics.jsonl",
    ]
    if config.tracking.tensorboard:
        lines.append(f"tensorboard   {root}/tensorboard")
    if config.tracking.mlflow != "off":
        lines.append(f"mlflow        {mlflow_uri(config)}")
    return "\n".join(lines)


def _say(text: str) -> None:
    print(without_credentials(text), flush=True)


if __name__ == "__main__":
    run(main)
