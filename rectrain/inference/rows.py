"""Rows as a user gives them, made into a model's input by the code that made its training data.

Shapes: n rows given, m rows that keep their task's rules.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from rectrain.data.assemble import TextLimits, model_columns, tokenised
from rectrain.data.encoding import FeatureEncoder
from rectrain.data.fields import SET_ASIDE, Field, FieldTable
from rectrain.data.tokenize import Read, reader
from rectrain.model.spec import TaskSpec
from rectrain.model.vocabulary import FallbackTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["EXCLUDE", "EncodedRows", "RowEncoder", "TextLimits"]

EXCLUDE = "exclude"
_ROW = "input_row"


@dataclass(frozen=True)
class EncodedRows:
    """Rows ready for a model.

    Args:
        given: the m good rows in the task's fields.
        prepared: of the same m rows the prepared columns that scoring reads.
        number: int64 [m], their row numbers.
        rejects: the other n - m rows with their number (`row`) and `reason`.
    """

    given: pa.Table
    prepared: pa.Table
    number: pa.Array
    rejects: pa.Table


class _Counts:
    """Texts read, and those of them with a dropped piece; threads may read at once."""

    def __init__(self) -> None:
        self.found = (0, 0)  # replaced as a whole: who reads it needs no lock
        self._lock = threading.Lock()

    def add(self, num_texts: int, num_fallbacks: int) -> None:
        with self._lock:
            texts, fallbacks = self.found
            self.found = (texts + num_texts, fallbacks + num_fallbacks)


@dataclass(frozen=True)
class RowEncoder:
    """Checks, encodes and tokenises rows of any task of a model.

    Args:
        features: task -> how its features were encoded for training.
        tokenizer: the model's.
        limits: task -> how long its texts may be.
        full_tokenizer: the one before the vocabulary was trimmed, where it was: texts with a piece
            that was dropped are counted.
    """

    features: Mapping[str, FeatureEncoder]
    tokenizer: PreTrainedTokenizerFast
    limits: Mapping[str, TextLimits]
    full_tokenizer: PreTrainedTokenizerFast | None = None
    _counts: _Counts = field(default_factory=_Counts, init=False, repr=False, compare=False)
    _tables: dict[str, FieldTable] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def fields(self, spec: TaskSpec) -> FieldTable:
        """What a row must have to be scored: the model's features, but no label, weight, split or
        truth.

        A row of a two-tower task is a user: the group, the texts of the query side, and the ids
        of the items that must not be recommended.
        """
        if (
            spec.name not in self._tables
        ):  # small requests would take longer to describe than to read
            self._tables[spec.name] = self._fields_of(spec)
        return self._tables[spec.name]

    def _fields_of(self, spec: TaskSpec) -> FieldTable:
        if spec.has_catalogue:
            texts = tuple(Field(name, "text_list") for name in spec.query)
            user = tuple(spec.fields[name] for name in spec.fields.names("group"))
            fields = (*user, *texts, Field(EXCLUDE, "text_list"))
            return replace(spec.fields, fields=fields)
        features = self.features[spec.name]
        table = spec.fields.without("label", "weight", "split", "oracle")
        own = {name: {"kind": "numeric"} for name in features.numeric_names if name not in table}
        own |= {
            name: {"kind": "categorical"}
            for name in features.categorical_names
            if name not in table
        }
        own |= {name: {"kind": "vector"} for name in features.vectors if name not in table}
        sized = tuple(
            replace(field, size=features.vectors.get(field.name, field.size))
            for field in table.extend(own).fields
        )
        return replace(table, fields=sized)

    def tokenised(self, spec: TaskSpec, prepared: pa.Table) -> pa.Table:
        """Prepared rows or items, whose tokenizer may be another one, with this model's tokens."""
        return tokenised(prepared, read=self._reader(spec))

    @property
    def fallback_share(self) -> float:
        """Share of the texts read so far that have a dropped piece, 0 to 1; NaN before the first,
        and where the vocabulary is whole."""
        num_texts, num_fallbacks = self.num_read
        return num_fallbacks / num_texts if num_texts else math.nan

    @property
    def num_read(self) -> tuple[int, int]:
        """Texts read so far, and those of them with a dropped piece; (0, 0) where the vocabulary is
        whole."""
        return self._counts.found

    @cached_property
    def _readers(self) -> dict[int, Read]:
        """max_length -> reader: making one takes longer than reading a few texts."""
        lengths = {limit.max_length for limit in self.limits.values()}
        if self.full_tokenizer is None:
            return {length: reader(self.tokenizer, max_length=length) for length in lengths}
        fallback = FallbackTokenizer(self.full_tokenizer, self.tokenizer)

        def read(texts: Sequence[str], length: int) -> pa.ListArray:
            ids, fell_back = fallback.tokenize(texts, max_length=length)
            self._counts.add(len(texts), int(fell_back.sum()))
            return ids

        return {length: partial(read, length=length) for length in lengths}

    def _reader(self, spec: TaskSpec) -> Read:
        return self._readers[self.limits[spec.name].max_length]

    def encode(self, spec: TaskSpec, rows: pa.Table, *, first: int = 0) -> EncodedRows:
        """Parts good rows from bad ones and makes the good ones a model's input.

        Args:
            spec: the task.
            rows: n rows in the task's fields; other columns are passed over.
            first: number of the first row.

        Raises:
            DataError: no rows, a missing required column, or a column of a wrong type.
        """
        fields = self.fields(spec)
        numbered = replace(fields, fields=(*fields.fields, Field(_ROW, "id")))
        if _ROW in rows.column_names:  # the user's own
            rows = rows.drop_columns([_ROW])
        fields.check_columns(rows.schema)  # before a column that the user has not given
        places = pa.array(np.arange(first, first + rows.num_rows))
        good, bad = numbered.check(rows.append_column(_ROW, places))
        if spec.has_catalogue:  # a user: no item
            for name in spec.item:
                good = good.append_column(name, pa.nulls(good.num_rows, pa.string()))
        prepared = model_columns(
            good,
            spec=spec,
            features=self.features[spec.name],
            read=self._reader(spec),
            max_history=self.limits[spec.name].max_history,
        )
        names = [name for name in bad.column_names if name not in (_ROW, SET_ASIDE)]
        rejects = bad.select(names).add_column(0, "row", bad[_ROW].cast(pa.int64()))
        return EncodedRows(
            given=good.drop_columns([_ROW]),
            prepared=prepared,
            number=good[_ROW].cast(pa.int64()).combine_chunks(),
            rejects=rejects,
        )
