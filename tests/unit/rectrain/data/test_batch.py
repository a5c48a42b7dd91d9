"""Micro-batches: packed texts, each once, and slots that point back at them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rectrain.data.batch import (
    MicroBatch,
    Negatives,
    TextLists,
    batch_columns,
    build_micro_batch,
    empty_table,
    fill_columns,
    list_boundaries,
)

Texts = list[list[list[int]]]  # rows → texts → tokens

TEXTS = st.lists(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), max_size=3), max_size=12
)


def rows(query: Texts, item: Texts, **columns: Any) -> pa.Table:
    """A table of the prepared columns, with simple values where a test doesn't care."""
    size = len(query)
    schema = empty_table(num_numeric=2, num_categorical=1, vector_sizes={"image": 3}).schema
    values: dict[str, Any] = {
        "query": query,
        "item": item,
        "numeric": [[float(row), float("nan")] for row in range(size)],
        "categorical": [[row] for row in range(size)],
        "label": [float(row % 2) for row in range(size)],
        "weight": [1.0] * size,
        "log_q": [0.0] * size,
        "item_key": list(range(size)),
        "group_key": list(range(size)),
        "list_id": list(range(size)),
        "vector_image": [[0.5, 1.5, float(row)] for row in range(size)],
    }
    return pa.table(values | columns, schema=schema)


def unpack(batch: MicroBatch, lists: TextLists) -> Texts:
    """The token ids of each row's texts, read back from the packed form."""
    ends = torch.cumsum(batch.texts.lengths, 0).tolist()
    texts = [
        batch.texts.input_ids[end - length : end].tolist()
        for end, length in zip(ends, batch.texts.lengths.tolist(), strict=True)
    ]
    offsets = lists.offsets.tolist()
    return [
        [texts[position] for position in lists.index[start:end].tolist()]
        for start, end in pairwise(offsets)
    ]


@settings(max_examples=150)
@given(TEXTS, TEXTS, st.integers(0, 5))
def test_every_text_is_read_back_and_kept_once(first: Texts, second: Texts, skip: int) -> None:
    tables = {
        "a": rows(first, first[::-1]).slice(skip),  # slices keep their parent's buffers
        "b": pa.concat_tables([rows(second, second), rows(first, first)]),
    }
    batch = build_micro_batch(tables, counts={"a": 50, "b": 50})

    for slot in batch.slots:
        table = tables[slot.task]
        assert unpack(batch, slot.query) == table.column("query").to_pylist()
        assert unpack(batch, slot.item) == table.column("item").to_pylist()
    everywhere = [
        tuple(text)
        for table in tables.values()
        for side in ("query", "item")
        for row in table.column(side).to_pylist()
        for text in row
    ]
    assert batch.texts.lengths.shape[0] == len(set(everywhere))
    assert batch.texts.lengths.tolist() == sorted(batch.texts.lengths.tolist())
    assert batch.num_tokens == sum(map(len, everywhere))
    assert batch.texts.input_ids.dtype == batch.texts.lengths.dtype == torch.int64


def test_a_slot_carries_the_columns_with_their_types() -> None:
    table = rows([[[1]], [], [[2], [3]]], [[[4]]] * 3, list_id=[7, 7, 9], item_key=[5, 6, 5])
    slot = build_micro_batch({"a": table}, counts={"a": 4}).slots[0]

    assert (slot.task, slot.count, slot.num_rows) == ("a", 4.0, 3)
    torch.testing.assert_close(
        slot.numeric,
        torch.tensor([[0.0, torch.nan], [1.0, torch.nan], [2.0, torch.nan]]),
        equal_nan=True,
    )
    assert slot.categorical.tolist() == [[0], [1], [2]]
    assert slot.vectors["image"].tolist() == [[0.5, 1.5, 0.0], [0.5, 1.5, 1.0], [0.5, 1.5, 2.0]]
    assert slot.label.tolist() == [0.0, 1.0, 0.0]
    assert slot.list_offsets.tolist() == [0, 2, 3]
    assert slot.item_key.tolist() == [5, 6, 5]
    floats = (slot.numeric, slot.vectors["image"], slot.label, slot.weight, slot.log_q)
    assert {tensor.dtype for tensor in floats} == {torch.float32}
    whole = (slot.categorical, slot.list_offsets, slot.item_key, slot.query.offsets)
    assert {tensor.dtype for tensor in whole} == {torch.int64}


