"""The loader: the plan's rows, in the plan's order, on any number of ranks, from any step."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from rectrain.data.batch import MicroBatch, empty_table
from rectrain.data.config import DataConfig
from rectrain.data.encoding import FeatureEncoder
from rectrain.data.loader import (
    Loader,
    empty_tables,
    micro_batches_in_order,
    open_tasks,
    plan_training,
)
from rectrain.data.plan import Plan
from rectrain.data.shards import FORMAT, MANIFEST, Shards, file_entry, write_shard
from rectrain.errors import DataError

FEATURES = {
    "click": FeatureEncoder({"price": (0.0, 1.0), "hour": (0.0, 1.0)}, {}, {}),
    "search": FeatureEncoder({"price": (0.0, 1.0), "hour": (0.0, 1.0)}, {}, {}),
}


def rows(*, num_rows: int, list_size: int, seed: int) -> pa.Table:
    """Prepared rows; item_key is the row's number, numeric[0] too."""
    random = np.random.default_rng(seed)
    texts = [
        [random.integers(5, 30, size).tolist() for size in random.integers(1, 9, 2)]
        for _ in range(num_rows)
    ]
    read = empty_table(num_numeric=2, num_categorical=0, vector_sizes={}).schema
    columns = {
        "query": [[query] for query, _ in texts],
        "item": [[item] for _, item in texts],
        "numeric": [[float(row), 0.0] for row in range(num_rows)],
        "categorical": [[]] * num_rows,
        "label": [1.0] * num_rows,
        "weight": [1.0] * num_rows,
        "log_q": [0.0] * num_rows,
        "item_key": list(range(num_rows)),
        "group_key": [0] * num_rows,
        "list_id": [row // list_size for row in range(num_rows)],
        "num_tokens": [len(query) + len(item) for query, item in texts],
        "group": ["g"] * num_rows,
    }
    schema = read.append(pa.field("num_tokens", pa.int32())).append(pa.field("group", pa.string()))
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


@pytest.fixture
def shards(tmp_path: Path) -> dict[str, Shards]:
    """Two tasks; the second has lists of three rows; each in shards of unequal size."""
    tables = {
        "click": rows(num_rows=97, list_size=1, seed=1),
        "search": rows(num_rows=60, list_size=3, seed=2),
    }
    made = {}
    for task, table in tables.items():
        parts = [table.slice(0, 33), table.slice(33)]
        paths = [tmp_path / f"{task}-{number}.arrow" for number in range(len(parts))]
        for path, part in zip(paths, parts, strict=True):
            write_shard(path, part)
        files = [file_entry(path, root=tmp_path) for path in paths]
        made[task] = Shards(tmp_path, files)
    return made


@pytest.fixture
def items(tmp_path: Path) -> dict[str, Shards]:
    """A catalogue of the first task: 40 items, whose item_key is their row."""
    path = tmp_path / "items.arrow"
    table = rows(num_rows=40, list_size=1, seed=3)
    write_shard(path, table.drop_columns(["query", "label", "weight", "group_key", "list_id"]))
    return {"click": Shards(tmp_path, [file_entry(path, root=tmp_path)])}


def plan(shards: dict[str, Shards], *, num_micro_batches: int = 3) -> Plan:
    return plan_training(
        shards,
        config=DataConfig(tokens_per_micro_batch=60, num_negatives=7),
        seed=11,
        num_micro_batches=num_micro_batches,
    )


def keys(batch: MicroBatch) -> dict[str, list[int]]:
    return {slot.task: slot.item_key.tolist() for slot in batch.slots}


def assert_same(first: MicroBatch, second: MicroBatch) -> None:
    assert keys(first) == keys(second)
    assert [slot.count for slot in first.slots] == [slot.count for slot in second.slots]
    assert torch.equal(first.texts.input_ids, second.texts.input_ids)
    assert torch.equal(first.texts.lengths, second.texts.lengths)


def test_micro_batches_hold_the_rows_of_the_plan(shards: dict[str, Shards]) -> None:
    a_plan = plan(shards)
    with Loader(shards, plan=a_plan, num_steps=20) as loader:
        steps = list(loader)
    assert [step for step, _ in steps] == list(range(20))
    for step, batches in steps:
        for number, batch in enumerate(batches):
            for slot in batch.slots:
                expected = a_plan.slot(step, task=slot.task, micro_batch=number).tolist()
                assert slot.item_key.tolist() == expected
                assert slot.numeric[:, 0].tolist() == expected
        for place in range(len(a_plan.tasks)):
            num_lists = sum(batch.slots[place].list_offsets.shape[0] - 1 for batch in batches)
            assert batches[0].slots[place].count == num_lists


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_a_loader_from_step_seven_goes_on_exactly(shards: dict[str, Shards], prefetch: int) -> None:
    with Loader(shards, plan=plan(shards), num_steps=30) as loader:
        whole = dict(loader)
    with Loader(shards, plan=plan(shards), start_step=7, num_steps=30, prefetch=prefetch) as loader:
        resumed = dict(loader)
    assert list(resumed) == list(range(7, 30))
    for step, batches in resumed.items():
        for first, second in zip(batches, whole[step], strict=True):
            assert_same(first, second)


def test_negatives_are_those_of_the_plan_and_differ_between_slots(
    shards: dict[str, Shards], items: dict[str, Shards]
) -> None:
    a_plan = plan(shards)
    seen = []
    for step, batches in Loader(shards, plan=a_plan, items=items, num_steps=4):
        for number, batch in enumerate(batches):
            click, search = batch.slots
            drawn = a_plan.negatives(step, task="click", micro_batch=number, num_items=40)
            assert click.item_key[click.num_rows :].tolist() == drawn.tolist()
            assert (click.num_negatives, click.num_items) == (7, 40)
            assert (search.num_negatives, search.num_items) == (0, 0)
            texts = items["click"].take(drawn).column("item").to_pylist()
            tokens = sum(len(text) for row in texts for text in row)
            for task in a_plan.tasks:
                own = shards[task].take(a_plan.slot(step, task=task, micro_batch=number))
                tokens += own.column("num_tokens").to_numpy().sum()
            assert batch.num_tokens == tokens
            seen.append(tuple(drawn.tolist()))
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_together_see_what_one_sees(
    shards: dict[str, Shards], items: dict[str, Shards], world_size: int
) -> None:
    num_micro_batches = 4
    a_plan = plan(shards, num_micro_batches=num_micro_batches)
    one = dict(Loader(shards, plan=a_plan, items=items, num_steps=5))
    ranks = [
        dict(
            Loader(shards, plan=a_plan, items=items, rank=rank, world_size=world_size, num_steps=5)
        )
        for rank in range(world_size)
    ]
    for step in range(5):
        forwards = -(-num_micro_batches // world_size)
        assert {len(steps[step]) for steps in ranks} == {forwards}
        for number in range(forwards * world_size):
            batch = ranks[number % world_size][step][number // world_size]
            if number < num_micro_batches:
                assert_same(batch, one[step][number])
            else:
                assert batch.num_tokens == 0
                assert [slot.item_key.tolist() for slot in batch.slots] == [[], []]
                assert [slot.numeric.shape[1] for slot in batch.slots] == [2, 2]


class BrokenShards(Shards):
    """Shards whose disk fails after some reads."""

    reads_left = 5

    def take(self, rows, *, columns=None):  # type: ignore[no-untyped-def]
        self.reads_left -= 1
        if self.reads_left < 0:
            raise OSError("disk gone")
        return super().take(rows, columns=columns)


def test_an_error_of_the_thread_is_raised_where_the_step_is_asked_for(
    shards: dict[str, Shards],
) -> None:
    shards["click"].__class__ = BrokenShards
    loader = Loader(shards, plan=plan(shards))  # three reads a step: the second one fails
    next(loader)
    with pytest.raises(OSError, match="disk gone"):
        next(loader)
    with pytest.raises(StopIteration):
        next(loader)


def test_closing_ends_the_thread_and_the_iteration(shards: dict[str, Shards]) -> None:
    before = threading.active_count()
    loader = Loader(shards, plan=plan(shards), prefetch=3)
    next(loader)
    loader.close()
    loader.close()
    assert threading.active_count() == before
    assert list(loader) == []


def test_a_loader_that_is_dropped_ends_its_thread(shards: dict[str, Shards]) -> None:
    loader = Loader(shards, plan=plan(shards))
    next(loader)
    thread = loader._thread
    del loader
    thread.join(timeout=30)
    assert not thread.is_alive()


def test_an_open_loader_does_not_keep_the_process_alive() -> None:
    program = (
        "import threading\n"
        "from rectrain.data import loader\n"
        "class Stuck:\n"
        "    def __init__(self, *a, **k): pass\n"
        "    def build(self, step): threading.Event().wait()\n"
        "loader._Builder = Stuck\n"
        "kept = loader.Loader({}, plan=None)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], timeout=120, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_rows_in_order_come_once_with_lists_whole(
    shards: dict[str, Shards], budget: int, world_size: int
) -> None:
    table = shards["search"].table()
    parts = [
        list(
            micro_batches_in_order(
                table,
                task="search",
                features=FEATURES,
                tokens_per_micro_batch=budget,
                rank=rank,
                world_size=world_size,
            )
        )
        for rank in range(world_size)
    ]
    assert len({len(part) for part in parts}) == 1
    seen: list[int] = []
    for number in range(len(parts[0]) * world_size):
        numbers, batch = parts[number % world_size][number // world_size]
        click, search = batch.slots
        assert click.num_rows == 0 and click.numeric.shape == (0, 2)
        assert search.item_key.tolist() == numbers.tolist()
        assert search.list_offsets.diff().tolist() == [3] * (numbers.size // 3)
        assert search.count == numbers.size // 3
        assert batch.num_tokens <= budget or numbers.size == 3 or numbers.size == 0
        seen += numbers.tolist()
    assert seen == list(range(60))


def test_empty_tables_follow_the_features() -> None:
    features = {"a": FeatureEncoder({"x": (0.0, 1.0)}, {"y": ("b",), "z": ()}, {"image": 5})}
    schema = empty_tables(features)["a"].schema
    assert schema.field("numeric").type.list_size == 1
    assert schema.field("categorical").type.list_size == 2
    assert schema.field("vector_image").type.list_size == 5


def prepared(path: Path, *tasks: str, tokenizer: str = "t") -> str:
    """A prepared directory of tasks without rows."""
    path.mkdir()
    manifest = {
        "format": FORMAT,
        "tasks": {task: {"splits": {}, "features": FEATURES["click"].to_json()} for task in tasks},
        "tokenizer": {"sha256": tokenizer},
        "seed": 0,
        "source": "test",
        "config": {},
    }
    (path / MANIFEST).write_text(json.dumps(manifest))
    return str(path)


def test_tasks_are_found_over_directories_in_the_order_asked_for(tmp_path: Path) -> None:
    paths = [prepared(tmp_path / "one", "a", "b"), prepared(tmp_path / "two", "c")]
    assert list(open_tasks(paths)) == ["a", "b", "c"]
    found = open_tasks(paths, tasks=("c", "a"))
    assert {task: str(directory.root) for task, directory in found.items()} == {
        "c": paths[1],
        "a": paths[0],
    }


def test_tasks_that_cannot_be_read_together_are_refused(tmp_path: Path) -> None:
    one = prepared(tmp_path / "one", "a", "b")
    same_task = prepared(tmp_path / "two", "b")
    other_tokenizer = prepared(tmp_path / "three", "c", tokenizer="u")
    with pytest.raises(DataError, match=r"task b: got .*one and .*two"):
        open_tasks([one, same_task])
    with pytest.raises(DataError, match=r"got d; data\.paths holds a, b"):
        open_tasks([one], tasks=("a", "d"))
    with pytest.raises(DataError, match="tasks of the run: got none"):
        open_tasks([])
    with pytest.raises(DataError, match="share one tokenizer"):
        open_tasks([one, other_tokenizer])
    assert list(open_tasks([one, other_tokenizer], tasks=("c",))) == ["c"]
