"""The steps of preparing that touch rows and files: each runs in any process, without Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rectrain.data.assemble import HISTORY, Spec, assemble, item_columns
from rectrain.data.augment import Augmenter
from rectrain.data.encoding import FeatureEncoder
from rectrain.data.fields import SET_ASIDE
from rectrain.data.layout import Catalogue, TaskSplit, key_columns, purchase_log
from rectrain.data.shards import Shards, file_entry, write_shard
from rectrain.data.sources import Part
from rectrain.data.split import REASONS
from rectrain.data.tokenize import Read, load_tokenizer, reader
from rectrain.errors import DataError

__all__ = [
    "CHECKED",
    "PLANS",
    "REJECTED",
    "Checked",
    "TaskWriter",
    "check_part",
    "find_spec",
    "write_rejects",
]

CHECKED, REJECTED, PLANS = "checked", "rejected", "plans"  # in the scratch directory


@dataclass(frozen=True)
class Checked:
    """What checking found of one task."""

    rows: Shards
    num_rows: int
    bad: Counter[str]
    aside: Counter[str]
    ignored: tuple[str, ...]
    vectors: dict[str, int]
    rejected: tuple[Path, ...]


def check_part(
    number: int,
    *,
    parts: Sequence[Part],
    specs: Mapping[str, Spec],
    scratch: Path,
    tasks: Sequence[str] | None,
) -> dict[str, Any]:
    """Make one part, check its rows, write the good and the others to scratch files."""
    result: dict[str, Any] = {}
    num_rows = 0
    for task, table in parts[number]().items():
        if tasks is not None and task not in tasks:
            continue
        fields = find_spec(task, specs).fields
        good, rejects = fields.check(table, part=number)
        name = f"{task}-{number:05d}.arrow"
        write_shard(scratch / CHECKED / name, good)
        write_shard(scratch / REJECTED / name, rejects)
        aside = rejects[SET_ASIDE]
        result[task] = {
            "name": name,
            "rows": table.num_rows,
            "bad": _count(rejects["reason"].filter(pc.invert(aside))),
            "aside": _count(rejects["reason"].filter(aside)),
            "ignored": [c for c in table.column_names if c not in fields and c != SET_ASIDE],
            "vectors": {
                f.name: f.size
                for f in fields.sized(table).fields
                if f.size and f.name in table.column_names
            },
        }
        num_rows += table.num_rows
    return {"rows": num_rows, "tasks": result}


def find_spec(task: str, specs: Mapping[str, Spec]) -> Spec:
    if task not in specs:
        raise DataError(
            what="task", got=task, rule=f"known tasks are {', '.join(specs)}",
            fix="name one of them",
        )  # fmt: skip
    return specs[task]


@dataclass(frozen=True)
class TaskWriter:
    """Writes the prepared files of one task; picklable, the rows stay on disk.

    Args:
        root: the directory that is being made.
        task, spec: the task.
        rows: its checked rows.
        features: fitted on its train split.
        max_length: tokens kept of one text.
        max_history: texts kept of a list, the last ones.
        augmenter: alters the rows that are copies; None where there are none.
    """

    root: Path
    task: str
    spec: Spec
    rows: Shards
    features: FeatureEncoder
    max_length: int
    max_history: int
    augmenter: Augmenter | None = None

    def write_catalogue(self, split: TaskSplit, catalogue: Catalogue) -> dict[str, Any]:
        """Write the items and the purchases before test; give their manifest entries."""
        items = item_columns(
            self.rows.take(catalogue.row),
            spec=self.spec,
            features=self.features,
            read=_reader(str(self.root / "tokenizer"), self.max_length),
            log_q=catalogue.log_q,
        )
        keys = self.rows.table(columns=key_columns(self.spec))
        group = self.spec.fields.name_of("group")
        assert group is not None
        bought = purchase_log(keys, group=group, split=split, catalogue=catalogue)
        entries = {}
        for name, table in (("items", items), ("purchases", bought)):
            path = self.root / self.task / f"{name}.arrow"
            write_shard(path, table)
            entries[name] = {**file_entry(path, root=self.root), "rows": table.num_rows}
        return entries

    def write_plan(self, name: str, plan: pa.Table) -> None:
        """Leave a shard's plan (see `layout.lay_out`) for the process that writes it."""
        write_shard(self._plans / name, plan)

    def write_split(self, number: int, *, names: Sequence[str]) -> dict[str, Any]:
        """Encode, tokenise and write shard `names[number]`; give its manifest entry."""
        name = names[number]
        plan = Shards(self._plans, [{"path": name}]).table()
        rows, changes = self._alter(self.rows.take(plan["row"].to_numpy()), plan)
        exclude: pa.Array = pa.nulls(rows.num_rows, pa.list_(pa.string()))
        if HISTORY in self.spec.query and HISTORY not in self.spec.fields:
            items = Shards(self.root / self.task, [{"path": "items.arrow"}])
            texts = items.column("item_text").combine_chunks().flatten()
            rows = rows.append_column(HISTORY, _named(plan["history"], texts))
            exclude = _named(plan["bought"], items.column("item_id").combine_chunks())
        shard = assemble(
            rows,
            spec=self.spec,
            features=self.features,
            read=_reader(str(self.root / "tokenizer"), self.max_length),
            max_history=self.max_history,
            plan=plan.append_column("exclude", exclude),
        )
        path = self.root / self.task / name
        write_shard(path, shard)
        tokens = pc.sum(shard["num_tokens"]).as_py()
        entry = {**file_entry(path, root=self.root), "rows": shard.num_rows}
        return {"file": entry, "rows": shard.num_rows, "tokens": tokens, "augmented": changes}

    def _alter(self, rows: pa.Table, plan: pa.Table) -> tuple[pa.Table, dict[str, int]]:
        """The rows with the texts of copies altered, and how much was changed."""
        copies = plan["copy"].to_numpy()
        changes = Counter({"rows": int(np.count_nonzero(copies))})
        if self.augmenter is None or not changes["rows"]:
            return rows, {}
        for name in dict.fromkeys((*self.spec.query, *self.spec.item)):
            place = rows.column_names.index(name)
            column = rows.column(place).combine_chunks()
            altered = self.augmenter.alter_column(column, copies=copies)
            rows = rows.set_column(place, name, altered.value)
            changes["dropped_words"] += altered.num_dropped
            changes["replaced_phrases"] += altered.num_replaced
        return rows, dict(changes)

    @property
    def _plans(self) -> Path:
        return self.root / "scratch" / PLANS / self.task


