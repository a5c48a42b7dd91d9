"""The model of a run: made from its configuration, and loaded from a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import BertConfig, BertModel

from rectrain.data.encoding import FeatureEncoder
from rectrain.data.loader import longest_text, open_tasks
from rectrain.data.shards import Prepared
from rectrain.data.texts import MLM, TextCorpus
from rectrain.data.tokenize import load_tokenizer, tokenizer_hash, tokenizer_path, word_pieces
from rectrain.errors import CheckpointError, ConfigError, EncoderError
from rectrain.model.adapters import RankBudget, add_adapters, merge_adapters
from rectrain.model.balancing import DynamicWeightAverage, check_installed, dwa_window
from rectrain.model.elastic import Choices, Elastic, SuperNetwork
from rectrain.model.encoder import PRESETS, check_positions, load_encoder
from rectrain.model.masked import MaskedLanguageModel
from rectrain.model.multitask import Distillation, MultiTaskModel
from rectrain.model.transfer import take_over
from rectrain.tasks import TASKS
from rectrain.train.checkpoint import Checkpoint, load_weights, open_checkpoint
from rectrain.train.config import PretrainConfig, RunConfig, TrainConfig
from rectrain.train.provenance import check_origin
from rectrain.train.run_plan import plan_run
from rectrain.train.selection import find_checkpoint
from rectrain.train.storage import Store

__all__ = [
    "Data",
    "LoadedModel",
    "Model",
    "TrainedEncoder",
    "attachments",
    "load_model",
    "load_trained_encoder",
    "new_model",
    "open_data",
]

_ENCODER = "encoder."
_KNOWN = "this version must know its tasks and settings"
_TOKENIZERS = ("tokenizer.json", "vocab.txt")  # an encoder's directory may do without


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
        ConfigError: no path, settings of other tasks, or no validation rows to go by.
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
        corpus = {MLM: TextCorpus(data)}
        _check_watched(config.train, corpus)
        return corpus
    _check_tasks("data.paths", data, known=TASKS, owner="rectrain")
    _check_tasks("data.mixing_weights", config.data.mixing_weights, known=data, owner="the run")
    _check_tasks("train.loss_weights", config.train.loss_weights, known=data, owner="the run")
    _check_tasks("train.watch", {config.train.watch} - {"mean"}, known=data, owner="the run")
    _check_watched(config.train, data)
    return data


def _check_watched(train: TrainConfig, data: Data) -> None:
    """Refuses a run that goes by a validation without rows."""
    watched = data if train.watch == "mean" else [train.watch]
    if not train.follows_validation or any(
        data[task].splits(task)["validation"]["rows"] for task in watched
    ):
        return
    texts = MLM in watched
    other = "" if texts or len(data) == 1 else "watch another task, "
    raise ConfigError(
        what="validation texts" if texts else f"validation rows of {', '.join(watched)}",
        got="none that training does not have" if texts else "none",
        rule="train.early_stopping and train.schedule=plateau go by them",
        fix=f"prepare with a larger --split.validation_share, {other}or leave both settings out",
    )


def _check_tasks(what: str, given: Iterable[str], *, known: Collection[str], owner: str) -> None:
    unknown = [task for task in given if task not in known]
    if unknown:
        raise ConfigError(
            what=what,
            got=", ".join(unknown),
            rule=f"the tasks of {owner} are {', '.join(known)}",
            fix="correct the task's name, or choose tasks with train.tasks",
        )


def new_model(
    config: RunConfig,
    data: Data,
    *,
    checkpoint: Checkpoint | None = None,
    say: Callable[[str], None] | None = None,
) -> Model:
    """The model that a run starts from: pretrained or fresh weights, alike on every worker.

    With `train.teacher` the model holds it (see `Distillation`), as it was trained.

    Args:
        config: of the run.
        data: its data.
        checkpoint: one of the run's own, whose weights will be loaded: then no others are read,
            neither the encoder's directory nor `train.start_from`.
        say: is told which parts of `train.start_from` are taken over.

    Raises:
        EncoderError: the encoder can't be used, or doesn't fit the data's tokenizer.
        ConfigError: the balancer's packages are missing, or the teacher's tasks or features are
            others.
        CheckpointError: see `load_model` (of `train.start_from` and `train.teacher`), or it is not
            the one that the run began with.
    """
    if isinstance(config, PretrainConfig):
        return _masked_model(config, data, checkpoint)
    check_installed(config.train.balancer)
    features = {task: prepared.features(task) for task, prepared in data.items()}
    if config.train.start_from is None or checkpoint is not None:
        encoder = _encoder(config, data, checkpoint)
        model = _assemble(encoder, features=features, config=config)
    else:
        model, parts = _continued(config, data, features=features)
        if say is not None:
            say(f"start: {config.train.start_from} ({parts})")
    model.encoder.requires_grad_(config.train.freeze != "encoder")
    is_timed = config.train.adapter == "adalora" or config.train.balancer == "dwa"
    num_steps = plan_run(config, data).num_steps if is_timed else None
    model.rank_budget = _adapt(model.encoder, config.train, seed=config.seed, num_steps=num_steps)
    if isinstance(model.balancer, DynamicWeightAverage):
        assert num_steps is not None
        model.balancer.window = dwa_window(num_steps)
    if config.train.teacher is not None:
        model.distillation = _distillation(config, data, features=features)
    if isinstance(model, SuperNetwork):
        model.elastic = _elastic(model.encoder.config, config.train)
    return model


def _elastic(encoder: BertConfig, train: TrainConfig) -> Elastic:
    """How a super-network's sub-networks learn: of its largest, as a run does of a teacher.

    Raises:
        ConfigError: one of them doesn't fit the encoder.
    """
    return Elastic(
        choices=Choices.of(
            encoder,
            layers=train.elastic_layers,
            heads=train.elastic_heads,
            intermediate=train.elastic_intermediate,
        ),
        num_random=train.elastic_random,
        weight=train.distill_weight,
        temperature=train.distill_temperature,
        relation=train.distill_relation,
        num_micro_batches=train.micro_batches,
    )


def _distillation(
    config: RunConfig, data: Data, *, features: Mapping[str, FeatureEncoder]
) -> Distillation:
    train, location = config.train, config.train.teacher
    assert location is not None
    check_origin(train, "teacher")
    taught = load_model(location)
    _check_same_tokenizer(taught, data, where=f"train.teacher {location}")
    if list(taught.features) != list(features):
        raise ConfigError(
            what=f"train.teacher {location}",
            got=f"a model of {', '.join(taught.features)}",
            rule=f"a teacher has the run's tasks in their order, {', '.join(features)}",
            fix=f"train.tasks=[{', '.join(taught.features)}], or another teacher",
        )
    for task, encoder in features.items():
        if encoder.to_json() != taught.features[task].to_json():
            raise ConfigError(
                what=f"train.teacher {location}",
                got=f"other features of {task}, or other bins or vocabularies, than the data's",
                rule="teacher and student see the same rows",
                fix="give the data that the teacher was trained on, or another teacher",
            )
    return Distillation(
        teacher=taught.model.requires_grad_(False),
        weight=train.distill_weight,
        temperature=train.distill_temperature,
        relation=0.0 if train.freeze == "encoder" else train.distill_relation,
        num_micro_batches=train.micro_batches,
    )


def _adapt(
    encoder: BertModel, train: TrainConfig, *, seed: int = 0, num_steps: int | None = None
) -> RankBudget | None:
    """Puts the run's adapters, if it has any, into an encoder; without steps, to load them."""
    if train.adapter == "none":
        return None
    return add_adapters(
        encoder,
        kind=train.adapter,
        rank=train.adapter_rank,
        alpha=train.adapter_alpha,
        dropout=train.adapter_dropout,
        targets=train.adapter_targets,
        seed=seed,
        num_steps=num_steps,
    )


