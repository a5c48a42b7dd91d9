"""The model's section of the configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rectrain.config import Section

__all__ = ["ModelConfig"]


class ModelConfig(Section):
    """Which encoder, how the tasks share it, and how large the heads are.

    Attributes:
        encoder: "minilm" (pretrained, an installed package), the fresh presets "tiny", "small"
            and "base", or a directory with a Hugging Face BERT.
        dropout: probability of the encoder's and the heads' dropout.
        sharing: "shared_bottom" gives every task the encoder's vector itself; "gated_experts"
            mixes linear experts by one gate a task.
        num_experts: experts of "gated_experts".
        expert_activation: the function f around the mixed experts.
        feature_width: width of the encoded features of a row.
        head_width: hidden width of the heads.
    """

    encoder: str = "minilm"
    dropout: float = Field(default=0.1, ge=0, lt=1)
    sharing: Literal["shared_bottom", "gated_experts"] = "shared_bottom"
    num_experts: int = Field(default=4, ge=1)
    expert_activation: Literal["identity", "tanh", "gelu"] = "identity"
    feature_width: int = Field(default=128, ge=1)
    head_width: int = Field(default=256, ge=1)
