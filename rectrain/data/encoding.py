"""Features as numbers: bin edges and vocabularies fitted on the train split alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rectrain.data.fields import FieldTable

__all__ = ["MISSING", "OTHER", "EncodedFeatures", "FeatureEncoder"]

MISSING, OTHER = 0, 1  # the first two categories of every vocabulary
_NUM_BINS = 16
_TAIL = 0.002  # share at each end that is not resolved: one outlier would stretch the last bin
_MAX_VALUES = 2000
_MIN_COUNT = 2

Floats = npt.NDArray[np.float32]


class EncodedFeatures(NamedTuple):
    """n rows as numbers: numeric float32 [n, Fn] (NaN: missing), categorical int32 [n, Fc]
    (0: missing, 1: other), vectors {name: float32 [n, V], a NaN row: missing}."""

    numeric: Floats
    categorical: npt.NDArray[np.int32]
    vectors: dict[str, Floats]


@dataclass(frozen=True)
class FeatureEncoder:
    """How a task's features become numbers; stored as JSON beside the data and the weights.

    Args:
        numeric: {field: bin edges}, 2 to 17 strictly ascending float32 quantiles of train.
        categorical: {field: values}, by falling frequency in train; value i has number i + 2.
        vectors: {field: size}.
    """

    numeric: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    categorical: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    vectors: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def fit(cls, train: pa.Table, table: FieldTable) -> FeatureEncoder:
        """Fit on the train split; a field without a column or a value there is left out.

        Args:
            train: checked rows of the train split.
            table: the task's fields.
        """
        numeric, categorical, vectors = {}, {}, {}
        for name in _present(train, table.names("numeric")):
            if edges := _edges(train[name]):
                numeric[name] = edges
        for name in _present(train, table.names("categorical")):
            if values := _values(train[name]):
                categorical[name] = values
        for name in _present(train, table.names("vector")):
            lengths = pc.list_value_length(train[name]).drop_null()
            if len(lengths):
                vectors[name] = int(lengths[0].as_py())
        return cls(numeric, categorical, vectors)

    @property
    def numeric_names(self) -> tuple[str, ...]:
        """Numeric fields in column order (Fn)."""
        return tuple(self.numeric)

    @property
    def categorical_names(self) -> tuple[str, ...]:
        """Categorical fields in column order (Fc)."""
        return tuple(self.categorical)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Number of categories of each categorical field, missing and other included."""
        return tuple(len(values) + 2 for values in self.categorical.values())

    def encode(self, table: pa.Table) -> EncodedFeatures:
        """Encode checked rows; a column that isn't there is missing in every row."""
        n = table.num_rows
        numeric = np.full((n, len(self.numeric)), np.nan, dtype=np.float32)
        categorical = np.full((n, len(self.categorical)), MISSING, dtype=np.int32)
        vectors = {v: np.full((n, size), np.nan, np.float32) for v, size in self.vectors.items()}
        given = {name for name in table.column_names if table[name].null_count < n}
        for column, name in enumerate(self.numeric):
            if name in given:
                numeric[:, column] = table[name].to_numpy()
        for column, (name, values) in enumerate(self.categorical.items()):
            if name in given:
                categorical[:, column] = _numbers(table[name], values)
        for name, block in vectors.items():
            if name in given:
                present = np.asarray(pc.is_valid(table[name]))
                flat = pc.list_flatten(table[name]).to_numpy()
                block[present] = flat.reshape(-1, block.shape[1])
        return EncodedFeatures(numeric, categorical, vectors)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` turns back exactly.

        Fields are pairs in lists, since their order is the columns' order, and writers of JSON may
        sort an object's keys.
        """
        return {
            kind: [list(pair) for pair in fields.items()] for kind, fields in vars(self).items()
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FeatureEncoder:
        """The inverse of `to_json`."""
        return cls(
            {name: tuple(edges) for name, edges in data["numeric"]},
            {name: tuple(values) for name, values in data["categorical"]},
            {name: int(size) for name, size in data["vectors"]},
        )


def _present(table: pa.Table, names: Sequence[str]) -> list[str]:
    return [name for name in names if name in table.column_names]


def _edges(column: pa.ChunkedArray) -> tuple[float, ...]:
    values = column.drop_null().to_numpy().astype(np.float32)
    if not len(values):
        return ()
    levels = np.linspace(_TAIL, 1 - _TAIL, _NUM_BINS + 1)
    edges = np.unique(np.quantile(values, levels).astype(np.float32))
    if len(edges) == 1:  # a constant still needs a bin of some width to stand in
        width = max(abs(float(edges[0])) * 1e-3, 0.5)
        edges = np.array([edges[0] - width, edges[0] + width], dtype=np.float32)
    return tuple(float(edge) for edge in edges)


def _values(column: pa.ChunkedArray) -> tuple[str, ...]:
    counts = pc.value_counts(column.drop_null())
    pairs = sorted(
        zip(counts.field("counts").to_pylist(), counts.field("values").to_pylist(), strict=True),
        key=lambda pair: (-pair[0], pair[1]),
    )
    return tuple(value for count, value in pairs[:_MAX_VALUES] if count >= _MIN_COUNT)


@lru_cache(maxsize=64)  # making one takes longer than looking up a request's rows
def _vocabulary(values: tuple[str, ...]) -> pa.Array:
    return pa.array(values, pa.string())


def _numbers(column: pa.ChunkedArray, values: tuple[str, ...]) -> npt.NDArray[np.int32]:
    found = pc.index_in(column, _vocabulary(values))
    known = pc.add(found, 2)
    number = pc.if_else(
        pc.is_null(column), MISSING, pc.coalesce(known, pa.scalar(OTHER, pa.int32()))
    )
    return np.asarray(number, dtype=np.int32)
