"""DeepSpeed's configuration is a pure function of settings and facts."""

from __future__ import annotations

import pytest

from rectrain.errors import ConfigError
from rectrain.train.config import TrainConfig
from rectrain.train.zero import (
    DeviceFacts,
    ModelFacts,
    cpu_has_bf16,
    resolve_precision,
    state_bytes,
    zero_config,
)

CPU, CPU_BF16 = DeviceFacts("cpu", has_bf16=False), DeviceFacts("cpu", has_bf16=True)
GPU, OLD_GPU = DeviceFacts("cuda", has_bf16=True), DeviceFacts("cuda", has_bf16=False)
MODEL = ModelFacts(num_parameters=22_700_001, largest_parameter=11_720_448, hidden_size=384)


def build(train: TrainConfig, device: DeviceFacts = CPU, accumulations: int = 1) -> dict:
    return zero_config(
        train, world_size=2, device=device, model=MODEL, num_accumulations=accumulations
    )


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu avx512f avx512_bf16\n", True),
        ("flags : fpu amx_bf16 amx_tile\nflags : fpu amx_bf16\n", True),
        ("flags : avx512_bf16\nflags : avx512f\n", False),
        ("flags : avx512f avx512_vnni my_avx512_bf16_not\n", False),
        ("Features : fp asimd bf16\n", False),
        ("", False),
    ],
)
def test_bf16_is_read_from_the_flags_of_every_processor(cpuinfo: str, expected: bool) -> None:
    assert cpu_has_bf16(cpuinfo) is expected


@pytest.mark.parametrize(
    ("asked", "device", "expected"),
    [
        ("auto", CPU, "fp32"),
        ("auto", CPU_BF16, "fp32"),  # never by default on a CPU
        ("auto", GPU, "bf16"),
        ("auto", OLD_GPU, "fp32"),
        ("bf16", CPU_BF16, "bf16"),
        ("fp32", GPU, "fp32"),
    ],
)
def test_precision(asked: str, device: DeviceFacts, expected: str) -> None:
    train = TrainConfig(precision=asked)
    assert resolve_precision(train, device=device) == expected
    assert ("torch_autocast" in build(train, device)) is (expected == "bf16")


@pytest.mark.parametrize("device", [CPU, OLD_GPU])
def test_bf16_without_the_hardware_is_refused(device: DeviceFacts) -> None:
    with pytest.raises(ConfigError, match=r"train\.precision: got bf16 on a (cpu|cuda)"):
        build(TrainConfig(precision="bf16"), device)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_sizes_and_buckets_suit_deepspeed(stage: int) -> None:
    config = build(TrainConfig(zero_stage=stage), accumulations=3)
    assert config["gradient_accumulation_steps"] == 3
    assert config["train_batch_size"] == 2 * 3 * config["train_micro_batch_size_per_gpu"]
    section = config["zero_optimization"]
    assert section["stage"] == stage
    assert section["allgather_bucket_size"] % 2 == 0  # or DeepSpeed asserts
    assert section["reduce_bucket_size"] >= MODEL.largest_parameter
    assert ("stage3_param_persistence_threshold" in section) is (stage == 3)


def test_gloo_reduces_and_gathers_otherwise_than_nccl() -> None:
    large = ModelFacts(num_parameters=10**9, largest_parameter=10**7, hidden_size=768)
    cpu, gpu = (
        zero_config(
            TrainConfig(zero_stage=2), world_size=2, device=device, model=large, num_accumulations=1
        )["zero_optimization"]
        for device in (CPU, GPU)
    )
    assert cpu["reduce_scatter"] is False and gpu["reduce_scatter"] is True
    assert cpu["allgather_bucket_size"] < gpu["allgather_bucket_size"]


def test_stage_3_threshold_is_derived_unless_given() -> None:
    key = "stage3_param_persistence_threshold"
    assert build(TrainConfig(zero_stage=3))["zero_optimization"][key] == 3840
    given = TrainConfig(zero_stage=3, stage3_persistence_threshold=0)
    assert build(given)["zero_optimization"][key] == 0


def test_offload_goes_to_pinned_memory_only_from_a_gpu() -> None:
    train = TrainConfig(zero_stage=3, offload="all")
    for device in (CPU, GPU):
        section = build(train, device)["zero_optimization"]
        for part in ("offload_optimizer", "offload_param"):
            assert section[part] == {"device": "cpu", "pin_memory": device.kind == "cuda"}
    assert "offload_param" not in build(TrainConfig(offload="optimizer"))["zero_optimization"]


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (0, {"weights": 400, "gradients": 400, "optimizer": 800}),
        (1, {"weights": 400, "gradients": 400, "optimizer": 600}),
        (2, {"weights": 400, "gradients": 200, "optimizer": 600}),
        (3, {"weights": 200, "gradients": 200, "optimizer": 600}),
    ],
)
def test_state_bytes_of_100_parameters_on_2_workers(stage: int, expected: dict) -> None:
    assert state_bytes(100, zero_stage=stage, world_size=2) == expected
