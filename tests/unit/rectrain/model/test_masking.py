"""Whole words are masked, by hand-made random numbers and by many drawn ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rectrain.data.batch import PackedTexts
from rectrain.data.tokenize import WordPieces
from rectrain.model.masking import WordMasks, draw, fixed_draws

PAD, CLS, SEP, MASK, UNK = range(5)
A, B, C, X, Y = range(5, 10)  # X and Y go on with a word
PIECES = WordPieces(is_special=np.arange(10) < 5, is_continuation=np.arange(10) >= X, mask_id=MASK)
NO, YES = 0.15, 0.1499
STAY, OTHER = 0.95, 0.85


def texts(*rows: list[int]) -> PackedTexts:
    return PackedTexts(
        torch.tensor([piece for row in rows for piece in row]),
        torch.tensor([len(row) for row in rows]),
    )


def mask(row: PackedTexts, choice: list[float], fate: list[float] | float = 0.0, piece: float = 0):
    draws = torch.zeros(len(row.input_ids), 3, dtype=torch.float64)
    draws[:, 0] = torch.tensor(choice, dtype=torch.float64)
    draws[:, 1] = torch.tensor(fate, dtype=torch.float64)
    draws[:, 2] = piece
    found = WordMasks(PIECES, share=0.15).hide(row, draws)
    return found.texts.input_ids.tolist(), found.places.tolist(), found.labels.tolist()


@pytest.mark.parametrize(
    ("row", "choice", "shown"),
    [
        # the first piece decides for all pieces of its word
        ([CLS, A, X, Y, B, SEP], [NO, YES, NO, NO, NO, NO], [CLS, MASK, MASK, MASK, B, SEP]),
        ([CLS, A, X, Y, B, SEP], [NO, NO, YES, YES, YES, NO], [CLS, A, X, Y, MASK, SEP]),
        ([CLS, A, B, SEP], [NO, NO, YES, NO], [CLS, A, MASK, SEP]),
        # special tokens are never masked, [UNK] among them
        ([CLS, A, UNK, B, SEP], [YES, NO, YES, NO, YES], [CLS, A, UNK, B, SEP]),
        # a continuation after a special token is a word of its own
        ([CLS, X, A, SEP], [YES, NO, NO, NO], [CLS, X, A, SEP]),
        ([CLS, X, Y, SEP], [NO, YES, NO, NO], [CLS, MASK, MASK, SEP]),
        ([X, A], [YES, NO], [MASK, A]),
    ],
)
def test_pieces_of_one_word_are_masked_together(
    row: list[int], choice: list[float], shown: list[int]
) -> None:
    ids, places, labels = mask(texts(row), choice)
    assert ids == shown
    assert places == [n for n, piece in enumerate(shown) if piece == MASK]
    assert labels == [row[place] for place in places]


def test_a_word_does_not_reach_into_the_next_text() -> None:
    ids, _, _ = mask(texts([CLS, A, SEP], [X, B, SEP]), [NO, YES, NO, NO, NO, NO])
    assert ids == [CLS, MASK, SEP, X, B, SEP]


def test_each_piece_meets_its_own_fate_and_is_guessed_all_the_same() -> None:
    row = texts([CLS, A, X, Y, SEP])
    chosen = [NO, YES, NO, NO, NO]
    assert mask(row, chosen, [0, 0.79, OTHER, STAY, 0], piece=0.41) == (
        [CLS, MASK, C, Y, SEP],
        [1, 2, 3],
        [A, X, Y],
    )  # fmt: skip - 0.41 of A, B, C, X, Y is C
    assert mask(row, chosen, 0.8, piece=0.999)[0] == [CLS, Y, Y, Y, SEP]
    assert mask(row, chosen, 0.9)[0] == [CLS, A, X, Y, SEP]


def test_shares_of_many_words() -> None:
    row = texts([CLS, *[A, B, X, C, X, Y] * 50_000, SEP])
    torch.manual_seed(0)
    found = WordMasks(PIECES, share=0.15).hide(row, draw(row))
    num_pieces = len(found.places)
    assert num_pieces / 300_000 == pytest.approx(0.15, abs=0.003)
    shown, labels = found.texts.input_ids[found.places], found.labels
    assert (shown == MASK).float().mean() == pytest.approx(0.8, abs=0.01)
    # A tenth are drawn of five pieces, so a fifth of those is what stood there.
    assert (shown == labels).float().mean() == pytest.approx(0.1 + 0.1 / 5, abs=0.01)
    drawn = shown[(shown != MASK) & (shown != labels)]
    assert set(drawn.tolist()) == {A, B, C, X, Y}
    counts = np.bincount(labels.numpy(), minlength=10)
    assert counts[X] / counts[Y] == pytest.approx(2, abs=0.05)  # long words as often as short ones
    assert (found.texts.input_ids == row.input_ids).float().mean() > 0.85


def test_fixed_masks_depend_on_the_text_alone() -> None:
    rows = [[CLS, A, SEP], [CLS, B, X, SEP], [CLS, B, X, C, SEP]]
    together = fixed_draws(texts(*rows))
    alone = torch.cat([fixed_draws(texts(row)) for row in rows])
    assert torch.equal(together, alone)
    assert not torch.equal(together[:3], together[3:6])


def test_no_text_has_no_masks() -> None:
    empty = PackedTexts(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    for draws in (draw(empty), fixed_draws(empty)):
        found = WordMasks(PIECES, share=0.15).hide(empty, draws)
        assert not len(found.places) and not len(found.texts.input_ids)
