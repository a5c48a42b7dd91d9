"""What a checkpoint tells of its run: no secrets, and enough to know its data again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from prepared_toy import PRICE, write_encoder, write_prepared
from pretrain_toy import VOCABULARY
from untrained import write_run

from rectrain.data.config import DataConfig
from rectrain.data.encoding import FeatureEncoder
from rectrain.errors import CheckpointError, ConfigError, EncoderError
from rectrain.model.balancing import DynamicWeightAverage
from rectrain.train.build import (
    load_model,
    load_trained_encoder,
    new_model,
    open_data,
)
from rectrain.train.checkpoint import Checkpoint
from rectrain.train.config import RunConfig, TrackingConfig, TrainConfig
from rectrain.train.export import export_encoder
from rectrain.train.provenance import check_same_data, checkpoint_meta
from rectrain.train.selection import finished_checkpoint
from rectrain.train.storage import Store

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


@pytest.mark.parametrize("watch", ["mean", "risk"])
def test_a_run_that_goes_by_a_validation_without_rows_is_refused(
    tmp_path: Path, watch: str
) -> None:
    folder = write_prepared(tmp_path / "data", tasks={"risk": PRICE, "search_ranking": PRICE})

    def opened(**train: Any) -> Any:
        train |= {"evaluate_interval": 5, "watch": watch}
        return open_data(RunConfig(data=DataConfig(paths=(str(folder),)), train=train))  # type: ignore[arg-type]

    for follows in ({"early_stopping": 2}, {"schedule": "plateau"}):
        with pytest.raises(ConfigError, match="validation rows of risk") as caught:
            opened(**follows)
        assert "\n" not in str(caught.value)
    opened()

    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tasks"]["search_ranking"]["splits"]["validation"]["rows"] = 3
    (folder / "manifest.json").write_text(json.dumps(manifest))
    if watch == "mean":  # is that of the tasks that have a value
        opened(early_stopping=2)
    else:
        with pytest.raises(ConfigError, match="watch another task"):
            opened(early_stopping=2)


@pytest.mark.parametrize("early_stopping", [None, 2])
def test_a_run_whose_last_checkpoint_is_damaged_is_not_finished(
    tmp_path: Path, early_stopping: int | None
) -> None:
    data = write_prepared(tmp_path / "data", tasks={"risk": PRICE})
    run = write_run(tmp_path / "run", data)
    store = Store.open(str(run))
    train = TrainConfig(early_stopping=early_stopping, evaluate_interval=1)
    last = store.sub("checkpoints/step-00000001")
    assert finished_checkpoint(store, train=train, num_steps=1) == last
    assert finished_checkpoint(store, train=train, num_steps=2) is None

    (weights,) = (run / "checkpoints").glob("*/model-*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.warns(UserWarning, match="skipped"):
        assert finished_checkpoint(store, train=train, num_steps=1) is None


@pytest.mark.parametrize("load", [load_model, load_trained_encoder])
def test_a_checkpoint_of_another_version_is_refused_in_one_line(
    tmp_path: Path, load: Callable[[str], Any]
) -> None:
    data = write_prepared(tmp_path / "data", tasks={"risk": PRICE})
    run = write_run(
        tmp_path / "run", data, change_meta=lambda meta: meta["config"]["train"].update(new=1)
    )
    with pytest.raises(CheckpointError, match="this version must know") as caught:
        load(str(run))
    assert "\n" not in str(caught.value)


def test_an_encoder_of_another_shape_is_refused_in_one_line(tmp_path: Path) -> None:
    def grow(model: Any) -> None:
        model.encoder.embeddings.word_embeddings = torch.nn.Embedding(3, 128)

    data = write_prepared(tmp_path / "data", tasks={"risk": PRICE})
    run = write_run(tmp_path / "run", data, change=grow)
    with pytest.raises(CheckpointError, match=r"other tensors: embeddings\.word_embeddings"):
        load_trained_encoder(str(run))


def begin_with(encoder: Path, data: Path) -> None:
    config = RunConfig.model_validate(
        {"data": {"paths": [str(data)]}, "model": {"encoder": str(encoder)}}
    )
    new_model(config, open_data(config))


@pytest.mark.parametrize(("num_steps", "window"), [(30, 3), (1000, 50)])
def test_the_windows_of_dwa_follow_the_length_of_the_run(
    tmp_path: Path, num_steps: int, window: int
) -> None:
    folder = write_prepared(tmp_path / "data", tasks={"risk": PRICE})
    config = RunConfig.model_validate(
        {
            "data": {"paths": [str(folder)]},
            "model": {"encoder": "tiny"},
            "train": {"balancer": "dwa", "num_steps": num_steps},
        }
    )
    balancer = new_model(config, open_data(config)).balancer
    assert isinstance(balancer, DynamicWeightAverage) and balancer.window == window


def test_an_encoder_must_have_the_datas_tokenizer_if_it_has_one(tmp_path: Path) -> None:
    data = write_prepared(tmp_path / "data", tasks={"risk": PRICE})
    bert = write_encoder(tmp_path / "bert")
    begin_with(bert, data)

    vocabulary = bert / "vocab.txt"
    vocabulary.write_text("\n".join(VOCABULARY))
    begin_with(bert, data)
    *words, before_last, last = VOCABULARY
    vocabulary.write_text("\n".join([*words, last, before_last]))
    with pytest.raises(EncoderError, match="token ids must mean the same") as caught:
        begin_with(bert, data)
    assert str(bert) in str(caught.value) and "\n" not in str(caught.value)


def test_the_encoder_of_a_run_begins_another_on_the_same_data(tmp_path: Path) -> None:
    data = write_prepared(tmp_path / "data", tasks={"risk": PRICE})
    run = write_run(tmp_path / "run", data)
    export_encoder(load_trained_encoder(str(run)), Store.open(str(run)))
    assert (run / "encoder" / "tokenizer.json").exists()
    begin_with(run / "encoder", data)
