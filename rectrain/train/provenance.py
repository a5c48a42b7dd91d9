"""What a run came from: noted in its checkpoints, and refused where it is no longer that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, get_args

from rectrain.data.shards import Prepared
from rectrain.errors import CheckpointError, without_credentials
from rectrain.train.checkpoint import Checkpoint, manifest_sha256
from rectrain.train.config import RunConfig, TrainConfig
from rectrain.train.storage import Store

__all__ = ["ORIGINS", "Origin", "check_origin", "check_same_data", "checkpoint_meta"]

Origin = Literal["start_from", "teacher"]
ORIGINS: tuple[Origin, ...] = get_args(Origin)
"""Settings that name another run, each beside one of its SHA-256."""


def check_origin(
    train: TrainConfig,
    setting: Origin,
    *,
    fix: str = "give another --name, or --overwrite, to begin anew from this one",
) -> None:
    """Refuses another `train.start_from` or `train.teacher` than the run began with, if it has one.

    Args:
        train: settings of the run.
        setting: which of them.
        fix: what the user may do.

    Raises:
        CheckpointError: it was trained anew since.
    """
    location = getattr(train, setting)
    expected = getattr(train, f"{setting}_sha256")
    if location is None or expected is None:
        return
    found = manifest_sha256(Store.open(location))
    if found != expected:
        raise CheckpointError(
            what=f"train.{setting} {location}",
            got=f"a checkpoint with SHA-256 {found[:12]}…",
            rule=f"the run began with another, {expected[:12]}… (train.{setting}_sha256)",
            fix=fix,
        )


def checkpoint_meta(config: RunConfig, data: Mapping[str, Prepared]) -> dict[str, Any]:
    """What a checkpoint says of its run besides weights and step; JSON-serialisable.

    Where the run is written and watched is no part of it: such URIs can hold passwords.
    """
    described = config.model_dump(mode="json", exclude={"output", "tracking"})
    for setting in ORIGINS:
        if described["train"][setting] is not None:
            described["train"][setting] = without_credentials(described["train"][setting])
    return {
        "config": described,
        "tasks": {
            task: {
                "features": prepared.features(task).to_json(),
                "fields_version": prepared.manifest["tasks"][task]["fields_version"],
                "max_length": prepared.manifest["config"]["max_length"],
                "max_history": prepared.manifest["config"]["max_history"],
                "files": {
                    facts["path"]: facts["sha256"]
                    for split in ("train", "validation")
                    for facts in prepared.splits(task)[split]["files"]
                },
            }
            for task, prepared in data.items()
        },
        "tokenizer_sha256": next(iter(data.values())).tokenizer_sha256,
    }


def check_same_data(
    checkpoint: Checkpoint, config: RunConfig, data: Mapping[str, Prepared]
) -> None:
    """Refuses to go on from a checkpoint with other rows, features or tokens than it was made by.

    Raises:
        CheckpointError: the data at the same path was prepared anew.
    """
    now = json.loads(json.dumps(checkpoint_meta(config, data)))
    changed = [
        task for task, facts in now["tasks"].items() if checkpoint.meta["tasks"].get(task) != facts
    ]
    if checkpoint.meta["tokenizer_sha256"] != now["tokenizer_sha256"]:
        changed.append("the tokenizer")
    if changed:
        raise CheckpointError(
            what=f"data.paths {', '.join(config.data.paths)}",
            got=f"data prepared anew since step {checkpoint.step} (changed: {', '.join(changed)})",
            rule="a run goes on with the data that it began with",
            fix="give another --name, or --overwrite to begin anew",
        )
