from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from jobs.cli import exit_status
from jobs.prepare import main
from rectrain.data.config import PrepareConfig
from rectrain.data.prepare import prepare
from rectrain.data.shards import SPLITS, Prepared
from rectrain.errors import DataError
from rectrain.tasks import TASKS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    started = not ray.is_initialized()
    if started:
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    if started:
        ray.shutdown()


def make(output: Path, **settings: Any) -> Prepared:
    config = PrepareConfig(**{"output": str(output), "source": "simulated", **settings})
    return prepare(config, specs=TASKS)


def write_risk(path: Path, *, rows: int = 200, bad: int = 0) -> Path:
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "user_id": [f"u{n % 40}" for n in range(rows)],
            "item_text": [f"mug number {n % 7}" for n in range(rows)],
            "label": [7] * bad + [n % 2 for n in range(rows - bad)],
            "price": rng.random(rows),
            "colour": ["red"] * rows,
        }
    )
    pq.write_table(table, path, row_group_size=50)
    return path


def assert_every_row_is_accounted_for(prepared: Prepared) -> None:
    for task, facts in prepared.manifest["tasks"].items():
        in_splits = sum(prepared.shards(task, split).num_rows for split in SPLITS)
        rejects = pq.read_table(prepared.root / "rejects" / f"{task}.parquet")
        assert facts["rows"] == in_splits + rejects.num_rows
        aside = int(np.asarray(rejects["set_aside"]).sum())
        assert (facts["rejects"]["rows"], facts["set_aside"]["rows"]) == (
            rejects.num_rows - aside, aside,
        )  # fmt: skip
        assert rejects["reason"].null_count == 0


def assert_no_training_row_is_held_out(prepared: Prepared, *, holdouts: tuple[str, ...]) -> None:
    for task in holdouts:
        held = {
            row
            for split in ("validation", "test")
            for row in prepared.shards(task, split).column("row_id").to_pylist()
        }
        for other in prepared.tasks:
            if other != task:
                assert held.isdisjoint(prepared.shards(other, "train").column("row_id").to_pylist())


def test_the_simulated_tasks_are_prepared_alike_by_any_number_of_workers(tmp_path: Path) -> None:
    size = {"size": "tiny", "simulated": {"num_users": 600}}
    one = make(tmp_path / "one", num_workers=1, **size)
    two = make(tmp_path / "two", num_workers=2, **size)
    assert list(one.tasks) == ["recommendation", "search_ranking", "ad_ctr", "risk"]
    assert one.manifest["tasks"] == two.manifest["tasks"]
    other = make(tmp_path / "other", seed=1, **size)
    assert one.manifest["tasks"] != other.manifest["tasks"]
    assert_every_row_is_accounted_for(one)
    assert_no_training_row_is_held_out(one, holdouts=one.tasks)
    lists = one.shards("search_ranking", "train").column("list_id").to_numpy()
    assert (np.diff(lists) >= 0).all()  # neighbours


