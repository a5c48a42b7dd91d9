"""The model's section of the configuration."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from rectrain.config import Section

__all__ = [
    "GRADIENT_BALANCERS",
    "Adapter",
    "AdapterTarget",
    "Balancer",
    "GradientBalancer",
    "GradientPlace",
    "ModelConfig",
]

Balancer = Literal["static", "uncertainty", "dwa", "pcgrad", "cagrad", "upgrad"]
GradientBalancer = Literal["pcgrad", "cagrad", "upgrad"]
GradientPlace = Literal["last_layer", "encoder"]
Adapter = Literal["none", "lora", "adalora"]
AdapterTarget = Literal["query", "key", "value", "dense"]

#: Those that need each task's gradient before the backward pass.
GRADIENT_BALANCERS: tuple[GradientBalancer, ...] = get_args(GradientBalancer)


class ModelConfig(Section):
    """Which encoder, how the tasks share it, and how large the heads are.

    Attributes:
        encoder: "minilm" (pretrained, an installed package), the fresh presets "tiny", "small"
            and "base", or a directory with a Hugging Face BERT.
        dropout: probability of the encoder's and the heads' dropout.
        sharing: "shared_bottom" gives every task the encoder's vector itself; "gated_experts"
            mixes linear experts by one gate a task, "mmoe" small networks, "ple" those of the
            task and shared ones, in levels.
        num_experts: experts that all tasks share (not of "shared_bottom").
        num_task_experts: experts that each task has to itself in "ple".
        num_levels: levels of "ple"; 1 is CGC of the same paper.
        expert_width: hidden width of an expert of "mmoe" and "ple".
        expert_activation: the function f around the mixed experts of "gated_experts".
        feature_width: width of the encoded features of a row.
        head_width: hidden width of the heads.
    """

    encoder: str = "minilm"
    dropout: float = Field(default=0.1, ge=0, lt=1)
    sharing: Literal["shared_bottom", "gated_experts", "mmoe", "ple"] = "shared_bottom"
    num_experts: int = Field(default=4, ge=1)
    num_task_experts: int = Field(default=1, ge=1)
    num_levels: int = Field(default=2, ge=1)
    expert_width: int = Field(default=128, ge=1)
    expert_activation: Literal["identity", "tanh", "gelu"] = "identity"
    feature_width: int = Field(default=128, ge=1)
    head_width: int = Field(default=256, ge=1)