def write_rejects(
    root: Path, checked: Checked, split: TaskSplit, *, task: str, shard_rows: int
) -> Counter[str]:
    """Write rejects/<task>.parquet: bad rows, then those set aside; count the latter."""
    (root / "rejects").mkdir(exist_ok=True)
    reasons = checked.aside.copy()
    schema = pa.schema([field.with_nullable(True) for field in checked.rows.schema])
    schema = schema.append(pa.field("reason", pa.string())).append(pa.field(SET_ASIDE, pa.bool_()))
    with pq.ParquetWriter(root / "rejects" / f"{task}.parquet", schema) as writer:
        for path in checked.rejected:
            writer.write_table(Shards(path.parent, [{"path": path.name}]).table().cast(schema))
        for code, reason in REASONS.items():
            rows = np.flatnonzero(split.code == code)
            if len(rows):
                reasons[reason] += len(rows)
            for start in range(0, len(rows), shard_rows):
                table = checked.rows.take(rows[start : start + shard_rows])
                words = pa.array([reason] * table.num_rows, pa.string())
                table = table.append_column("reason", words)
                table = table.append_column(SET_ASIDE, pa.array([True] * table.num_rows))
                writer.write_table(table.cast(schema))
    return reasons


def _named(numbers: pa.ChunkedArray, names: pa.Array) -> pa.ListArray:
    """Lists of item numbers as lists of the items' names."""
    lists = numbers.combine_chunks()
    missing = pc.is_null(lists) if lists.null_count else None
    return pa.ListArray.from_arrays(lists.offsets, names.take(lists.values), mask=missing)


@lru_cache(maxsize=2)
def _reader(path: str, max_length: int) -> Read:
    return reader(load_tokenizer(path), max_length=max_length)


def _count(column: pa.ChunkedArray) -> dict[str, int]:
    return {pair["values"]: pair["counts"] for pair in pc.value_counts(column).to_pylist()}
