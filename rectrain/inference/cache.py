"""Vectors of texts seen lately, so that the encoder runs once for a text that comes again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

from rectrain.data.batch import PackedTexts, take_texts, text_keys

__all__ = ["VectorCache"]


class VectorCache:
    """Keeps the vectors of the texts used last, found by their tokens; safe to use in threads.

    Items, queries and histories come again and again in requests, and one encoder serves all
    tasks, so one cache does.

    Args:
        capacity: texts kept, at most; 0 keeps none.
        width: D, the size of a vector.
    """

    def __init__(self, capacity: int, *, width: int) -> None:
        self._vectors = torch.empty(capacity, width)  # pages are used as they are written
        self._place: OrderedDict[bytes, int] = OrderedDict()  # the text used last stands last
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._place)

    def of(self, texts: PackedTexts, *, encode: Callable[[PackedTexts], Tensor]) -> Tensor:
        """Vectors float32 [U, D] of texts; those that are not known are encoded, and kept.

        Args:
            texts: U different texts on the CPU.
            encode: vectors of some of them, on the CPU.
        """
        if not len(self._vectors):
            return encode(texts)
        keys = text_keys(texts)
        found = torch.empty(len(keys), self._vectors.shape[1])
        with self._lock:
            places = torch.tensor([self._find(key) for key in keys], dtype=torch.int64)
            known = places >= 0
            found[known] = self._vectors[places[known]]
        unknown = (~known).nonzero().squeeze(1)
        if len(unknown):
            fresh = encode(take_texts(texts, unknown)).to(found)
            found[unknown] = fresh
            with self._lock:
                self._keep([keys[place] for place in unknown.tolist()], fresh)
        return found

    def _find(self, key: bytes) -> int:
        place = self._place.get(key, -1)
        if place >= 0:
            self._place.move_to_end(key)
        return place

    def _keep(self, keys: list[bytes], vectors: Tensor) -> None:
        capacity = len(self._vectors)
        sound = vectors.isfinite().all(1).tolist()  # a fault that passes must not stay here
        newest = zip(keys[-capacity:], vectors[-capacity:], sound[-capacity:], strict=True)
        for key, vector, is_sound in newest:
            if key in self._place or not is_sound:  # in it: another thread was first
                continue
            full = len(self._place) == capacity
            place = self._place.popitem(last=False)[1] if full else len(self._place)
            self._place[key] = place
            self._vectors[place] = vector
