"""Training the heads alone: the encoder runs once over all texts, then never again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor
from transformers import BertModel

from rectrain.data.batch import PackedTexts, distinct_texts, split_texts
from rectrain.data.shards import Prepared
from rectrain.errors import ConfigError
from rectrain.model.encoder import encode
from rectrain.model.known import TextVectors
from rectrain.model.multitask import MultiTaskModel
from rectrain.train.config import RunConfig

__all__ = ["CachedTexts", "cached_texts", "freeze_encoder"]

_GIB = 1 << 30
_KEY_BYTES = 140  # at most, besides its tokens: bytes, integer, place in a dictionary (CPython)
_ROWS = 1 << 16  # looked at together


@dataclass(frozen=True)
class CachedTexts:
    """All texts that a frozen encoder runs over, and the bytes that each worker holds of them."""

    texts: PackedTexts
    num_bytes: int


def cached_texts(
    config: RunConfig, data: Mapping[str, Prepared], *, hidden_size: int
) -> CachedTexts:
    """The different texts of all training rows and of the catalogues; others come too rarely.

    Args:
        config: of the run.
        data: task -> its prepared data.
        hidden_size: of the encoder, the width of a vector.

    Raises:
        ConfigError: vectors and keys need more than `train.frozen_cache_gib`.
    """
    texts = distinct_texts(_tables(data))
    num_texts, num_tokens = len(texts.lengths), len(texts.input_ids)
    size = num_texts * (4 * hidden_size + _KEY_BYTES) + 4 * num_tokens
    if size > config.train.frozen_cache_gib * _GIB:
        raise ConfigError(
            what="train.freeze",
            got=f"{num_texts:,} different texts, {size / _GIB:,.2g} GiB of vectors and keys",
            rule=f"each worker holds train.frozen_cache_gib = {config.train.frozen_cache_gib:g}",
            fix="raise it, or train the encoder too (train.freeze=none)",
        )
    return CachedTexts(texts, size)


def freeze_encoder(model: MultiTaskModel, config: RunConfig, data: Mapping[str, Prepared]) -> None:
    """Freezes a model's encoder and gives it the vectors of all texts; every rank must call it.

    Texts that are not among `cached_texts` are encoded when they come. The texts are cut into
    slices that depend on nothing but the data and `tokens_per_micro_batch`, and the ranks share the
    slices. So a vector has the same bits in every life of a run.

    Args:
        model: on the device where it will train, not split.
        config: of the run.
        data: task -> its prepared data.

    Raises:
        ConfigError: see `cached_texts`.
    """
    hidden_size = int(model.encoder.config.hidden_size)
    texts = cached_texts(config, data, hidden_size=hidden_size).texts
    model.encoder.train(False)
    vectors = _encode_all(model.encoder, texts, budget=config.data.micro_batch_tokens)
    model.freeze_encoder(TextVectors(texts, vectors))


def _tables(data: Mapping[str, Prepared]) -> Iterator[pa.Table]:
    """The texts of training rows and catalogues, some rows at a time."""
    for task, prepared in data.items():
        tables = [prepared.shards(task, "train").table(columns=["query", "item"])]
        if prepared.has_items(task):
            tables.append(prepared.items(task).table(columns=["item"]))
        for table in tables:
            for start in range(0, table.num_rows, _ROWS):
                yield table.slice(start, _ROWS)


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
