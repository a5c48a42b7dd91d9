"""Texts that steps of compression look at: a sample of training's, and held-out ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc
import torch

from rectrain.data.batch import PackedTexts, take_texts
from rectrain.data.shards import Prepared
from rectrain.train.frozen import training_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["digest", "held_out_texts", "renumbered", "sample", "unpack"]


def sample(data: Mapping[str, Prepared], *, num_texts: int, seed: int) -> list[list[int]]:
    """Token ids of different training texts, as many of each task as of the others.

    Args:
        data: task -> its prepared data.
        num_texts: at most.
        seed: of the choice.

    Returns:
        Shortest first.
    """
    generator = np.random.default_rng(seed)
    found: dict[tuple[int, ...], None] = {}
    for task, prepared in data.items():
        texts = training_texts({task: prepared})
        size = min(len(texts.lengths), -(-num_texts // len(data)))
        chosen = np.sort(generator.choice(len(texts.lengths), size=size, replace=False))
        found |= dict.fromkeys(
            tuple(text) for text in unpack(take_texts(texts, torch.from_numpy(chosen)))
        )
    return [list(text) for text in sorted(found, key=len)]


def unpack(texts: PackedTexts) -> list[list[int]]:
    """Each text's token ids."""
    parts = torch.split(texts.input_ids, texts.lengths.tolist())
    return [part.tolist() for part in parts]


def renumbered(
    texts: Sequence[Sequence[int]],
    *,
    full: PreTrainedTokenizerFast,
    trimmed: PreTrainedTokenizerFast,
) -> list[list[int]]:
    """Token ids in a trimmed vocabulary.

    Args:
        texts: ids of the full one, all of pieces that were kept.
        full, trimmed: the tokenizers.
    """
    new_ids = trimmed.get_vocab()
    known = {old: new_ids[piece] for piece, old in full.get_vocab().items() if piece in new_ids}
    return [[known[token] for token in text] for text in texts]


def held_out_texts(data: Mapping[str, Prepared], *, split: str, num_texts: int = 2000) -> list[str]:
    """Different texts of a split as people wrote them, the first of each task.

    Args:
        data: task -> its prepared data.
        split: "validation" or "test".
        num_texts: of a side of a task, at most.
    """
    found: dict[str, None] = {}
    for task, prepared in data.items():
        table = prepared.shards(task, split).table(columns=["query_text", "item_text"])
        for column in table.columns:
            texts = pc.unique(pc.list_flatten(column)).to_pylist()
            found |= dict.fromkeys(texts[:num_texts])
    return list(found)


def digest(texts: Sequence[Sequence[int]]) -> str:
    """SHA-256 of token ids."""
    return hashlib.sha256(json.dumps([list(text) for text in texts]).encode()).hexdigest()
