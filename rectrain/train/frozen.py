"""Encoders that do not learn, a frozen one or a teacher's: each runs once over all texts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor
from transformers import BertModel

from rectrain.data.batch import PackedTexts, distinct_texts, split_texts
from rectrain.data.shards import Prepared
from rectrain.errors import ConfigError
from rectrain.model.encoder import encode
from rectrain.model.known import TextVectors
from rectrain.model.multitask import MultiTaskModel
from rectrain.train.build import Model
from rectrain.train.config import RunConfig
from rectrain.train.storage import Store

__all__ = ["CachedTexts", "cached_texts", "fixed_models", "keep_vectors", "training_texts"]

_GIB = 1 << 30
_KEPT = "vectors"
_KEY_BYTES = 140  # at most, besides its tokens: bytes, integer, place in a dictionary (CPython)
_ROWS = 1 << 16  # looked at together


@dataclass(frozen=True)
class CachedTexts:
    """All texts that fixed encoders run over, and the bytes that each worker holds of them."""

    texts: PackedTexts
    num_bytes: int


def fixed_models(model: Model) -> list[MultiTaskModel]:
    """Of a run's models those whose encoder does not learn: the teacher, and itself if frozen."""
    if not isinstance(model, MultiTaskModel):
        return []
    found = [] if model.distillation is None else [model.distillation.teacher]
    trains = any(parameter.requires_grad for parameter in model.encoder.parameters())
    return found if trains else [*found, model]


def training_texts(data: Mapping[str, Prepared]) -> PackedTexts:
    """The different texts of all training rows and of the catalogues, shortest first."""
    return distinct_texts(_tables(data))


def cached_texts(
    config: RunConfig, data: Mapping[str, Prepared], *, widths: Sequence[int]
) -> CachedTexts:
    """The texts that fixed encoders run over, if a worker may hold their vectors.

    Args:
        config: of the run.
        data: task -> its prepared data.
        widths: of the vectors of each encoder.

    Raises:
        ConfigError: vectors and keys need more than `train.frozen_cache_gib`.
    """
    texts = training_texts(data)
    num_texts, num_tokens = len(texts.lengths), len(texts.input_ids)
    size = sum(num_texts * (4 * width + _KEY_BYTES) + 4 * num_tokens for width in widths)
    if size > config.train.frozen_cache_gib * _GIB:
        raise ConfigError(
            what="train.freeze" if config.train.teacher is None else "train.teacher",
            got=f"{num_texts:,} different texts, {size / _GIB:,.2g} GiB of vectors and keys",
            rule=f"each worker holds train.frozen_cache_gib = {config.train.frozen_cache_gib:g}",
            fix="raise it, or train without (train.freeze=none, no train.teacher)",
        )
    return CachedTexts(texts, size)


def keep_vectors(
    model: Model, config: RunConfig, data: Mapping[str, Prepared], *, device: torch.device
) -> None:
    """Gives each encoder that does not learn the vectors of all texts; every rank must call it.

    Texts that are not among `cached_texts` are encoded when they come. The texts are cut into
    slices that depend on nothing but the data and `tokens_per_micro_batch`, and the ranks share the
    slices. So a vector has the same bits in every life of a run. With `train.vector_cache` they are
    kept for other runs with the same encoder and texts, which then have the same bits as well.

    Args:
        model: not split; it, or its teacher, is moved.
        config: of the run.
        data: task -> its prepared data.
        device: where it will train.

    Raises:
        ConfigError: see `cached_texts`.
    """
    fixed = fixed_models(model)
    if not fixed:
        return
    widths = [int(one.encoder.config.hidden_size) for one in fixed]
    texts = cached_texts(config, data, widths=widths).texts
    for one in fixed:
        one.to(device).encoder.train(False)
        vectors = _vectors(one.encoder, texts, config)
        one.freeze_encoder(TextVectors(texts, vectors))


def _tables(data: Mapping[str, Prepared]) -> Iterator[pa.Table]:
    """The texts of training rows and catalogues, some rows at a time."""
    for task, prepared in data.items():
        tables = [prepared.shards(task, "train").table(columns=["query", "item"])]
        if prepared.has_items(task):
            tables.append(prepared.items(task).table(columns=["item"]))
        for table in tables:
            for start in range(0, table.num_rows, _ROWS):
                yield table.slice(start, _ROWS)


def _vectors(encoder: BertModel, texts: PackedTexts, config: RunConfig) -> Tensor:
    """Vectors float32 [U, D] of texts: those that are kept, or made, and kept where wanted."""
    budget, cache = config.data.micro_batch_tokens, config.train.vector_cache
    if cache is None:
        return _encode_all(encoder, texts, budget=budget)
    store, name = Store.open(cache), f"{_digest(encoder, texts)}.safetensors"
    is_kept = [store.exists(name) if torch.distributed.get_rank() == 0 else False]
    torch.distributed.broadcast_object_list(is_kept, src=0)
    if is_kept[0]:
        return from_safetensors(store.read(name))[_KEPT].to(encoder.device)
    vectors = _encode_all(encoder, texts, budget=budget)
    if torch.distributed.get_rank() == 0:
        store.replace(name, to_safetensors({_KEPT: vectors.cpu()}))
    return vectors


def _digest(encoder: BertModel, texts: PackedTexts) -> str:
    """SHA-256 of all that decides vectors, rounding aside: weights, configuration, texts."""
    digest = hashlib.sha256(encoder.config.to_json_string().encode())
    tensors = [tensor for _, tensor in sorted(encoder.state_dict().items())]
    for tensor in (*tensors, texts.input_ids, texts.lengths):
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def _encode_all(encoder: BertModel, texts: PackedTexts, *, budget: int) -> Tensor:
    """Vectors float32 [U, D] on the encoder's device; slice n is the work of rank n mod N."""
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    vectors = torch.zeros(
        len(texts.lengths), int(encoder.config.hidden_size), device=encoder.device
    )
    end = 0
    for number, part in enumerate(split_texts(texts, budget)):
        start, end = end, end + len(part.lengths)
        if number % world_size == rank:
            part = PackedTexts(part.input_ids.to(encoder.device), part.lengths.to(encoder.device))
            vectors[start:end] = encode(encoder, part)
    torch.distributed.all_reduce(vectors)  # every other rank adds zeros: no rounding
    return vectors
