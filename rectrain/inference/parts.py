"""Scoring files in parts that can be interrupted: what a part is, how it is read and written.

    scores.parquet/                 a Parquet data set: any reader takes the folder as one table
        _manifest.json              which model and which input; others are refused
        part-00000-00000.parquet    file 0, part 0: scores of its good rows
    scores.parquet.rejects/
        part-00000-00000.parquet    its bad rows, with the reason

Each file is written under another name, synced and renamed, a part's scores last: a part whose
scores are there is done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rectrain.data.fields import check_schema
from rectrain.data.sources.source import find_files, open_file
from rectrain.errors import DataError
from rectrain.train.storage import Store

__all__ = ["Input", "Part", "Sink", "open_inputs", "plan_parts", "read_part"]

_MANIFEST = "_manifest.json"
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class Input:
    """One Parquet file: its path, rows, size in bytes, and the SHA-256 of its content."""

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Part:
    """Neighbouring rows of one input file: the unit of work, and what a kill can lose.

    Args:
        name: of its output files.
        path: of the input file.
        start: its first row in the file.
        rows: how many.
        before: rows of the inputs before this file.
    """

    name: str
    path: str
    start: int
    rows: int
    before: int


def open_inputs(locations: Sequence[str]) -> list[tuple[Input, pa.Schema]]:
    """The input files with their schemas; each is read once for its hash.

    Args:
        locations: paths, directories, globs or URIs of Parquet files.

    Raises:
        StorageError: nothing is there.
        DataError: not Parquet, types that aren't read, or no rows at all.
    """
    files = [
        file for place in locations for file in find_files(place, suffixes=(".parquet", ".pq"))
    ]
    found = [_open_input(file) for file in files]
    if not sum(entry.rows for entry, _ in found):
        raise DataError(
            what="input",
            got=f"no rows in {', '.join(locations)}",
            rule="at least one row is needed",
            fix="give a file with rows",
        )
    return [(entry, schema) for entry, schema in found if entry.rows]


def _open_input(file: str) -> tuple[Input, pa.Schema]:
    with open_file(file) as stream:
        try:
            reader = pq.ParquetFile(stream)
            schema, rows = reader.schema_arrow, reader.metadata.num_rows
            digest, size = hashlib.sha256(), stream.size()
            stream.seek(0)
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                what=f"file {file}",
                got=error,
                rule="must be a readable Parquet file",
                fix="write it again, or convert it to Parquet",
            ) from error
    check_schema(schema, what=file)
    return Input(file, rows, size, digest.hexdigest()), schema


def plan_parts(files: Sequence[Input], *, rows_per_part: int) -> list[Part]:
    """Cuts the files into parts of at most `rows_per_part` rows."""
    parts, before = [], 0
    for number, file in enumerate(files):
        for place, start in enumerate(range(0, file.rows, rows_per_part)):
            rows = min(rows_per_part, file.rows - start)
            name = f"part-{number:05d}-{place:05d}"
            parts.append(Part(name, file.path, start, rows, before))
        before += file.rows
    return parts


def read_part(part: Part, *, columns: Sequence[str]) -> pa.Table:
    """Reads a part's rows; of the file, only the row groups that hold them.

    Args:
        part: which rows.
        columns: those to read; ones that the file lacks are passed over.
    """
    with open_file(part.path) as stream:
        reader = pq.ParquetFile(stream)
        groups: list[int] = []
        first = begin = 0
        for group in range(reader.num_row_groups):
            end = begin + reader.metadata.row_group(group).num_rows
            if begin < part.start + part.rows and end > part.start:
                first = first if groups else begin
                groups.append(group)
            begin = end
        present = [name for name in columns if name in reader.schema_arrow.names]
        table = reader.read_row_groups(groups, columns=present)
    return table.slice(part.start - first, part.rows)


class Sink:
    """The output of one job: what is done, and how a part is written.

    Args:
        output: folder of the scores, a path or URI; rejects go to `<output>.rejects`.
    """

    def __init__(self, output: str) -> None:
        output = output.rstrip("/")
        self.output, self.rejects = output, f"{output}.rejects"
        self._scores, self._rejects = Store.open(self.output), Store.open(self.rejects)

    def claim(self, facts: Mapping[str, Any], files: Sequence[Input]) -> None:
        """Begins the output, or goes on with it when it is of the same model and input.

        Args:
            facts: what decides the scores: the checkpoint's hash, the task, and so on.
            files: the input.

        Raises:
            DataError: the folder holds something else.
            StorageError: it can't be made.
        """
        inputs = [{k: v for k, v in asdict(file).items() if k != "path"} for file in files]
        manifest = json.loads(json.dumps({"format": 1, **facts, "inputs": inputs}))
        found = self.manifest()
        if found is None and {f".{_MANIFEST}.tmp"}.issuperset(self._scores.entries()):
            self._scores.make()
            self._scores.replace(_MANIFEST, json.dumps(manifest, indent=1).encode())
        elif found != manifest:
            other = (
                "no manifest"
                if found is None
                else ", ".join(key for key in manifest if found.get(key) != manifest[key])
            )
            raise DataError(
                what=f"output {self.output}",
                got=f"scores of another job (differs: {other})",
                rule="a job goes on only with its own output",
                fix="give another --output, or --overwrite",
            )

    def manifest(self) -> dict[str, Any] | None:
        """The manifest of what is there; None without one."""
        if not self._scores.exists(_MANIFEST):
            return None
        found: dict[str, Any] = json.loads(self._scores.read(_MANIFEST))
        return found

    def clear(self) -> None:
        """Removes all output.

        Raises:
            DataError: the folder isn't one that this job writes.
        """
        if self._scores.exists("") and self.manifest() is None:
            raise DataError(
                what=f"output {self.output}",
                got=f"a folder without {_MANIFEST}",
                rule="only scores are ever removed",
                fix="give another --output, or remove it yourself",
            )
        for store in (self._scores, self._rejects):
            store.remove("")

    def is_done(self, part: Part) -> bool:
        """Whether the part's scores are there."""
        return self._scores.exists(f"{part.name}.parquet")

    def num_rejects(self, parts: Sequence[Part]) -> int:
        """Rows set aside in these parts."""
        files = [f"{part.name}.parquet" for part in parts]
        return sum(
            pq.read_metadata(pa.BufferReader(self._rejects.read(file))).num_rows
            for file in files
            if self._rejects.exists(file)
        )

    def write(self, part: Part, *, scores: pa.Table, rejects: pa.Table) -> None:
        """Writes a part's files, the scores last."""
        if rejects.num_rows:
            self._rejects.replace(f"{part.name}.parquet", _parquet(rejects))
        self._scores.replace(f"{part.name}.parquet", _parquet(scores))


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data
