"""A restored run goes on as if nothing had happened, also at another stage or world size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from train_toy import TASKS, ToyModel, run_group, toy_micro_batch

from rectrain.train.config import TrainConfig

NUM_STEPS, SAVED_AT, NUM_MICRO_BATCHES = 10, 4, 2
STAGES = (0, 1, 2, 3)
# By the stage that saves; resumed at the next one. Both have a state of their own.
BALANCERS = ("uncertainty", "dwa", "uncertainty", "dwa")
# Of optimizers other than AdamW: what they are, at a stage that has them.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adafactor": {"stage": 0, "more": {"optimizer": "adafactor"}},
    "l2": {"stage": 2, "more": {"decay": "l2"}},
    "l2 in pieces": {"stage": 3, "more": {"decay": "l2"}},
}
Weights = dict[str, NDArray[np.float32]]


def _train(
    rank: int,
    *,
    stage: int,
    balancer: str,
    folder: str,
    resume: bool = False,
    save: bool = False,
    more: dict[str, Any] | None = None,
) -> Weights:
    """Trains to the end, with dropout; saves a checkpoint on the way, or begins from it."""
    from rectrain.train.checkpoint import (
        _owned_tensors,
        load_weights,
        open_checkpoint,
        restore_optimizer,
        save_checkpoint,
    )
    from rectrain.train.selection import latest_complete
    from rectrain.train.step import (
        build_engine,
        learning_rate_share,
        num_accumulations,
        train_step,
    )
    from rectrain.train.storage import Store

    train = TrainConfig(
        zero_stage=stage, learning_rate=3e-3, stage3_persistence_threshold=0, **(more or {})
    )
    world_size = torch.distributed.get_world_size()
    places = num_accumulations(NUM_MICRO_BATCHES, world_size=world_size)
    run = Store.open(folder)
    torch.manual_seed(7 if not resume else 99 + rank)  # what is resumed must not matter
    model = ToyModel(dropout=0.3, balancer=balancer)
    checkpoint = None
    if resume:
        found = latest_complete(run)
        assert found is not None
        checkpoint = open_checkpoint(found)
        load_weights(model, checkpoint)
    engine = build_engine(model, train=train, hidden_size=37, num_accumulations=places)
    if checkpoint is not None:
        restore_optimizer(engine, checkpoint)
    for step in range(0 if checkpoint is None else checkpoint.step, NUM_STEPS):
        batches = [
            toy_micro_batch(step, a * world_size + rank, num_micro_batches=NUM_MICRO_BATCHES)
            for a in range(places)
        ]
        share = learning_rate_share(step, num_steps=NUM_STEPS, warmup_share=0.2)
        train_step(engine, batches, step=step, seed=5, learning_rate_share=share, tasks=TASKS)
        if save and step + 1 == SAVED_AT:
            problem = save_checkpoint(engine, run, step=SAVED_AT, meta={}, attachments={})
            assert problem is None
    return {
        f"{kind}/{name}": t.detach().numpy().copy() for _, kind, name, t in _owned_tensors(engine)
    }


def _first_life(rank: int, folder: str) -> dict[Any, tuple[Weights, Weights]]:
    """Stage or optimizer -> (uninterrupted, saved and resumed at the same stage and world size)."""
    results: dict[Any, tuple[Weights, Weights]] = {}
    for name, settings in OPTIMIZERS.items():
        own: Any = settings | {"balancer": "static", "folder": f"{folder}/{name}"}
        results[name] = (_train(rank, **own, save=True), _train(rank, **own, resume=True))
    for stage in STAGES:
        same: Any = {"stage": stage, "balancer": BALANCERS[stage], "folder": f"{folder}/{stage}"}
        straight = _train(rank, **same, save=True)
        results[stage] = (straight, _train(rank, **same, resume=True))
    return results


def _second_life(rank: int, folder: str) -> dict[int, Weights]:
    """Stage of the checkpoint -> resumed at the next stage."""
    return {
        stage: _train(
            rank,
            stage=(stage + 1) % 4,
            balancer=BALANCERS[stage],
            folder=f"{folder}/{stage}",
            resume=True,
        )
        for stage in STAGES
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("restore")


@pytest.fixture(scope="module")
def same_size(folder: Path) -> dict[int, Any]:
    return {size: run_group(_first_life, f"{folder}/{size}", world_size=size) for size in (1, 2)}


@pytest.fixture(scope="module")
def other_size(folder: Path, same_size: Any) -> dict[int, Any]:
    """World size of the checkpoint -> resumed with the other one."""
    return {
        size: run_group(_second_life, f"{folder}/{size}", world_size=3 - size) for size in (1, 2)
    }


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("stage", [*STAGES, *OPTIMIZERS])
def test_resuming_is_bit_equal(same_size: Any, stage: Any, world_size: int) -> None:
    straight, resumed = same_size[world_size][stage]
    assert straight.keys() == resumed.keys()
    different = [name for name in straight if not np.array_equal(straight[name], resumed[name])]
    assert not different


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_stage_and_world_size_may_change(
    same_size: Any, other_size: Any, stage: int, world_size: int
) -> None:
    straight, resumed = same_size[world_size][stage][0], other_size[world_size][stage]
    for name, tensor in straight.items():
        gap = np.linalg.norm(resumed[name] - tensor) / max(np.linalg.norm(tensor), 1e-12)
        assert gap <= 1e-5, f"{name}: relative L2 {gap:.2e}"
