"""Tiny runs under Ray Train: a frozen encoder on any number of workers, nothing to validate on, a
start that is gone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from prepared_toy import PRICE, write_encoder, write_prepared
from test_train_ray import final_tensors
from untrained import write_run

from jobs import train
from jobs.cli import exit_status
from rectrain.train.tracking import read_records

NUM_STEPS = 6
TASKS = {"search_ranking": PRICE, "ad_ctr": PRICE, "risk": PRICE}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def root(cluster: None, tmp_path: Path) -> Path:
    """Prepared data without a validation row, and a run to start from."""
    write_encoder(tmp_path / "bert")
    write_prepared(tmp_path / "data", tasks=TASKS, num_rows=60)
    model = {"encoder": str(tmp_path / "bert")}
    write_run(tmp_path / "runs" / "before", tmp_path / "data", seed=5, model=model)
    return tmp_path


def run(root: Path, name: str, *more: str) -> Path:
    begins_anew = not any(setting.startswith("--train.start_from") for setting in more)
    arguments = [
        f"--data.paths={root / 'data'}", f"--output={root / 'runs'}", f"--name={name}",
        *([f"--model.encoder={root / 'bert'}"] if begins_anew else []),
        "--data.tokens_per_micro_batch=64",
        "--train.num_micro_batches=2", f"--train.num_steps={NUM_STEPS}", "--train.log_interval=1",
        "--train.checkpoint_interval=3", "--train.learning_rate=1e-3", "--tracking.mlflow=off",
        "--tracking.tensorboard=false", *more,
    ]  # fmt: skip
    assert exit_status(train.main, arguments) == 0
    return root / "runs" / name


def test_a_frozen_run_learns_the_same_on_one_worker_and_on_two(root: Path) -> None:
    start = f"--train.start_from={root / 'runs' / 'before'}"
    frozen = ["--train.freeze=encoder", start]
    one, two = (
        final_tensors(run(root, f"on{n}", *frozen, f"--train.num_workers={n}"), step=NUM_STEPS)
        for n in (1, 2)
    )
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        gap = torch.linalg.norm(two[name] - tensor) / torch.linalg.norm(tensor).clamp_min(1e-12)
        # A moment may be a small difference of large gradients, whose rounding weighs more in it.
        bound = 1e-4 if name.startswith("exp_avg") else 1e-5
        assert gap <= bound, f"{name}: relative L2 {gap:.2e}"
    before = final_tensors(root / "runs" / "before", step=1)
    moved = {name for name, tensor in before.items() if not torch.equal(one[name], tensor)}
    assert moved and not [name for name in moved if name.startswith("encoder.")]
    logs = [r for r in read_records(root / "runs" / "on1" / "metrics.jsonl") if r["kind"] == "log"]
    assert [record["step"] for record in logs] == list(range(1, NUM_STEPS + 1))
    assert not [record for record in logs if "learning_rate" in record]  # it is the encoder's


@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_run_with_nothing_to_validate_on_ends_well(root: Path, stage: int) -> None:
    made = run(root, "blind", "--train.evaluate_interval=2", f"--train.zero_stage={stage}")
    records = read_records(made / "metrics.jsonl")
    assert [r["step"] for r in records if r["kind"] == "log"] == list(range(1, NUM_STEPS + 1))
    assert not [r for r in records if r["kind"] == "validation"]
    assert all(r["learning_rate"] >= 0 and r["gradient_norm"] > 0 for r in records)
    assert (made / "encoder" / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--train.freeze=encoder"]])
def test_a_taught_run_is_the_same_on_two_workers_and_after_an_interruption(
    root: Path, more: list[str]
) -> None:
    teacher = [f"--train.teacher={root / 'runs' / 'before'}", *more]
    straight = run(root, "straight", *teacher, "--train.num_workers=1")
    two = final_tensors(run(root, "two", *teacher, "--train.num_workers=2"), step=NUM_STEPS)
    alone = final_tensors(run(root, "alone", *more), step=NUM_STEPS)
    again = root / "runs" / "again"
    shutil.copytree(straight, again)
    shutil.rmtree(again / "checkpoints" / f"step-{NUM_STEPS:08d}")
    config = again / "config.yaml"
    config.write_text(config.read_text().replace("name: straight", "name: again"))
    run(root, "again", *teacher, "--train.num_workers=1")
    one, resumed = (final_tensors(folder, step=NUM_STEPS) for folder in (straight, again))
    assert one.keys() == two.keys() == resumed.keys() == alone.keys()  # the teacher is no part
    assert not [name for name in one if not torch.equal(one[name], resumed[name])]
    for name, tensor in one.items():
        gap = torch.linalg.norm(two[name] - tensor) / torch.linalg.norm(tensor).clamp_min(1e-12)
        assert gap <= 1e-5, f"{name}: relative L2 {gap:.2e}"
    assert [name for name in one if not torch.equal(one[name], alone[name])]


@pytest.mark.slow
def test_an_interrupted_run_goes_on_without_its_start(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = f"--train.start_from={root / 'runs' / 'before'}"
    straight = run(root, "straight", start)
    assert "start: " in capsys.readouterr().out
    again = root / "runs" / "again"
    shutil.copytree(straight, again)
    shutil.rmtree(again / "checkpoints" / f"step-{NUM_STEPS:08d}")
    shutil.rmtree(root / "runs" / "before")
    config = again / "config.yaml"
    config.write_text(config.read_text().replace("name: straight", "name: again"))
    run(root, "again", start)
    assert "start: step 3 of this run" in capsys.readouterr().out
    expected, got = (final_tensors(folder, step=NUM_STEPS) for folder in (straight, again))
    assert expected.keys() == got.keys()
    assert not [name for name in expected if not torch.equal(expected[name], got[name])]
