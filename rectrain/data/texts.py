"""The texts of prepared data as prepared data of one task, `mlm`: what pre-training reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from rectrain.data.batch import PackedTexts, distinct_texts, empty_table, take_texts, text_keys
from rectrain.data.encoding import FeatureEncoder
from rectrain.data.loader import longest_text
from rectrain.data.shards import Prepared, Shards
from rectrain.data.tokenize import load_tokenizer, word_pieces
from rectrain.errors import DataError

__all__ = ["MLM", "TextCorpus"]

MLM = "mlm"

_ROWS = 1 << 16  # looked at together


class TextCorpus(Prepared):
    """Every different text of prepared directories once, a row each, held in memory.

    Training has the texts of the training splits and of the catalogues. Validation has those that
    no training split knows: they are left out of the catalogue too. Texts without a word that
    could be masked are left out.

    A row's examples (column num_examples) are its pieces that could be masked. Nothing is written:
    the manifest is made up, and names the files that the texts come from.

    Args:
        data: task -> its prepared data, of one tokenizer.

    Raises:
        DataError: no text is left to train on.
        EncoderError: see `word_pieces`.
    """

    def __init__(self, data: Mapping[str, Prepared]) -> None:
        first = next(iter(data.values()))
        special = word_pieces(load_tokenizer(first.tokenizer_path)).is_special
        train, validation = _split(data)
        self._rows = {
            "train": _TextRows(_table(train, is_special=special, seed=None)),
            "validation": _TextRows(_table(validation, is_special=special, seed=0)),
        }
        if not self._rows["train"].num_rows:
            raise DataError(
                what="texts of data.paths",
                got="none with a word",
                rule="pre-training needs texts of training rows",
                fix="prepare data of a task with texts",
            )
        super().__init__(first.root, _manifest(data, self._rows))

    def shards(self, task: str, split: str) -> Shards:
        """The texts of "train" or "validation", the latter in a random order, always the same."""
        self._task(task)
        return self._rows[split]


class _TextRows(Shards):
    """Rows in memory instead of files."""

    def __init__(self, table: pa.Table) -> None:
        self._batches = table.combine_chunks().to_batches()
        self._starts = np.concatenate([[0], np.cumsum([b.num_rows for b in self._batches])])
        self._starts = self._starts.astype(np.int64)

    def __reduce__(self) -> tuple[object, ...]:
        return _TextRows, (self.table(),)


def _split(data: Mapping[str, Prepared]) -> tuple[PackedTexts, PackedTexts]:
    """Texts to train on, and those of the validation splits that no training split knows."""
    known = distinct_texts(_tables(data, "train"))
    validation = _without(distinct_texts(_tables(data, "validation")), known)
    catalogue = _without(distinct_texts(_tables(data, None)), known, validation)
    return distinct_texts([_rows(known), _rows(catalogue)]), validation


def _without(texts: PackedTexts, *others: PackedTexts) -> PackedTexts:
    known = {key for other in others for key in text_keys(other)}
    kept = [n for n, key in enumerate(text_keys(texts)) if key not in known]
    return take_texts(texts, torch.tensor(kept, dtype=torch.int64))


def _tables(data: Mapping[str, Prepared], split: str | None) -> Iterator[pa.Table]:
    """The texts of a split's rows, or those of the catalogues, some rows at a time."""
    for task, prepared in data.items():
        if split == "train":
            table = prepared.originals(task)  # altered copies are no texts of the shop
        elif split is not None:
            table = prepared.shards(task, split).table()
        elif prepared.has_items(task):
            table = prepared.items(task).table()
        else:
            continue
        table = table.select([name for name in ("query", "item") if name in table.column_names])
        for start in range(0, table.num_rows, _ROWS):
            yield table.slice(start, _ROWS)


def _rows(texts: PackedTexts) -> pa.Table:
    """A column "item": a row a text."""
    ends = np.cumsum(texts.lengths.numpy())
    offsets = pa.array(np.concatenate([[0], ends]), pa.int32())  # refuses more than 2^31 tokens
    lists = pa.ListArray.from_arrays(offsets, pa.array(texts.input_ids.numpy(), pa.int32()))
    each = pa.array(np.arange(len(lists) + 1), pa.int32())
    return pa.table({"item": pa.ListArray.from_arrays(each, lists)})


def _table(texts: PackedTexts, *, is_special: npt.NDArray[np.bool_], seed: int | None) -> pa.Table:
    """The prepared columns of one row a text; in a random order where there is a seed."""
    tokens, lengths = texts.input_ids.numpy(), texts.lengths.numpy()
    before = np.concatenate([[0], np.cumsum(~is_special[tokens])])
    ends = np.cumsum(lengths)
    pieces = before[ends] - before[ends - lengths]
    num_rows = len(lengths)
    own: dict[str, Any] = {
        "item": _rows(texts).column("item"),
        "num_tokens": pa.array(lengths.astype(np.int32)),
        "num_examples": pa.array(pieces.astype(np.int32)),
        "list_id": pa.array(np.arange(num_rows, dtype=np.int32)),
        "query": pa.array([[]], pa.list_(pa.list_(pa.int32()))).take(_zeros(num_rows)),
    }
    schema = empty_table(num_numeric=0, num_categorical=0, vector_sizes={}).schema
    for field in schema:
        if field.name not in own:
            is_list = pa.types.is_fixed_size_list(field.type)
            own[field.name] = pa.array([[] if is_list else 0], field.type).take(_zeros(num_rows))
    kept = np.flatnonzero(pieces)
    if seed is not None:
        np.random.default_rng(seed).shuffle(kept)
    return pa.table(own).take(pa.array(kept))


def _zeros(size: int) -> pa.Array:
    return pa.array(np.zeros(size, dtype=np.int64))


def _manifest(data: Mapping[str, Prepared], rows: Mapping[str, Shards]) -> dict[str, Any]:
    files: dict[str, list[Any]] = {"train": [], "validation": []}
    for task, prepared in data.items():
        for split, entries in files.items():
            entries += prepared.splits(task)[split]["files"]
        if prepared.has_items(task):
            files["train"].append(prepared.manifest["tasks"][task]["items"])
    configs = [prepared.manifest["config"] for prepared in data.values()]
    tokenizer = next(iter(data.values())).manifest["tokenizer"]
    return {
        "tasks": {
            MLM: {
                "fields_version": 1,
                "features": FeatureEncoder().to_json(),
                "splits": {
                    split: {"rows": found.num_rows, "tokens": _num_tokens(found), "files": entries}
                    for (split, found), entries in zip(rows.items(), files.values(), strict=True)
                },
            }
        },
        "tokenizer": tokenizer | {"max_length": longest_text(data)},
        "config": {
            key: max(int(config[key]) for config in configs)
            for key in ("max_length", "max_history")
        },
    }


def _num_tokens(rows: Shards) -> int:
    return int(rows.column("num_tokens").to_numpy().sum()) if rows.num_rows else 0
