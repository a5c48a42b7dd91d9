"""What a run will do, before it does it: steps, tokens, parameters, memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rectrain.data.loader import plan_training
from rectrain.data.plan import Plan
from rectrain.data.shards import Prepared, Shards
from rectrain.errors import without_credentials
from rectrain.train.build import Model
from rectrain.train.config import PretrainConfig, RunConfig
from rectrain.train.step import model_facts, num_accumulations
from rectrain.train.zero import DeviceFacts, bucket_elements, resolve_precision, state_bytes

__all__ = ["RunPlan", "activation_bytes", "outline", "plan_run"]

_MIB = 1 << 20
_LOGITS = 3  # a masked piece's logits, their softmax, and the gradient
_PROCESS_MIB = 600  # Python, torch, DeepSpeed and Ray, measured on Linux


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


def activation_bytes(
    *, num_tokens: int, hidden_size: int, num_layers: int, max_length: int, num_heads: int
) -> int:
    """An upper bound of what one forward keeps for its backward pass, in fp32 bytes.

    34 values a token and hidden unit in each layer, and 5 a head and pair of tokens in attention
    (Korthikanti et al., 2022, equation 1, with 2 bytes a value there), plus the embeddings' three.
    Not counted: the heads, and what activation checkpointing spares.
    """
    per_layer = 17 * num_tokens * hidden_size + 5 * num_heads * num_tokens * max_length // 2
    return 4 * (num_layers * per_layer + 3 * num_tokens * hidden_size)


def outline(
    config: RunConfig,
    data: Mapping[str, Prepared],
    *,
    model: Model,
    device: DeviceFacts,
    run: RunPlan,
) -> str:
    """The plan of a run as text: a table of tasks, then sizes, then memory of one worker."""
    train = config.train
    output = without_credentials(f"{config.output}/{config.name}")
    lines = [f"run {config.name}: {run.num_steps:,} steps, output {output}"]
    lines.append(f"{'task':<16} {'rows':>10} {'tokens':>12} {'steps an epoch':>15} {'epochs':>7}")
    for task, prepared in data.items():
        facts = prepared.splits(task)["train"]
        epochs = run.num_steps * train.micro_batches / run.plan.num_slots(task)
        steps = run.plan.steps_per_epoch(task)
        lines.append(
            f"{task:<16} {facts['rows']:>10,} {facts['tokens']:>12,} {steps:>15,} {epochs:>7.2f}"
        )
    tokens = run.plan.tokens_per_step()
    lines.append(
        f"tokens: {tokens:,.0f} a step ({train.micro_batches} micro-batches), "
        f"{tokens * run.num_steps:,.0f} in all"
    )
    workers = train.max_workers
    fewest = f"{train.min_workers} to " if train.min_workers != workers else ""
    places = num_accumulations(train.micro_batches, world_size=workers)
    lines.append(
        f"workers: {fewest}{workers}, {places} forwards each a step, ZeRO-{train.zero_stage}, "
        f"offload {train.offload}, {resolve_precision(train, device=device)} on {device.kind}"
    )
    return "\n".join([*lines, *_memory(config, model, workers, num_tokens=run.plan.most_tokens())])


def _memory(config: RunConfig, model: Model, workers: int, *, num_tokens: int) -> list[str]:
    bert = model.encoder.config
    is_frozen = config.train.freeze == "encoder"
    facts = model_facts(model, hidden_size=bert.hidden_size)
    state = state_bytes(
        facts.num_parameters, zero_stage=config.train.zero_stage, world_size=workers
    )
    state["bucket"] = 4 * bucket_elements(facts) if config.train.zero_stage > 0 else 0
    if is_frozen:
        state["frozen encoder"] = 4 * model.encoder.num_parameters()
        state["vectors, at most"] = int(config.train.frozen_cache_gib * (1 << 30))
    else:
        state["activations, at most"] = activation_bytes(
            num_tokens=num_tokens,
            hidden_size=bert.hidden_size,
            num_layers=1 if config.train.activation_checkpointing else bert.num_hidden_layers,
            max_length=bert.max_position_embeddings,
            num_heads=bert.num_attention_heads,
        )
    if isinstance(config, PretrainConfig):
        state["guesses"] = int(_LOGITS * 4 * config.mask_share * num_tokens * bert.vocab_size)
    parts = ", ".join(f"{kind} {held / _MIB:,.0f}" for kind, held in state.items())
    total = sum(state.values()) / _MIB
    return [
        f"parameters to train: {facts.num_parameters:,}",
        f"memory of a worker: {total:,.0f} MiB ({parts}), and {_PROCESS_MIB} of the process",
    ]
