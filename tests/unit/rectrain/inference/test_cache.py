"""The cache of text vectors: what it encodes, what it keeps, what it drops."""

from __future__ import annotations

import torch

from rectrain.data.batch import PackedTexts
from rectrain.inference.cache import VectorCache


def packed(*texts: list[int]) -> PackedTexts:
    ids = torch.tensor([token for text in texts for token in text])
    return PackedTexts(ids, torch.tensor([len(text) for text in texts]))


class Encoder:
    """A text's vector is its tokens' sum and its length; remembers what it was asked."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def __call__(self, texts: PackedTexts) -> torch.Tensor:
        parts = texts.input_ids.split(texts.lengths.tolist())
        self.seen += [part.tolist() for part in parts]
        return torch.tensor([[float(part.sum()), float(len(part))] for part in parts])

    def asked(self) -> list[list[int]]:
        seen, self.seen = self.seen, []
        return seen


def test_a_known_text_is_not_encoded_again_and_the_one_used_last_stays() -> None:
    encoder, cache = Encoder(), VectorCache(2, width=2)
    assert cache.of(packed([1], [2, 3]), encode=encoder).tolist() == [[1, 1], [5, 2]]
    assert encoder.asked() == [[1], [2, 3]]
    assert cache.of(packed([1], [4, 4]), encode=encoder).tolist() == [[1, 1], [8, 2]]
    assert encoder.asked() == [[4, 4]]  # [2, 3] had to go: [1] was used since
    assert cache.of(packed([1], [2, 3]), encode=encoder).tolist() == [[1, 1], [5, 2]]
    assert encoder.asked() == [[2, 3]] and len(cache) == 2


def test_more_texts_than_the_cache_holds_are_right_too() -> None:
    encoder, cache = Encoder(), VectorCache(3, width=2)
    texts = packed(*[[n] for n in range(10)])
    for _ in range(2):
        assert cache.of(texts, encode=encoder)[:, 0].tolist() == list(range(10))
    assert len(cache) == 3


def test_no_capacity_keeps_nothing_and_no_text_is_no_vector() -> None:
    encoder, cache = Encoder(), VectorCache(0, width=2)
    for _ in range(2):
        cache.of(packed([1]), encode=encoder)
    assert encoder.asked() == [[1], [1]]
    empty = PackedTexts(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    assert VectorCache(3, width=2).of(empty, encode=encoder).shape == (0, 2)
    assert encoder.asked() == []


def test_a_vector_that_is_no_number_is_not_kept() -> None:
    encoder, cache = Encoder(), VectorCache(3, width=2)

    def broken(texts: PackedTexts) -> torch.Tensor:
        vectors = encoder(texts)
        vectors[0, 1] = torch.nan
        return vectors

    assert cache.of(packed([1], [2]), encode=broken)[1].tolist() == [2, 1]
    assert encoder.asked() == [[1], [2]]
    assert cache.of(packed([1], [2]), encode=encoder).tolist() == [[1, 1], [2, 1]]
    assert encoder.asked() == [[1]]
