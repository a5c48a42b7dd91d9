"""What a run will do, before it does it, as text: steps, tokens, parameters, memory."""

from __future__ import annotations

from collections.abc import Mapping

from rectrain.data.shards import Prepared
from rectrain.errors import without_credentials
from rectrain.model.balancing import dwa_window
from rectrain.model.encoder import PRESETS
from rectrain.model.multitask import MultiTaskModel
from rectrain.train.build import Model
from rectrain.train.config import RunConfig
from rectrain.train.memory import PROCESS_BYTES, worker_bytes
from rectrain.train.run_plan import RunPlan
from rectrain.train.step import num_accumulations
from rectrain.train.zero import DeviceFacts, resolve_precision

__all__ = ["outline", "repetitions"]

_MIB = 1 << 20
_MANY_EPOCHS = 50  # rows that come again more often are learned by heart
_FEW_STEPS = 50  # warm-up alone takes a tenth


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
    epochs: dict[str, float] = {}
    for task, prepared in data.items():
        facts = prepared.splits(task)["train"]
        epochs[task] = run.num_steps * train.micro_batches / run.plan.num_slots(task)
        steps = run.plan.steps_per_epoch(task)
        sizes = f"{facts['rows']:>10,} {facts['tokens']:>12,} {steps:>15,}"
        lines.append(f"{task:<16} {sizes} {epochs[task]:>7.2f}")
    lines += repetitions(epochs) + _few_steps(config, run) + _random_encoder(config)
    lines += _idle_balancer(config, run) + _few_validations(config, run)
    tokens = run.plan.tokens_per_step()
    lines.append(
        f"tokens: {tokens:,.0f} a step ({train.micro_batches} micro-batches of "
        f"data.tokens_per_micro_batch={config.data.micro_batch_tokens}), "
        f"{tokens * run.num_steps:,.0f} in all"
    )
    workers = train.max_workers
    fewest = f"{train.min_workers} to " if train.min_workers != workers else ""
    places = num_accumulations(train.micro_batches, world_size=workers)
    lines.append(
        f"workers: {fewest}{workers}, {places} forwards each a step, ZeRO-{train.zero_stage}, "
        f"offload {train.offload}, {resolve_precision(train, device=device)} on {device.kind}"
    )
    held = worker_bytes(config, data, model=model, plan=run.plan, num_workers=workers)
    parts = ", ".join(f"{kind} {size / _MIB:,.0f}" for kind, size in held.items())
    num_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    lines += [
        f"parameters to train: {num_parameters:,}",
        *_teacher(config, model),
        f"memory of a worker: {sum(held.values()) / _MIB:,.0f} MiB ({parts}), and "
        f"{PROCESS_BYTES // _MIB} of the process",
    ]
    return "\n".join(lines)


def _teacher(config: RunConfig, model: Model) -> list[str]:
    """Who teaches what; empty without a teacher."""
    if not isinstance(model, MultiTaskModel) or model.distillation is None:
        return []
    found, train = model.distillation, config.train
    size = sum(parameter.numel() for parameter in found.teacher.parameters())
    return [
        f"teacher: {without_credentials(train.teacher or '')} (SHA-256 "
        f"{(train.teacher_sha256 or 'not noted')[:12]}…, {size:,} parameters): "
        f"{found.weight:.0%} of each loss at temperature {found.temperature:g}, relation of texts "
        f"× {found.relation:g}; its vectors are computed once"
    ]


def repetitions(epochs: Mapping[str, float]) -> list[str]:
    """A warning of one line where tasks repeat very often; empty where none does.

    Args:
        epochs: passes over each task's rows in the whole run.
    """
    many = [f"{task} {passes:,.0f}" for task, passes in epochs.items() if passes > _MANY_EPOCHS]
    if not many:
        return []
    shares = "lower data.temperature (1: by rows) or mixing_weights, or " if len(epochs) > 1 else ""
    return [f"warning: many epochs: {', '.join(many)}; {shares}give fewer train.num_steps"]


def _few_steps(config: RunConfig, run: RunPlan) -> list[str]:
    """A warning where large micro-batches leave few updates, and nobody asked for so few."""
    if config.train.num_steps is not None or run.num_steps >= _FEW_STEPS:
        return []
    return [
        f"warning: few steps: {run.num_steps}; give more train.num_epochs, or less "
        f"data.tokens_per_micro_batch (now {config.data.micro_batch_tokens})"
    ]


def _random_encoder(config: RunConfig) -> list[str]:
    """A warning where the encoder's weights are random, and stay so."""
    train, encoder = config.train, config.model.encoder
    is_fixed = train.adapter != "none" or train.freeze == "encoder"
    if not is_fixed or encoder not in PRESETS or train.start_from is not None:
        return []
    setting = f"adapter={train.adapter}" if train.adapter != "none" else "freeze=encoder"
    return [
        f"warning: random encoder: train.{setting} never trains the weights of the fresh "
        f"{encoder}; give a trained model.encoder, or train.start_from"
    ]


def _idle_balancer(config: RunConfig, run: RunPlan) -> list[str]:
    """A warning where nothing is left to weigh: one task, or a run that ends before DWA begins."""
    balancer = config.train.balancer
    begins = 2 * dwa_window(run.num_steps) if balancer == "dwa" else 0
    if balancer == "static" or (len(run.shards) > 1 and run.num_steps > begins):
        return []
    reason = "one task" if len(run.shards) == 1 else f"{run.num_steps} steps"
    return [f"warning: balancer={balancer} weighs nothing: {reason}"]


def _few_validations(config: RunConfig, run: RunPlan) -> list[str]:
    """A warning where a run ends before early stopping, or a plateau, can be seen."""
    train = config.train
    if train.evaluate_interval is None:
        return []
    before_end = (run.num_steps - 1) // train.evaluate_interval  # the first is always a gain
    patience = {
        "early_stopping": train.early_stopping,
        "plateau_patience": train.plateau_patience if train.schedule == "plateau" else None,
    }
    return [
        f"warning: few validations: {before_end} before the end, and train.{name}={number} "
        f"needs {number + 1}; give a lower train.evaluate_interval"
        for name, number in patience.items()
        if number is not None and number >= before_end
    ]
