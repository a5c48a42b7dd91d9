"""From settings and facts to DeepSpeed's configuration: pure functions, no DeepSpeed here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rectrain.errors import ConfigError
from rectrain.train.config import TrainConfig

__all__ = [
    "DeviceFacts",
    "ModelFacts",
    "bucket_elements",
    "cpu_has_bf16",
    "device_facts",
    "resolve_precision",
    "state_bytes",
    "zero_config",
]

_BUCKET_ELEMENTS = 1 << 25  # 128 MiB of fp32: large enough to amortise a collective's latency
_GLOO_GATHER_ELEMENTS = 1 << 23  # gloo gathers 100 MB in pieces of 32 MiB twice as fast as in one
_BUCKET_ALIGNMENT = 512  # ZeRO asks for a multiple of 2; this one suits every vector unit
# DeepSpeed's own default. A model below it is gathered once a step, not again for backward.
_LIVE_ELEMENTS = 1_000_000_000
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


@dataclass(frozen=True)
class DeviceFacts:
    """What a worker computes on."""

    kind: Literal["cpu", "cuda"]
    has_bf16: bool

    @property
    def backend(self) -> Literal["gloo", "nccl"]:
        """The collective library for this device."""
        return "nccl" if self.kind == "cuda" else "gloo"


@dataclass(frozen=True)
class ModelFacts:
    """Sizes that the thresholds are derived from."""

    num_parameters: int
    largest_parameter: int
    hidden_size: int


def cpu_has_bf16(cpuinfo: str) -> bool:
    """Whether the text of /proc/cpuinfo names a bf16 unit on every listed processor."""
    lines = [line for line in cpuinfo.splitlines() if line.startswith(("flags", "Features"))]
    return bool(lines) and all(_BF16_FLAGS & set(line.partition(":")[2].split()) for line in lines)


def device_facts(cpuinfo: Path = Path("/proc/cpuinfo")) -> DeviceFacts:
    """Facts of this process's device: CUDA when torch sees it, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return DeviceFacts("cuda", torch.cuda.is_bf16_supported(including_emulation=False))
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    return DeviceFacts("cpu", cpu_has_bf16(text))


def resolve_precision(train: TrainConfig, *, device: DeviceFacts) -> Literal["fp32", "bf16"]:
    """The precision a run computes in.

    Raises:
        ConfigError: bf16 is asked for where the hardware has none.
    """
    if train.precision == "auto":
        return "bf16" if device.kind == "cuda" and device.has_bf16 else "fp32"
    if train.precision == "bf16" and not device.has_bf16:
        raise ConfigError(
            what="train.precision",
            got=f"bf16 on a {device.kind} without bf16 units",
            rule="bf16 needs a GPU of compute capability 8.0 or a CPU with avx512_bf16 or amx_bf16",
            fix="set train.precision to auto or fp32",
        )
    return train.precision


def zero_config(
    train: TrainConfig,
    *,
    world_size: int,
    device: DeviceFacts,
    model: ModelFacts,
    num_accumulations: int,
) -> dict[str, Any]:
    """DeepSpeed's configuration of a run.

    bf16 is torch autocast over fp32 weights, so a checkpoint holds the same tensors in every
    precision. The sizes of a batch are counted in micro-batches: DeepSpeed needs them only for the
    number of backward passes in a step.

    Args:
        train: the user's settings.
        world_size: number of workers, N.
        device: facts of the workers' device.
        model: sizes of the model.
        num_accumulations: forward and backward passes of one worker in a step, A.

    Raises:
        ConfigError: bf16 is asked for where the hardware has none.
    """
    config: dict[str, Any] = {
        "train_batch_size": world_size * num_accumulations,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": num_accumulations,
        "gradient_clipping": train.max_grad_norm,
        "communication_data_type": "fp32",
        "zero_allow_untested_optimizer": True,
        # The client's AdamW stays: fused on a CPU, DeepSpeedCPUAdam only when offloading from CUDA.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 62,
        "zero_optimization": _zero_section(train, device=device, model=model),
    }
    if resolve_precision(train, device=device) == "bf16":
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return config


def _zero_section(train: TrainConfig, *, device: DeviceFacts, model: ModelFacts) -> dict[str, Any]:
    bucket = bucket_elements(model)
    on_gpu = device.kind == "cuda"
    section: dict[str, Any] = {
        "stage": train.zero_stage,
        "overlap_comm": on_gpu,
        "contiguous_gradients": True,
        # Under gloo both forms send the same bytes, and this one copies a bucket twice more.
        "reduce_scatter": on_gpu,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket if on_gpu else min(bucket, _GLOO_GATHER_ELEMENTS),
    }
    if train.zero_stage == 3:
        keep = train.stage3_persistence_threshold
        section |= {
            "stage3_prefetch_bucket_size": min(bucket, 12 * model.hidden_size**2),  # one layer
            "stage3_param_persistence_threshold": 10 * model.hidden_size if keep is None else keep,
            "stage3_max_live_parameters": _LIVE_ELEMENTS,
            "stage3_max_reuse_distance": _LIVE_ELEMENTS,
            "stage3_gather_16bit_weights_on_model_save": False,
        }
    pinned = {"device": "cpu", "pin_memory": on_gpu}
    if train.offload != "none":
        section["offload_optimizer"] = dict(pinned)
    if train.offload == "all":
        section["offload_param"] = dict(pinned)
    return section


def bucket_elements(model: ModelFacts) -> int:
    """Gradients that one collective reduces: at most 128 MiB of fp32, at least a parameter."""
    bucket = max(model.largest_parameter, min(model.num_parameters, _BUCKET_ELEMENTS))
    return bucket + -bucket % _BUCKET_ALIGNMENT


def state_bytes(num_parameters: int, *, zero_stage: int, world_size: int) -> dict[str, int]:
    """Bytes of one rank's training state in fp32, by kind.

    AdamW holds 4 bytes a parameter of each: weights, gradients, two moments. ZeRO keeps a master
    copy of the weights from stage 1 on. Stage 1 splits moments and master copy over the N ranks,
    stage 2 gradients too, stage 3 weights too (Rajbhandari et al., 2020, section 5). Not counted:
    activations, communication buffers, and parameters below ZeRO-3's persistence threshold.
    """
    whole = 4 * num_parameters
    share = -(-whole // world_size)
    return {
        "weights": share if zero_stage == 3 else whole,
        "gradients": share if zero_stage >= 2 else whole,
        "optimizer": 2 * whole if zero_stage == 0 else 3 * share,
    }
