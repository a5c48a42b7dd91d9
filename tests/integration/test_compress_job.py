"""jobs.compress from a run to a package: its table and files, what it skips, what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

import rectrain
from jobs import compress
from jobs.cli import exit_status
from rectrain.compress import pipeline
from rectrain.data.shards import Prepared
from rectrain.inference.predictor import Predictor

STEPS = ("cut", "distilled", "heads", "trimmed", "graphs", "package")
ROWS = ["large", "cut", "distilled", "heads", "trimmed", "small"]
TASKS = {"recommendation", "search_ranking", "ad_ctr", "risk"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def arguments(teacher: Path, output: Path, *more: str) -> list[str]:
    return [
        f"--teacher={teacher}", f"--output={output}", "--train.num_steps=4", "--head_steps=3",
        "--refit_texts=200", "--calibration_texts=80", "--tokens_per_micro_batch=256",
        "--max_drop=0.9", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def small(cluster: None, untrained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("small") / "out"
    assert exit_status(compress.main, arguments(untrained_run, output)) == 0
    return output


def test_every_step_leaves_its_part_and_the_table_has_them_all(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {path.name for path in small.iterdir() if path.is_dir()} >= {*STEPS, "measured"}
    summary = json.loads((small / "summary.json").read_text())
    assert summary["models"][-1]["backend"].endswith("-int8")
    rows = {row["name"]: row for row in summary["models"]}
    assert list(rows) == ROWS
    for name, row in rows.items():
        assert row["tokens_per_s"] > 0
        assert set(row["metrics"]) == (set() if name == "cut" else TASKS)
        for value, low, high in row["metrics"].values():
            assert low <= value <= high
        for latency in row["latency"].values():
            assert 0 < latency["p50_ms"] <= latency["p99_ms"]
    sizes = {name: row["num_parameters"] for name, row in rows.items()}
    assert sizes["large"] > sizes["cut"] == sizes["heads"] > sizes["trimmed"] == sizes["small"]
    assert rows["small"]["num_bytes"] < rows["trimmed"]["num_bytes"] < rows["large"]["num_bytes"]
    assert (small / "quality.png").stat().st_size > 1000
    assert "| small |" in (small / "summary.md").read_text()


def test_the_package_scores_as_the_distilled_heads_do(small: Path) -> None:
    """Trimming is exact for texts of kept pieces, as training's are; int8 heads are near."""
    heads = Predictor.from_checkpoint(str(small / "heads"))
    paths = heads.checkpoint.meta["config"]["data"]["paths"]
    rows = Prepared.open(paths[0]).shards("risk", "train").table().slice(0, 50)
    expected = heads.score("risk", rows)
    for folder, gap in (("trimmed/model", 1e-5), ("package", 0.02)):
        model = rectrain.load(small / folder, backend="torch")
        got = model.predictor.score("risk", model.predictor.tokenised("risk", rows))
        np.testing.assert_allclose(got, expected, atol=gap)
    assert model.fallback_share == 0  # of training texts none falls back, and all are counted
    calibration = json.loads((small / "graphs" / "done.json").read_text())["calibration_sha256"]
    assert model.package.manifest["facts"]["calibration_sha256"] == calibration
    assert model.package.graphs.keys() == {"openvino", "openvino-int8", "onnx", "onnx-int8"}
    assert model.package.indexes.keys() == {"recommendation"}
    assert (model.package.path / "quality.png").exists()


