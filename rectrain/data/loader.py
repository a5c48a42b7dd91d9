"""Reads the plan's rows and builds a rank's micro-batches ahead of the training thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rectrain.data.batch import (
    MicroBatch,
    Negatives,
    batch_columns,
    build_micro_batch,
    empty_table,
)
from rectrain.data.config import DataConfig
from rectrain.data.encoding import FeatureEncoder
from rectrain.data.plan import Plan, TaskUnits, micro_batches_of_rank
from rectrain.data.shards import Prepared, Shards
from rectrain.errors import DataError

__all__ = [
    "Loader",
    "catalogues",
    "empty_tables",
    "longest_text",
    "micro_batches_in_order",
    "open_tasks",
    "plan_training",
]

Rows = npt.NDArray[np.int64]


def open_tasks(paths: Sequence[str], *, tasks: Sequence[str] | None = None) -> dict[str, Prepared]:
    """Opens prepared directories that a run trains on together.

    Args:
        paths: prepared directories; each task stands in one of them.
        tasks: names, in the run's order; None for all, in the order of the directories.

    Returns:
        task -> the directory that holds it.

    Raises:
        DataError: a task in two directories or in none, or tokenizers that differ.
    """
    found: dict[str, Prepared] = {}
    for path in paths:
        prepared = Prepared.open(path)
        for task in prepared.tasks:
            if task in found:
                raise DataError(
                    what=f"task {task}",
                    got=f"{found[task].root} and {path}",
                    rule="a run reads each task from one prepared directory",
                    fix="leave one of them out of data.paths",
                )
            found[task] = prepared
    chosen = list(found if tasks is None else tasks)
    missing = [task for task in chosen if task not in found]
    if missing or not chosen:
        raise DataError(
            what="tasks of the run",
            got=", ".join(missing) or "none",
            rule=f"data.paths holds {', '.join(found) or 'no task'}",
            fix="prepare the task, or change train.tasks",
        )
    _check_tokenizers({task: found[task] for task in chosen})
    return {task: found[task] for task in chosen}


def plan_training(
    shards: Mapping[str, Shards], *, config: DataConfig, seed: int, num_micro_batches: int
) -> Plan:
    """The plan of a run over the training splits, in the run's task order."""
    units = {}
    for task, rows in shards.items():
        if rows.num_rows:
            tokens, lists = (rows.column(name).to_numpy() for name in ("num_tokens", "list_id"))
        else:
            tokens, lists = np.empty(0, np.int32), np.empty(0, np.int32)
        counted = "num_examples" in rows.schema.names
        units[task] = TaskUnits.from_columns(
            num_tokens=tokens,
            list_id=lists,
            num_examples=rows.column("num_examples").to_numpy() if counted else None,
        )
    return Plan(
        units,
        seed=seed,
        tokens_per_micro_batch=config.micro_batch_tokens,
        temperature=config.temperature,
        mixing_weights=config.mixing_weights,
        num_micro_batches=num_micro_batches,
        num_negatives=config.num_negatives,
    )


def catalogues(data: Mapping[str, Prepared]) -> dict[str, Shards]:
    """The items that negatives are drawn from, of the tasks that have a catalogue."""
    return {
        task: prepared.items(task) for task, prepared in data.items() if prepared.has_items(task)
    }


def longest_text(data: Mapping[str, Prepared]) -> int:
    """Tokens that a text has at most, over the run's data."""
    return max(int(prepared.manifest["tokenizer"]["max_length"]) for prepared in data.values())


class Loader:
    """Iterates (step, the rank's micro-batches of that step), built on a background thread.

    Every rank gets ceil(M / world_size) micro-batches a step; those past the plan's M are empty.
    An error of the thread is raised by the iteration. The thread is a daemon and is idle once
    `prefetch` steps are ready, so neither it nor a loader left open keeps a process alive.

    Args:
        shards: task -> its training rows, for the plan's tasks.
        plan: which rows each micro-batch holds, and which negatives.
        items: task -> its catalogue (see `catalogues`); slots of other tasks get no negatives.
        rank: 0 ≤ rank < world_size.
        world_size: number of workers.
        start_step: the first step; a resumed run continues here exactly.
        num_steps: the step to stop before; None to go on for ever.
        prefetch: steps built ahead, 0 or more.
        pin_memory: page-locked memory, for a fast copy to a GPU.
    """

    def __init__(
        self,
        shards: Mapping[str, Shards],
        *,
        plan: Plan,
        items: Mapping[str, Shards] | None = None,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        num_steps: int | None = None,
        prefetch: int = 2,
        pin_memory: bool = False,
    ) -> None:
        self._step = start_step
        self._end = num_steps
        self._prefetch = prefetch
        self._requests: SimpleQueue[int | None] = SimpleQueue()
        self._results: SimpleQueue[list[MicroBatch] | BaseException] = SimpleQueue()
        self._closed = threading.Event()
        builder = _Builder(
            shards,
            plan=plan,
            items=items or {},
            rank=rank,
            world_size=world_size,
            pin_memory=pin_memory,
        )
        # The thread must not hold the loader, or a loader dropped unclosed would stay for ever.
        self._thread = threading.Thread(
            target=_serve,
            args=(builder.build, self._requests, self._results, self._closed),
            name="rectrain-loader",
            daemon=True,
        )
        self._thread.start()
        for step in range(start_step, start_step + prefetch):
            self._request(step)

    def __iter__(self) -> Iterator[tuple[int, list[MicroBatch]]]:
        return self

    def __next__(self) -> tuple[int, list[MicroBatch]]:
        if self._closed.is_set() or (self._end is not None and self._step >= self._end):
            self.close()
            raise StopIteration
        self._request(self._step + self._prefetch)
        result = self._results.get()
        if isinstance(result, BaseException):
            self.close()
            raise result
        step = self._step
        self._step += 1
        return step, result

    def close(self) -> None:
        """Ends the thread; waits at most for the step that it is building."""
        self._closed.set()
        self._requests.put(None)
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self._closed.set()
        self._requests.put(None)

    def _request(self, step: int) -> None:
        if self._end is None or step < self._end:
            self._requests.put(step)


