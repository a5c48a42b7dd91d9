"""Any Parquet whose columns are a task's fields."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from rectrain.data.config import PrepareConfig
from rectrain.data.fields import check_schema
from rectrain.data.sources.source import Part, Source, find_files, open_file
from rectrain.errors import ConfigError, DataError

__all__ = ["SOURCE"]


def _parts(config: PrepareConfig) -> Sequence[Part]:
    """A part a run of row groups of about four shards: large files are read in parallel."""
    if not config.input:
        raise ConfigError(
            what="input", got="nothing", rule="the parquet source needs files",
            fix="--task ad_ctr --input rows.parquet, or --input ad_ctr=rows.parquet",
        )  # fmt: skip
    parts: list[Part] = []
    for entry in config.input:
        task, location = _task_of(entry, config)
        files = find_files(location, suffixes=(".parquet", ".pq"))
        found: list[Part] = []
        for file in files:
            found += [
                partial(_read, task, file, groups)
                for groups in _row_groups(file, rows=4 * config.shard_rows)
            ]
        if not found:
            raise DataError(
                what=f"{task} rows", got=f"{location} without a row",
                rule="at least one row is needed", fix="give a file with rows",
            )  # fmt: skip
        parts += found
    return parts


def _task_of(entry: str, config: PrepareConfig) -> tuple[str, str]:
    name, equals, location = entry.partition("=")
    if equals and "/" not in name:
        return name, location
    if config.task is None:
        raise ConfigError(
            what="input", got=entry, rule="the task of the rows must be named",
            fix=f"--task ad_ctr, or --input ad_ctr={entry}",
        )  # fmt: skip
    return config.task, entry


def _row_groups(file: str, *, rows: int) -> list[list[int]]:
    with open_file(file) as stream:
        reader = _reader(stream, file)
        result: list[list[int]] = []
        held = 0
        for group in range(reader.num_row_groups):
            size = reader.metadata.row_group(group).num_rows
            if not size:
                continue
            if not result or held + size > rows:
                result.append([])
                held = 0
            result[-1].append(group)
            held += size
    return result


def _read(task: str, file: str, groups: list[int]) -> dict[str, pa.Table]:
    with open_file(file) as stream:
        reader = _reader(stream, file)
        try:
            return {task: reader.read_row_groups(groups)}
        except (pa.ArrowException, OSError) as error:
            raise _not_parquet(file, error) from error


def _reader(stream: pa.NativeFile, file: str) -> pq.ParquetFile:
    try:
        reader = pq.ParquetFile(stream)
    except (pa.ArrowException, OSError) as error:
        raise _not_parquet(file, error) from error
    check_schema(reader.schema_arrow, what=file)
    return reader


def _not_parquet(file: str, error: Exception) -> DataError:
    return DataError(
        what=f"file {file}", got=error, rule="must be a readable Parquet file",
        fix="write it again, or convert it to Parquet",
    )  # fmt: skip


SOURCE = Source(_parts)
