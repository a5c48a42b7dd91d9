"""What a checkpoint tells of its run: no secrets, and enough to know its data again."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rectrain.data.config import DataConfig
from rectrain.data.encoding import FeatureEncoder
from rectrain.errors import CheckpointError
from rectrain.train.build import check_same_data, checkpoint_meta
from rectrain.train.checkpoint import Checkpoint
from rectrain.train.config import RunConfig, TrackingConfig, TrainConfig

CONFIG = RunConfig(
    output="s3://key:secret@bucket/runs",
    data=DataConfig(paths=("data",)),
    train=TrainConfig(start_from="s3://key:secret@bucket/runs/before"),
    tracking=TrackingConfig(mlflow="http://me:secret@host"),
)


def data(*, sha256: str = "aa", tokenizer: str = "tt", edges: tuple[float, ...] = (0, 1)) -> Any:
    files = {"files": [{"path": "risk/train-00000.arrow", "sha256": sha256, "bytes": 1}]}
    return {
        "risk": SimpleNamespace(
            features=lambda task: FeatureEncoder({"amount": edges}, {}, {}),
            manifest={
                "tasks": {"risk": {"fields_version": 1}},
                "config": {"max_length": 64, "max_history": 8},
            },
            splits=lambda task: {"train": files, "validation": {"files": []}},
            tokenizer_sha256=tokenizer,
        )
    }


def test_a_run_goes_on_with_its_own_data_alone() -> None:
    meta = json.loads(json.dumps({**checkpoint_meta(CONFIG, data()), "step": 5}))
    checkpoint = Checkpoint(Path("x"), meta, ())
    check_same_data(checkpoint, CONFIG, data())
    for other, named in (
        (data(sha256="bb"), "risk"),
        (data(edges=(0, 2)), "risk"),
        (data(tokenizer="uu"), "the tokenizer"),
    ):
        with pytest.raises(CheckpointError, match=rf"since step 5 \(changed: {named}\)"):
            check_same_data(checkpoint, CONFIG, other)


def test_no_password_reaches_a_checkpoint() -> None:
    assert "secret" not in json.dumps(checkpoint_meta(CONFIG, data()))
