"""jobs.predict: right scores, rejects set aside, and a real kill in the middle."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray
from untrained import write_run

from jobs import predict
from jobs.cli import exit_status
from rectrain.data.shards import Prepared
from rectrain.data.simulate import SIZES, simulate
from rectrain.inference.predictor import Predictor

ROOT = Path(__file__).resolve().parents[2]
ROWS_PER_PART = 40


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Order lines as a user has them: no row_id, ten with a price below zero."""
    table = simulate(SIZES["tiny"], seed=1)["risk"].drop_columns(["row_id", "label", "p_true"])
    price = table["price"].to_pylist()
    price[5:600:60] = [-1.0] * 10
    table = table.set_column(table.column_names.index("price"), "price", pa.array(price))
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pq.write_table(table.append_column("note", pa.array(["x"] * len(table))), path)
    return path


@pytest.fixture
def cluster():
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def arguments(run: Path, rows: Path, output: Path, *more: str) -> list[str]:
    return ["--checkpoint", str(run), "--task", "risk", "--input", str(rows), "--output",
            str(output), f"--rows-per-part={ROWS_PER_PART}", *more]  # fmt: skip


def test_a_killed_job_goes_on_and_ends_with_the_scores_of_an_undisturbed_one(
    untrained_run: Path, rows: Path, tmp_path: Path, cluster: None
) -> None:
    killed, whole = tmp_path / "killed.parquet", tmp_path / "whole.parquet"
    command = [sys.executable, "-m", "jobs.predict", *arguments(untrained_run, rows, killed)]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, start_new_session=True, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while not list(killed.glob("part-*")) and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(2)  # actors notice their driver's death
    done = {path.name: path.stat().st_mtime_ns for path in killed.glob("part-*")}
    assert exit_status(predict.main, arguments(untrained_run, rows, whole)) == 0
    num_parts = len(list(whole.glob("part-*")))
    assert 0 < len(done) < num_parts

    assert exit_status(predict.main, arguments(untrained_run, rows, killed)) == 0

    after = {path.name: path.stat().st_mtime_ns for path in killed.glob("part-*")}
    assert {name: after[name] for name in done} == done, "finished parts were scored again"
    first, second = pq.read_table(killed), pq.read_table(whole)
    assert first.equals(second)
    rejects = pq.read_table(tmp_path / "killed.parquet.rejects")
    assert rejects.equals(pq.read_table(tmp_path / "whole.parquet.rejects"))
    given = pq.read_table(rows)
    numbers = sorted(first["row"].to_pylist() + rejects["row"].to_pylist())
    assert numbers == list(range(given.num_rows))
    assert set(rejects["reason"].to_pylist()) == {"price: out of range, must be 0 or more"}
    assert first["user_id"].to_pylist() == given["user_id"].take(first["row"]).to_pylist()


