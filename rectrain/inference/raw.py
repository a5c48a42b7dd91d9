"""Vectors of texts as people write them, in any order: read, sorted by length, encoded.

Shapes: n texts given, U different ones, D the width of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rectrain.data.batch import PackedTexts, take_texts
from rectrain.data.tokenize import reader
from rectrain.inference.text_encoder import TextEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["RawTexts"]

# Texts read at a time; the tokenizer reads a block on all cores and keeps it all in memory.
_BLOCK = 16384


class RawTexts:
    """Encodes strings.

    Args:
        encoder: a backend.
        tokenizer: the encoder's.
        max_length: tokens kept of a text, [CLS] and [SEP] included.
    """

    def __init__(
        self, encoder: TextEncoder, tokenizer: PreTrainedTokenizerFast, *, max_length: int
    ) -> None:
        self._encoder = encoder
        self._read = reader(tokenizer, max_length=max_length)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Vectors of texts; each different text of a block of some thousand is encoded once.

        Returns:
            float32 [n, D], in the texts' order.
        """
        parts = [
            self._block(texts[start : start + _BLOCK]) for start in range(0, len(texts), _BLOCK)
        ]
        return torch.cat(parts) if parts else torch.empty(0, self._encoder.width)

    def _block(self, texts: Sequence[str]) -> Tensor:
        number: dict[str, int] = {}
        places = torch.tensor([number.setdefault(text, len(number)) for text in texts])
        ids = self._read(list(number))
        lengths = torch.from_numpy(np.diff(ids.offsets.to_numpy()).astype(np.int64))
        tokens = torch.from_numpy(ids.values.to_numpy().astype(np.int64))
        order = lengths.argsort(stable=True)
        vectors = self._encoder.encode(take_texts(PackedTexts(tokens, lengths), order))
        rank = torch.empty_like(order)
        rank[order] = torch.arange(order.shape[0])
        return vectors[rank[places]]
