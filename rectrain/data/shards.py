"""Prepared data on disk: a manifest and memory-mapped Arrow shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rectrain.data.encoding import FeatureEncoder
from rectrain.data.fields import SPLITS, check_schema
from rectrain.errors import DataError

__all__ = ["FORMAT", "MANIFEST", "SPLITS", "Prepared", "Shards", "file_entry", "write_shard"]

FORMAT = 2
MANIFEST = "manifest.json"


class Shards:
    """The rows of one split, memory-mapped: nothing is read before it is asked for.

    Args:
        root: the prepared directory.
        files: the manifest's entries of the split's files, in order.
    """

    def __init__(self, root: Path, files: Sequence[Mapping[str, Any]]) -> None:
        self._root, self._files = root, tuple(files)
        self._batches = [_map(root / entry["path"]) for entry in files]
        sizes = [batch.num_rows for batch in self._batches]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])

    def __reduce__(self) -> tuple[object, ...]:
        return Shards, (self._root, self._files)  # another process maps the files itself

    @property
    def num_rows(self) -> int:
        """Number of rows over all shards."""
        return int(self._starts[-1])

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of the rows; empty when there is no row."""
        return self._batches[0].schema if self._batches else pa.schema([])

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of all rows, a chunk a shard, without a copy."""
        chunks = [batch.column(name) for batch in self._batches]
        return pa.chunked_array(chunks, type=self.schema.field(name).type)

    def take(
        self, rows: npt.NDArray[np.integer[Any]], *, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Copy some rows, in the order given.

        Args:
            rows: int [n], row numbers in 0 … num_rows - 1, repeats allowed.
            columns: names; None for all.
        """
        names = self.schema.names if columns is None else list(columns)
        schema = pa.schema([self.schema.field(name) for name in names])
        if not len(rows):
            return schema.empty_table()
        shard = np.searchsorted(self._starts, rows, side="right") - 1
        order = np.argsort(shard, kind="stable")
        parts = []
        for number in np.unique(shard):  # per shard: take on chunked lists copies whole columns
            local = rows[order][shard[order] == number] - self._starts[number]
            parts.append(self._batches[number].select(names).take(pa.array(local)))
        table = pa.Table.from_batches(parts, schema)
        if len(parts) == 1:
            return table
        return table.combine_chunks().take(pa.array(np.argsort(order, kind="stable")))

    def table(self, *, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows as one memory-mapped table."""
        table = pa.Table.from_batches(self._batches, self.schema)
        return table if columns is None else table.select(list(columns))


class Prepared:
    """A prepared directory, opened by `Prepared.open`.

    Args:
        root: the directory.
        manifest: its manifest, already verified.
    """

    def __init__(self, root: Path, manifest: Mapping[str, Any]) -> None:
        self.root = root
        self.manifest = manifest

    @classmethod
    def open(cls, path: str, *, verify: bool = False) -> Prepared:
        """Open a prepared directory and check its manifest and its files' sizes.

        Args:
            path: the directory.
            verify: also read every file and compare its SHA-256.

        Raises:
            DataError: not a prepared directory, another format, or an altered file.
        """
        root = Path(path)
        prepared = cls(root, _read_manifest(root))
        for entry in prepared._entries():
            _check_file(root, entry, verify=verify)
        return prepared

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the prepared tasks."""
        return tuple(self.manifest["tasks"])

    @property
    def tokenizer_path(self) -> str:
        """Directory of the tokenizer that made the token ids."""
        return str(self.root / "tokenizer")

    @property
    def tokenizer_sha256(self) -> str:
        """Hash of the tokenizer that made the token ids (see `tokenize.tokenizer_hash`)."""
        return str(self.manifest["tokenizer"]["sha256"])

    def features(self, task: str) -> FeatureEncoder:
        """The task's feature encoder, fitted on its train split."""
        return FeatureEncoder.from_json(self._task(task)["features"])

    def splits(self, task: str) -> dict[str, dict[str, Any]]:
        """The manifest's facts of each split: rows, groups, tokens, files."""
        return dict(self._task(task)["splits"])

    def shards(self, task: str, split: str) -> Shards:
        """The rows of one split.

        Args:
            task: a prepared task.
            split: "train", "validation" or "test".
        """
        splits = self._task(task)["splits"]
        if split not in splits:
            raise DataError(
                what=f"split of {task}", got=split, rule=f"one of {', '.join(SPLITS)}",
                fix="name one of them",
            )  # fmt: skip
        return Shards(self.root, splits[split]["files"])

    def rows_sha256(self, task: str, split: str) -> str:
        """SHA-256 of a split's rows, and of the catalogue that they are ranked in, as prepared."""
        task_facts = self._task(task)
        files = [*task_facts["splits"][split]["files"], task_facts.get("items", {})]
        return hashlib.sha256("".join(f.get("sha256", "") for f in files).encode()).hexdigest()

    def originals(self, task: str) -> pa.Table:
        """The rows of the train split without their altered copies, which stand last."""
        train = self.splits(task)["train"]
        copies = train.get("augmented", {}).get("rows", 0)
        return self.shards(task, "train").table().slice(0, train["rows"] - copies)

    def has_items(self, task: str) -> bool:
        """Whether the task has a catalogue (see `items`)."""
        return "items" in self._task(task)

    def items(self, task: str) -> Shards:
        """The catalogue of a two-tower task, one row an item.

        Raises:
            DataError: the task has no catalogue.
        """
        if not self.has_items(task):
            raise DataError(
                what="catalogue", got=task, rule="only a task that ranks a whole catalogue has one",
                fix="ask for the items of such a task, as recommendation",
            )  # fmt: skip
        return Shards(self.root, [self._task(task)["items"]])

    def purchases(self, task: str) -> Shards:
        """What each user bought before the test split, one row a purchase.

        Columns: group, item_id string, item int32 (row of `items`), part int8 (0 train,
        1 validation).
        The rows of the splits are fewer: first baskets and repeats are no training targets.
        """
        self.items(task)
        return Shards(self.root, [self._task(task)["purchases"]])

    def _task(self, task: str) -> dict[str, Any]:
        if task not in self.tasks:
            raise DataError(
                what=f"task in {self.root}", got=task, rule=f"it holds {', '.join(self.tasks)}",
                fix="prepare this task, or leave it out of the run",
            )  # fmt: skip
        found: dict[str, Any] = self.manifest["tasks"][task]
        return found

    def _entries(self) -> list[dict[str, Any]]:
        entries = []
        for task in self.manifest["tasks"].values():
            for split in task["splits"].values():
                entries += split["files"]
            entries += [task[name] for name in ("items", "purchases") if name in task]
        return entries


def write_shard(path: Path, table: pa.Table) -> None:
    """Write a table as one uncompressed record batch, which can be memory-mapped."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        columns = [column.combine_chunks() for column in table.columns]
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=table.schema))


def file_entry(path: Path, *, root: Path) -> dict[str, Any]:
    """A file's path under root, its size in bytes and its SHA-256."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"path": str(path.relative_to(root)), "sha256": digest, "bytes": path.stat().st_size}


def _read_manifest(root: Path) -> dict[str, Any]:
    fix = "run python -m jobs.prepare, and give its --output"
    try:
        manifest = json.loads((root / MANIFEST).read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            what="prepared data", got=f"{root} without {MANIFEST}",
            rule="a prepared directory holds a manifest", fix=fix,
        ) from error  # fmt: skip
    except (ValueError, OSError) as error:
        raise DataError(
            what=f"{root / MANIFEST}", got=error, rule="must be readable JSON", fix=fix
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        got = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise DataError(
            what=f"format of {root}", got=got, rule=f"this version reads format {FORMAT}",
            fix="prepare the data again with this version",
        )  # fmt: skip
    parts = {"tasks": dict, "tokenizer": dict, "seed": int, "source": str, "config": dict}
    if not all(isinstance(manifest.get(key), kind) for key, kind in parts.items()):
        raise DataError(
            what=f"{root / MANIFEST}", got=sorted(manifest), rule="must be complete", fix=fix
        )
    return manifest


def _check_file(root: Path, entry: Mapping[str, Any], *, verify: bool) -> None:
    path = root / entry["path"]
    got = None
    if not path.is_file():
        got = "no such file"
    elif path.stat().st_size != entry["bytes"]:
        got = f"{path.stat().st_size} bytes instead of {entry['bytes']}"
    elif verify and file_entry(path, root=root)["sha256"] != entry["sha256"]:
        got = "another SHA-256 than the manifest's"
    if got is not None:
        raise DataError(
            what=f"prepared file {path}", got=got, rule="must be as it was written",
            fix="prepare the data again",
        )  # fmt: skip


def _map(path: Path) -> pa.RecordBatch:
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path), "r"))
        check_schema(reader.schema, what=str(path))
        return reader.get_batch(0)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(
            what=f"prepared file {path}", got=error, rule="must be an Arrow file with one batch",
            fix="prepare the data again",
        ) from error  # fmt: skip
