"""Training the heads alone: the encoder runs once over all texts, then never again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

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

__all__ = ["freeze_encoder"]

_GIB = 1 << 30
_ROWS = 1 << 16  # looked at together


def freeze_encoder(model: MultiTaskModel, config: RunConfig, data: Mapping[str, Prepared]) -> None:
    """Freezes a model's encoder and gives it the vectors of all texts; every rank must call it.

    The texts of all training rows and of the catalogues; others are encoded when they come. They
    are cut into slices that depend on nothing but the data and `tokens_per_micro_batch`, and the
    ranks share the slices. So a vector has the same bits in every life of a run.

    Args:
        model: on the device where it will train, not split.
        config: of the run.
        data: task -> its prepared data.

    Raises:
        ConfigError: the vectors need more than `train.frozen_cache_gib`.
    """
    texts = distinct_texts(_tables(data))
    size = len(texts.lengths) * int(model.encoder.config.hidden_size) * 4 / _GIB
    if size > config.train.frozen_cache_gib:
        raise ConfigError(
            what="train.freeze",
            got=f"{len(texts.lengths):,} different texts, {size:,.1f} GiB of vectors",
            rule=f"each worker holds train.frozen_cache_gib = {config.train.frozen_cache_gib:g}",
            fix="raise it, or train the encoder too (train.freeze=none)",
        )
    model.encoder.train(False)
    vectors = _encode_all(model.encoder, texts, budget=config.data.tokens_per_micro_batch)
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
