"""Whole-word masking: which word pieces of packed texts a model has to guess.

A word is a piece and the continuations ("##s") after it; all of its pieces are masked together or
not at all. Every word is chosen with probability `share`, so 15% of the pieces are on average.
Of the chosen pieces, each by itself, 80% become [MASK], 10% another piece at random and 10% stay.

Devlin et al. 2019, "BERT", section 3.1, and its whole-word masking (README of google-research/bert,
31 May 2019). There, words are taken in random order until 15% of a text are reached, and one at
least: of short texts that masks all, and never a long word. Queries and titles are short.

Shapes: T tokens, P masked pieces, V entries of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

from rectrain.data.batch import PackedTexts, text_keys
from rectrain.data.tokenize import WordPieces

__all__ = ["MaskedTexts", "WordMasks", "draw", "fixed_draws"]

_MASKED, _REPLACED = 0.8, 0.1


@dataclass(frozen=True, slots=True)
class MaskedTexts:
    """Texts with some words hidden.

    Attributes:
        texts: what the encoder reads.
        places: int64 [P], where in `texts.input_ids` it has to guess, ascending.
        labels: int64 [P], the pieces that stood there.
    """

    texts: PackedTexts
    places: Tensor
    labels: Tensor


class WordMasks(nn.Module):
    """Chooses the words and replaces their pieces: a pure function of texts and random numbers.

    Args:
        pieces: of the tokenizer.
        share: probability of a word, 0 to 1.
    """

    is_special: Tensor
    is_continuation: Tensor
    ordinary: Tensor

    def __init__(self, pieces: WordPieces, *, share: float) -> None:
        super().__init__()
        self.share, self._mask_id = share, pieces.mask_id
        for name, values in (
            ("is_special", pieces.is_special),
            ("is_continuation", pieces.is_continuation),
            ("ordinary", np.flatnonzero(~pieces.is_special)),
        ):
            self.register_buffer(name, torch.from_numpy(values), persistent=False)

    def hide(self, texts: PackedTexts, draws: Tensor) -> MaskedTexts:
        """Masks texts; no `forward`, whose output ZeRO-3 would search for parameters.

        Args:
            texts: token ids with their special tokens.
            draws: float64 [T, 3], uniform in [0, 1): one choosing a word (that of its first
                piece counts), one what becomes of a piece, one the piece in its place.
        """
        ids = texts.input_ids
        special = self.is_special[ids]
        after_special = torch.cat([special.new_ones(1), special[:-1]])[: ids.shape[0]]
        begins = ~self.is_continuation[ids] | after_special
        word = begins.cumsum(0) - 1
        chosen = ((draws[:, 0] < self.share)[begins])[word] & ~special
        random = self.ordinary[(draws[:, 2] * len(self.ordinary)).long()]
        fate = draws[:, 1]
        shown = torch.where(fate < _MASKED, self._mask_id, random)
        shown = torch.where(fate < _MASKED + _REPLACED, shown, ids)
        places = chosen.nonzero()[:, 0]
        masked = PackedTexts(torch.where(chosen, shown, ids), texts.lengths)
        return MaskedTexts(masked, places, ids[places])


def draw(texts: PackedTexts) -> Tensor:
    """Random numbers of `WordMasks` from torch's generator, alike on every kind of device.

    In training, a forward's generator is seeded by the run's seed, the step and the micro-batch
    (`train.step.dropout_seed`), and so masks depend on these alone.
    """
    return torch.rand(texts.input_ids.shape[0], 3, dtype=torch.float64).to(texts.input_ids.device)


def fixed_draws(texts: PackedTexts) -> Tensor:
    """Random numbers of `WordMasks` that depend on each text alone, for validation."""
    parts = [
        np.random.default_rng(crc32(key)).random((length, 3))
        for key, length in zip(text_keys(texts), texts.lengths.tolist(), strict=True)
    ]
    return torch.from_numpy(np.concatenate([np.empty((0, 3)), *parts])).to(texts.input_ids.device)
