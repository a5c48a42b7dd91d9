"""Engine and optimizer step, apart from Ray: works in any torch process group.

N workers, A forwards of one worker in a step, M micro-batches of a step (M <= N × A), K tasks.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.optimization import Adafactor

from rectrain.model.config import GradientPlace
from rectrain.model.elastic import SuperNetwork
from rectrain.train.balance import Balance, balance_of_step, observe_step
from rectrain.train.config import Schedule, TrainConfig
from rectrain.train.zero import DeviceFacts, ModelFacts, device_facts, zero_config

__all__ = [
    "Engine",
    "StepResult",
    "build_engine",
    "dropout_seed",
    "factored_elements",
    "gradient_norm",
    "join_deepspeed",
    "learning_rate_share",
    "model_facts",
    "num_accumulations",
    "parameter_groups",
    "train_step",
    "worker_device",
]


class Engine(Protocol):
    """What the loop uses of a DeepSpeed engine."""

    module: nn.Module
    optimizer: Any
    device: torch.device

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
    def backward(self, loss: Tensor) -> Any: ...
    def step(self) -> None: ...
    def train(self, mode: bool = True) -> Any: ...
    def eval(self) -> Any: ...
    def get_global_grad_norm(self) -> Any: ...
    def zero_optimization_stage(self) -> int: ...


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one worker saw of a step.

    Attributes:
        losses: float32 [K], this worker's part of each task's loss; the sum over workers is the
            task's mean loss of the step.
        num_tokens: real tokens of this worker's micro-batches.
        weights: float32 [K], what the balancer multiplied each task's loss by.
    """

    losses: Tensor
    num_tokens: int
    weights: Tensor


