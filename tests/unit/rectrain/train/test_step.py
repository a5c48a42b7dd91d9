"""Schedules, seeds and groups: the pure parts of a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from rectrain.model.balancing import UncertaintyWeights
from rectrain.model.encoder import load_encoder
from rectrain.train.config import TrainConfig
from rectrain.train.step import (
    _optimizer,
    dropout_seed,
    learning_rate_share,
    num_accumulations,
    parameter_groups,
)
from rectrain.train.zero import DeviceFacts


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.5), (1, 1.0), (2, 1.0), (6, 0.5), (9, 0.5 * (1 - 0.9238795325))],
)
def test_learning_rate_warms_up_and_falls_along_a_cosine(step: int, expected: float) -> None:
    share = learning_rate_share(step, num_steps=10, warmup_share=0.2)
    assert share == pytest.approx(expected)


def test_learning_rate_without_warm_up_begins_at_its_peak() -> None:
    assert learning_rate_share(0, num_steps=10, warmup_share=0.0) == 1.0
    assert learning_rate_share(9, num_steps=10, warmup_share=1.0) == 1.0


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("linear", [0.25, 0.5, 0.5, 0.375, 0.125]),
        ("constant", [0.25, 0.5, 0.5, 0.5, 0.5]),
        ("plateau", [0.25, 0.5, 0.5, 0.5, 0.5]),
    ],
)
def test_other_schedules_warm_up_too(schedule: Any, shares: list[float]) -> None:
    found = [
        learning_rate_share(step, num_steps=6, warmup_share=1 / 3, schedule=schedule)
        for step in (0, 1, 2, 3, 5)
    ]
    assert found == pytest.approx([2 * share for share in shares])


def test_a_plateau_lowers_the_rate_in_warm_up_and_after() -> None:
    facts: Any = {"num_steps": 6, "warmup_share": 0.5, "schedule": "plateau"}
    assert learning_rate_share(1, **facts, plateau_share=0.25) == pytest.approx(0.25 * 2 / 3)
    assert learning_rate_share(4, **facts, plateau_share=0.25) == 0.25


@pytest.mark.parametrize(("workers", "forwards"), [(1, 5), (2, 3), (4, 2), (5, 1), (8, 1)])
def test_every_worker_runs_enough_forwards(workers: int, forwards: int) -> None:
    assert num_accumulations(5, world_size=workers) == forwards


def test_dropout_seeds_differ_between_runs_steps_and_micro_batches() -> None:
    places = [(seed, step, m) for seed in range(5) for step in range(50) for m in range(5)]
    seeds = {dropout_seed(seed, step=step, micro_batch=m) for seed, step, m in places}
    assert len(seeds) == len(places)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert dropout_seed(1, step=2, micro_batch=3) == dropout_seed(1, step=2, micro_batch=3)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
        self.head = nn.Linear(2, 1)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_groups_by_rate_and_decay() -> None:
    train = TrainConfig(learning_rate=0.1, weight_decay=0.5)
    model = Model()
    names = {id(p): name for name, p in model.named_parameters()}
    groups = {
        (group["peak_lr"], group["weight_decay"]): [names[id(p)] for p in group["params"]]
        for group in parameter_groups(model, train=train)
    }
    assert groups == {
        (0.1, 0.5): ["encoder.0.weight"],
        (0.1, 0.0): ["encoder.0.bias", "encoder.1.weight", "encoder.1.bias"],
        (1.0, 0.5): ["head.weight"],
        (1.0, 0.0): ["head.bias"],
    }


def test_learned_variances_near_the_logarithm_of_the_losses_in_some_hundred_steps() -> None:
    model = nn.ModuleDict({"balancer": UncertaintyWeights([1.0, 2.0, 1.0])})
    optimizer = _optimizer(model, train=TrainConfig(), device=DeviceFacts("cpu", False))
    losses = torch.tensor([0.1, 3.0, 0.7])
    for step in range(800):
        for group in optimizer.param_groups:
            share = learning_rate_share(step, num_steps=800, warmup_share=0.1)
            group["lr"] = group["peak_lr"] * share
        optimizer.zero_grad()
        model["balancer"](losses, num_shares=1).backward()
        optimizer.step()
    variances = model["balancer"].log_variance.detach()
    torch.testing.assert_close(variances, losses.log(), rtol=0, atol=0.1)


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = load_encoder("tiny", vocab_size=30)
        self.head = nn.Linear(128, 1)


def test_lower_layers_learn_more_slowly() -> None:
    model = Towers()
    train = TrainConfig(learning_rate=0.1, head_learning_rate=0.7, layer_decay=0.5)
    rates = {p: g["peak_lr"] for g in parameter_groups(model, train=train) for p in g["params"]}
    found: dict[str, set[float]] = {}
    for name, parameter in model.named_parameters():
        part = ".".join(name.split(".")[:4]) if ".layer." in name else name.split(".")[1]
        found.setdefault(part, set()).add(rates[parameter])
    assert found == {
        "embeddings": {0.025},
        "encoder.encoder.layer.0": {0.05},
        "encoder.encoder.layer.1": {0.1},
        "weight": {0.7},
        "bias": {0.7},
    }


@pytest.mark.parametrize(
    ("decay", "expected"),
    # One step from w = 2 with gradient 1, rate 0.1, λ = 0.5. Adam's first step has length 1
    # whatever the gradient: a penalty of 0.5 × 2 inside is not seen, beside it takes 0.1 × 0.5 × 2.
    [("decoupled", 2 - 0.1 - 0.1), ("l2", 2 - 0.1)],
)
def test_weights_decay_beside_or_inside_the_gradient(decay: str, expected: float) -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    train = TrainConfig(head_learning_rate=0.1, weight_decay=0.5, decay=decay)
    optimizer = _optimizer(model, train=train, device=DeviceFacts("cpu", False))
    model.weight.grad = torch.ones(1, 1)
    optimizer.step()
    assert model.weight.item() == pytest.approx(expected, abs=1e-6)


def test_an_l2_penalty_is_part_of_the_moments() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    train = TrainConfig(head_learning_rate=0.1, weight_decay=0.5, decay="l2")
    optimizer = _optimizer(model, train=train, device=DeviceFacts("cpu", False))
    model.weight.grad = torch.ones(1, 1)
    optimizer.step()
    moments = optimizer.state[model.weight]
    assert moments["exp_avg"].item() == pytest.approx(0.1 * (1 + 0.5 * 2))
    assert moments["exp_avg_sq"].item() == pytest.approx(0.001 * (1 + 0.5 * 2) ** 2)
