"""The model of a run: made from its configuration, described in a checkpoint, loaded from one."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import BertConfig, BertModel

from rectrain.data.encoding import FeatureEncoder
from rectrain.data.loader import open_tasks
from rectrain.data.shards import Prepared
from rectrain.data.texts import MLM, TextCorpus
from rectrain.data.tokenize import load_tokenizer, word_pieces
from rectrain.errors import CheckpointError, ConfigError, EncoderError, without_credentials
from rectrain.model.balancing import check_installed
from rectrain.model.encoder import load_encoder
from rectrain.model.masked import MaskedLanguageModel
from rectrain.model.multitask import MultiTaskModel
from rectrain.tasks import TASKS
from rectrain.train.checkpoint import (
    MARKER,
    Checkpoint,
    latest_complete,
    load_weights,
    open_checkpoint,
)
from rectrain.train.config import PretrainConfig, RunConfig
from rectrain.train.storage import Store

__all__ = [
    "Data",
    "LoadedModel",
    "Model",
    "TrainedEncoder",
    "attachments",
    "check_same_data",
    "checkpoint_meta",
    "load_model",
    "load_trained_encoder",
    "new_model",
    "newest_checkpoint",
    "open_data",
]

_ENCODER = "encoder."

Data = Mapping[str, Prepared]
Model = MultiTaskModel | MaskedLanguageModel
"""What a run can train: anything with an encoder, a balancer and the multi-task model's forward."""


@dataclass(frozen=True)
class TrainedEncoder:
    """A run's encoder in plain torch: fp32, on the CPU, in evaluation mode.

    Attributes:
        encoder: the encoder.
        checkpoint: where it comes from.
    """

    encoder: BertModel
    checkpoint: Checkpoint

    @property
    def tokenizer_path(self) -> str:
        """Directory of the tokenizer that the encoder was trained with."""
        return str(self.checkpoint.path / "tokenizer")


@dataclass(frozen=True)
class LoadedModel:
    """A trained model in plain torch: fp32, on the CPU, in evaluation mode.

    Attributes:
        model: the model.
        features: task -> how its features are encoded.
        checkpoint: where it comes from: path, step, configuration and the rest of its meta.json.
    """

    model: MultiTaskModel
    features: dict[str, FeatureEncoder]
    checkpoint: Checkpoint

    @property
    def tokenizer_path(self) -> str:
        """Directory of the tokenizer that the model was trained with."""
        return str(self.checkpoint.path / "tokenizer")


def open_data(config: RunConfig) -> Data:
    """The prepared data of a run: task -> directory, in the run's task order.

    The data of pre-training is one task, `mlm`, of these directories' texts.

    Raises:
        ConfigError: no path, or loss weights of other tasks.
        DataError: see `open_tasks` and `TextCorpus`.
        EncoderError: see `TextCorpus`.
    """
    if not config.data.paths:
        raise ConfigError(
            what="data.paths",
            got="nothing",
            rule="a run needs prepared data",
            fix="run python -m jobs.prepare and give its --output as --data.paths",
        )
    data = open_tasks(config.data.paths, tasks=config.train.tasks)
    if isinstance(config, PretrainConfig):
        return {MLM: TextCorpus(data)}
    _check_tasks("data.paths", data, known=TASKS, owner="rectrain")
    _check_tasks("train.loss_weights", config.train.loss_weights, known=data, owner="the run")
    return data


def _check_tasks(what: str, given: Iterable[str], *, known: Collection[str], owner: str) -> None:
    unknown = [task for task in given if task not in known]
    if unknown:
        raise ConfigError(
            what=what,
            got=", ".join(unknown),
            rule=f"the tasks of {owner} are {', '.join(known)}",
            fix="correct the task's name, or choose tasks with train.tasks",
        )


