"""From checked rows to the columns of a prepared shard: pure functions.

Legend: n rows, U distinct texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rectrain.data.encoding import FeatureEncoder
from rectrain.data.fields import FieldTable
from rectrain.data.split import codes_of, hash_ids
from rectrain.data.tokenize import Read

__all__ = [
    "HISTORY",
    "Spec",
    "TextLimits",
    "assemble",
    "feature_columns",
    "item_columns",
    "model_columns",
    "side_texts",
    "tokenised",
]

HISTORY = "history"
_TEXTS = pa.list_(pa.string())


class Spec(Protocol):
    """What preparation needs to know of a task; `tasks.TaskSpec` is one."""

    @property
    def fields(self) -> FieldTable: ...
    @property
    def query(self) -> tuple[str, ...]: ...
    @property
    def item(self) -> tuple[str, ...]: ...
    @property
    def has_lists(self) -> bool: ...
    @property
    def has_catalogue(self) -> bool: ...


class TextLimits(NamedTuple):
    """max_length: tokens kept of one text; max_history: texts kept of a list, the last ones."""

    max_length: int
    max_history: int


def side_texts(table: pa.Table, names: Sequence[str], *, max_texts: int) -> pa.ListArray:
    """The texts of one side of each row, field after field; a missing text is no text.

    Args:
        table: n rows; the named columns are strings or lists of strings.
        max_texts: texts kept of a list, the last ones.

    Returns:
        list<string> [n].
    """
    n = table.num_rows
    lists = [_as_lists(table[name].combine_chunks(), max_texts=max_texts) for name in names]
    if len(lists) == 1:
        return lists[0]
    lengths = [np.asarray(pc.list_value_length(values), dtype=np.int64) for values in lists]
    total = np.sum(lengths, axis=0, dtype=np.int64) if lists else np.zeros(n, dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(total)])
    places = []
    begin = offsets[:-1].copy()
    for length in lengths:
        within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        places.append(np.repeat(begin, length) + within)
        begin += length
    flat = [values.flatten() for values in lists] or [pa.array([], pa.string())]
    order = np.argsort(np.concatenate(places)) if places else np.empty(0, dtype=np.int64)
    texts = pa.concat_arrays(flat).take(pa.array(order))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), texts)


def assemble(
    rows: pa.Table,
    *,
    spec: Spec,
    features: FeatureEncoder,
    read: Read,
    max_history: int,
    plan: pa.Table,
) -> pa.Table:
    """The columns of a prepared shard.

    Args:
        rows: n checked rows, with a derived history as its own column where the task has one.
        spec: the task.
        features: fitted on the train split.
        read: gives the token ids (see `tokenize.reader`).
        max_history: texts kept of a list of texts, the last ones.
        plan: n rows with list_id int32, log_q float32 and exclude list<string>.
    """
    sides = _sides(rows, spec, max_history=max_history)
    tokens = _token_lists(sides, read=read)
    num_tokens = sum(_num_tokens(lists) for lists in tokens.values())
    group = spec.fields.name_of("group")
    columns = {
        **tokens,
        **feature_columns(rows, features),
        "label": _numbers(rows, spec.fields.name_of("label"), default=1.0),
        "weight": _numbers(rows, spec.fields.name_of("weight"), default=1.0),
        "group": rows[group] if group else pa.nulls(rows.num_rows, pa.string()),
        "item_id": _column(rows, "item_id", pa.string()),
        "row_id": _column(rows, "row_id", pa.string()),
        "timestamp": _column(rows, spec.fields.name_of("timestamp"), pa.timestamp("us")),
        "p_true": _column(rows, spec.fields.name_of("oracle"), pa.float64()),
        "log_q": plan["log_q"],
        "item_key": _keys(rows, "item_id"),
        "group_key": _keys(rows, group),
        "num_tokens": pa.array(num_tokens, pa.int32()),
        "list_id": plan["list_id"],
        "exclude": plan["exclude"],
        "query_text": sides["query"],
        "item_text": sides["item"],
    }
    return pa.table(columns)


def model_columns(
    rows: pa.Table, *, spec: Spec, features: FeatureEncoder, read: Read, max_history: int
) -> pa.Table:
    """The columns of a prepared shard that scoring reads: token ids and features (`assemble`)."""
    tokens = _token_lists(_sides(rows, spec, max_history=max_history), read=read)
    return pa.table({**tokens, **feature_columns(rows, features)})


def item_columns(
    rows: pa.Table,
    *,
    spec: Spec,
    features: FeatureEncoder,
    read: Read,
    log_q: npt.NDArray[np.float32],
) -> pa.Table:
    """The columns of a catalogue: one row an item, with the item side alone."""
    texts = side_texts(rows, spec.item, max_texts=1)
    item = _token_lists({"item": texts}, read=read)["item"]
    return pa.table(
        {
            "item_id": rows["item_id"],
            "item": item,
            **feature_columns(rows, features),
            "log_q": pa.array(log_q),
            "item_key": _keys(rows, "item_id"),
            "num_tokens": pa.array(_num_tokens(item), pa.int32()),
            "item_text": texts,
        }
    )


def tokenised(prepared: pa.Table, *, read: Read) -> pa.Table:
    """Prepared rows or items with the token ids of another tokenizer than the data's.

    Args:
        prepared: with `item_text`, and `query_text` where the rows have a query side.
        read: gives the token ids.
    """
    num_tokens = np.zeros(prepared.num_rows, dtype=np.int64)
    for side in ("query", "item"):
        if side not in prepared.column_names:
            continue
        texts = prepared[f"{side}_text"].combine_chunks()
        # The column may be a slice; its own offsets need not start at 0.
        offsets = np.concatenate([[0], np.cumsum(np.asarray(pc.list_value_length(texts)))])
        whole = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), texts.flatten())
        ids = _token_lists({side: whole}, read=read)[side]
        num_tokens += _num_tokens(ids)
        prepared = prepared.set_column(prepared.column_names.index(side), side, ids)
    place = prepared.column_names.index("num_tokens")
    return prepared.set_column(place, "num_tokens", pa.array(num_tokens, pa.int32()))


def feature_columns(rows: pa.Table, features: FeatureEncoder) -> dict[str, pa.Array]:
    """numeric, categorical and vector_<name>, each a fixed-size list a row."""
    encoded = features.encode(rows)
    blocks = {"numeric": encoded.numeric, "categorical": encoded.categorical}
    blocks |= {f"vector_{name}": block for name, block in encoded.vectors.items()}
    return {name: _fixed(block) for name, block in blocks.items()}


def _sides(rows: pa.Table, spec: Spec, *, max_history: int) -> dict[str, pa.ListArray]:
    return {
        "query": side_texts(rows, spec.query, max_texts=max_history),
        "item": side_texts(rows, spec.item, max_texts=max_history),
    }


def _token_lists(sides: Mapping[str, pa.ListArray], *, read: Read) -> dict[str, pa.ListArray]:
    """Of each side list<list<int32>> [n]; each of the U distinct texts is tokenised once."""
    distinct = pa.concat_arrays([texts.flatten() for texts in sides.values()]).dictionary_encode()
    ids = read(distinct.dictionary.to_pylist())
    tokens, start = {}, 0
    for side, texts in sides.items():
        places = distinct.indices.slice(start, len(texts.values))
        tokens[side] = pa.ListArray.from_arrays(texts.offsets, ids.take(places))
        start += len(places)
    return tokens


def _fixed(block: npt.NDArray[Any]) -> pa.Array:
    n, size = block.shape
    if not size:  # an Arrow list of size 0 can't tell its length from its values
        return pa.array([[]] * n, pa.list_(pa.from_numpy_dtype(block.dtype), 0))
    return pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), size)


def _as_lists(values: pa.Array, *, max_texts: int) -> pa.ListArray:
    if values.type == pa.string():
        lengths = np.asarray(pc.is_valid(values), dtype=np.int32)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values.drop_null())
    lists = pc.fill_null(values.cast(_TEXTS), pa.array([[]], _TEXTS)[0])
    ends = lists.offsets.to_numpy().astype(np.int64)
    kept = np.minimum(np.diff(ends), max_texts)
    offsets = np.concatenate([[0], np.cumsum(kept)])
    places = np.arange(offsets[-1]) + np.repeat(ends[1:] - offsets[1:], kept)
    texts = lists.values.take(pa.array(places))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), texts)


def _num_tokens(lists: pa.ListArray) -> npt.NDArray[np.int64]:
    """int64 [n]: tokens of all texts of each row."""
    offsets = lists.offsets.to_numpy()
    tokens = lists.values.offsets.to_numpy()[offsets].astype(np.int64)
    return np.asarray(np.diff(tokens))


def _column(rows: pa.Table, name: str | None, kind: pa.DataType) -> pa.ChunkedArray | pa.Array:
    if name is None or name not in rows.column_names:
        return pa.nulls(rows.num_rows, kind)
    return rows[name]


def _numbers(rows: pa.Table, name: str | None, *, default: float) -> pa.ChunkedArray:
    column = _column(rows, name, pa.float64())
    return pc.fill_null(column, default).cast(pa.float32())


def _keys(rows: pa.Table, name: str | None) -> pa.Array:
    """int64 [n]: hash of the id in a column, -1 where there is none."""
    if name is None or name not in rows.column_names:
        return pa.array(np.full(rows.num_rows, -1, dtype=np.int64))
    missing = pc.is_null(rows[name])
    number, names = codes_of(pc.fill_null(rows[name], ""))
    keys = hash_ids(names)[number] if names else np.empty(0, dtype=np.int64)
    return pa.array(np.where(np.asarray(missing), -1, keys))
