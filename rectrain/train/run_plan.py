"""Which rows a run trains on, in which steps, and where it ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from rectrain.data.loader import plan_training
from rectrain.data.plan import Plan
from rectrain.data.shards import Prepared, Shards
from rectrain.train.config import RunConfig

__all__ = ["RunPlan", "plan_run", "with_micro_batch"]

Run = TypeVar("Run", bound=RunConfig)


@dataclass(frozen=True)
class RunPlan:
    """The training rows, which of them each step takes, and where the run ends."""

    shards: Mapping[str, Shards]
    plan: Plan
    num_steps: int


def plan_run(config: RunConfig, data: Mapping[str, Prepared]) -> RunPlan:
    """Plans a run over the training splits."""
    train = config.train
    shards = {task: prepared.shards(task, "train") for task, prepared in data.items()}
    plan = plan_training(
        shards, config=config.data, seed=config.seed, num_micro_batches=train.micro_batches
    )
    epoch = max(plan.num_slots(task) for task in data)
    slots = (train.num_epochs or 1.0) * epoch
    num_steps = train.num_steps or max(1, round(slots / train.micro_batches))
    return RunPlan(shards, plan, num_steps)


def with_micro_batch(config: Run, tokens: int) -> Run:
    """The same run with another `data.tokens_per_micro_batch`."""
    data = config.data.model_copy(update={"tokens_per_micro_batch": tokens})
    return config.model_copy(update={"data": data})
