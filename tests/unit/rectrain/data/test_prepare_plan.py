"""What the plan of a preparation says of splits, and what is warned of afterwards."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rectrain.config import load_config
from rectrain.data.config import PrepareConfig
from rectrain.data.prepare import empty_splits, plan
from rectrain.errors import ConfigError
from rectrain.tasks import TASKS


def rows(*, timed: bool) -> pa.Table:
    table = pa.table({"user_id": ["a", "b"], "item_text": ["red mug", "lamp"], "label": [0, 1]})
    times = pa.array([1, 2], pa.timestamp("us"))
    return table.append_column("timestamp", times) if timed else table


@pytest.mark.parametrize(
    ("timed", "settings", "expected"),
    [
        (True, {}, "by time: every row has a timestamp; validation 0.1, test 0.1"),
        (True, {"test_start": "2011-12-01", "gap_days": 7},
         "by time: every row has a timestamp; validation 0.1, test from 2011-12-01 00:00 UTC, "
         "a gap of 7 days"),
        (True, {"by": "group"}, "by group: as split.by says; validation 0.1, test 0.1"),
        (False, {"test_share": 0.25},
         "by group: 2 of 2 rows have no timestamp; validation 0.1, test 0.25"),
        (False, {"fold": 1},
         "by group: 2 of 2 rows have no timestamp; part 1 of 5 is test, the next one validation"),
    ],
)  # fmt: skip
def test_the_plan_says_how_each_task_is_split(
    tmp_path: Path, timed: bool, settings: dict[str, object], expected: str
) -> None:
    pq.write_table(rows(timed=timed), tmp_path / "rows.parquet")
    config = PrepareConfig.model_validate(
        {"source": "parquet", "task": "risk", "input": (str(tmp_path / "rows.parquet"),),
         "output": "unused", "split": settings}
    )  # fmt: skip
    lines = [line.strip() for line in plan(config, specs=TASKS).splitlines()]
    assert f"split: {expected}" in lines


def test_purchases_are_split_by_baskets_whatever_the_shares() -> None:
    config = PrepareConfig(source="simulated", size="tiny", output="unused")
    lines = plan(config, specs=TASKS).splitlines()
    assert "  split: by baskets: the last ones of each user are held out" in lines


def test_held_out_splits_without_a_row_are_told() -> None:
    def task(validation: int, test: int) -> dict[str, object]:
        counts = {"train": 9, "validation": validation, "test": test}
        return {"splits": {name: {"rows": count} for name, count in counts.items()}}

    assert empty_splits({"tasks": {"risk": task(1, 0), "ad_ctr": task(0, 2)}}) == [
        "risk: no row in test, so jobs.evaluate can't judge it; give more rows, or set "
        "--split.test_share",
        "ad_ctr: no row in validation, so training can't judge it; give more rows, or set "
        "--split.validation_share",
    ]
    assert empty_splits({"tasks": {"risk": task(1, 1)}}) == []


@pytest.mark.parametrize("setting", ["word_drop=0.2", "synonym_swap=0.5", "synonyms=words.tsv"])
def test_how_copies_are_altered_needs_copies(setting: str) -> None:
    common = ["--source=simulated", "--output=x", f"--augment.{setting}"]
    load_config(PrepareConfig, file=None, overrides=[*common, "--augment.copies=1"])
    with pytest.raises(ConfigError, match=r"has no effect without augment\.copies"):
        load_config(PrepareConfig, file=None, overrides=common)


def test_a_share_that_a_published_split_leaves_no_use_for_is_refused(tmp_path: Path) -> None:
    table = rows(timed=True).append_column("split", pa.array(["train", "test"]))
    pq.write_table(table, tmp_path / "rows.parquet")
    config = PrepareConfig.model_validate(
        {"source": "parquet", "task": "risk", "input": (str(tmp_path / "rows.parquet"),),
         "output": "unused", "split": {"test_share": 0.3}}
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"split\.test_share.*risk is split by rows"):
        plan(config, specs=TASKS)
