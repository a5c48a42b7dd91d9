"""A run's records survive restarts, show no secret, and read as one plain line."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from rectrain.data.config import DataConfig
from rectrain.errors import ConfigError, StorageError
from rectrain.train.config import RunConfig, TrackingConfig
from rectrain.train.storage import Store
from rectrain.train.tracking import (
    Tracker,
    _experiment,
    curves,
    progress_line,
    public_settings,
    read_records,
)


def config(**more: object) -> RunConfig:
    tracking = TrackingConfig(tensorboard=False, mlflow="off")
    return RunConfig(data=DataConfig(paths=("data",)), tracking=tracking, **more)


def log(step: int, loss: float) -> dict:
    return {
        "kind": "log", "step": step, "num_steps": 4, "num_workers": 2, "loss": {"risk": loss},
        "tokens_per_second": 1234.5, "learning_rate": 0.1,
    }  # fmt: skip


def record(folder: Path, events: list[dict]) -> list[str]:
    lines: list[str] = []
    with Tracker(config(), Store.open(str(folder)), say=lines.append) as tracker:
        for event in events:
            tracker.record(event)
    return lines


def test_repeated_steps_are_recorded_once_over_restarts(tmp_path: Path) -> None:
    record(tmp_path, [log(1, 0.9), log(2, 0.8), log(2, 0.8)])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "log", "step": 3, "lo')  # the driver died here
    record(tmp_path, [log(2, 0.8), log(3, 0.7), log(4, 0.6)])
    records = read_records(tmp_path / "metrics.jsonl")
    assert [(r["step"], r["loss"]["risk"]) for r in records] == [
        (1, 0.9), (2, 0.8), (3, 0.7), (4, 0.6),
    ]  # fmt: skip
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_notes_are_said_and_not_recorded(tmp_path: Path) -> None:
    lines = record(tmp_path, [{"kind": "note", "step": 1, "text": "disk full"}])
    assert lines == ["warning: disk full"]
    assert read_records(tmp_path / "metrics.jsonl") == []


def test_the_console_shows_first_and_last_losses_validations_and_warnings_of_a_burst(
    tmp_path: Path,
) -> None:
    start = {"kind": "start", "step": 0, "num_steps": 4, "num_workers": 2}
    validation = {"kind": "validation", "step": 2, "num_steps": 4, "validation": {"risk": 0.5}}
    burst = [
        start, log(1, 0.9), log(2, 0.8), validation, log(3, 0.7),
        {"kind": "note", "step": 3, "text": "worker 1 ended"},
        start | {"step": 2}, log(3, 0.7), log(4, 0.6),
    ]  # fmt: skip
    lines = record(tmp_path, burst)
    assert [line.split("  ")[:2] for line in lines] == [
        ["training from the beginning on 2 workers"],
        ["step 1/4", "loss: risk 0.9000"],
        ["step 2/4", "validation: risk 0.5000"],
        ["warning: worker 1 ended"],
        ["training from step 2 on 2 workers"],
        ["step 3/4", "loss: risk 0.7000"],
        ["step 4/4", "loss: risk 0.6000"],
    ]


def test_progress_lines() -> None:
    line = progress_line(log(3, 0.25), left_s=65.2)
    assert line == "step 3/4  loss: risk 0.2500  1,234 tokens/s  1:05 left"
    validation = {"kind": "validation", "step": 4, "num_steps": 4, "validation": {"risk": 0.5}}
    assert progress_line(validation, left_s=0) == "step 4/4  validation: risk 0.5000"


def test_the_curves_have_a_panel_for_each_task_and_say_quantity_and_unit() -> None:
    records = [
        log(1, 0.9) | {"loss": {"risk": 0.9, "search_ranking": 3.0}},
        log(4, 0.5) | {"loss": {"risk": 0.5, "search_ranking": 2.0}},
        {"kind": "validation", "step": 4, "validation": {"risk": 0.6}},
    ]
    panels = {(axis.get_title(), axis.get_ylabel()): axis for axis in curves(records).axes}
    assert panels.keys() == {
        ("risk", "training loss (nats)"),
        ("search_ranking", "training loss (nats)"),
        ("risk", "validation auc"),
    }
    assert all(axis.get_xlabel() == "step (update)" for axis in panels.values())
    (line,) = panels["search_ranking", "training loss (nats)"].lines
    assert line.get_xydata().tolist() == [[1, 3.0], [4, 2.0]]


def test_curves_of_pre_training_keep_loss_and_perplexity_apart() -> None:
    validation = {"kind": "validation", "step": 4, "validation": {"loss": 6.0, "perplexity": 403.4}}
    labels = [axis.get_ylabel() for axis in curves([validation]).axes]
    assert labels == ["validation loss (nats)", "validation perplexity"]


def test_passwords_in_uris_are_not_logged() -> None:
    settings = public_settings(config(output="s3://key:secret@bucket/runs"))
    assert settings["output"] == "s3://bucket/runs"
    assert "secret" not in str(settings)
    assert settings["train.zero_stage"] == "2"


def with_mlflow(uri: str) -> RunConfig:
    tracking = TrackingConfig(tensorboard=False, mlflow=uri)
    return RunConfig(data=DataConfig(paths=("data",)), tracking=tracking)


def test_a_tracking_server_that_is_down_is_told_before_training(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = with_mlflow(f"http://me:secret@127.0.0.1:{port}")
    with pytest.raises(StorageError, match=r"tracking\.mlflow") as caught:
        Tracker(config, Store.open(str(tmp_path)), say=print).__enter__()
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_package_is_told_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"curves\.png"):
        Tracker(config(), Store.open(str(tmp_path)), say=print).__enter__()


def test_a_sink_that_fails_is_dropped_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(event: object) -> None:
        raise OSError("disk full at s3://key:secret@bucket")

    monkeypatch.setattr("rectrain.train.tracking._curves", lambda *given: full)
    lines = record(tmp_path, [log(1, 0.9), log(4, 0.6)])
    warnings = [line for line in lines if line.startswith("warning")]
    assert warnings == [
        "warning: curves.png is no longer written: OSError: disk full at s3://bucket"
    ]
    assert len(read_records(tmp_path / "metrics.jsonl")) == 2


def test_an_experiment_made_by_another_run_at_the_same_moment_is_used() -> None:
    from mlflow.exceptions import MlflowException

    class Client:
        found = None

        def get_experiment_by_name(self, name: str) -> object:
            return self.found

        def create_experiment(self, name: str) -> str:
            self.found = SimpleNamespace(experiment_id="7")
            raise MlflowException("already exists")

    assert _experiment(Client(), "rectrain") == "7"
