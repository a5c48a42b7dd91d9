"""Padded batches: what is in them, and that nobody sees them in the answer."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rectrain.data.batch import PackedTexts
from rectrain.inference.backends.padded import (
    Ints,
    PaddedEncoder,
    padded_length,
    padding_share,
    plan,
    warm_up,
)

_LENGTHS = st.lists(st.integers(1, 300), max_size=80).map(sorted)


def _texts(lengths: list[int]) -> PackedTexts:
    tokens = torch.arange(1, sum(lengths) + 1)
    return PackedTexts(tokens, torch.tensor(lengths, dtype=torch.int64))


def _mean_of_ids(ids: Ints, mask: Ints) -> np.ndarray:
    assert (ids[mask == 0] == 0).all() and set(np.unique(mask)) <= {0, 1}
    return ((ids * mask).sum(1) / mask.sum(1)).astype(np.float32)[:, None]


@given(length=st.integers(1, 2000))
def test_rounding_adds_less_than_an_eighth(length: int) -> None:
    assert length <= padded_length(length) <= padded_length(length + 1)
    assert padded_length(length) - length < length / 8


def test_few_lengths_are_seen_and_next_to_nothing_is_padded_in_bulk() -> None:
    assert len({padded_length(length) for length in range(1, 257)}) == 48
    rng = np.random.default_rng(0)
    lengths = np.clip(np.exp(rng.normal(np.log(24), 0.8, 2000)).astype(np.int64), 3, 256)
    assert padding_share(np.sort(lengths)) < 0.05
    assert padding_share(np.array([], dtype=np.int64)) == 0


def test_a_batch_holds_one_padded_length() -> None:
    few = plan(np.array([7, 8, 8, 17, 18]), tokens_per_batch=512)
    assert few == [(0, 1, 7), (1, 2, 8), (3, 2, 18)]
    even = plan(np.array([10] * 23), tokens_per_batch=100)
    assert even == [(0, 8, 10), (8, 8, 10), (16, 7, 10)]  # one change of shape


@given(lengths=_LENGTHS, budget=st.integers(1, 600))
def test_every_text_is_in_one_batch_in_order_under_the_budget(
    lengths: list[int], budget: int
) -> None:
    batches = plan(np.array(lengths, dtype=np.int64), tokens_per_batch=budget)
    held = [place for batch in batches for place in range(batch.first, batch.first + batch.rows)]
    assert held == list(range(len(lengths)))
    for batch in batches:
        held_lengths = lengths[batch.first : batch.first + batch.rows]
        assert {padded_length(length) for length in held_lengths} == {batch.length}
        assert batch.rows == 1 or batch.rows * batch.length <= budget


@pytest.mark.parametrize("threads", [1, 3])
@given(lengths=_LENGTHS)
def test_vectors_come_in_the_texts_order(threads: int, lengths: list[int]) -> None:
    texts = _texts(lengths)
    encoder = PaddedEncoder("fake", width=1, run=_mean_of_ids, threads=threads)
    expected = [part.float().mean() for part in texts.input_ids.split(lengths)]
    found = encoder.encode(texts)
    assert found.shape == (len(lengths), 1) and found.dtype == torch.float32
    torch.testing.assert_close(found[:, 0], torch.tensor(expected))


def test_a_few_texts_are_spread_over_all_threads() -> None:
    together = threading.Barrier(2, timeout=20)  # breaks where one thread does all the work
    seen = set()

    def run(ids: Ints, mask: Ints) -> np.ndarray:
        together.wait()
        seen.add(threading.get_ident())
        return _mean_of_ids(ids, mask)

    PaddedEncoder("fake", width=1, run=run, threads=2).encode(_texts([32] * 8))
    assert len(seen) == 2


def test_a_failing_engine_is_heard_of() -> None:
    def run(ids: Ints, mask: Ints) -> np.ndarray:
        raise RuntimeError("out of memory")

    for threads in (1, 2):
        with pytest.raises(RuntimeError, match="out of memory"):
            PaddedEncoder("fake", width=1, run=run, threads=threads).encode(_texts([3, 4]))


def test_warm_up_shows_every_length() -> None:
    seen = set()

    def run(ids: Ints, mask: Ints) -> np.ndarray:
        seen.add(ids.shape[1])
        return _mean_of_ids(ids, mask)

    warm_up(PaddedEncoder("fake", width=1, run=run, threads=1), max_length=60)
    assert seen == {padded_length(length) for length in range(1, 61)}