@pytest.mark.slow
def test_a_checkpoint_that_a_run_writes_meanwhile_is_not_read(
    untrained_run: Path, marketplace: Path, rows: Path, tmp_path: Path, cluster: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run, newer = tmp_path / "run", write_run(tmp_path / "newer", marketplace, seed=1)
    shutil.copytree(untrained_run, run)
    score = predict._score

    def score_later(*given, **more) -> None:
        steps = newer / "checkpoints" / "step-00000001", run / "checkpoints" / "step-00000002"
        shutil.copytree(*steps)
        score(*given, **more)

    monkeypatch.setattr(predict, "_score", score_later)
    outputs = tmp_path / "by_uri", tmp_path / "still"
    sources = run.as_uri(), str(untrained_run)
    for source, output in zip(sources, outputs, strict=True):
        arguments = ["--task=risk", f"--input={rows}", f"--output={output}"]
        assert exit_status(predict.main, [f"--checkpoint={source}", *arguments]) == 0
        monkeypatch.setattr(predict, "_score", score)
    assert (run / "checkpoints" / "step-00000002").exists()
    assert pq.read_table(outputs[0]).equals(pq.read_table(outputs[1]))


def test_scores_are_those_of_the_prepared_rows(
    untrained_run: Path, marketplace: Path, tmp_path: Path, cluster: None
) -> None:
    # The rows that were prepared, as the user gave them, get the scores of their prepared form.
    given = simulate(SIZES["tiny"], seed=0)["risk"]
    pq.write_table(given, tmp_path / "rows.parquet")
    output = tmp_path / "scores.parquet"
    status = exit_status(predict.main, arguments(untrained_run, tmp_path / "rows.parquet", output))
    assert status == 0
    found = pq.read_table(output)
    by_id = dict(zip(found["row_id"].to_pylist(), found["score"].to_pylist(), strict=True))
    rows = Prepared.open(str(marketplace)).shards("risk", "test").table()
    expected = Predictor.from_checkpoint(str(untrained_run)).score("risk", rows)
    assert [by_id[i] for i in rows["row_id"].to_pylist()] == pytest.approx(expected, abs=1e-6)


def test_recommendations_are_the_best_items_not_bought_yet(
    untrained_run: Path, marketplace: Path, tmp_path: Path, cluster: None
) -> None:
    prepared = Prepared.open(str(marketplace))
    rows = prepared.shards("recommendation", "test").table()
    rows = rows.filter(pc.is_valid(rows["exclude"])).slice(0, 30)  # a user's first row
    users = pa.table(
        {"user_id": rows["group"], "history": rows["query_text"], "exclude": rows["exclude"]}
    )
    pq.write_table(users, tmp_path / "users.parquet")
    output = tmp_path / "lists.parquet"
    status = exit_status(
        predict.main,
        ["--checkpoint", str(untrained_run), "--task=recommendation", "--k=5",
         f"--input={tmp_path / 'users.parquet'}", f"--output={output}"],
    )  # fmt: skip
    assert status == 0
    lists = pq.read_table(output)
    predictor = Predictor.from_checkpoint(str(untrained_run))
    items = prepared.items("recommendation").table()
    ids = np.array(items["item_id"].to_pylist())
    queries = predictor.embed("recommendation", rows)[0]
    scores = queries @ predictor.embed("recommendation", items)[1].T
    for row in range(30):
        scores[row, np.isin(ids, rows["exclude"][row].as_py())] = -np.inf
        best = -np.sort(-scores[row])[:5]
        assert lists["score"][row].as_py() == pytest.approx(best, abs=1e-4)
        assert not set(lists["item_id"][row].as_py()) & set(rows["exclude"][row].as_py())


def test_other_input_is_refused_and_overwrite_begins_anew(
    untrained_run: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    cluster: None,
) -> None:  # fmt: skip
    output, other = tmp_path / "scores.parquet", tmp_path / "other.parquet"
    pq.write_table(pq.read_table(rows).slice(0, 30), other)
    assert exit_status(predict.main, arguments(untrained_run, other, output)) == 0
    assert exit_status(predict.main, arguments(untrained_run, rows, output, "--dry-run")) == 0
    assert exit_status(predict.main, arguments(untrained_run, rows, output)) == 2
    assert "differs: inputs" in capsys.readouterr().err
    assert len(pq.read_table(output)) < 30
    assert exit_status(predict.main, arguments(untrained_run, rows, output, "--overwrite")) == 0
    assert len(pq.read_table(output)) > 500


def test_a_missing_column_is_one_line_before_ray_starts(
    untrained_run: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pq.read_table(rows).drop_columns(["item_text"]), tmp_path / "bad.parquet")
    bad = arguments(untrained_run, tmp_path / "bad.parquet", tmp_path / "out")
    assert exit_status(predict.main, bad) == 2
    assert capsys.readouterr().err.startswith("error: column item_text of risk")
    assert not (tmp_path / "out").exists()