def test_online_retail_follows_the_protocol(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "recommendation" / "online_retail.parquet"
    prepared = make(tmp_path / "retail", source="online_retail", input=(str(path),))
    splits = prepared.splits("recommendation")
    assert splits["test"]["groups"] == 1230
    assert_every_row_is_accounted_for(prepared)
    assert_no_training_row_is_held_out(prepared, holdouts=("recommendation",))
    start = np.datetime64("2011-09-01")
    train, test = (prepared.shards("risk", s).column("timestamp").to_numpy()
                   for s in ("train", "test"))  # fmt: skip
    assert train.max() < start - np.timedelta64(30, "D") and test.min() >= start
    facts = prepared.manifest["tasks"]["risk"]
    known = 235_110
    outside = ("outcome not yet known at the split's cut", "held out in another task")
    assert known == sum(s["rows"] for s in facts["splits"].values()) + sum(
        facts["set_aside"]["reasons"][reason] for reason in outside
    )
    first = prepared.shards("recommendation", "test").take(np.arange(300))
    seen: set[str] = set()
    for row in first.select(["group", "item_id", "exclude"]).to_pylist():
        assert (row["exclude"] is None) == (row["group"] in seen)
        seen.add(row["group"])
        assert row["item_id"] not in (row["exclude"] or [])


def test_chorus_folds_part_its_queries(shared_data: Path, tmp_path: Path) -> None:
    tested: list[str] = []
    for fold in range(2):
        prepared = make(
            tmp_path / str(fold), source="chorus", input=(str(shared_data / "search_ranking"),),
            split={"fold": fold},
        )  # fmt: skip
        parts = [set(prepared.shards("search_ranking", s).column("group").to_pylist())
                 for s in SPLITS]  # fmt: skip
        assert sum(map(len, parts)) == len(set.union(*parts)) == 66
        tested += parts[2]
    assert len(tested) == len(set(tested))


def test_bad_rows_are_kept_and_counted_and_too_many_stop_the_job(tmp_path: Path) -> None:
    path = write_risk(tmp_path / "rows.parquet", bad=8)
    settings = {"source": "parquet", "task": "risk", "input": (str(path),)}
    prepared = make(tmp_path / "out", **settings)
    facts = prepared.manifest["tasks"]["risk"]
    reason = "label: out of range, must be 0 or 1"
    assert facts["rejects"] == {"rows": 8, "reasons": {reason: 8}}
    assert facts["ignored_columns"] == ["colour"]
    assert_every_row_is_accounted_for(prepared)
    with pytest.raises(DataError, match=r"got 4\.0%.*at most 3\.0%"):
        make(tmp_path / "strict", max_reject_share=0.03, **settings)
    assert not (tmp_path / "strict").exists()
    assert list(tmp_path.glob(".strict*")) == []


def test_the_same_again_is_kept_and_another_needs_overwrite(tmp_path: Path) -> None:
    path = write_risk(tmp_path / "rows.parquet")
    argv = ["--source", "parquet", "--task", "risk", "--input", str(path)]
    argv += ["--output", str(tmp_path / "out")]
    manifest = tmp_path / "out" / "manifest.json"
    assert exit_status(main, argv) == 0
    made = manifest.stat().st_mtime_ns
    assert exit_status(main, argv) == 0 and manifest.stat().st_mtime_ns == made
    write_risk(path, rows=240)
    assert exit_status(main, argv) == 2 and manifest.stat().st_mtime_ns == made
    assert exit_status(main, [*argv, "--overwrite=true"]) == 0
    assert Prepared.open(str(tmp_path / "out")).manifest["tasks"]["risk"]["rows"] == 240


def test_a_directory_of_other_files_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="only prepared data is ever replaced"):
        make(tmp_path, size="tiny", overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_risk(tmp_path / "rows.parquet")
    argv = ["--source", "parquet", "--task", "risk", "--input", str(path), "--dry-run"]
    assert exit_status(main, [*argv, "--output", str(tmp_path / "out")]) == 0
    assert "risk: 200 rows" in capsys.readouterr().out and not (tmp_path / "out").exists()


def test_own_features_reach_the_shards(tmp_path: Path) -> None:
    path = write_risk(tmp_path / "rows.parquet")
    (tmp_path / "own.yaml").write_text("risk: {colour: {kind: categorical}}\n")
    argv = ["--source", "parquet", "--task", "risk", "--input", str(path)]
    argv += ["--features", str(tmp_path / "own.yaml"), "--output", str(tmp_path / "out")]
    assert exit_status(main, argv) == 0
    prepared = Prepared.open(str(tmp_path / "out"))
    assert prepared.features("risk").categorical == {"colour": ("red",)}
    assert prepared.shards("risk", "train").column("categorical")[0].as_py() == [2]


def test_a_killed_run_leaves_nothing_that_opens_and_can_be_run_again(tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = [sys.executable, "-m", "jobs.prepare", "--source", "simulated", "--size", "tiny",
               "--output", str(output)]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "RAY_ADDRESS": "local"},
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "writing" in line:
            break
    os.killpg(process.pid, signal.SIGKILL)  # the job and the workers of its own local cluster
    process.wait()
    assert not output.exists() and (tmp_path / ".out.building").is_dir()
    with pytest.raises(DataError):
        Prepared.open(str(tmp_path / ".out.building"))
    deadline = time.monotonic() + 60
    while (again := _attempt(output)) is None and time.monotonic() < deadline:
        time.sleep(1)  # until the last process of the killed run has let go of the directory
    assert again is not None and again.tasks
    assert not (tmp_path / ".out.building").exists()
    json.loads((output / "manifest.json").read_text())


def _attempt(output: Path) -> Prepared | None:
    try:
        return make(output, size="tiny")
    except DataError as error:
        if "one process at a time" in str(error):
            return None
        raise