def _masked_model(
    config: PretrainConfig, data: Data, checkpoint: Checkpoint | None
) -> MaskedLanguageModel:
    (corpus,) = data.values()
    return MaskedLanguageModel(
        _encoder(config, data, checkpoint),
        pieces=word_pieces(load_tokenizer(corpus.tokenizer_path)),
        share=config.mask_share,
        activation_checkpointing=config.train.activation_checkpointing,
        seed=config.seed,
    )


def _encoder(config: RunConfig, data: Data, checkpoint: Checkpoint | None) -> BertModel:
    if checkpoint is not None:
        return _empty_encoder(checkpoint)
    first = next(iter(data.values()))
    tokenizer = first.manifest["tokenizer"]
    encoder = load_encoder(
        config.model.encoder,
        vocab_size=int(tokenizer["vocab_size"]),
        dropout=config.model.dropout,
        max_length=longest_text(data),
        pad_token_id=load_tokenizer(first.tokenizer_path).pad_token_id or 0,
        seed=config.seed,
    )
    _check_tokenizer(config.model.encoder, first)
    return encoder


def _check_tokenizer(encoder: str, prepared: Prepared) -> None:
    """Refuses an encoder whose directory holds another tokenizer than the data's."""
    if encoder in PRESETS:
        return
    if not any((tokenizer_path(encoder) / name).is_file() for name in _TOKENIZERS):
        return
    if tokenizer_hash(load_tokenizer(encoder)) != prepared.tokenizer_sha256:
        raise EncoderError(
            what=f"tokenizer of encoder {encoder}",
            got=f"another one than that of {prepared.root}",
            rule="token ids must mean the same",
            fix=f"prepare the data with --encoder {encoder}",
        )


