"""A model as it is packaged: its parts in memory, and as files.

Files: encoder/ (a Hugging Face BERT with its tokenizer), full_tokenizer/ (where the vocabulary was
trimmed), heads.safetensors, tasks.json.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

from rectrain.data.assemble import TextLimits
from rectrain.data.encoding import FeatureEncoder
from rectrain.data.fields import Field, FieldTable
from rectrain.data.tokenize import load_tokenizer
from rectrain.model.config import ModelConfig
from rectrain.model.encoder import load_encoder
from rectrain.model.multitask import MultiTaskModel, TaskModule
from rectrain.model.spec import TaskSpec
from rectrain.train.build import LoadedModel
from rectrain.train.export import encoder_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["ENCODER", "FULL_TOKENIZER", "HEADS", "TASKS", "ModelParts", "files_of", "read_parts"]

ENCODER, FULL_TOKENIZER = "encoder/", "full_tokenizer/"
HEADS, TASKS = "heads.safetensors", "tasks.json"


@dataclass(frozen=True)
class ModelParts:
    """All that a package holds of a model, and all that scoring needs.

    Attributes:
        model: in plain torch, fp32, on the CPU, in evaluation mode.
        features: task -> how its features are encoded, in the model's task order.
        limits: task -> how long its texts may be.
        config: the sizes of sharing and heads.
        tokenizer: the model's.
        full_tokenizer: the one before the vocabulary was trimmed, where it was: by it, texts with a
            piece that was dropped are counted.
    """

    model: MultiTaskModel
    features: Mapping[str, FeatureEncoder]
    limits: Mapping[str, TextLimits]
    config: ModelConfig
    tokenizer: PreTrainedTokenizerFast
    full_tokenizer: PreTrainedTokenizerFast | None = None

    @classmethod
    def of(cls, loaded: LoadedModel) -> ModelParts:
        """The parts of a checkpoint's model."""
        meta = loaded.checkpoint.meta
        limits = {
            task: TextLimits(facts["max_length"], facts["max_history"])
            for task, facts in meta["tasks"].items()
        }
        config = ModelConfig.model_validate(meta["config"]["model"])
        tokenizer = load_tokenizer(loaded.tokenizer_path)
        return cls(loaded.model, loaded.features, limits, config, tokenizer)

    @property
    def specs(self) -> dict[str, TaskSpec]:
        """task -> what it is."""
        modules = {task: self.model.tasks[task] for task in self.model.task_names}
        return {task: m.spec for task, m in modules.items() if isinstance(m, TaskModule)}


def files_of(parts: ModelParts, *, encoder_card: str) -> dict[str, bytes]:
    """A model as files: path -> content.

    Args:
        parts: the model.
        encoder_card: the README.md of the encoder's folder.
    """
    encoder = encoder_files(
        parts.model.encoder,
        tokenizer=_tokenizer_files(parts.tokenizer),
        max_length=max(limit.max_length for limit in parts.limits.values()),
        card=encoder_card,
    )
    files = {f"{ENCODER}{name}": data for name, data in encoder.items()}
    if parts.full_tokenizer is not None:
        full = _tokenizer_files(parts.full_tokenizer)
        files |= {f"{FULL_TOKENIZER}{name}": data for name, data in full.items()}
    files[HEADS] = to_safetensors(_head_weights(parts.model))
    files[TASKS] = (json.dumps(_described(parts), indent=1) + "\n").encode()
    return files


def _tokenizer_files(tokenizer: PreTrainedTokenizerFast) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def read_parts(root: Path) -> ModelParts:
    """The inverse of `files_of`.

    Args:
        root: the folder with the files, already verified.

    Raises:
        EncoderError, KeyError, TypeError, ValueError, OSError: this version can't use them.
    """
    described = json.loads((root / TASKS).read_bytes())
    config = ModelConfig.model_validate(described["model"])
    tasks = described["tasks"]
    features = {task: FeatureEncoder.from_json(facts["features"]) for task, facts in tasks.items()}
    limits = {task: TextLimits(**facts["limits"]) for task, facts in tasks.items()}
    tokenizer = load_tokenizer(str(root / ENCODER))
    encoder = load_encoder(
        str(root / ENCODER),
        vocab_size=len(tokenizer),
        dropout=0.0,
        max_length=max(limit.max_length for limit in limits.values()),
    )
    specs = {task: _spec(facts["spec"]) for task, facts in tasks.items()}
    model = MultiTaskModel(encoder, tasks=specs, features=features, config=config)
    _load_heads(model, from_safetensors((root / HEADS).read_bytes()))
    full = root / FULL_TOKENIZER
    full_tokenizer = load_tokenizer(str(full)) if full.is_dir() else None
    return ModelParts(model.eval(), features, limits, config, tokenizer, full_tokenizer)


def _load_heads(model: MultiTaskModel, stored: Mapping[str, Tensor]) -> None:
    expected = _head_weights(model)
    wrong = sorted(stored.keys() ^ expected.keys()) + sorted(
        name
        for name in stored.keys() & expected.keys()
        if stored[name].shape != expected[name].shape
    )
    if wrong:
        raise ValueError(f"{HEADS} has other tensors than its tasks: {', '.join(wrong[:3])}")
    model.load_state_dict(stored, strict=False)  # the encoder has its weights


def _head_weights(model: MultiTaskModel) -> dict[str, Tensor]:
    """All weights but the encoder's and what only a loss needs."""
    return {
        name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if not name.startswith(("encoder.", "balancer."))
    }


def _described(parts: ModelParts) -> dict[str, Any]:
    # Where the encoder once came from is a path of the machine that trained; the card says it.
    config = parts.config.model_dump(mode="json", exclude={"encoder"})
    tasks = {
        task: {
            "spec": asdict(spec),
            "features": parts.features[task].to_json(),
            "limits": parts.limits[task]._asdict(),
        }
        for task, spec in parts.specs.items()
    }
    return {"model": config, "tasks": tasks}


def _spec(stored: Mapping[str, Any]) -> TaskSpec:
    """The inverse of `dataclasses.asdict` and JSON."""
    fields = dict(
        stored["fields"], fields=tuple(Field(**one) for one in stored["fields"]["fields"])
    )
    lists = {key: tuple(value) for key, value in stored.items() if isinstance(value, list)}
    return TaskSpec(**{**stored, **lists, "fields": FieldTable(**fields)})