@pytest.mark.parametrize("graph", ["openvino", "openvino-int8", "onnx", "onnx-int8"])
def test_each_backend_scores_every_task_alone_in_any_batch_in_any_order(
    small: Path, graph: str
) -> None:
    """fp32 as torch does, within 1e-4; int8 as itself does whatever stands beside a row."""
    plain = rectrain.load(small / "package", backend="torch").predictor
    ours = rectrain.load(small / "package", backend=graph, threads=1).predictor
    heads = Predictor.from_checkpoint(str(small / "heads"))
    prepared = Prepared.open(heads.checkpoint.meta["config"]["data"]["paths"][0])
    for task in sorted(TASKS):
        rows = ours.tokenised(task, prepared.shards(task, "test").table().slice(0, 40))
        order = np.random.default_rng(0).permutation(rows.num_rows)
        expected, together = plain.score(task, rows), ours.score(task, rows)
        shuffled = ours.score(task, rows.take(order))
        alone = np.concatenate([ours.score(task, rows.slice(row, 1)) for row in order])
        np.testing.assert_allclose(shuffled, together[order], rtol=0, atol=1e-5)
        np.testing.assert_allclose(alone, together[order], rtol=0, atol=1e-5)
        if not graph.endswith("-int8"):
            np.testing.assert_allclose(together, expected, rtol=0, atol=1e-4)


def test_what_is_done_is_not_done_again(
    small: Path, untrained_run: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def refuse(*args: object, **kwargs: object) -> None:
        pytest.fail("done already")

    for name in ("cut_and_refit", "train_run", "export_graphs", "write_package", "measure"):
        monkeypatch.setattr(pipeline, name, refuse)
    before = (small / "summary.json").read_bytes()
    assert exit_status(compress.main, arguments(untrained_run, small)) == 0
    assert (small / "summary.json").read_bytes() == before
    printed = capsys.readouterr().out
    assert printed.count(": done (") == len(STEPS) and "| heads |" in printed


def test_an_interrupted_compression_goes_on(
    small: Path, untrained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again"
    shutil.copytree(small, again)
    for name in ("graphs/done.json", "measured/small.json"):
        (again / name).unlink()
    shutil.rmtree(again / "package")
    found = arguments(untrained_run, again, "--dry-run")
    assert exit_status(compress.main, found) == 0
    printed = capsys.readouterr().out
    assert (
        "5/6 quantise encoder and heads: to do" in printed
        and "4/6 trim the vocabulary: done" in printed
    )
    assert not (again / "package").exists()


def test_what_was_made_of_a_step_that_is_gone_is_to_do(
    small: Path, untrained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else a package would hold the graphs of another encoder."""
    again = tmp_path / "again"
    shutil.copytree(small, again)
    shutil.rmtree(again / "trimmed")
    assert exit_status(compress.main, arguments(untrained_run, again, "--dry-run")) == 0
    printed = capsys.readouterr().out
    assert printed.count(": done (") == 3 and "5/6 quantise encoder and heads: to do" in printed
    assert exit_status(compress.main, arguments(untrained_run, again)) == 0
    assert "── 6/6 package" in capsys.readouterr().out
    rectrain.load(again / "package", backend="openvino-int8")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--preset=tiny"], "preset must be one of mini, small, medium"),
        (["--train.freeze=encoder"], "train.freeze is decided by the steps"),
        (["--train.distill_weight=2"], "train.distill_weight"),
        (["--max_drop=1.5"], "max_drop"),
        (["--data=nowhere"], "nowhere"),
        (["--train.num_workers=99"], "train.num_workers"),
        (["--threads=99999"], "threads: got 99999; must be a whole number from 1 to"),
    ],
)
def test_mistakes_are_told_in_one_line_before_any_work(
    cluster: None, untrained_run: Path, tmp_path: Path, more: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    output = tmp_path / "out"
    assert exit_status(compress.main, arguments(untrained_run, output, *more, "--dry-run")) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not output.exists()


def test_other_settings_and_other_files_are_refused(
    small: Path, untrained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(compress.main, arguments(untrained_run, small, "--seed=4")) == 2
    assert "made with another seed" in capsys.readouterr().err
    (tmp_path / "mine.txt").write_text("mine")
    assert exit_status(compress.main, arguments(untrained_run, tmp_path)) == 2
    assert "holds other files" in capsys.readouterr().err
