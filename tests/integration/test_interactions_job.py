"""jobs.interactions on a whole checkpoint: its files, what it compares, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from jobs import evaluate, interactions
from jobs.cli import exit_status
from rectrain.data.loader import Loader, catalogues, open_tasks, plan_training
from rectrain.train.build import load_model
from rectrain.train.config import RunConfig


def test_cosines_are_those_of_single_backward_passes(
    untrained_run: Path, marketplace: Path, tmp_path: Path
) -> None:
    arguments = [f"--checkpoint={untrained_run}", f"--output={tmp_path}", "--micro-batches=2"]
    assert exit_status(interactions.main, arguments) == 0
    found = json.loads((tmp_path / "interactions.json").read_text())
    assert (tmp_path / "interactions.png").exists()
    assert found["gains"] == [] and found["gradients"]["num_micro_batches"] == 2

    loaded = load_model(str(untrained_run))
    config = RunConfig.model_validate(loaded.checkpoint.meta["config"])
    data = open_tasks([str(marketplace)])
    shards = {task: prepared.shards(task, "train") for task, prepared in data.items()}
    plan = plan_training(shards, config=config.data, seed=0, num_micro_batches=1)
    gradients = []
    for place in range(2):  # one backward pass a task, over both micro-batches
        loaded.model.zero_grad()
        with Loader(shards, plan=plan, items=catalogues(data), start_step=1, num_steps=3) as loader:
            for _, (batch,) in loader:
                loaded.model(batch, balance=lambda losses, place=place: losses[place])[0].backward()
        parts = [p.grad.flatten() for p in loaded.model.encoder.parameters() if p.grad is not None]
        gradients.append(torch.cat(parts))
    expected = torch.cosine_similarity(*gradients, dim=0).item()
    assert found["gradients"]["cosines"][0][1] == pytest.approx(expected, abs=1e-4)


def test_a_run_beside_itself_neither_gains_nor_loses(
    untrained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(untrained_run, tmp_path / "run")
    arguments = [f"--checkpoint={run}", "--tasks=risk", "--num-resamples=20"]
    assert exit_status(evaluate.main, arguments) == 0
    compared = [
        f"--checkpoint={run}",
        f"--single={run}",
        "--split=validation",
        "--micro-batches=1",
    ]
    assert exit_status(interactions.main, compared) == 0
    (gain,) = json.loads((run / "interactions.json").read_text())["gains"]
    assert gain["difference"]["value"] == 0 and gain["verdict"] == "unclear"
    assert "unclear" in capsys.readouterr().out


def test_a_run_without_evaluation_is_refused_and_a_dry_run_writes_nothing(
    untrained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    arguments = [f"--checkpoint={untrained_run}", f"--output={output}", "--dry-run"]
    assert exit_status(interactions.main, arguments) == 0
    assert exit_status(interactions.main, [*arguments, f"--single={tmp_path}"]) == 2
    assert f"python -m jobs.evaluate --checkpoint {tmp_path}" in capsys.readouterr().err
    assert not output.exists()