def num_accumulations(num_micro_batches: int, *, world_size: int) -> int:
    """A = ceil(M / N), the forwards of each worker in a step."""
    return -(-num_micro_batches // world_size)


def learning_rate_share(
    step: int,
    *,
    num_steps: int,
    warmup_share: float,
    schedule: Schedule = "cosine",
    plateau_share: float = 1.0,
) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then what the schedule says.

    A pure function of its arguments, so resuming needs no scheduler's state.

    Args:
        step: updates already made, 0 to num_steps - 1.
        num_steps: updates of the whole run.
        warmup_share: share of num_steps in warm-up, 0 to 1.
        schedule: half a cosine to zero, a line to zero, or constant.
        plateau_share: what validation has left of the constant share (plateau).
    """
    warmup = round(num_steps * warmup_share)
    if step < warmup:
        return (step + 1) / warmup * plateau_share
    done = (step - warmup) / max(1, num_steps - warmup)
    match schedule:
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        case "linear":
            return 1.0 - done
        case "constant" | "plateau":
            return plateau_share


def dropout_seed(seed: int, *, step: int, micro_batch: int) -> int:
    """Seed of the random numbers of one forward, 0 to 2**63 - 1.

    It depends on the micro-batch's number and not on the rank: dropout is the same at every world
    size, and a checkpoint needs no state of a random generator.
    """
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + micro_batch) & (2**64 - 1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64
        mixed = ((mixed ^ (mixed >> shift)) * factor) & (2**64 - 1)
    return (mixed ^ (mixed >> 31)) & (2**63 - 1)


def parameter_groups(model: nn.Module, *, train: TrainConfig) -> list[dict[str, Any]]:
    """Parameters by learning rate and weight decay.

    Of an encoder with L layers, layer l = 1 to L has encoder_rate × layer_decay^(L - l), the
    embeddings as l = 0 (layer-wise decay: Clark et al., 2020, ELECTRA, appendix A; the idea is
    Howard and Ruder's, 2018, section 3.2). Biases, LayerNorm and other parameters of fewer than two
    dimensions are not decayed. The balancer's log-variances have a rate of their own.
    """
    layers = {name: _layer_number(name) for name, _ in model.named_parameters()}
    num_layers = max(layers.values(), default=0)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = num_layers - layers[name] if _LAYER.match(name) else 0
        in_encoder = name.startswith("encoder.")
        rate = train.encoder_rate * train.layer_decay**depth if in_encoder else train.head_rate
        if name.startswith("balancer."):
            rate = _BALANCER_RATE
        decay = train.weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "peak_lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


# Adam moves a number by about its rate at a step, and a log-variance must come from 0 to log L: at
# this rate, under half a cosine, by 1 in two hundred steps. Rates of weights would take thousands.
_BALANCER_RATE = 0.01
_LAYER = re.compile(r"encoder\.(?:embeddings\.|encoder\.layer\.(\d+)\.)")


def _layer_number(name: str) -> int:
    """1 to L in the encoder's layers; 0 for the embeddings and all that is no layer."""
    found = _LAYER.match(name)
    return int(found[1]) + 1 if found and found[1] else 0


def model_facts(model: nn.Module, *, hidden_size: int) -> ModelFacts:
    """Sizes of what trains of a model that is not yet split."""
    sizes = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    return ModelFacts(sum(sizes), max(sizes), hidden_size)


def factored_elements(model: nn.Module) -> int:
    """Numbers that Adafactor holds: a matrix's rows and columns, all of a vector."""
    shapes = [parameter.shape for parameter in model.parameters() if parameter.requires_grad]
    return sum(
        shape.numel() // shape[-1] + shape.numel() // shape[-2]
        if len(shape) >= 2
        else shape.numel()
        for shape in shapes
    )


def join_deepspeed(*, timeout_s: float) -> None:
    """Lets DeepSpeed use this process's torch process group.

    The shared-memory op is left out: only tensor-parallel inference uses it, and it would be
    compiled at the first start.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend=torch.distributed.get_backend(), timeout=timedelta(seconds=timeout_s)
    )


def worker_device() -> torch.device:
    """The device that DeepSpeed trains on in this process (see `join_deepspeed`)."""
    from deepspeed.accelerator import get_accelerator

    return torch.device(get_accelerator().current_device_name())


def build_engine(
    model: nn.Module,
    *,
    train: TrainConfig,
    hidden_size: int,
    num_accumulations: int,
    device: DeviceFacts | None = None,
) -> Engine:
    """Wraps a model in training mode, in the current process group (see `join_deepspeed`).

    Args:
        model: weights alike on all ranks; forward(batch, scale=…, num_shares=…) gives
            (loss, {task: loss part}).
        train: settings.
        hidden_size: of the encoder, for ZeRO-3's thresholds.
        num_accumulations: forwards of one worker in a step, A.
        device: facts of the device; looked up by default.

    Raises:
        ConfigError: bf16 where the hardware has none.
    """
    import deepspeed

    device = device or device_facts()
    config = zero_config(
        train,
        world_size=torch.distributed.get_world_size(),
        device=device,
        model=model_facts(model, hidden_size=hidden_size),
        num_accumulations=num_accumulations,
    )
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=_optimizer(model, train=train, device=device),
        config=config,
        dist_init_required=False,
    )
    if device.backend == "gloo":
        _gather_in_pieces(train.zero_stage < 3)
    if train.zero_stage == 0:
        _keep_gradient_norm(engine)
    engine.train()  # pretrained encoders come in evaluation mode
    return engine  # type: ignore[no-any-return]


def _gather_in_pieces(wanted: bool) -> None:
    """Whether ZeRO-1/2 gather updated weights in pieces of `allgather_bucket_size`.

    DeepSpeed heeds that setting only where the backend has no gather into one tensor; gloo has one,
    and is slow at large ones. ZeRO-3 needs it.
    """
    import deepspeed.comm.comm

    deepspeed.comm.comm.cdb.has_all_gather_into_tensor = lambda: not wanted


def _keep_gradient_norm(engine: Any) -> None:
    """Stage 0 computes the norm to clip by it, and forgets it; the other stages keep it."""
    from deepspeed.runtime.utils import clip_grad_norm_

    def clip() -> None:
        engine._global_grad_norm = clip_grad_norm_(
            engine.module.parameters(), max_norm=engine.gradient_clipping(), mpu=engine.mpu
        )

    engine.clip_fp32_gradients = clip


def _optimizer(
    model: nn.Module, *, train: TrainConfig, device: DeviceFacts
) -> torch.optim.Optimizer:
    groups = parameter_groups(model, train=train)
    if train.optimizer == "adafactor":
        # The rates stay the schedule's, as AdamW's: not relative to a weight's size or the step.
        return Adafactor(  # type: ignore[no-untyped-call]
            groups, scale_parameter=False, relative_step=False
        )
    if train.offload != "none" and device.kind == "cuda":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        decoupled = train.decay == "decoupled"
        return DeepSpeedCPUAdam(groups, adamw_mode=decoupled)  # type: ignore[no-any-return]
    adam = torch.optim.AdamW if train.decay == "decoupled" else torch.optim.Adam
    return adam(groups, fused=True)


def train_step(
    engine: Engine,
    micro_batches: Sequence[Any],
    *,
    step: int,
    seed: int,
    learning_rate_share: float,
    tasks: Sequence[str],
    gradient_place: GradientPlace = "last_layer",
) -> StepResult:
    """One optimizer update.

    DeepSpeed averages gradients over N ranks and A backward passes; a task's loss is a sum divided
    by the count of the whole step. So every loss is multiplied by N × A, and N workers do what one
    would.

    Args:
        engine: from `build_engine`.
        micro_batches: this rank's A micro-batches, number a × N + rank at place a.
        step: updates already made.
        seed: the run's seed.
        learning_rate_share: share of the peak rates.
        tasks: the run's tasks, in order.
        gradient_place: where a gradient balancer compares the tasks' gradients.
    """
    world_size, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    num_shares = world_size * len(micro_batches)
    for group in engine.optimizer.param_groups:
        group["lr"] = group["peak_lr"] * learning_rate_share
    losses = torch.zeros(len(tasks), device=engine.device)
    if isinstance(engine.module, SuperNetwork):
        # One draw a step: all ranks then have as much to do, and their gradients one order.
        engine.module.draw(dropout_seed(seed, step=step, micro_batch=-1))

    def forward(place: int, balance: Balance | None) -> Any:
        torch.manual_seed(dropout_seed(seed, step=step, micro_batch=place * world_size + rank))
        return engine(
            micro_batches[place].to(engine.device),
            scale=float(num_shares),
            num_shares=num_shares,
            **({} if balance is None else {"balance": balance}),
        )

    balance = balance_of_step(
        engine.module,
        forward,
        num_forwards=len(micro_batches),
        place=gradient_place,
        seed=dropout_seed(seed, step=step, micro_batch=-1),
    )
    rank_budget: Any = engine.module.rank_budget
    for place in range(len(micro_batches)):
        loss, parts = forward(place, balance)
        engine.backward(loss)
        if rank_budget is not None and place == len(micro_batches) - 1:
            rank_budget.observe(engine.module.encoder, done=step + 1)
        engine.step()
        losses += _in_order(parts, tasks=tasks)
    if rank_budget is not None:
        rank_budget.allocate(engine.module.encoder, done=step + 1)
    num_tokens = sum(micro_batch.num_tokens for micro_batch in micro_batches)
    return StepResult(losses, num_tokens, observe_step(engine.module, losses))


def _in_order(parts: Mapping[str, Tensor], *, tasks: Sequence[str]) -> Tensor:
    return torch.stack([parts[task].float() for task in tasks])


def gradient_norm(engine: Engine) -> float:
    """Global gradient norm of the last update, before clipping; NaN at stage 0 without clipping."""
    norm = engine.get_global_grad_norm()
    return float(norm) if norm is not None else math.nan