def new_model(config: RunConfig, data: Data) -> Model:
    """The model that a run starts from: pretrained or fresh weights, alike on every worker.

    Raises:
        EncoderError: the encoder can't be used, or doesn't fit the data's tokenizer.
        ConfigError: the balancer's packages are missing.
    """
    if isinstance(config, PretrainConfig):
        return _masked_model(config, data)
    check_installed(config.train.balancer)
    features = {task: prepared.features(task) for task, prepared in data.items()}
    if config.train.start_from is None:
        model = _assemble(_encoder(config, data), features=features, config=config)
    else:
        model = _continued(load_model(config.train.start_from), config, data, features=features)
    model.encoder.requires_grad_(config.train.freeze != "encoder")
    return model


def _masked_model(config: PretrainConfig, data: Data) -> MaskedLanguageModel:
    (corpus,) = data.values()
    return MaskedLanguageModel(
        _encoder(config, data),
        pieces=word_pieces(load_tokenizer(corpus.tokenizer_path)),
        share=config.mask_share,
        activation_checkpointing=config.train.activation_checkpointing,
        seed=config.seed,
    )


def _encoder(config: RunConfig, data: Data) -> BertModel:
    first = next(iter(data.values()))
    tokenizer = first.manifest["tokenizer"]
    return load_encoder(
        config.model.encoder,
        vocab_size=int(tokenizer["vocab_size"]),
        dropout=config.model.dropout,
        max_length=max(
            int(prepared.manifest["tokenizer"]["max_length"]) for prepared in data.values()
        ),
        pad_token_id=load_tokenizer(first.tokenizer_path).pad_token_id or 0,
        seed=config.seed,
    )


def _continued(
    start: LoadedModel, config: RunConfig, data: Data, *, features: Mapping[str, FeatureEncoder]
) -> MultiTaskModel:
    """A model with another's encoder, and of its other parts those that fit; the rest is fresh."""
    for task, prepared in data.items():
        if prepared.tokenizer_sha256 != start.checkpoint.meta["tokenizer_sha256"]:
            raise EncoderError(
                what=f"train.start_from {config.train.start_from}",
                got=f"a model with another tokenizer than the data of {task}",
                rule="token ids must mean the same",
                fix=f"prepare the data with --encoder {start.tokenizer_path}",
            )
    described = start.model.encoder.config
    described.hidden_dropout_prob = config.model.dropout
    described.attention_probs_dropout_prob = config.model.dropout
    encoder = BertModel(described, add_pooling_layer=False)
    model = _assemble(encoder, features=features, config=config)
    given, own = start.model.state_dict(), model.state_dict()
    for prefix in _fitting_parts(start, features):
        shapes = {name: value.shape for name, value in own.items() if name.startswith(prefix)}
        if shapes == {name: value.shape for name, value in given.items() if name in shapes}:
            own |= {name: given[name] for name in shapes}
    model.load_state_dict(own)
    return model


def _fitting_parts(start: LoadedModel, features: Mapping[str, FeatureEncoder]) -> tuple[str, ...]:
    """Prefixes of the parameters that mean the same in both models."""
    tasks = tuple(
        f"tasks.{task}."
        for task, encoder in features.items()
        if task in start.features and start.features[task].to_json() == encoder.to_json()
    )
    same_tasks = list(features) == list(start.features)  # gates and variances go by place
    return ("encoder.", *tasks, *(("sharing.", "balancer.") if same_tasks else ()))


def _assemble(
    encoder: BertModel, *, features: Mapping[str, FeatureEncoder], config: RunConfig
) -> MultiTaskModel:
    return MultiTaskModel(
        encoder,
        tasks={task: TASKS[task] for task in features},
        features=features,
        config=config.model,
        loss_weights=config.train.loss_weights,
        balancer=config.train.balancer,
        activation_checkpointing=config.train.activation_checkpointing,
        seed=config.seed,
    )


def checkpoint_meta(config: RunConfig, data: Data) -> dict[str, Any]:
    """What a checkpoint says of its run besides weights and step; JSON-serialisable.

    Where the run is written and watched is no part of it: such URIs can hold passwords.
    """
    described = config.model_dump(mode="json", exclude={"output", "tracking"})
    if config.train.start_from is not None:
        described["train"]["start_from"] = without_credentials(config.train.start_from)
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


