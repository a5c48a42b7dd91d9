"""What a source of rows is, and how it reads its files."""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.fs
import pyarrow.parquet as pq

from rectrain.data.config import PrepareConfig
from rectrain.data.fields import check_schema
from rectrain.errors import ConfigError, DataError, StorageError

__all__ = [
    "Part", "Source", "find_all", "find_files", "fingerprint", "join_texts", "numbers",
    "open_file", "read_one", "read_table", "require_columns",
]  # fmt: skip

_NUMBER = r"^-?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$"

Part = Callable[[], dict[str, pa.Table]]  # makes some rows of some tasks; picklable


@dataclass(frozen=True)
class Source:
    """A source of rows.

    Args:
        parts: configuration -> parts that processes make in parallel, in a fixed order. A
            table may hold a `set_aside` column: why a row is not for the task (null: it is).
        splits: task -> settings of its split that hold unless the user gives others.
        holdouts: tasks whose held-out rows no other task may train on; None for all of them.
        features: task -> features that the source adds to the task's table, each as in a user's
            own features (docs/data.md).
    """

    parts: Callable[[PrepareConfig], Sequence[Part]]
    splits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    holdouts: tuple[str, ...] | None = None
    features: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)


def find_files(location: str, *, suffixes: Sequence[str]) -> list[str]:
    """Files of a path, a directory, a glob or a URI of any pyarrow filesystem, sorted.

    Args:
        location: e.g. rows.parquet, rows/, "rows/2024-*.parquet", s3://bucket/rows.
        suffixes: endings that count within a directory, such as ".parquet".

    Raises:
        StorageError: nothing is there, or it can't be read.
    """
    if "://" not in location:
        if any(mark in location for mark in "*?["):
            found = sorted(glob.glob(location, recursive=True))  # noqa: PTH207 (absolute too)
            if not found:
                raise _unreadable(location, "no file matches")
            return [file for one in found for file in find_files(one, suffixes=suffixes)]
        location = str(Path(location).absolute())
    filesystem, path = _filesystem(location)
    prefix = location[: len(location) - len(path)] if "://" in location else ""
    try:
        info = filesystem.get_file_info(path)
        if info.type == pa.fs.FileType.NotFound:
            raise _unreadable(location, "no such file or directory")
        if info.type == pa.fs.FileType.File:
            return [location]
        inside = filesystem.get_file_info(pa.fs.FileSelector(path, recursive=True))
    except OSError as error:
        raise _unreadable(location, error) from error
    files = sorted(
        prefix + i.path
        for i in inside
        if i.type == pa.fs.FileType.File
        and i.path.lower().endswith(tuple(suffixes))
        and not i.base_name.startswith((".", "_"))
    )
    if not files:
        raise _unreadable(location, f"a directory without {' or '.join(suffixes)} files")
    return files


def find_all(config: PrepareConfig, *, suffixes: Sequence[str], example: str) -> list[str]:
    """Files of all inputs of a configuration (see `find_files`).

    Args:
        config: its `input` is read.
        suffixes: endings that count within a directory.
        example: what --input looks like, for the message.

    Raises:
        ConfigError: no input is given.
        StorageError: nothing is there.
    """
    if not config.input:
        raise ConfigError(
            what="input", got="nothing", rule=f"{config.source} needs its files",
            fix=f"--input {example}",
        )  # fmt: skip
    return [file for one in config.input for file in find_files(one, suffixes=suffixes)]


def fingerprint(inputs: Sequence[str]) -> list[dict[str, Any]]:
    """Name, size in bytes and time of change of every input file: whether it is still the same.

    Args:
        inputs: locations, each perhaps as "task=location".
    """
    found = []
    for entry in inputs:
        name, equals, rest = entry.partition("=")
        location = rest if equals and "/" not in name else entry
        for file in find_files(location, suffixes=("",)):
            filesystem, path = _filesystem(file)
            info = filesystem.get_file_info(path)
            found.append({"path": file, "bytes": info.size, "modified_ns": info.mtime_ns})
    return found


def open_file(file: str) -> pa.NativeFile:
    """Open one of `find_files`'s files for random access."""
    filesystem, path = _filesystem(file)
    try:
        return filesystem.open_input_file(path)
    except OSError as error:
        raise _unreadable(file, error) from error


