"""Adafactor: its first step by hand, its size, and a restored state that goes on bit by bit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rectrain.train import checkpoint
from rectrain.train.config import TrainConfig
from rectrain.train.step import _optimizer, factored_elements
from rectrain.train.zero import DeviceFacts

TRAIN = TrainConfig(
    optimizer="adafactor", zero_stage=0, head_learning_rate=0.1, weight_decay=0.5, max_grad_norm=0.0
)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return _optimizer(model, train=TRAIN, device=DeviceFacts("cpu", False))


def test_a_step_divides_by_rows_and_columns() -> None:
    """Shazeer and Stern, 2018, algorithm 4: V = R Cᵀ / ΣR, U = G / √V, clipped to RMS 1."""
    model = nn.Linear(3, 2, bias=False)
    nn.init.constant_(model.weight, 2.0)
    gradient = np.array([[1.0, 2.0, -4.0], [3.0, -1.0, 0.5]])
    squares = gradient**2
    second = np.outer(squares.sum(1), squares.sum(0)) / squares.sum()
    update = gradient / np.sqrt(second)
    update /= max(1.0, np.sqrt((update**2).mean()))
    expected = 2.0 * (1 - 0.1 * 0.5) - 0.1 * update  # decay beside the gradient

    model.weight.grad = torch.tensor(gradient, dtype=torch.float32)
    optimizer_of(model).step()
    np.testing.assert_allclose(model.weight.detach().numpy(), expected, rtol=1e-6)


def test_the_rate_is_the_schedule_s() -> None:
    moved = []
    for size in (1e-6, 1.0, 100.0):  # a relative rate would follow the weight's size
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, size)
        optimizer = optimizer_of(model)
        optimizer.param_groups[0] |= {"lr": 0.03, "weight_decay": 0.0}
        model.weight.grad = torch.ones(1, 1)
        optimizer.step()
        moved.append(size - model.weight.item())
    assert moved == pytest.approx([0.03] * 3, rel=1e-3)


def test_its_state_is_rows_and_columns() -> None:
    model = nn.ModuleDict({"matrix": nn.Linear(5, 7), "frozen": nn.Linear(5, 7)})
    model["frozen"].requires_grad_(False)
    model.register_parameter("stack", nn.Parameter(torch.ones(2, 3, 4)))
    assert factored_elements(model) == (5 + 7) + 7 + 2 * (3 + 4)
    optimizer = optimizer_of(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    held = [t for state in optimizer.state.values() for k, t in state.items() if "exp_avg" in k]
    assert sum(tensor.numel() for tensor in held) == factored_elements(model)


def engine_of(model: nn.Module) -> Any:
    return SimpleNamespace(
        module=model,
        optimizer=optimizer_of(model),
        device=torch.device("cpu"),
        zero_optimization_stage=lambda: 0,
    )


def update(engine: Any, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in engine.module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    engine.optimizer.step()


def test_a_restored_state_goes_on_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_world_size", lambda: 1)
    straight = engine_of(nn.Linear(4, 3))
    for step in range(3):
        update(straight, step)
    saved = [(kind, name, t.clone()) for _, kind, name, t in checkpoint._owned_tensors(straight)]
    assert {name for kind, name, _ in saved if kind == "optimizer"} == {
        "exp_avg_sq_row/weight",
        "exp_avg_sq_col/weight",
        "exp_avg_sq/bias",
    }
    resumed = engine_of(nn.Linear(4, 3))
    resumed.module.load_state_dict({name: t for kind, name, t in saved if kind == "model"})
    found: Any = SimpleNamespace(
        step=3, tensors=lambda kind: ((name, t) for k, name, t in saved if k == kind)
    )
    checkpoint.restore_optimizer(resumed, found)
    for step in range(3, 6):
        update(straight, step)
        update(resumed, step)
    for name, tensor in straight.module.state_dict().items():
        assert torch.equal(tensor, resumed.module.state_dict()[name]), name
