"""The field table of a task: one description of a row, its Arrow schema, its checks, its docs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rectrain.errors import DataError

__all__ = ["SET_ASIDE", "SPLITS", "Field", "FieldTable", "Kind", "check_schema"]

Kind = Literal[
    "id", "text", "text_list", "numeric", "categorical", "vector",
    "label", "group", "weight", "timestamp", "split", "oracle",
]  # fmt: skip

SET_ASIDE = "set_aside"  # a converter's column: why a row isn't for this task (null: it is)
_STRINGS = ("id", "group", "text", "categorical", "split")
SPLITS = ("train", "validation", "test")
_NUMBERS = ("numeric", "label", "weight", "oracle")
_ARROW: dict[str, pa.DataType] = {
    **dict.fromkeys(_STRINGS, pa.string()),
    **dict.fromkeys(_NUMBERS, pa.float64()),
    "text_list": pa.list_(pa.string()),
    "vector": pa.list_(pa.float32()),
    "timestamp": pa.timestamp("us"),
}
_ACCEPTED = {
    "id": "a string or an integer",
    "group": "a string or an integer",
    "text": "a string",
    "text_list": "a list of strings",
    "categorical": "a string, an integer or a bool",
    "numeric": "an integer, a float or a bool",
    "label": "an integer, a float or a bool",
    "weight": "an integer or a float",
    "oracle": "an integer or a float",
    "vector": "a list of numbers",
    "timestamp": "a timestamp or a date",
    "split": "a string",
}


@dataclass(frozen=True)
class Field:
    """One column of a task's rows.

    Args:
        name: the column's name.
        kind: what it is for; fixes its Arrow type and its checks.
        required: whether the column, and a value in every row, must be there.
        low: smallest allowed value, inclusive (numbers only); None for no limit.
        high: largest allowed value, inclusive (numbers only); None for no limit.
        size: number of elements of a vector; None takes the size of the data's first vector.
        description: one line for the docs.
    """

    name: str
    kind: Kind
    required: bool = False
    low: float | None = None
    high: float | None = None
    size: int | None = None
    description: str = ""

    @property
    def rule(self) -> str:
        """The field's rule for a value, in words."""
        low, high = (None if v is None else f"{v:g}" for v in (self.low, self.high))
        if self.kind == "vector":
            return "one size" if self.size is None else f"size {self.size}"
        if self.kind == "split":
            return ", ".join(SPLITS)
        if low is not None and high is not None:
            return "0 or 1" if self.kind == "label" and (low, high) == ("0", "1") else (
                f"{low} to {high}"
            )  # fmt: skip
        return f"{low} or more" if low is not None else ""


