"""Vectors of texts that a frozen encoder gave, so that it runs once a text and not once a step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rectrain.data.batch import PackedTexts, take_texts, text_keys

__all__ = ["TextVectors"]


class TextVectors:
    """Looks vectors up by the tokens of their text.

    Args:
        texts: n different texts.
        vectors: float [n, D], in their order.
    """

    def __init__(self, texts: PackedTexts, vectors: Tensor) -> None:
        self._place = {key: place for place, key in enumerate(text_keys(texts))}
        self._vectors = vectors

    def of(self, texts: PackedTexts, *, encode: Callable[[PackedTexts], Tensor]) -> Tensor:
        """Vectors [U, D] of texts; those that are not known are encoded, and not kept."""
        device = self._vectors.device
        places = [self._place.get(key, -1) for key in text_keys(texts)]
        place = torch.tensor(places, dtype=torch.int64, device=device)
        vectors = self._vectors.new_empty(len(places), self._vectors.shape[1])
        known, unknown = place >= 0, (place < 0).nonzero().squeeze(1)
        vectors[known] = self._vectors[place[known]]
        if len(unknown):
            vectors[unknown] = encode(take_texts(texts, unknown)).to(vectors.dtype)
        return vectors
