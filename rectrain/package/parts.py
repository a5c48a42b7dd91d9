"""A model as it is packaged: its parts in memory, and as files.

Files: encoder/ (a Hugging Face BERT with its tokenizer), full_tokenizer/ (where the vocabulary was
trimmed), heads.safetensors, tasks.json.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
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
from rectrain.model.rounding import int8_rows, rounded
from rectrain.model.spec import TaskSpec
from rectrain.train.build import LoadedModel
from rectrain.train.export import encoder_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "ENCODER",
    "FULL_TOKENIZER",
    "HEADS",
    "TASKS",
    "ModelParts",
    "files_of",
    "num_head_bytes",
    "read_parts",
]

ENCODER, FULL_TOKENIZER = "encoder/", "full_tokenizer/"
HEADS, TASKS = "heads.safetensors", "tasks.json"
_SCALE = ".int8_scale"  # behind the name of a matrix in int8


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
        int8_heads: whether the matrices of the heads are what rows of int8 stand for, and are
            stored so.
    """

    model: MultiTaskModel
    features: Mapping[str, FeatureEncoder]
    limits: Mapping[str, TextLimits]
    config: ModelConfig
    tokenizer: PreTrainedTokenizerFast
    full_tokenizer: PreTrainedTokenizerFast | None = None
    int8_heads: bool = False

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

    def with_int8_heads(self) -> ModelParts:
        """The same with the matrices of the heads rounded to int8 rows: a quarter of the bytes."""
        model = copy.deepcopy(self.model)
        weights = {name: _rounded(tensor) for name, tensor in _head_weights(model).items()}
        model.load_state_dict(weights, strict=False)
        return replace(self, model=model, int8_heads=True)

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
    files[HEADS] = to_safetensors(_stored(_head_weights(parts.model), int8=parts.int8_heads))
    files[TASKS] = (json.dumps(_described(parts), indent=1) + "\n").encode()
    return files


def num_head_bytes(parts: ModelParts) -> int:
    """Bytes of the weights of the heads as they are stored."""
    stored = _stored(_head_weights(parts.model), int8=parts.int8_heads)
    return sum(tensor.nbytes for tensor in stored.values())


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
    heads = from_safetensors((root / HEADS).read_bytes())
    _load_heads(model, heads)
    full = root / FULL_TOKENIZER
    full_tokenizer = load_tokenizer(str(full)) if full.is_dir() else None
    int8 = any(name.endswith(_SCALE) for name in heads)
    return ModelParts(model.eval(), features, limits, config, tokenizer, full_tokenizer, int8)


def _load_heads(model: MultiTaskModel, stored: Mapping[str, Tensor]) -> None:
    weights = {
        name: tensor.float() * stored[scale] if (scale := name + _SCALE) in stored else tensor
        for name, tensor in stored.items()
        if not name.endswith(_SCALE)
    }
    expected = _head_weights(model)
    wrong = sorted(weights.keys() ^ expected.keys()) + sorted(
        name
        for name in weights.keys() & expected.keys()
        if weights[name].shape != expected[name].shape
    )
    if wrong:
        raise ValueError(f"{HEADS} has other tensors than its tasks: {', '.join(wrong[:3])}")
    model.load_state_dict(weights, strict=False)  # the encoder has its weights


def _stored(weights: Mapping[str, Tensor], *, int8: bool) -> dict[str, Tensor]:
    """Tensors as the file has them: matrices maybe as integers with their scales beside them."""
    stored = dict(weights)
    for name in [name for name in weights if int8 and _is_matrix(weights[name])]:
        stored[name], stored[name + _SCALE] = int8_rows(weights[name])
    return stored


def _rounded(tensor: Tensor) -> Tensor:
    return rounded(tensor) if _is_matrix(tensor) else tensor


def _is_matrix(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim > 1


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
