"""The device-seconds of a run are those of all its lives, also of one that was killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from prepared_toy import PRICE, write_prepared

from benchmarks.one_process import in_processes, train_here
from rectrain.train.config import RunConfig
from rectrain.train.selection import checkpoint_steps
from rectrain.train.storage import Store
from rectrain.train.usage import Usage, read_usage

NUM_STEPS = 400
INTERVAL = 50


def arguments(data: Path, output: Path, name: str) -> list[str]:
    return [
        f"--data.paths={data}", f"--output={output}", f"--name={name}", "--model.encoder=tiny",
        f"--train.num_steps={NUM_STEPS}", f"--train.checkpoint_interval={INTERVAL}",
        "--train.num_workers=1", "--train.log_interval=1000", "--data.tokens_per_micro_batch=16",
        "--tracking.mlflow=off",
    ]  # fmt: skip


def train_alone(argv: list[str]) -> None:
    from benchmarks import one_process

    one_process._set_up()
    train_here(argv, job=RunConfig)


def lives(run: Path) -> list[Usage]:
    return read_usage(Store.open(str(run)))


@pytest.mark.slow
def test_a_killed_life_counts(tmp_path: Path) -> None:
    data = write_prepared(tmp_path / "data", tasks={"risk": PRICE})
    argv, run = arguments(data, tmp_path, "run"), tmp_path / "run"
    first = multiprocessing.get_context("spawn").Process(target=train_alone, args=(argv,))
    first.start()
    assert first.pid is not None
    checkpoints = Store.open(str(run / "checkpoints"))
    while max(checkpoint_steps(checkpoints), default=0) < INTERVAL or lives(run)[0].seconds < 2:
        assert first.is_alive()
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    (killed,) = lives(run)
    assert not killed.finished
    in_processes(_resume, [argv], processes=1)
    again, after = lives(run)
    assert again == killed  # nobody writes a dead life again
    assert after.finished and after.start > killed.end
    assert killed.work == after.work == "train" and killed.label == "run"
    assert sum(life.device_seconds for life in lives(run)) == killed.seconds + after.seconds
    assert min(killed.seconds, after.seconds) > 0
    assert max(checkpoint_steps(checkpoints)) == NUM_STEPS


def _resume(argv: list[str]) -> None:
    train_here(argv, job=RunConfig)
