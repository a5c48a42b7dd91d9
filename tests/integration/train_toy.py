"""A tiny multi-task model with the real one's forward, and a way to run functions in a group."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.multiprocessing
from torch import Tensor, nn

from rectrain.model.balancing import DynamicWeightAverage, build_balancer

TASKS = ("click", "rank", "absent")  # no row of `absent` ever comes: its head stays unused


@dataclass(frozen=True)
class ToySlot:
    features: Tensor
    label: Tensor
    count: float


@dataclass(frozen=True)
class ToyBatch:
    slots: tuple[ToySlot, ...]
    num_tokens: int

    def to(self, device: torch.device) -> ToyBatch:
        return replace(
            self,
            slots=tuple(
                replace(s, features=s.features.to(device), label=s.label.to(device))
                for s in self.slots
            ),
        )


class ToyModel(nn.Module):
    """Embedding, two blocks, one head a task; 37 and 13 divide by no number of workers."""

    def __init__(self, *, balancer: str = "static", dropout: float = 0.0, hidden: int = 37) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(13, hidden),
            nn.LayerNorm(hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.LayerNorm(hidden),
        )
        self.rank_budget = None
        self.heads = nn.ModuleDict({task: nn.Linear(hidden, 1) for task in TASKS})
        self.balancer = (
            DynamicWeightAverage([1.0, 2.0, 1.0], window=3)
            if balancer == "dwa"
            else build_balancer(balancer, tasks=TASKS, weights={"rank": 2.0})  # type: ignore[arg-type]
        )

    def shared_parameters(self, place: str) -> list[nn.Parameter]:
        return list(self.encoder[4 if place == "last_layer" else 0 :].parameters())

    def forward(
        self,
        batch: ToyBatch,
        *,
        scale: float = 1.0,
        num_shares: int = 1,
        balance: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        rows = torch.cat([slot.features for slot in batch.slots] + [torch.zeros(1, 13)])
        hidden = self.encoder(rows)
        parts, start = {}, 0
        views = self.balancer.split(hidden)
        for task, slot, view in zip(TASKS, batch.slots, views, strict=True):
            end = start + len(slot.label)
            logits = self.heads[task](torch.cat([view[start:end], view[-1:] * 0.0])).squeeze(-1)
            start = end
            sum_ = nn.functional.binary_cross_entropy_with_logits(
                logits[:-1], slot.label, reduction="sum"
            )
            parts[task] = sum_ / slot.count + 0.0 * logits[-1]
        losses = torch.stack(list(parts.values()))
        loss = self.balancer(losses, num_shares=num_shares) if balance is None else balance(losses)
        total = loss * scale + hidden[-1].sum() * 0.0
        return total, {task: part.detach() for task, part in parts.items()}


def toy_micro_batch(step: int, micro_batch: int, *, num_micro_batches: int) -> ToyBatch:
    """Micro-batch m of a step: a pure function of its numbers; ragged, and some slots empty."""
    sizes = [[(step + m + t) % 3 * 2 for t in range(2)] + [0] for m in range(num_micro_batches)]
    counts = [max(1, sum(size[t] for size in sizes)) for t in range(3)]
    if micro_batch >= num_micro_batches:
        return ToyBatch(
            tuple(ToySlot(torch.zeros(0, 13), torch.zeros(0), counts[t]) for t in range(3)), 0
        )
    generator = torch.Generator().manual_seed(1000 * step + micro_batch)
    slots = []
    for t, size in enumerate(sizes[micro_batch]):
        features = torch.randn(size, 13, generator=generator)
        label = (features[:, t] + 0.3 * torch.randn(size, generator=generator) > 0).float()
        slots.append(ToySlot(features, label, counts[t]))
    return ToyBatch(tuple(slots), sum(sizes[micro_batch]))


def run_group(
    function: Callable[..., Any], *args: Any, world_size: int, timeout_s: float = 150
) -> Any:
    """Runs function(rank, *args) in a gloo group of processes; returns what rank 0 returns.

    Return arrays, not tensors: a tensor would be shared with a process that has ended.
    """
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        context.Process(target=_member, args=(results, function, rank, world_size, port, args))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    kind = "none"
    try:
        kind, value = results.get(timeout=timeout_s)
        if kind == "error":
            raise AssertionError(value)
        return value
    finally:
        for process in processes:
            process.join(timeout=30 if kind == "ok" else 1)
            if process.is_alive():
                process.kill()


def _member(
    results: Any,
    function: Callable[..., Any],
    rank: int,
    world_size: int,
    port: int,
    args: tuple[Any, ...],
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    try:
        torch.distributed.init_process_group("gloo")
        from rectrain.train.step import join_deepspeed

        join_deepspeed(timeout_s=60)
        value = function(rank, *args)
        if rank == 0:
            results.put(("ok", value))
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    except BaseException:
        results.put(("error", f"rank {rank}: {traceback.format_exc()}"))
        raise