def check_same_data(checkpoint: Checkpoint, config: RunConfig, data: Data) -> None:
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


def attachments(model: Model, data: Data) -> dict[str, bytes]:
    """Files that make a checkpoint whole: the tokenizer, and the encoder's configuration."""
    root = Path(next(iter(data.values())).tokenizer_path)
    files = {f"tokenizer/{path.name}": path.read_bytes() for path in sorted(root.iterdir())}
    return files | {"encoder/config.json": model.encoder.config.to_json_string().encode()}


def load_model(location: str) -> LoadedModel:
    """Loads a trained model for evaluation, prediction or export; needs no DeepSpeed.

    Args:
        location: a checkpoint, or a run's folder (its newest complete checkpoint); path or URI.

    Raises:
        CheckpointError: nothing complete is there, it is damaged, it isn't ours, or it has no
            heads.
    """
    checkpoint = open_checkpoint(_find(Store.open(location)))
    if MLM in checkpoint.meta.get("tasks", ()):
        raise CheckpointError(
            what=f"checkpoint {location}",
            got="a pre-trained encoder without heads",
            rule="only jobs.train makes a model of tasks",
            fix="run jobs.train with --model.encoder=RUN/encoder, RUN being the pre-training",
        )
    try:
        config = RunConfig.model_validate(checkpoint.meta["config"])
        features = {
            task: FeatureEncoder.from_json(facts["features"])
            for task, facts in checkpoint.meta["tasks"].items()
            if TASKS[task]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            what=f"checkpoint {location}",
            got=f"{type(error).__name__} {error}",
            rule="this version must know its tasks and settings",
            fix="use the version of rectrain that wrote it",
        ) from error
    model = _assemble(_empty_encoder(checkpoint), features=features, config=config)
    load_weights(model, checkpoint)
    return LoadedModel(model.eval(), features, checkpoint)


def load_trained_encoder(location: str) -> TrainedEncoder:
    """Loads the encoder of any run, joint training or pre-training.

    Args:
        location: as for `load_model`.

    Raises:
        CheckpointError: nothing complete is there, it is damaged, or it isn't ours.
    """
    checkpoint = open_checkpoint(_find(Store.open(location)))
    encoder: Any = _empty_encoder(checkpoint)
    weights = {
        name.removeprefix(_ENCODER): tensor
        for name, tensor in checkpoint.tensors("model")
        if name.startswith(_ENCODER)
    }
    encoder.load_state_dict(weights)
    return TrainedEncoder(encoder.eval(), checkpoint)


def _empty_encoder(checkpoint: Checkpoint) -> BertModel:
    """An encoder of a checkpoint's shape, whose weights are still to be loaded."""
    path = checkpoint.path / "encoder" / "config.json"
    try:
        described = BertConfig.from_dict(json.loads(path.read_bytes()))
    except (TypeError, ValueError, OSError) as error:
        raise CheckpointError(
            what=f"{path}",
            got=f"{type(error).__name__} {error}",
            rule="a checkpoint describes its encoder",
            fix="use the version of rectrain that wrote it",
        ) from error
    return BertModel(described, add_pooling_layer=False)


def newest_checkpoint(location: str) -> str:
    """The one checkpoint that a run's folder, or a checkpoint's own, stands for now; path or URI.

    Raises:
        CheckpointError: nothing complete is there.
    """
    folder = Store.open(location)
    found = _find(folder)
    name = found.root.rpartition("/")[2]
    return location if found is folder else f"{location.rstrip('/')}/checkpoints/{name}"


def _find(folder: Store) -> Store:
    if folder.exists(MARKER) or folder.exists("manifest.json"):
        return folder
    found = latest_complete(folder.sub("checkpoints"))
    if found is None:
        raise CheckpointError(
            what="checkpoint",
            got=f"{folder.root} without one that is complete",
            rule="give a checkpoint, or the folder of a run that has written one",
            fix="train first, or correct the path",
        )
    return found