def _continued(
    config: RunConfig, data: Data, *, features: Mapping[str, FeatureEncoder]
) -> tuple[MultiTaskModel, str]:
    """A model with another's encoder and those of its other parts that fit; which these are."""
    location = config.train.start_from
    assert location is not None
    check_origin(config.train, "start_from")
    start = load_model(location)
    _check_same_tokenizer(start, data, where=f"train.start_from {location}")
    described = start.model.encoder.config
    check_positions(described, longest_text(data), where=f"train.start_from {location}")
    described.hidden_dropout_prob = config.model.dropout
    described.attention_probs_dropout_prob = config.model.dropout
    encoder = BertModel(described, add_pooling_layer=False)
    model = _assemble(encoder, features=features, config=config)
    return model, take_over(model, start.model, features=features, start_features=start.features)


def _check_same_tokenizer(given: LoadedModel, data: Data, *, where: str) -> None:
    for task, prepared in data.items():
        if prepared.tokenizer_sha256 != given.checkpoint.meta["tokenizer_sha256"]:
            raise EncoderError(
                what=where,
                got=f"a model with another tokenizer than the data of {task}",
                rule="token ids must mean the same",
                fix=f"prepare the data with --encoder {given.tokenizer_path}",
            )


def _assemble(
    encoder: BertModel, *, features: Mapping[str, FeatureEncoder], config: RunConfig
) -> MultiTaskModel:
    kind = SuperNetwork if config.train.is_elastic else MultiTaskModel
    return kind(
        encoder,
        tasks={task: TASKS[task] for task in features},
        features=features,
        config=config.model,
        loss_weights=config.train.loss_weights,
        balancer=config.train.balancer,
        activation_checkpointing=config.train.activation_checkpointing,
        seed=config.seed,
    )


def attachments(model: Model, data: Data) -> dict[str, bytes]:
    """Files that make a checkpoint whole: the tokenizer, and the encoder's configuration."""
    root = Path(next(iter(data.values())).tokenizer_path)
    files = {f"tokenizer/{path.name}": path.read_bytes() for path in sorted(root.iterdir())}
    return files | {"encoder/config.json": model.encoder.config.to_json_string().encode()}


def load_model(location: str | Store) -> LoadedModel:
    """Loads a trained model for evaluation, prediction or export; needs no DeepSpeed.

    Adapters are added to the weights: the encoder is a plain BERT.

    Args:
        location: a checkpoint, or a run's folder (see `result_checkpoint`); path or URI.

    Raises:
        CheckpointError: nothing complete is there, it is damaged, it isn't ours, or it has no
            heads.
    """
    folder = Store.open(location) if isinstance(location, str) else location
    checkpoint = open_checkpoint(find_checkpoint(folder))
    if MLM in checkpoint.meta.get("tasks", ()):
        raise CheckpointError(
            what=f"checkpoint {folder.root}",
            got="a pre-trained encoder without heads",
            rule="only jobs.train makes a model of tasks",
            fix="run jobs.train with --model.encoder=RUN/encoder, RUN being the pre-training",
        )
    with _readable(f"checkpoint {folder.root}", rule=_KNOWN):
        config = RunConfig.model_validate(checkpoint.meta["config"])
        features = {
            task: FeatureEncoder.from_json(facts["features"])
            for task, facts in checkpoint.meta["tasks"].items()
            if TASKS[task]
        }
    model = _assemble(_empty_encoder(checkpoint), features=features, config=config)
    model.rank_budget = _adapt(model.encoder, config.train)
    load_weights(model, checkpoint)
    if config.train.adapter != "none":
        merge_adapters(model.encoder)
        model.rank_budget = None
    return LoadedModel(model.eval(), features, checkpoint)


def load_trained_encoder(location: str | Store) -> TrainedEncoder:
    """Loads the encoder of any run, joint training or pre-training, with its adapters added up.

    Args:
        location: as for `load_model`.

    Raises:
        CheckpointError: nothing complete is there, it is damaged, or it isn't ours.
    """
    folder = Store.open(location) if isinstance(location, str) else location
    checkpoint = open_checkpoint(find_checkpoint(folder))
    with _readable(f"checkpoint {folder.root}", rule=_KNOWN):
        train = TrainConfig.model_validate(checkpoint.meta["config"]["train"])
    encoder: Any = _empty_encoder(checkpoint)
    _adapt(encoder, train)
    load_weights(encoder, checkpoint, prefix=_ENCODER)
    if train.adapter != "none":
        merge_adapters(encoder)
    return TrainedEncoder(encoder.eval(), checkpoint)


@contextmanager
def _readable(what: str, *, rule: str) -> Iterator[None]:
    """Makes one line of what can't be read of a checkpoint."""
    try:
        yield
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise CheckpointError(
            what=what,
            got=f"{type(error).__name__} {error}",
            rule=rule,
            fix="use the version of rectrain that wrote it",
        ) from error


def _empty_encoder(checkpoint: Checkpoint) -> BertModel:
    """An encoder of a checkpoint's shape, whose weights are still to be loaded."""
    path = checkpoint.path / "encoder" / "config.json"
    with _readable(f"{path}", rule="a checkpoint describes its encoder"):
        described = BertConfig.from_dict(json.loads(path.read_bytes()))
    return BertModel(described, add_pooling_layer=False)
