"""Ragged texts for engines that want rectangles: texts of almost one length side by side.

A text is padded to a length that follows from its own length alone, never from its neighbours. So
an engine computes the same rows of the same width for it in every batch, and only the number of
rows changes: a text's vector does not depend on the texts beside it, in int8 neither.

Shapes: U texts, B rows of a batch, L tokens of a row with padding, D the width of a vector.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
_FINEST_STEP = 4


class Batch(NamedTuple):
    """Texts first … first + rows - 1 of sorted texts, padded to `length` tokens."""

    first: int
    rows: int
    length: int


def padded_length(length: int) -> int:
    """How many tokens a text of `length` tokens takes.

    Steps of 4 up to 32 tokens, of 8 up to 64, of 16 up to 128 and so on: from 16 tokens on at most
    3 of 19, that is 16%, and about 5% on average over lengths, and few shapes for an engine to see.
    """
    step = max(_FINEST_STEP, 2 ** (length - 1).bit_length() // 8)
    return -(-length // step) * step


def padding_share(lengths: Ints) -> float:
    """The share of padding in what an engine computes for texts of these lengths, 0 to 1."""
    padded = sum(padded_length(int(length)) for length in lengths)
    return 1 - int(lengths.sum()) / padded if padded else 0.0


def plan(lengths: Ints, *, tokens_per_batch: int) -> list[Batch]:
    """Batches of texts that are padded to the same length.

    Args:
        lengths: int64 [U], ascending.
        tokens_per_batch: the most that a batch holds, padding included; a longer text is alone.

    Returns:
        Batches that hold every text once, in order; those of one length have about equally many
        rows, since a small rest costs an engine more than it saves.
    """
    values, counts = np.unique(lengths, return_counts=True)
    rows: dict[int, int] = {}
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        length = padded_length(value)
        rows[length] = rows.get(length, 0) + count
    batches, first = [], 0
    for length, count in rows.items():
        num_batches = -(-count // max(tokens_per_batch // length, 1))
        ends = [count * (i + 1) // num_batches for i in range(num_batches)]
        for start, end in zip([0, *ends], ends, strict=False):
            batches.append(Batch(first + start, end - start, length))
        first += count
    return batches


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
    """Encodes made-up texts of every length up to `max_length`, since engines see the first batch
    of a shape at up to twice the cost of the next.
    """
    wanted = sorted({min(padded_length(length), max_length) for length in range(1, max_length + 1)})
    lengths = [length for length in wanted for _ in range(max(_TOKENS_PER_BATCH // length, 1))]
    encoder.encode(PackedTexts(torch.zeros(sum(lengths), dtype=torch.int64), torch.tensor(lengths)))
