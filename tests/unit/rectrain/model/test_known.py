"""Vectors of a frozen encoder: found by their text, and of no influence on what the model is."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import torch

from rectrain.data.batch import (
    MicroBatch,
    PackedTexts,
    distinct_texts,
    split_texts,
    take_texts,
    text_keys,
)
from rectrain.model.encoder import encode
from rectrain.model.known import TextVectors
from rectrain.model.multitask import MultiTaskModel
from rectrain.tasks import TASKS

TEXTS = PackedTexts(torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 9]), torch.tensor([1, 2, 2, 4]))


def test_distinct_texts_come_once_and_shortest_first() -> None:
    table = pa.table(
        {
            "query": pa.array([[[7, 8], [9]], []], pa.list_(pa.list_(pa.int32()))),
            "item": pa.array([[[9]], [[1, 2, 3]]], pa.list_(pa.list_(pa.int32()))),
        }
    )
    found = distinct_texts([table.slice(0, 1), table.slice(1, 1), table])
    assert found.lengths.tolist() == [1, 2, 3]
    assert found.input_ids.tolist() == [9, 7, 8, 1, 2, 3]


def test_taking_and_splitting_keep_each_text_whole() -> None:
    taken = take_texts(TEXTS, torch.tensor([1, 3]))
    assert (taken.input_ids.tolist(), taken.lengths.tolist()) == ([2, 3, 6, 7, 8, 9], [2, 4])
    parts = list(split_texts(TEXTS, 3))
    assert [part.lengths.tolist() for part in parts] == [[1, 2], [2], [4]]
    assert torch.cat([part.input_ids for part in parts]).equal(TEXTS.input_ids)
    assert [key for part in parts for key in text_keys(part)] == text_keys(TEXTS)


def test_known_texts_are_looked_up_and_unknown_ones_encoded() -> None:
    asked: list[PackedTexts] = []

    def by_first_token(texts: PackedTexts) -> torch.Tensor:
        asked.append(texts)
        first = texts.lengths.cumsum(0) - texts.lengths
        return texts.input_ids[first][:, None].float()

    known = TextVectors(take_texts(TEXTS, torch.tensor([0, 2])), torch.tensor([[10.0], [20.0]]))
    assert known.of(TEXTS, encode=by_first_token).tolist() == [[10], [2], [20], [6]]
    assert [texts.lengths.tolist() for texts in asked] == [[2, 4]]
    assert known.of(take_texts(TEXTS, torch.tensor([2])), encode=by_first_token).tolist() == [[20]]
    assert len(asked) == 1


def test_with_no_text_known_all_are_encoded_and_no_text_has_no_vector() -> None:
    none = take_texts(TEXTS, torch.tensor([], dtype=torch.int64))
    known = TextVectors(none, torch.zeros(0, 3))
    expected = torch.arange(12.0).reshape(4, 3)
    assert known.of(TEXTS, encode=lambda texts: expected).equal(expected)
    assert known.of(none, encode=lambda texts: expected).shape == (0, 3)
    some = TextVectors(TEXTS, expected)
    assert some.of(none, encode=lambda texts: expected).shape == (0, 3)


def test_a_frozen_encoder_gives_the_same_loss_and_learns_nothing(
    make_model: Callable[..., MultiTaskModel], make_batch: Callable[..., MicroBatch]
) -> None:
    model = make_model()
    batch = make_batch({task: 3 + number for number, task in enumerate(TASKS)})
    expected, _ = model.eval()(batch)
    with torch.no_grad():
        vectors = encode(model.encoder, batch.texts)
    model.freeze_encoder(TextVectors(batch.texts, vectors))
    loss, _ = model(batch)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    model.train()
    assert model.tasks.training and not model.encoder.training
    loss.backward()
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    assert all(parameter.grad is not None for parameter in model.tasks.parameters())


def test_texts_that_a_frozen_encoder_meets_late_have_the_precision_of_the_others(
    make_model: Callable[..., MultiTaskModel], make_batch: Callable[..., MicroBatch]
) -> None:
    model = make_model().eval()
    batch = make_batch(dict.fromkeys(TASKS, 3))
    with torch.no_grad():
        vectors = encode(model.encoder, batch.texts)
    none = take_texts(batch.texts, torch.tensor([], dtype=torch.int64))
    scores = []
    for known in (TextVectors(batch.texts, vectors), TextVectors(none, vectors[:0])):
        model.freeze_encoder(known)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores.append(model(batch, mode="score")["risk"])
    torch.testing.assert_close(scores[1], scores[0], rtol=0, atol=0)
