"""The two runs of a compression: encoder and heads learn of the teacher, then the heads alone.

A search's runs (`rectrain.tune.runs`) are made of the same parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rectrain.cluster import connect
from rectrain.compress.config import CompressConfig
from rectrain.train import launch, preflight
from rectrain.train.build import load_trained_encoder
from rectrain.train.config import RunConfig, TrainConfig
from rectrain.train.export import export_encoder

__all__ = ["Run", "heads_alone", "learning", "run_config", "train_run"]

Run = Literal["distilled", "heads"]
"""Both are named as their folders."""

_MIXING = ("num_negatives", "temperature", "mixing_weights")
_HEAD_TOKENS = 4  # times as many in a micro-batch, where texts are vectors
_OF_THE_ENCODER = ("learning_rate", "layer_decay", "balancer", "distill_relation", "offload")


def run_config(
    name: Run,
    config: CompressConfig,
    *,
    teacher: Mapping[str, Any],
    tasks: Sequence[str],
    paths: Sequence[str],
) -> RunConfig:
    """The configuration of one of the runs.

    Args:
        name: which.
        config: from `pipeline.resolve`.
        teacher: settings of the teacher's run: its model, and its mixture of rows.
        tasks: of the teacher, in its order.
        paths: prepared directories.
    """
    root = Path(config.output)
    run = {
        "name": name,
        "output": str(root),
        "seed": config.seed,
        **learning(teacher, root / "cut", paths=paths, tokens=config.tokens_per_micro_batch),
        "train": {**config.train.model_dump(), "tasks": list(tasks)},
        "tracking": {"mlflow": "off"},
    }
    if name == "heads":  # they go on from those that were distilled, at a rate of their own
        run = heads_alone(run, num_steps=config.head_steps)
        run["train"] |= {
            "start_from": str(root / "distilled"), "head_learning_rate": config.head_rate,
        }  # fmt: skip
    return RunConfig.model_validate(run)


def learning(
    teacher: Mapping[str, Any], encoder: Path, *, paths: Sequence[str], tokens: int
) -> dict[str, Any]:
    """The data and the model of a run that learns of a teacher, from rows in the shares that the
    teacher was last trained on.

    Args:
        teacher: settings of its run.
        encoder: directory of the encoder that the run begins with.
        paths: prepared directories.
        tokens: of a micro-batch.
    """
    rows = {key: teacher["data"][key] for key in _MIXING}
    return {
        "data": {**rows, "paths": list(paths), "tokens_per_micro_batch": tokens},
        "model": {**teacher["model"], "encoder": str(encoder)},
    }


def heads_alone(run: Mapping[str, Any], *, num_steps: int) -> dict[str, Any]:
    """Settings of a run as those of its heads alone, on an encoder that stays as it is.

    Args:
        run: settings by section; what is of the encoder's training goes back to its defaults.
        num_steps: updates of the heads.
    """
    train = {
        **run["train"],
        **{field: TrainConfig.model_fields[field].default for field in _OF_THE_ENCODER},
        "freeze": "encoder",
        "zero_stage": min(run["train"]["zero_stage"], 2),
        "num_steps": num_steps,
    }
    tokens = _HEAD_TOKENS * run["data"]["tokens_per_micro_batch"]
    return {**run, "train": train, "data": {**run["data"], "tokens_per_micro_batch": tokens}}


def train_run(
    config: RunConfig,
    *,
    say: Callable[[str], None],
    listen: Callable[[Mapping[str, Any]], None] | None = None,
) -> None:
    """Trains a run to its end, from where it is.

    Args:
        config: from `run_config`.
        say: is given the lines that a user should see.
        listen: is given the workers' events; see `launch.launch`.

    Raises:
        RectrainError: see `preflight` and `launch`.
    """
    config = preflight.resolve_paths(config)
    say(preflight.describe(config))
    place = preflight.claim(config, overwrite=False)
    if place.result is None:
        connect()
        launch.launch(config, place, say=say, listen=listen)
    else:  # a kill came between the last checkpoint and the export
        export_encoder(load_trained_encoder(place.result), place.store)
