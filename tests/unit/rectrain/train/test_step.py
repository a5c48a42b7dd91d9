"""Schedules, seeds and groups: the pure parts of a step."""

from __future__ import annotations

import pytest
from torch import nn

from rectrain.train.config import TrainConfig
from rectrain.train.step import (
    dropout_seed,
    learning_rate_share,
    num_accumulations,
    parameter_groups,
)


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
