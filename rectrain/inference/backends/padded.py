"""Ragged texts for engines that want rectangles: texts of almost one length side by side.

How far a text is padded depends on its own length alone, so its vector does not depend on its
neighbours: padding is masked, but it changes the order of float sums, and an int8 engine that
rounds one of them the other way comes to another vector.

Shapes: U texts, B rows of a batch, L tokens of a row with padding, D the width of a vector.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rectrain.data.batch import PackedTexts
from rectrain.inference.text_encoder import TextEncoder

__all__ = ["Batch", "PaddedEncoder", "Run", "padded_length", "padding_share", "plan", "warm_up"]

Ints = npt.NDArray[np.int64]
#: input_ids and attention_mask, int64 [B, L] -> float32 [B, D]; called by several threads at once.
Run = Callable[[Ints, Ints], npt.NDArray[np.float32]]

_TOKENS_PER_BATCH = 512
_MIN_TOKENS_PER_BATCH = 128


class Batch(NamedTuple):
    """Texts first … first + rows - 1 of sorted texts, padded to `length` tokens."""

    first: int
    rows: int
    length: int


def padded_length(length: int) -> int:
    """The next length that engines are shown, since each new one costs them: every length up to 16
    tokens, then each second, from 32 each fourth and so on; less than 1/8 is added.
    """
    step = max(1, (1 << (length - 1).bit_length()) // 16)
    return -(-length // step) * step


def padding_share(lengths: Ints) -> float:
    """The share of padding in what an engine computes for texts of these lengths, 0 to 1."""
    computed = sum(map(padded_length, lengths.tolist()))
    return 1 - int(lengths.sum()) / computed if computed else 0.0


def plan(lengths: Ints, *, tokens_per_batch: int) -> list[Batch]:
    """Batches of texts with one padded length.

    Args:
        lengths: int64 [U], ascending.
        tokens_per_batch: the most that a batch holds, padding included; a longer text is alone.

    Returns:
        Batches that hold every text once, in order. Texts of one length are parted evenly, since a
        small rest costs an engine more than it saves.
    """
    padded, firsts = np.unique([padded_length(n) for n in lengths.tolist()], return_index=True)
    bounds = pairwise([*firsts.tolist(), lengths.size])
    return [
        batch
        for (first, last), length in zip(bounds, padded.tolist(), strict=True)
        for batch in _parts(first, last, length, tokens_per_batch)
    ]


def _parts(first: int, last: int, length: int, tokens_per_batch: int) -> list[Batch]:
    number = -(-(last - first) // max(tokens_per_batch // length, 1))
    rows, num_larger = divmod(last - first, number)
    # The larger ones first: an engine takes longer where a shape differs from the one before.
    cuts = [first + i * rows + min(i, num_larger) for i in range(number + 1)]
    return [Batch(cut, end - cut, length) for cut, end in pairwise(cuts)]


class PaddedEncoder:
    """A `TextEncoder` of an engine that runs padded batches.

    Args:
        name: see `TextEncoder`.
        width: D.
        run: the engine.
        threads: how many batches run at a time, each on one core: two engines of one thread are
            faster than one of two.
        tokens_per_batch: about how many tokens a batch has.
    """

    def __init__(
        self,
        name: str,
        *,
        width: int,
        run: Run,
        threads: int,
        tokens_per_batch: int = _TOKENS_PER_BATCH,
    ) -> None:
        self.name = name
        self.width = width
        self._run = run
        self._threads = threads
        self._tokens_per_batch = tokens_per_batch
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def encode(self, texts: PackedTexts) -> Tensor:
        """See `TextEncoder.encode`."""
        lengths = texts.lengths.numpy()
        tokens = texts.input_ids.numpy()
        vectors = np.empty((lengths.size, self.width), dtype=np.float32)
        starts = np.concatenate([[0], np.cumsum(lengths)])

        def fill(batch: Batch) -> None:
            last = batch.first + batch.rows
            mask = np.arange(batch.length) < lengths[batch.first : last, None]
            ids = np.zeros(mask.shape, dtype=np.int64)
            ids[mask] = tokens[starts[batch.first] : starts[last]]
            vectors[batch.first : last] = self._run(ids, mask.astype(np.int64))

        # A few texts are spread over all cores, too.
        share = max(int(starts[-1]) // self._threads, _MIN_TOKENS_PER_BATCH)
        batches = plan(lengths, tokens_per_batch=min(self._tokens_per_batch, share))
        for _ in map(fill, batches) if self._pool is None else self._pool.map(fill, batches):
            pass
        return torch.from_numpy(vectors)


def warm_up(encoder: TextEncoder, *, max_length: int) -> None:
    """Encodes a made-up text of every length up to `max_length` that engines are shown: the first
    batch of a shape costs them up to twice the next.
    """
    wanted = {min(padded_length(length), max_length) for length in range(1, max_length + 1)}
    for length in sorted(wanted):
        ids = torch.zeros(length, dtype=torch.int64)
        encoder.encode(PackedTexts(ids, torch.tensor([length])))