def read_table(file: str) -> pa.Table:
    """Read a .parquet, .csv, .tsv or .xlsx file whole.

    Raises:
        DataError: it isn't what its ending says, or holds unsafe column types.
    """
    suffix = PurePath(file).suffix.lower()
    with open_file(file) as stream:
        try:
            if suffix == ".xlsx":
                table = _read_xlsx(stream)
            elif suffix in (".csv", ".tsv"):
                table = _read_csv(stream, delimiter="\t" if suffix == ".tsv" else ",")
            else:
                reader = pq.ParquetFile(stream)
                check_schema(reader.schema_arrow, what=file)
                table = reader.read()
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(
                what=f"file {file}", got=error, rule="must be readable Parquet, CSV or XLSX",
                fix="check the file; its ending names its format",
            ) from error  # fmt: skip
    check_schema(table.schema, what=file)
    return table


def read_one(files: Sequence[str], *, what: str) -> pa.Table:
    """Read files of one form as one table, with at least a row.

    Raises:
        DataError: see `read_table`; also columns that differ, or no row.
    """
    try:
        table = pa.concat_tables([read_table(file) for file in files])
    except pa.ArrowInvalid as error:
        raise DataError(
            what=f"{what} files", got=error, rule="must have the same columns",
            fix="give one file, or files of one form",
        ) from error  # fmt: skip
    if not table.num_rows:
        raise DataError(
            what=what, got="a table without a row", rule="at least one is needed",
            fix="give a file with rows",
        )  # fmt: skip
    return table


def numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """float64 [n] of a column of numbers or of text; text that is no number is NaN.

    One wrong cell makes a CSV's column text; as NaN it is the fault of its row alone.
    """
    if not pa.types.is_string(column.type):
        return column.cast(pa.float64())
    text = pc.utf8_trim_whitespace(column)
    text = pc.if_else(pc.equal(text, ""), None, text)
    try:
        return text.cast(pa.float64())
    except pa.ArrowInvalid:
        numeric = pc.match_substring_regex(text, _NUMBER)
        return pc.if_else(numeric, text, pc.if_else(pc.is_valid(text), "nan", None)).cast(
            pa.float64()
        )


def join_texts(table: pa.Table, names: Sequence[str]) -> pa.ChunkedArray:
    """The columns as one text, parts joined by ". "; a part that repeats the text is left out."""
    text = pc.fill_null(table[names[0]].cast(pa.string()), "")
    for name in names[1:]:
        more = pc.fill_null(table[name].cast(pa.string()), "")
        joined = pc.binary_join_element_wise(text, more, ". ")
        text = pc.if_else(pc.or_(pc.equal(more, ""), pc.equal(more, text)), text, (
            pc.if_else(pc.equal(text, ""), more, joined)
        ))  # fmt: skip
    return text


def require_columns(table: pa.Table, names: Sequence[str], *, what: str) -> None:
    """Raise DataError for the first of `names` that the table lacks."""
    for name in names:
        if name not in table.column_names:
            raise DataError(
                what=f"column {name} of {what}", got=f"only {', '.join(table.column_names)}",
                rule="this column is required", fix=f"give {what} as it is published",
            )  # fmt: skip


def _filesystem(location: str) -> tuple[pa.fs.FileSystem, str]:
    if "://" not in location:
        return pa.fs.LocalFileSystem(), location
    try:
        filesystem, path = pa.fs.FileSystem.from_uri(location)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(location, error) from error
    return filesystem, path


def _unreadable(location: str, got: object) -> StorageError:
    return StorageError(
        what=f"input {location}", got=got, rule="must be a readable file, directory, glob or URI",
        fix="check the path",
    )  # fmt: skip


def _read_csv(stream: pa.NativeFile, *, delimiter: str) -> pa.Table:
    data = stream.read()
    header = data[: data.find(b"\n") + 1] or data
    if delimiter == "," and b"," not in header and b";" in header:
        delimiter = ";"  # what a CSV is where the comma stands in numbers, and in Bank Marketing
    try:
        data.decode("utf-8-sig")
        encoding = "utf8"
    except UnicodeDecodeError:  # Online Retail is published in Latin-1 too, for its £ signs
        encoding = "latin1"
    return pa.csv.read_csv(
        pa.py_buffer(data),
        read_options=pa.csv.ReadOptions(encoding=encoding),
        parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(strings_can_be_null=True),
    )


def _read_xlsx(stream: pa.NativeFile) -> pa.Table:
    import pandas as pd

    try:
        frame = pd.read_excel(stream, dtype={"InvoiceNo": str, "StockCode": str})
    except ImportError as error:
        raise DataError(
            what="reading .xlsx", got="openpyxl is not installed", rule="pandas needs it",
            fix="pip install openpyxl, or save the sheet as .csv",
        ) from error  # fmt: skip
    mixed = frame.select_dtypes(include="object").columns
    frame[mixed] = frame[mixed].astype("string")
    return pa.Table.from_pandas(frame, preserve_index=False)
