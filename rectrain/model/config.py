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
    """Which encoder, how the tasks share it, and how large the heads are."""

    encoder: str = Field(
        default="minilm",
        description="minilm (pretrained, an installed package), the fresh presets tiny, small and "
        "base, or a directory with a Hugging Face BERT",
    )
    dropout: float = Field(
        default=0.1, ge=0, lt=1, description="probability, in the encoder and the heads"
    )
    sharing: Literal["shared_bottom", "gated_experts", "mmoe", "ple"] = Field(
        default="shared_bottom",
        description="what a task gets of the encoder's vector: itself, or a mixture by a gate of "
        "its own: of linear experts (gated_experts), small networks (mmoe), or its own and shared "
        "networks in levels (ple)",
    )
    num_experts: int = Field(
        default=4, ge=1, description="experts that all tasks share (not of shared_bottom)"
    )
    num_task_experts: int = Field(
        default=1, ge=1, description="ple: experts that each task has to itself"
    )
    num_levels: int = Field(default=2, ge=1, description="ple: levels; 1 is CGC (Tang et al. 2020)")
    expert_width: int = Field(default=128, ge=1, description="mmoe, ple: hidden width of an expert")
    expert_activation: Literal["identity", "tanh", "gelu"] = Field(
        default="identity", description="gated_experts: the function around the mixed experts"
    )
    feature_width: int = Field(default=128, ge=1, description="width of a row's encoded features")
    head_width: int = Field(default=256, ge=1, description="hidden width of the heads")