@dataclass(frozen=True)
class FieldTable:
    """All fields of one task, versioned: the one description of its rows.

    Args:
        task: the task's name.
        version: raised when a field changes its meaning.
        fields: the columns in order.
    """

    task: str
    version: int
    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        names = [field.name for field in self.fields]
        assert len(names) == len(set(names)), f"{self.task}: a field stands twice in {names}"

    def __getitem__(self, name: str) -> Field:
        return {field.name: field for field in self.fields}[name]

    def __contains__(self, name: object) -> bool:
        return any(field.name == name for field in self.fields)

    def names(self, *kinds: Kind) -> tuple[str, ...]:
        """Names of the fields of these kinds (of all kinds when none is given), in order."""
        return tuple(field.name for field in self.fields if not kinds or field.kind in kinds)

    def name_of(self, kind: Kind) -> str | None:
        """Name of the first field of a kind; None when the task has none."""
        return next(iter(self.names(kind)), None)

    def arrow_schema(self) -> pa.Schema:
        """The Arrow schema of a checked table."""
        return pa.schema(
            [
                pa.field(field.name, _ARROW[field.kind], nullable=not field.required)
                for field in self.fields
            ]
        )

    def without(self, *kinds: Kind) -> FieldTable:
        """The same table less the fields of some kinds (a request has no label)."""
        return replace(self, fields=tuple(f for f in self.fields if f.kind not in kinds))

    def extend(self, extra: Mapping[str, Mapping[str, Any]]) -> FieldTable:
        """Add a user's own features.

        Args:
            extra: {name: {kind: numeric|categorical|vector, low, high, size, description}}.

        Raises:
            DataError: a taken name, another kind, or an unknown key.
        """
        return replace(self, fields=self.fields + tuple(self._own(n, s) for n, s in extra.items()))

    def _own(self, name: str, spec: Mapping[str, Any]) -> Field:
        where = f"feature {name} of {self.task}"
        if name in self or name in (SET_ASIDE, "reason", "history_rows"):
            raise DataError(
                what=where, got="a name that is taken", rule="a feature's name must be new",
                fix=f"rename it; taken are {', '.join(self.names())}",
            )  # fmt: skip
        allowed = {"kind", "low", "high", "size", "description"}
        kinds = ("numeric", "categorical", "vector")
        if not isinstance(spec, Mapping) or set(spec) - allowed or spec.get("kind") not in kinds:
            raise DataError(
                what=where, got=dict(spec) if isinstance(spec, Mapping) else spec,
                rule=f"kind is one of {', '.join(kinds)}; other keys are low, high, size",
                fix="write {kind: numeric, low: 0}",
            )  # fmt: skip
        for key, kind in (("low", (int, float)), ("high", (int, float)), ("size", int)):
            value = spec.get(key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
                raise DataError(
                    what=f"{key} of {where}", got=value, rule="must be a number",
                    fix=f"write {key}: 1",
                )  # fmt: skip
        return Field(name, **spec)

    def sized(self, table: pa.Table) -> FieldTable:
        """Fix the size of every vector that has none, from a table's first vector of it."""
        sizes = {n: _first_size(table[n]) for n in self.names("vector") if n in table.column_names}
        return replace(
            self,
            fields=tuple(
                replace(f, size=sizes[f.name]) if f.size is None and sizes.get(f.name) else f
                for f in self.fields
            ),
        )

    def check_columns(self, schema: pa.Schema) -> None:
        """Check that the columns are there and of a type that fits.

        Raises:
            DataError: a required column is missing, stands twice, or has a wrong or unsafe type.
        """
        check_schema(schema, what=f"{self.task} rows")
        for field in self.fields:
            if (times := schema.names.count(field.name)) > 1:
                raise DataError(
                    what=f"column {field.name} of {self.task}", got=f"{times} columns of this name",
                    rule="a field has one column", fix="drop or rename the others",
                )  # fmt: skip
            if not times:
                if field.required:
                    raise DataError(
                        what=f"column {field.name} of {self.task}",
                        got=f"only {', '.join(schema.names)}", rule="this column is required",
                        fix=f"add {field.name} ({_ACCEPTED[field.kind]})",
                    )  # fmt: skip
            elif not _fits(field.kind, schema.field(field.name).type):
                raise DataError(
                    what=f"column {field.name} of {self.task}",
                    got=schema.field(field.name).type,
                    rule=f"a {field.kind} column holds {_ACCEPTED[field.kind]}",
                    fix="cast the column",
                )  # fmt: skip

    def check(self, table: pa.Table, *, part: int = 0) -> tuple[pa.Table, pa.Table]:
        """Cast the columns and part good rows from bad ones.

        Args:
            table: rows as the user gives them; columns that are no field are left out, except
                a converter's `set_aside`: such a row is no mistake, and is checked no further.
            part: the table's number among the parts of a larger one, for rows without row_id.

        Returns:
            The good rows (schema of `arrow_schema`; missing optional columns null, except that
            row_id is then "task-part-number" and weight 1), and the others with two more columns:
            `reason`, and `set_aside` (bool: false where the row breaks a rule).

        Raises:
            DataError: no rows, a missing required column, or a column of a wrong type.
        """
        if table.num_rows == 0:
            raise DataError(
                what=f"{self.task} rows", got="an empty table", rule="at least one row is needed",
                fix="give a table with rows",
            )  # fmt: skip
        self.check_columns(table.schema)
        sized = self.sized(table)
        columns = {f.name: _column(f, table, prefix=f"{self.task}-{part}") for f in sized.fields}
        reason = np.full(table.num_rows, "", dtype=object)
        given = set(table.column_names)
        for field in reversed(sized.fields):  # so that the first field's reason is what stays
            if field.name not in given:  # nulls or a default, which break no rule
                continue
            for bad, words in _faults(field, columns[field.name]):
                reason[bad] = f"{field.name}: {words}"
        aside = np.zeros(table.num_rows, dtype=bool)
        if SET_ASIDE in table.column_names:
            aside = np.asarray(pc.is_valid(table[SET_ASIDE]))
            reason[aside] = table[SET_ASIDE].filter(pa.array(aside)).to_pylist()
        rows, keep = pa.table(columns), reason == ""
        good = rows if keep.all() else rows.filter(pa.array(keep))
        rejects = rows.filter(pa.array(~keep))
        rejects = rejects.append_column("reason", pa.array(reason[~keep], pa.string()))
        rejects = rejects.append_column(SET_ASIDE, pa.array(aside[~keep]))
        return pa.Table.from_arrays(good.columns, schema=self.arrow_schema()), rejects

    def markdown(self) -> str:
        """The field table for docs/data.md."""
        lines = ["| field | kind | required | rule | meaning |", "|---|---|---|---|---|"]
        for f in self.fields:
            required = "yes" if f.required else ""
            lines.append(f"| {f.name} | {f.kind} | {required} | {f.rule} | {f.description} |")
        return "\n".join(lines)


def check_schema(schema: pa.Schema, *, what: str) -> None:
    """Refuse types that can carry code or have no meaning here (an allow-list).

    Raises:
        DataError: a column of an extension type or another type outside the list.
    """
    for column in schema:
        if not _allowed(column.type):
            raise DataError(
                what=f"column {column.name} of {what}", got=column.type,
                rule="only plain numbers, strings, bools, dates, timestamps and lists are read",
                fix="cast or drop the column",
            )  # fmt: skip


def _allowed(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return False
    if pa.types.is_dictionary(kind) or _is_list(kind):
        return _allowed(kind.value_type)
    return bool(
        pa.types.is_primitive(kind)  # integers, floats, bools, dates, times, timestamps
        or _is_string(kind)
        or pa.types.is_null(kind)
        or pa.types.is_decimal(kind)
    )


def _is_string(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _fits(kind: Kind, arrow: pa.DataType) -> bool:
    types = pa.types
    if types.is_dictionary(arrow):
        return _fits(kind, arrow.value_type)
    if types.is_null(arrow):
        return True
    if kind in ("text_list", "vector"):
        element = "text" if kind == "text_list" else "numeric"
        return _is_list(arrow) and _fits(element, arrow.value_type)  # type: ignore[arg-type]
    if kind == "timestamp":
        return bool(types.is_timestamp(arrow) or types.is_date(arrow))
    if kind in ("text", "split"):
        return _is_string(arrow)
    if kind in ("id", "group", "categorical"):
        whole = types.is_integer(arrow) or (kind == "categorical" and types.is_boolean(arrow))
        return bool(_is_string(arrow) or whole)
    return bool(
        types.is_integer(arrow) or types.is_floating(arrow)
        or types.is_boolean(arrow) or types.is_decimal(arrow)
    )  # fmt: skip


def _column(field: Field, table: pa.Table, *, prefix: str) -> pa.Array:
    """The column cast to its field's type; nulls or the default where it is missing."""
    num_rows = table.num_rows
    if field.name in table.column_names:
        values = _cast(field, table[field.name])
    else:
        values = pa.nulls(num_rows, _ARROW[field.kind])
    if field.kind == "weight":
        values = pc.fill_null(values, 1.0)
    elif field.name == "row_id":
        numbers = pa.array(np.arange(num_rows)).cast(pa.string())
        values = pc.coalesce(values, pc.binary_join_element_wise(prefix, numbers, "-"))
    return values


def _cast(field: Field, column: pa.ChunkedArray) -> pa.Array:
    values = column.combine_chunks()
    if isinstance(values, pa.ChunkedArray):  # what an empty column combines to
        values = values.chunk(0) if values.num_chunks else pa.nulls(0, column.type)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_boolean(values.type) and field.kind in _NUMBERS:
        values = values.cast(pa.int8())
    try:
        # nanoseconds are cut to microseconds; every other loss is a mistake
        unsafe = pa.types.is_timestamp(values.type) and values.type.unit == "ns"
        if pa.types.is_timestamp(values.type) and values.type.tz is not None:
            values = values.cast(pa.timestamp(values.type.unit))  # the same instants in UTC
        lossy = unsafe or field.kind in (*_NUMBERS, "vector")
        values = values.cast(_ARROW[field.kind], safe=not lossy)
    except pa.ArrowInvalid as error:
        raise DataError(
            what=f"column {field.name}", got=error, rule=f"must cast to {_ARROW[field.kind]}",
            fix="mend or cast the column",
        ) from error  # fmt: skip
    if field.kind in _STRINGS:  # an empty text is a missing one
        values = pc.if_else(pc.equal(pc.utf8_trim_whitespace(values), ""), None, values)
    return values


def _faults(field: Field, values: pa.Array) -> Sequence[tuple[np.ndarray, str]]:
    """Masks of the rows that break the field's rule, and the words for it."""
    null = np.asarray(pc.is_null(values))
    faults: list[tuple[np.ndarray, str]] = []
    if field.kind in _NUMBERS:
        numbers = values.to_numpy(zero_copy_only=False)
        wild = ~null & ~np.isfinite(numbers)
        faults.append((wild, "not a finite number"))
        with np.errstate(invalid="ignore"):
            low, high = (v if v is not None else s for v, s in
                         ((field.low, -np.inf), (field.high, np.inf)))  # fmt: skip
            outside = ~null & ~wild & ((numbers < low) | (numbers > high))
            if field.kind == "label" and field.rule == "0 or 1":
                outside |= ~null & ~wild & (numbers != np.floor(numbers))
        faults.append((outside, f"out of range, must be {field.rule}"))
    elif field.kind == "split":
        unknown = pc.invert(pc.is_in(values, value_set=pa.array(SPLITS)))
        faults.append((~null & np.asarray(unknown), f"must be one of {field.rule}"))
    elif field.kind == "text_list":
        faults.append((_rows_with(values, pc.is_null), "holds a missing text"))
    elif field.kind == "vector":
        lengths = pc.fill_null(pc.list_value_length(values), -1).to_numpy(zero_copy_only=False)
        wrong = ~null & (lengths != (field.size if field.size is not None else lengths))
        faults.append((wrong | (~null & (lengths == 0)), f"must have {field.rule}"))
        wild_or_null = _rows_with(values, lambda v: pc.invert(pc.fill_null(pc.is_finite(v), False)))
        faults.append((wild_or_null, "holds a number that is not finite"))
    if field.required:
        faults.append((null, "missing"))
    return faults


def _rows_with(values: pa.Array, test: Any) -> np.ndarray:
    """bool [rows]: whether any element of the row's list passes the test."""
    hits = np.zeros(len(values), dtype=bool)
    parents = pc.list_parent_indices(values)
    hits[np.asarray(parents.filter(test(pc.list_flatten(values))))] = True
    return hits


def _first_size(column: pa.ChunkedArray) -> int | None:
    if not _is_list(column.type):
        return None
    if pa.types.is_fixed_size_list(column.type):
        return int(column.type.list_size)
    for chunk in column.chunks:
        found = pc.list_value_length(chunk).drop_null()
        if len(found):
            return int(found[0].as_py()) or None
    return None
