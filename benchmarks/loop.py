"""One worker of a measured run: our loop on a DeepSpeed engine, or on torch's DDP.

    torchrun --standalone --nproc-per-node=2 -m benchmarks.loop RUN.json

RUN.json holds a `Run`; rank 0 writes a `Measurement` to its `output`.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rectrain.data.batch import MicroBatch
from rectrain.data.loader import Loader, plan_training
from rectrain.data.plan import Plan
from rectrain.data.shards import Prepared, Shards
from rectrain.train.build import new_model, open_data
from rectrain.train.config import RunConfig, TrainConfig
from rectrain.train.process import set_up_process
from rectrain.train.step import (
    Engine,
    build_engine,
    join_deepspeed,
    model_facts,
    parameter_groups,
    train_step,
)
from rectrain.train.zero import state_bytes

__all__ = ["TIMEOUT_S", "Measurement", "Run", "measure", "run_config", "training_rows"]

Variant = Literal[
    "zero1", "zero2", "zero3", "ddp", "trainer_padded", "trainer_grouped", "ray",
    "full", "lora", "adalora",
]  # fmt: skip

TIMEOUT_S = 300.0
_STAGES = {"zero1": 1, "zero3": 3, "full": 0, "lora": 0, "adalora": 0}
_PLANNED_STEPS = 1000  # of the whole run, by which AdaLoRA times its phases


@dataclass(frozen=True)
class Run:
    """What is measured; the same for all variants but `variant` and `output`.

    Attributes:
        variant: which loop.
        data: the prepared directories.
        output: where the measurement goes.
        encoder: as `ModelConfig.encoder`.
        tokens_per_micro_batch: real tokens of one micro-batch.
        first_step: step of the plan to start at.
        num_warmup: steps before the clock starts, at least 1.
        num_steps: steps under the clock.
        world_size: processes, and micro-batches of a step.
    """

    variant: Variant
    data: tuple[str, ...]
    output: str
    encoder: str
    tokens_per_micro_batch: int
    first_step: int
    num_warmup: int
    num_steps: int
    world_size: int = 2

    @classmethod
    def read(cls, path: str) -> Run:
        """The run that a file holds."""
        stored = json.loads(Path(path).read_text())
        return cls(**stored | {"data": tuple(stored["data"])})

    def keep(self, measurement: Measurement) -> None:
        """Writes the measurement to `output`; only rank 0 calls it."""
        Path(self.output).write_text(json.dumps(asdict(measurement)))


@dataclass(frozen=True)
class Measurement:
    """What one run gave.

    Attributes:
        tokens_per_s: real tokens of all ranks' rows, repeats counted, over wall time.
        state_bytes: bytes of rank 0's weights, gradients and optimizer state when gradients are
            complete; 0 where not measured.
        derived_bytes: the same by `state_bytes`, and the weights that don't train.
        peak_bytes: the most memory that rank 0 had resident; 0 where not measured.
    """

    tokens_per_s: float
    state_bytes: int = 0
    derived_bytes: int = 0
    peak_bytes: int = 0


def run_config(run: Run) -> RunConfig:
    """The settings of a run, defaults where a benchmark has nothing to say.

    No negatives are drawn: Trainer's batches have none, and both sides train the same model.
    """
    return RunConfig.model_validate(
        {
            "data": {
                "paths": run.data,
                "tokens_per_micro_batch": run.tokens_per_micro_batch,
                "num_negatives": 0,
            },
            "model": {"encoder": run.encoder},
            "train": {
                "num_workers": run.world_size,
                "num_steps": _PLANNED_STEPS,
                "zero_stage": _STAGES.get(run.variant, 2),
                "adapter": run.variant if run.variant in ("lora", "adalora") else "none",
            },
        }
    )


def training_rows(run: Run, data: Mapping[str, Prepared]) -> tuple[dict[str, Shards], Plan]:
    """The training rows of each task and the plan of their order."""
    shards = {task: prepared.shards(task, "train") for task, prepared in data.items()}
    config = run_config(run)
    plan = plan_training(
        shards, config=config.data, seed=config.seed, num_micro_batches=run.world_size
    )
    return shards, plan


def measure(run: Run, *, on_step: Callable[[int, float], None] | None = None) -> Measurement:
    """Trains `num_warmup` + `num_steps` steps in the current process group.

    Args:
        run: a variant of ours ("zero…", "ray") or "ddp".
        on_step: called after every step with its number and this rank's loss.
    """
    set_up_process(num_threads=1)
    config = run_config(run)
    data = open_data(config)
    shards, plan = training_rows(run, data)
    model = new_model(config, data)
    facts = model_facts(model, hidden_size=model.encoder.config.hidden_size)
    engine: Engine = (
        _DdpEngine(model, train=config.train)
        if run.variant == "ddp"
        else build_engine(
            model, train=config.train, hidden_size=facts.hidden_size, num_accumulations=1
        )
    )
    engine.train()
    clock = _Clock(run.num_warmup)
    last = run.first_step + run.num_warmup + run.num_steps
    with Loader(
        shards,
        plan=plan,
        rank=dist.get_rank(),
        world_size=run.world_size,
        start_step=run.first_step,
        num_steps=last + 1,
    ) as loader:
        for step, batches in loader:
            if step == last:
                break
            result = train_step(
                engine, batches, step=step, seed=0, learning_rate_share=1.0, tasks=plan.tasks
            )
            if on_step is not None:
                on_step(step, float(result.losses.sum()))
            clock.tick(result.num_tokens)
    tokens_per_s = clock.tokens_per_s()
    if run.variant == "ddp":
        return Measurement(tokens_per_s)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10  # Linux counts in KiB
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    held = _state_bytes(engine, batches[0])
    derived = state_bytes(
        facts.num_parameters,
        zero_stage=engine.zero_optimization_stage(),
        world_size=run.world_size,
    )
    return Measurement(tokens_per_s, held, sum(derived.values()) + 4 * frozen, peak)


class _Clock:
    """Real tokens over wall time after warm-up."""

    def __init__(self, num_warmup: int) -> None:
        self._left = num_warmup
        self._tokens = 0
        self._start = self._now = 0.0

    def tick(self, num_tokens: int) -> None:
        """Ends a step of this rank; updates join the ranks, so their clocks agree."""
        self._now = time.perf_counter()
        if self._left > 0:
            self._left -= 1
            self._start = self._now
        else:
            self._tokens += num_tokens

    def tokens_per_s(self) -> float:
        """Of all ranks; a collective."""
        total = torch.tensor(float(self._tokens), dtype=torch.float64)
        dist.all_reduce(total)
        return total.item() / (self._now - self._start)


class _DdpEngine:
    """torch's DDP in the shape of a DeepSpeed engine, so that both run one loop."""

    def __init__(self, model: nn.Module, *, train: TrainConfig) -> None:
        self.module = model
        self._replica = nn.parallel.DistributedDataParallel(
            model, gradient_as_bucket_view=True, forward_sync_buffers=False
        )
        self.optimizer: Any = torch.optim.AdamW(parameter_groups(model, train=train), fused=True)
        self.device = torch.device("cpu")
        self._max_grad_norm = train.max_grad_norm

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._replica(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        nn.utils.clip_grad_norm_(self.module.parameters(), self._max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def train(self, mode: bool = True) -> Any:
        return self._replica.train(mode)

    def eval(self) -> Any:
        return self._replica.eval()

    def get_global_grad_norm(self) -> None:
        return None

    def zero_optimization_stage(self) -> int:
        return 0


def _state_bytes(engine: Engine, batch: MicroBatch) -> int:
    """Bytes of all tensors that live between the gradients' end and the update.

    Stage 1 holds every gradient until the backward pass ends, so there the look is at its last
    gradient, the embedding's. Nothing is left out but the batch and communication buckets.
    """
    looks: list[int] = []

    def look(_: Tensor | None = None) -> None:
        looks.append(_live_bytes([*_tensors_of(batch), *_buckets(engine)]))

    trained = [parameter for parameter in engine.module.parameters() if parameter.requires_grad]
    embedding = max(trained, key=lambda parameter: parameter.numel())
    hook = embedding.register_post_accumulate_grad_hook(look)
    num_shares = dist.get_world_size()
    loss, _ = engine(batch, scale=float(num_shares), num_shares=num_shares)
    engine.backward(loss)
    hook.remove()
    del loss
    look()
    engine.step()
    return looks[0] if engine.zero_optimization_stage() == 1 else looks[-1]


def _buckets(engine: Engine) -> list[Tensor]:
    """DeepSpeed's buffers for collectives: one, or a list of them, a data type; none at stage 0."""
    if engine.zero_optimization_stage() == 0:
        return []
    buffers = [bucket.buffer for bucket in engine.optimizer.ipg_buckets.values()]
    return [
        buffer
        for held in buffers
        for buffer in (held if isinstance(held, list) else [held])
        if isinstance(buffer, Tensor)
    ]


def _live_bytes(left_out: list[Tensor]) -> int:
    """Bytes of all tensors that Python can reach, each storage once."""
    gc.collect()
    storages = {}
    for tensor in [found for found in gc.get_objects() if isinstance(found, Tensor)]:
        for part in (tensor, tensor.grad if tensor.is_leaf else None):
            if part is not None and part.layout == torch.strided:
                storage = part.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    for tensor in left_out:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def _tensors_of(batch: MicroBatch) -> list[Tensor]:
    tensors = [batch.texts.input_ids, batch.texts.lengths]
    for slot in batch.slots:
        tensors += [slot.query.index, slot.query.offsets, slot.item.index, slot.item.offsets]
        tensors += [slot.numeric, slot.categorical, *slot.vectors.values(), slot.label]
        tensors += [slot.weight, slot.list_offsets, slot.group_key, slot.item_key, slot.log_q]
    return tensors


def _main(path: str) -> None:
    run = Run.read(path)
    dist.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT_S))
    if run.variant != "ddp":
        join_deepspeed(timeout_s=TIMEOUT_S)
    measurement = measure(run)
    if dist.get_rank() == 0:
        run.keep(measurement)
    dist.destroy_process_group()


if __name__ == "__main__":
    _main(sys.argv[1])
