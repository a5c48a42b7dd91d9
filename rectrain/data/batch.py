"""What one forward reads: packed texts without padding, and one slot of rows for every task.

Shapes: T tokens, U different texts, S places where a text stands, B rows of a slot, N its drawn
negatives, K = B + N its items, G lists, Fn numeric and Fc categorical features, V the size of a
vector feature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

__all__ = [
    "MicroBatch",
    "Negatives",
    "PackedTexts",
    "Slot",
    "TextLists",
    "batch_columns",
    "build_micro_batch",
    "distinct_texts",
    "empty_table",
    "fill_columns",
    "list_boundaries",
    "split_texts",
    "take_texts",
    "text_keys",
]

Ints = npt.NDArray[np.int64]

_VECTOR_PREFIX = "vector_"
_MATRICES = ("numeric", "categorical")
_OF_ITEMS = ("item", "log_q", "item_key", *_MATRICES)  # and vectors; the others are a row's own
_COLUMNS = {
    "query": pa.list_(pa.list_(pa.int32())),
    "item": pa.list_(pa.list_(pa.int32())),
    "label": pa.float32(),
    "weight": pa.float32(),
    "log_q": pa.float32(),
    "item_key": pa.int64(),
    "group_key": pa.int64(),
    "list_id": pa.int32(),
}


@dataclass(frozen=True, slots=True)
class PackedTexts:
    """The different texts of a micro-batch, end to end, shortest first.

    Attributes:
        input_ids: int64 [T], token ids with [CLS] and [SEP], no padding.
        lengths: int64 [U], tokens of each text, ascending, at least 1.
    """

    input_ids: Tensor
    lengths: Tensor


@dataclass(frozen=True, slots=True)
class TextLists:
    """A ragged list of texts for each row.

    Attributes:
        index: int64 [S], positions in `PackedTexts`.
        offsets: int64 [B + 1]; row b has the texts index[offsets[b]:offsets[b + 1]], maybe none.
    """

    index: Tensor
    offsets: Tensor


@dataclass(frozen=True, slots=True)
class Slot:
    """The rows of one task in a micro-batch; B may be 0.

    The K items are those of the B rows, in their order, then N negatives drawn from the
    catalogue (none but in training, and none in a slot without rows).

    Attributes:
        task: the task's name.
        query: texts of the query side, B lists.
        item: texts of the item side, K lists.
        numeric: float32 [K, Fn], NaN where missing.
        categorical: int64 [K, Fc], 0 where missing.
        vectors: name -> float32 [K, V], a row of NaN where missing.
        label: float32 [B].
        weight: float32 [B], at least 0.
        list_offsets: int64 [G + 1], rows of list g; one row each where a task has no lists.
        group_key: int64 [B], equal for rows of the same group (user, query).
        item_key: int64 [K], equal for the same item.
        log_q: float32 [K], log of the item's share of the training rows (0 where unused).
        num_items: size of the catalogue that the negatives were drawn from; 0 without negatives.
        count: examples (rows, or lists where a task has them) of this task in the whole step,
            over all micro-batches and workers; at least 1 when B > 0.
    """

    task: str
    query: TextLists
    item: TextLists
    numeric: Tensor
    categorical: Tensor
    vectors: dict[str, Tensor]
    label: Tensor
    weight: Tensor
    list_offsets: Tensor
    group_key: Tensor
    item_key: Tensor
    log_q: Tensor
    num_items: int
    count: float

    @property
    def num_rows(self) -> int:
        """B, the number of rows."""
        return self.label.shape[0]

    @property
    def num_negatives(self) -> int:
        """N, the number of items that belong to no row."""
        return self.item_key.shape[0] - self.num_rows


@dataclass(frozen=True, slots=True)
class Negatives:
    """Items drawn for a slot, against which its rows' items are to be told apart.

    Attributes:
        items: N rows in the prepared columns of a catalogue.
        num_items: size of the catalogue, at least N.
    """

    items: pa.Table
    num_items: int


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward's input: every task of the run, always in the run's order.

    Attributes:
        texts: each different text once.
        slots: one for every task, some maybe empty.
        num_tokens: real tokens of all rows and negatives, repeated texts counted each time.
    """

    texts: PackedTexts
    slots: tuple[Slot, ...]
    num_tokens: int

    def to(self, device: torch.device | str) -> MicroBatch:
        """A copy on `device`; does not wait for the copy when the memory is pinned."""
        return _map_tensors(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> MicroBatch:
        """A copy in page-locked memory, for a fast copy to a GPU; needs CUDA."""
        return _map_tensors(self, Tensor.pin_memory)


_T = TypeVar("_T", bound="MicroBatch | Slot | PackedTexts | TextLists")


def _map_tensors(value: _T, change: Callable[[Tensor], Tensor]) -> _T:
    changed: dict[str, Any] = {}
    for field in fields(value):
        part = getattr(value, field.name)
        if isinstance(part, Tensor):
            changed[field.name] = change(part)
        elif isinstance(part, PackedTexts | TextLists):
            changed[field.name] = _map_tensors(part, change)
        elif isinstance(part, tuple):
            changed[field.name] = tuple(_map_tensors(slot, change) for slot in part)
        elif isinstance(part, dict):
            changed[field.name] = {name: change(tensor) for name, tensor in part.items()}
    return replace(value, **changed)


def build_micro_batch(
    tables: Mapping[str, pa.Table],
    *,
    counts: Mapping[str, float],
    negatives: Mapping[str, Negatives] | None = None,
) -> MicroBatch:
    """Turns prepared rows into tensors; a text that stands twice is kept once.

    Args:
        tables: task -> rows in the prepared columns, in the run's task order; may have no rows
            (see `empty_table`). Rows of one list are neighbours.
        counts: task -> examples of the whole step, at least 1 where the task has rows.
        negatives: task -> items that join its slot; tasks without any are left out.

    Returns:
        A micro-batch on the CPU.
    """
    negatives = negatives or {}
    items = {task: _items(table, negatives.get(task)) for task, table in tables.items()}
    sides = [
        _ragged_texts(part, side)
        for task, table in tables.items()
        for part, side in ((table, "query"), (items[task], "item"))
    ]
    texts, index = _pack_texts(sides)
    slots, start = [], 0
    for place, (task, table) in enumerate(tables.items()):
        lists = []
        for offsets, lengths, _ in sides[2 * place : 2 * place + 2]:
            lists.append(TextLists(_tensor(index[start : start + lengths.size]), _tensor(offsets)))
            start += lengths.size
        drawn_from = negatives[task].num_items if task in negatives else 0
        slots.append(_slot(task, table, items[task], lists, counts[task], num_items=drawn_from))
    num_tokens = sum(int(lengths.sum()) for _, lengths, _ in sides)
    return MicroBatch(texts=texts, slots=tuple(slots), num_tokens=num_tokens)


def empty_table(
    *, num_numeric: int, num_categorical: int, vector_sizes: Mapping[str, int]
) -> pa.Table:
    """A table without rows in the prepared columns that `build_micro_batch` reads.

    Args:
        num_numeric: Fn.
        num_categorical: Fc.
        vector_sizes: vector feature -> V.
    """
    columns = _COLUMNS | {
        "numeric": pa.list_(pa.float32(), num_numeric),
        "categorical": pa.list_(pa.int32(), num_categorical),
    }
    columns |= {
        _VECTOR_PREFIX + name: pa.list_(pa.float32(), size) for name, size in vector_sizes.items()
    }
    return pa.schema(columns.items()).empty_table()


def fill_columns(rows: pa.Table, *, like: pa.Table) -> pa.Table:
    """Rows to score, with every column of a micro-batch.

    Args:
        rows: prepared columns. A catalogue, or rows that a user gives, may lack a side's texts and
            what only a loss needs: these become empty lists and 0, and each row a list of its own.
        like: the columns (see `empty_table`); `num_tokens` is kept too where it is there.
    """
    num_rows = rows.num_rows
    columns = {"num_tokens": rows.column("num_tokens")} if "num_tokens" in rows.schema.names else {}
    for field in like.schema:
        if field.name in rows.column_names:
            columns[field.name] = rows.column(field.name)
        elif pa.types.is_list(field.type):
            columns[field.name] = pa.array([[]] * num_rows, field.type)
        else:
            numbers = np.arange(num_rows) * (field.name == "list_id")
            columns[field.name] = pa.array(numbers, field.type)
    return pa.table(columns)


def batch_columns(names: Sequence[str]) -> list[str]:
    """The prepared columns that `build_micro_batch` reads, of those that are there."""
    return [name for name in names if name in _COLUMNS or name in _MATRICES or _is_vector(name)]


def list_boundaries(list_id: npt.NDArray[np.integer[Any]]) -> Ints:
    """Where lists begin and end: int64 [G + 1], from each row's list number (neighbours)."""
    changes = np.flatnonzero(list_id[1:] != list_id[:-1]) + 1
    ends = [list_id.size] if list_id.size else []
    return np.concatenate([[0], changes, ends]).astype(np.int64)


def text_keys(texts: PackedTexts) -> list[bytes]:
    """A key of each text, equal for equal tokens alone."""
    tokens = texts.input_ids.cpu().numpy().astype(np.int32)
    return _keys(tokens, texts.lengths.cpu().numpy())


def distinct_texts(tables: Iterable[pa.Table]) -> PackedTexts:
    """The different texts of prepared rows, shortest first, else in the order of the rows.

    Args:
        tables: with the columns "query", "item" or both.
    """
    seen = dict[bytes, None]()
    for table in tables:
        for side in ("query", "item"):
            if side in table.column_names:
                _, lengths, tokens = _ragged_texts(table, side)
                seen.update(dict.fromkeys(_keys(tokens, lengths)))
    keys = sorted(seen, key=len)
    tokens = np.frombuffer(b"".join(keys), dtype=np.int32)
    lengths = np.array([len(key) // tokens.itemsize for key in keys], dtype=np.int64)
    return PackedTexts(_tensor(tokens.astype(np.int64)), _tensor(lengths))


def take_texts(texts: PackedTexts, index: Tensor) -> PackedTexts:
    """Some of the texts.

    Args:
        texts: U texts.
        index: int64, places of texts, in the order wanted.
    """
    lengths = texts.lengths[index]
    starts = (texts.lengths.cumsum(0) - texts.lengths)[index]
    first = lengths.cumsum(0) - lengths
    place = torch.arange(int(lengths.sum()), device=lengths.device)
    tokens = texts.input_ids[place + (starts - first).repeat_interleave(lengths)]
    return PackedTexts(tokens, lengths)


def split_texts(texts: PackedTexts, budget: int) -> Iterator[PackedTexts]:
    """Neighbouring texts of at most `budget` tokens together (a longer text stands alone)."""
    ends = texts.lengths.cumsum(0).cpu().numpy()
    start = used = 0
    while start < len(ends):
        stop = max(int(np.searchsorted(ends, used + budget, side="right")), start + 1)
        yield PackedTexts(texts.input_ids[used : ends[stop - 1]], texts.lengths[start:stop])
        start, used = stop, int(ends[stop - 1])


def _items(rows: pa.Table, negatives: Negatives | None) -> pa.Table:
    """What the items of a slot have: those of its rows, then its negatives."""
    names = [name for name in rows.column_names if name in _OF_ITEMS or _is_vector(name)]
    own = rows.select(names)
    if negatives is None:
        return own
    assert rows.num_rows, "negatives of a slot without rows"
    return pa.concat_tables([own, negatives.items.select(names)])


def _is_vector(name: str) -> bool:
    return name.startswith(_VECTOR_PREFIX)


def _slot(
    task: str,
    table: pa.Table,
    items: pa.Table,
    texts: Sequence[TextLists],
    count: float,
    *,
    num_items: int,
) -> Slot:
    assert count >= 1 or table.num_rows == 0, f"{task}: rows without a count"
    vectors = {
        name.removeprefix(_VECTOR_PREFIX): _tensor(_matrix(items, name))
        for name in items.column_names
        if _is_vector(name)
    }
    return Slot(
        task=task,
        query=texts[0],
        item=texts[1],
        numeric=_tensor(_matrix(items, "numeric")),
        categorical=_tensor(_matrix(items, "categorical").astype(np.int64)),
        vectors=vectors,
        label=_tensor(table.column("label").to_numpy()),
        weight=_tensor(table.column("weight").to_numpy()),
        list_offsets=_tensor(list_boundaries(table.column("list_id").to_numpy())),
        group_key=_tensor(table.column("group_key").to_numpy()),
        item_key=_tensor(items.column("item_key").to_numpy()),
        log_q=_tensor(items.column("log_q").to_numpy()),
        num_items=num_items,
        count=float(count),
    )


def _ragged_texts(table: pa.Table, side: str) -> tuple[Ints, Ints, npt.NDArray[np.int32]]:
    """Texts a row: offsets [B + 1]; tokens a text: lengths [S]; their tokens [T], int32."""
    rows = _array(table, side)
    row_offsets = rows.offsets.to_numpy().astype(np.int64)
    texts = rows.values.slice(row_offsets[0], row_offsets[-1] - row_offsets[0])
    text_offsets = texts.offsets.to_numpy().astype(np.int64)
    tokens = texts.values.to_numpy()[text_offsets[0] : text_offsets[-1]]
    return row_offsets - row_offsets[0], np.diff(text_offsets), tokens


def _pack_texts(sides: list[tuple[Ints, Ints, npt.NDArray[np.int32]]]) -> tuple[PackedTexts, Ints]:
    """Each different text once, by length; and for every place [S] its position there."""
    tokens = np.concatenate([part for _, _, part in sides])
    lengths = np.concatenate([part for _, part, _ in sides])
    assert lengths.size == 0 or lengths.min() > 0, "a text without tokens"
    ends = np.cumsum(lengths)
    starts = ends - lengths
    seen = dict[bytes, int]()
    number = np.array(
        [seen.setdefault(key, len(seen)) for key in _keys(tokens, lengths)], dtype=np.int64
    )
    _, first = np.unique(number, return_index=True)
    order = np.argsort(lengths[first], kind="stable")
    first = first[order]
    position = np.empty_like(order)
    position[order] = np.arange(order.size)
    kept = lengths[first]
    gather = np.repeat(starts[first] - (np.cumsum(kept) - kept), kept) + np.arange(kept.sum())
    packed = PackedTexts(_tensor(tokens[gather].astype(np.int64)), _tensor(kept))
    return packed, position[number]


def _keys(tokens: npt.NDArray[np.int32], lengths: Ints) -> list[bytes]:
    """A key of each text: its bytes, so that two texts can never be taken for one another."""
    ends = np.cumsum(lengths) * tokens.itemsize
    starts = ends - lengths * tokens.itemsize
    data = tokens.tobytes()
    return [data[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def _matrix(table: pa.Table, name: str) -> npt.NDArray[Any]:
    """A fixed-size list column as [B, size]."""
    column = _array(table, name)
    size = column.type.list_size
    values = column.values.slice(column.offset * size, len(column) * size)
    return np.asarray(values.to_numpy()).reshape(len(column), size)


def _array(table: pa.Table, name: str) -> Any:
    column = table.column(name)
    array = (
        column.chunk(0)
        if column.num_chunks == 1
        else pa.concat_arrays(column.chunks or [pa.array([], column.type)])
    )
    assert array.null_count == 0, f"{name}: prepared columns have no nulls"
    return array


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    # Arrow's memory is read-only and may be mapped from a file: tensors get their own.
    return torch.from_numpy(array.copy())
