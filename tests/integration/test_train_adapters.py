"""Adapters under ZeRO: alike on any number of workers, exact after a restore, merged on loading."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from train_toy import run_group

from rectrain.train.config import TrainConfig

NUM_STEPS, SAVED_AT, NUM_MICRO_BATCHES, SEED = 12, 5, 2, 3
CASES = [("lora", 0), ("lora", 1), ("lora", 2), ("lora", 3), ("adalora", 0)]
MODEL_ROWS = Path(__file__).parents[1] / "model_toy.py"
Weights = dict[str, NDArray[np.float32]]


def _rows() -> Any:
    found = importlib.util.spec_from_file_location("model_rows", MODEL_ROWS)
    assert found and found.loader
    made = importlib.util.module_from_spec(found)
    found.loader.exec_module(made)
    return made


def _model(kind: Any, *, seed: int) -> Any:
    from rectrain.model.adapters import add_adapters
    from rectrain.model.config import ModelConfig
    from rectrain.model.encoder import load_encoder
    from rectrain.model.multitask import MultiTaskModel
    from rectrain.tasks import TASKS

    rows = _rows()
    model = MultiTaskModel(
        load_encoder("tiny", vocab_size=rows._VOCAB_SIZE, dropout=0.1, seed=seed),
        tasks=TASKS,
        features=dict.fromkeys(TASKS, rows._FEATURES),
        config=ModelConfig(encoder="tiny", dropout=0.1),
        seed=seed,
    )
    model.rank_budget = add_adapters(
        model.encoder,
        kind=kind,
        rank=3,
        alpha=6.0,
        dropout=0.1,
        targets=("query", "value", "dense"),
        seed=seed,
        num_steps=NUM_STEPS,
    )
    return model


def _batch(step: int, place: int) -> Any:
    from rectrain.data.batch import build_micro_batch
    from rectrain.tasks import TASKS

    rows = _rows()
    sizes = [{t: 3 * ((m + n) % 3) for n, t in enumerate(TASKS)} for m in range(NUM_MICRO_BATCHES)]
    counts = {task: max(1, sum(size[task] for size in sizes)) for task in TASKS}
    tables = {
        task: rows._table(spec, sizes[place][task], seed=100 * step + 10 * place + number)
        for number, (task, spec) in enumerate(TASKS.items())
    }
    return build_micro_batch(tables, counts=counts)


def train(rank: int, kind: str, stage: int, folder: str, *, resume: bool = False) -> Weights:
    """Trains to the end; saves a checkpoint on the way, or begins from it."""
    from rectrain.tasks import TASKS
    from rectrain.train.checkpoint import (
        _owned_tensors,
        load_weights,
        open_checkpoint,
        restore_optimizer,
        save_checkpoint,
    )
    from rectrain.train.selection import latest_complete
    from rectrain.train.step import build_engine, num_accumulations, train_step
    from rectrain.train.storage import Store

    settings = TrainConfig(
        zero_stage=stage,
        adapter=kind,
        learning_rate=1e-3,
        head_learning_rate=1e-3,
        stage3_persistence_threshold=0,
    )
    world_size = torch.distributed.get_world_size()
    places = num_accumulations(NUM_MICRO_BATCHES, world_size=world_size)
    run = Store.open(folder)
    model, checkpoint = _model(kind, seed=SEED + 10 * resume), None
    if resume:
        found = latest_complete(run)
        assert found is not None
        checkpoint = open_checkpoint(found)
        load_weights(model, checkpoint)
    engine = build_engine(model, train=settings, hidden_size=128, num_accumulations=places)
    if checkpoint is not None:
        restore_optimizer(engine, checkpoint)
    for step in range(0 if checkpoint is None else checkpoint.step, NUM_STEPS):
        batches = [_batch(step, a * world_size + rank) for a in range(places)]
        train_step(engine, batches, step=step, seed=5, learning_rate_share=1.0, tasks=list(TASKS))
        if not resume and step + 1 == SAVED_AT:
            assert save_checkpoint(engine, run, step=SAVED_AT, meta={}, attachments={}) is None
    return {
        f"{kind}/{name}": t.detach().numpy().copy() for _, kind, name, t in _owned_tensors(engine)
    }


def _lives(rank: int, folder: str) -> dict[Any, tuple[Weights, Weights]]:
    """Case -> (uninterrupted, saved and resumed)."""
    results = {}
    for kind, stage in CASES:
        place = f"{folder}/{kind}-{stage}"
        straight = train(rank, kind, stage, place)
        results[kind, stage] = (straight, train(rank, kind, stage, place, resume=True))
    return results


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """By number of workers."""
    folder = tmp_path_factory.mktemp("adapters")
    return {n: run_group(_lives, f"{folder}/{n}", world_size=n, timeout_s=400) for n in (1, 2)}


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_resuming_is_bit_equal(lives: Any, case: Any, world_size: int) -> None:
    straight, resumed = lives[world_size][case]
    assert straight.keys() == resumed.keys()
    assert not [name for name in straight if not np.array_equal(straight[name], resumed[name])]


@pytest.mark.parametrize("case", CASES)
def test_two_workers_equal_one(lives: Any, case: Any) -> None:
    one, two = (lives[n][case][0] for n in (1, 2))
    for name, tensor in one.items():
        if name.startswith("model/"):
            gap = np.linalg.norm(two[name] - tensor) / max(np.linalg.norm(tensor), 1e-12)
            assert gap <= 1e-5, f"{name}: relative L2 {gap:.2e}"


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_stages_agree(lives: Any, stage: int) -> None:
    whole, split = (lives[1]["lora", n][0] for n in (0, stage))
    for name, tensor in whole.items():
        if name.startswith("model/"):
            gap = np.linalg.norm(split[name] - tensor) / max(np.linalg.norm(tensor), 1e-12)
            assert gap <= 1e-5, f"{name}: relative L2 {gap:.2e}"


@pytest.mark.parametrize("case", CASES)
def test_the_encoder_stays_and_its_adapters_move(lives: Any, case: Any) -> None:
    before = {f"model/{n}": t.numpy() for n, t in _model(case[0], seed=SEED).state_dict().items()}
    after = lives[2][case][0]
    moved = {name for name, value in before.items() if not np.array_equal(value, after[name])}
    frozen = {name for name in before if name.startswith("model/encoder.") and "lora_" not in name}
    assert not moved & frozen
    assert {name for name in before if "lora_" in name and "encoder." in name} <= moved
    assert not [n for n in after if n.startswith("optimizer/") and n.endswith("base_layer.weight")]


def test_ranks_are_left_out(lives: Any) -> None:
    after = lives[2]["adalora", 0][0]
    values = [value for name, value in after.items() if name.endswith("lora_E.default")
              and name.startswith("model/")]  # fmt: skip
    assert sum(int(np.count_nonzero(value)) for value in values) == 3 * len(values)
    assert sum(value.size for value in values) == 5 * len(values)