class _Builder:
    """Turns a step number into a rank's micro-batches."""

    def __init__(
        self,
        shards: Mapping[str, Shards],
        *,
        plan: Plan,
        items: Mapping[str, Shards],
        rank: int,
        world_size: int,
        pin_memory: bool,
    ) -> None:
        self._shards = {task: shards[task] for task in plan.tasks}
        self._items = items
        self._columns = {
            task: batch_columns(rows.schema.names) for task, rows in self._shards.items()
        }
        self._plan = plan
        self._numbers = micro_batches_of_rank(
            rank=rank, world_size=world_size, num_micro_batches=plan.num_micro_batches
        )
        self._pin_memory = pin_memory

    def build(self, step: int) -> list[MicroBatch]:
        counts = {task: self._plan.count(step, task=task) for task in self._plan.tasks}
        batches = [
            build_micro_batch(
                {task: self._take(step, task, number) for task in self._plan.tasks},
                counts=counts,
                negatives={} if number is None else self._negatives(step, number),
            )
            for number in self._numbers
        ]
        return [batch.pin_memory() for batch in batches] if self._pin_memory else batches

    def _take(self, step: int, task: str, number: int | None) -> pa.Table:
        if number is None:
            return self._shards[task].schema.empty_table().select(self._columns[task])
        rows = self._plan.slot(step, task=task, micro_batch=number)
        return self._shards[task].take(rows, columns=self._columns[task])

    def _negatives(self, step: int, number: int) -> dict[str, Negatives]:
        drawn = {}
        for task, items in self._items.items():
            rows = self._plan.negatives(
                step, task=task, micro_batch=number, num_items=items.num_rows
            )
            columns = batch_columns(items.schema.names)
            drawn[task] = Negatives(items.take(rows, columns=columns), items.num_rows)
        return drawn


def _serve(
    build: Callable[[int], list[MicroBatch]],
    requests: SimpleQueue[int | None],
    results: SimpleQueue[list[MicroBatch] | BaseException],
    closed: threading.Event,
) -> None:
    while (step := requests.get()) is not None and not closed.is_set():
        try:
            results.put(build(step))
        except BaseException as error:  # raised by the training thread, in __next__
            results.put(error)
            return


def empty_tables(features: Mapping[str, FeatureEncoder]) -> dict[str, pa.Table]:
    """A table without rows for each task: the slots of tasks that a micro-batch lacks."""
    return {
        task: empty_table(
            num_numeric=len(encoder.numeric),
            num_categorical=len(encoder.categorical),
            vector_sizes=encoder.vectors,
        )
        for task, encoder in features.items()
    }


def micro_batches_in_order(
    table: pa.Table,
    *,
    task: str,
    features: Mapping[str, FeatureEncoder],
    tokens_per_micro_batch: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[tuple[Rows, MicroBatch]]:
    """All rows of one task in order, for evaluation; rows of one list stay together.

    Micro-batch b goes to rank b mod world_size. Every rank gets equally many, the last one
    maybe empty, so that collectives match.

    Args:
        table: rows in the prepared columns (`Shards.table()`, not copied).
        task: the task they belong to.
        features: every task of the model, in its order; the others' slots are empty.
        tokens_per_micro_batch: real tokens at most, unless one row or list alone has more.
        rank: 0 ≤ rank < world_size.
        world_size: number of workers.

    Yields:
        The row numbers int64 [B], and their micro-batch.
    """
    tables: dict[str, Any] = empty_tables(features)
    counts = dict.fromkeys(tables, 0)
    rows = table.select(batch_columns(table.column_names))
    bounds, units = _cut(table, tokens_per_micro_batch)
    for number in range(rank, -(-len(units) // world_size) * world_size, world_size):
        start, end = bounds[number : number + 2] if number < len(units) else (0, 0)
        counts[task] = units[number] if number < len(units) else 0
        tables[task] = rows.slice(start, end - start)
        yield np.arange(start, end), build_micro_batch(tables, counts=counts)


def _cut(table: pa.Table, budget: int) -> tuple[list[int], list[int]]:
    """Row bounds of consecutive micro-batches, and the units (rows or lists) in each."""
    units = TaskUnits.from_columns(
        num_tokens=table.column("num_tokens").to_numpy(),
        list_id=table.column("list_id").to_numpy(),
    )
    ends = np.cumsum(np.maximum(units.unit_tokens, 1), dtype=np.int64)
    cuts, used = [0], 0
    while cuts[-1] < ends.size:
        cut = int(np.searchsorted(ends, used + budget, side="right"))
        cuts.append(max(cut, cuts[-1] + 1))
        used = int(ends[cuts[-1] - 1])
    return units.unit_rows[cuts].tolist(), np.diff(cuts).tolist()


def _check_tokenizers(tasks: Mapping[str, Prepared]) -> None:
    hashes = {prepared.tokenizer_sha256: str(prepared.root) for prepared in tasks.values()}
    if len(hashes) > 1:
        raise DataError(
            what="tokenizers of data.paths",
            got=" and ".join(hashes.values()),
            rule="all tasks of a run share one tokenizer",
            fix="prepare them with the same --encoder",
        )
