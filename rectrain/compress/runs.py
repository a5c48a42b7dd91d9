"""The two runs of a compression: encoder and heads learn of the teacher, then the heads alone."""

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

__all__ = ["Run", "run_config", "train_run"]

Run = Literal["distilled", "heads"]
"""Both are named as their folders."""

# The student learns from rows in the shares that the teacher was last trained on.
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
    root, train = Path(config.output), config.train.model_dump()
    rows = {key: teacher["data"][key] for key in _MIXING}
    tokens = config.tokens_per_micro_batch
    if name == "heads":
        train |= {field: TrainConfig.model_fields[field].default for field in _OF_THE_ENCODER}
        train |= {
            "start_from": str(root / "distilled"),
            "freeze": "encoder",
            "zero_stage": min(config.train.zero_stage, 2),
            "num_steps": config.head_steps,
            "head_learning_rate": config.head_rate,
        }
        tokens *= _HEAD_TOKENS
    return RunConfig.model_validate(
        {
            "name": name,
            "output": str(root),
            "seed": config.seed,
            "data": {**rows, "paths": list(paths), "tokens_per_micro_batch": tokens},
            "model": {**teacher["model"], "encoder": str(root / "cut")},
            "train": {**train, "tasks": list(tasks)},
            "tracking": {"mlflow": "off"},
        }
    )


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