def test_negatives_follow_the_items_of_the_rows_and_share_their_texts() -> None:
    table = rows([[[1], [2]], []], [[[3]], [[4, 5]]], group_key=[8, 9], item_key=[5, 6])
    catalogue = rows([[]] * 3, [[[2]], [[6, 6]], [[3]]], item_key=[7, 4, 5], log_q=[-1, -2, -3])
    drawn = Negatives(catalogue.drop_columns(["query", "label", "weight", "list_id"]), 90)
    empty = table.slice(0, 0)
    batch = build_micro_batch(
        {"a": empty, "b": table}, counts={"a": 0, "b": 2}, negatives={"b": drawn}
    )
    slot = batch.slots[1]

    assert (slot.num_rows, slot.num_negatives, slot.num_items) == (2, 3, 90)
    assert unpack(batch, slot.item) == [[[3]], [[4, 5]], [[2]], [[6, 6]], [[3]]]
    assert unpack(batch, slot.query) == [[[1], [2]], []]
    assert batch.texts.lengths.tolist() == [1, 1, 1, 2, 2]  # 2 and 3 stand twice
    assert batch.num_tokens == 2 + 3 + 4
    assert slot.item_key.tolist() == [5, 6, 7, 4, 5] and slot.group_key.tolist() == [8, 9]
    assert slot.log_q.tolist() == [0, 0, -1, -2, -3]
    assert slot.numeric[:, 0].tolist() == [0, 1, 0, 1, 2]
    assert slot.vectors["image"].shape == (5, 3) and slot.categorical.shape == (5, 1)
    assert slot.list_offsets.tolist() == [0, 1, 2]
    assert (batch.slots[0].num_negatives, batch.slots[0].num_items) == (0, 0)


def test_slots_without_rows_keep_their_widths() -> None:
    empty = empty_table(num_numeric=2, num_categorical=0, vector_sizes={"image": 3})
    batch = build_micro_batch({"a": empty, "b": empty}, counts={"a": 0, "b": 9})

    assert batch.num_tokens == 0 and batch.texts.lengths.shape == (0,)
    assert [slot.task for slot in batch.slots] == ["a", "b"]
    for slot in batch.slots:
        assert slot.numeric.shape == (0, 2) and slot.categorical.shape == (0, 0)
        assert slot.vectors["image"].shape == (0, 3)
        assert slot.list_offsets.tolist() == slot.query.offsets.tolist() == [0]


def test_a_batch_does_not_share_memory_with_its_table() -> None:
    label = pa.array([1.0, 2.0], pa.float32())
    table = rows([[[1]], [[2]]], [[[1]], [[2]]], label=label)
    batch = build_micro_batch({"a": table}, counts={"a": 2})
    batch.slots[0].label.zero_()
    assert label.to_pylist() == [1.0, 2.0]


def test_to_moves_every_tensor() -> None:
    table = rows([[[1]], [[2]]], [[[1, 2]], []])
    moved = build_micro_batch({"a": table}, counts={"a": 2}).to("meta")
    slot = moved.slots[0]
    tensors = [
        *(moved.texts.input_ids, moved.texts.lengths, slot.query.index, slot.query.offsets),
        *(slot.item.index, slot.item.offsets, slot.numeric, slot.categorical),
        *(slot.vectors["image"], slot.label, slot.weight, slot.list_offsets),
        *(slot.item_key, slot.log_q, slot.group_key),
    ]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.num_tokens == 4


def test_columns_that_are_not_read_are_left_out() -> None:
    names = ["query", "group", "vector_image", "numeric", "timestamp", "item_text", "log_q"]
    assert batch_columns(names) == ["query", "vector_image", "numeric", "log_q"]


@pytest.mark.parametrize(
    ("list_id", "expected"),
    [([], [0]), ([4], [0, 1]), ([4, 4, 2, 2, 4], [0, 2, 4, 5]), ([1, 2, 3], [0, 1, 2, 3])],
)
def test_list_boundaries(list_id: list[int], expected: list[int]) -> None:
    assert list_boundaries(np.array(list_id, dtype=np.int32)).tolist() == expected


def test_columns_that_a_catalogue_lacks_are_filled_and_rows_are_no_lists() -> None:
    whole = rows([[], [], []], [[[1]], [[2, 3]], []], log_q=[-1.0, -2.0, -3.0])
    given = whole.select(["item", "log_q", "numeric", "categorical", "vector_image"])
    like = whole.slice(0, 0)
    filled = fill_columns(given.append_column("num_tokens", pa.array([1, 2, 0])), like=like)
    assert set(filled.column_names) == {*whole.column_names, "num_tokens"}
    assert all(filled.schema.field(field.name).type == field.type for field in like.schema)
    assert filled.column("list_id").to_pylist() == [0, 1, 2]
    assert filled.column("query").to_pylist() == [[], [], []]
    assert filled.column("log_q").to_pylist() == [-1, -2, -3]
    assert not any(filled.column("label").to_pylist() + filled.column("item_key").to_pylist())
    assert "num_tokens" not in fill_columns(given, like=like).column_names
