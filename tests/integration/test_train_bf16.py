"""bf16 on a CPU: torch computes it on any, so only its detection is replaced."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
from test_train_parity import MODEL_ROWS
from train_toy import run_group

from rectrain.train.config import TrainConfig
from rectrain.train.zero import DeviceFacts

NUM_STEPS, SAVED_AT, SEED = 12, 6, 3
STAGES = (0, 1, 2, 3)


def _model_and_batch(rank: int) -> tuple[Any, Any]:
    """The multi-task model, and this rank's rows: the same in each step, to be learned by heart."""
    from rectrain.data.batch import build_micro_batch
    from rectrain.model.config import ModelConfig
    from rectrain.model.encoder import load_encoder
    from rectrain.model.multitask import MultiTaskModel
    from rectrain.tasks import TASKS

    found = importlib.util.spec_from_file_location("model_rows", MODEL_ROWS)
    assert found and found.loader
    rows = importlib.util.module_from_spec(found)
    found.loader.exec_module(rows)
    tables = {task: rows._table(spec, 6, seed=rank) for task, spec in TASKS.items()}
    model = MultiTaskModel(
        load_encoder("tiny", vocab_size=rows._VOCAB_SIZE, dropout=0.1, seed=SEED),
        tasks=TASKS,
        features=dict.fromkeys(TASKS, rows._FEATURES),
        config=ModelConfig(encoder="tiny", dropout=0.1, sharing="mmoe"),
        balancer="uncertainty",
        seed=SEED,
    )
    return model, build_micro_batch(tables, counts=dict.fromkeys(TASKS, 12))


def _train(rank: int, stage: int, precision: Any, folder: str, *, resume: bool) -> dict[str, Any]:
    from rectrain.train import checkpoint as files
    from rectrain.train.selection import latest_complete
    from rectrain.train.step import build_engine, train_step
    from rectrain.train.storage import Store

    model, batch = _model_and_batch(rank)
    dtypes = set[torch.dtype]()
    layer = model.encoder.encoder.layer[0].intermediate.dense
    layer.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    run, saved = Store.open(f"{folder}/{stage}-{precision}"), None
    if resume:
        place = latest_complete(run)
        assert place is not None
        saved = files.open_checkpoint(place)
        files.load_weights(model, saved)
    engine = build_engine(
        model,
        train=TrainConfig(zero_stage=stage, precision=precision, stage3_persistence_threshold=0),
        hidden_size=128,
        num_accumulations=1,
        device=DeviceFacts("cpu", has_bf16=True),
    )
    if saved is not None:
        files.restore_optimizer(engine, saved)
    curve = []
    for step in range(0 if saved is None else saved.step, NUM_STEPS):
        result = train_step(
            engine, [batch], step=step, seed=SEED, learning_rate_share=1.0, tasks=model.task_names
        )
        torch.distributed.all_reduce(result.losses)
        curve.append(result.losses.tolist())
        if not resume and step + 1 == SAVED_AT:
            problem = files.save_checkpoint(engine, run, step=SAVED_AT, meta={}, attachments={})
            assert problem is None
    state = {
        f"{kind}/{name}": tensor.detach().numpy().copy()
        for _, kind, name, tensor in files._owned_tensors(engine)
    }
    return {"state": state, "curve": curve, "dtypes": dtypes}


def _all(rank: int, folder: str) -> dict[Any, Any]:
    results: dict[Any, Any] = {}
    for stage in STAGES:
        results[stage] = _train(rank, stage, "bf16", folder, resume=False)
        results[stage, "resumed"] = _train(rank, stage, "bf16", folder, resume=True)
    results["fp32"] = _train(rank, 2, "fp32", folder, resume=False)
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    return run_group(_all, str(tmp_path_factory.mktemp("bf16")), world_size=2, timeout_s=400)


@pytest.mark.parametrize("stage", STAGES)
def test_losses_fall_as_in_fp32(results: Any, stage: int) -> None:
    assert results[stage]["dtypes"] == {torch.bfloat16}
    assert results["fp32"]["dtypes"] == {torch.float32}
    found, reference = np.array(results[stage]["curve"]), np.array(results["fp32"]["curve"])
    assert (found[-3:].mean(0) < found[:3].mean(0)).all()
    np.testing.assert_allclose(found, reference, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_is_fp32_and_resumes_exactly(results: Any, stage: int) -> None:
    straight, resumed = results[stage], results[stage, "resumed"]
    assert {value.dtype for value in straight["state"].values()} == {np.dtype(np.float32)}
    assert straight["curve"][SAVED_AT:] == resumed["curve"]
    assert straight["state"].keys() == resumed["state"].keys()
    different = [
        name
        for name, value in straight["state"].items()
        if not np.array_equal(value, resumed["state"][name])
    ]
    assert not different
