"""Which linear layers of an encoder lose most in int8: a simulation in torch, one layer at a time.

It ranks layers for every engine alike; how much is lost in the end is measured on the engine.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertModel

from rectrain.data.batch import PackedTexts
from rectrain.model.encoder import encode
from rectrain.model.rounding import rounded

__all__ = ["linear_layers", "mean_cosine", "rank_layers"]


def linear_layers(bert: BertModel) -> dict[str, nn.Linear]:
    """Name -> linear layer of all that become int8: those of the attention and feed-forward."""
    return {
        name: module
        for name, module in bert.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("encoder.")
    }


def mean_cosine(found: Tensor, expected: Tensor) -> float:
    """Mean over texts of the cosine between two vectors [U, D] of each."""
    return float(torch.cosine_similarity(found.double(), expected.double()).mean())


def rank_layers(bert: BertModel, texts: PackedTexts) -> list[str]:
    """Names of the linear layers, the one whose rounding to int8 turns the vectors most first.

    Each layer alone gets an input in uint8 between the smallest and largest value seen, and
    weights in int8 with a scale for each output.

    Args:
        bert: the encoder in evaluation mode; unchanged afterwards.
        texts: some dozens are enough.
    """
    layers = linear_layers(bert)
    with torch.inference_mode():
        ranges: dict[str, tuple[Tensor, Tensor]] = {}
        hooks = [
            layer.register_forward_pre_hook(_watch(ranges, name)) for name, layer in layers.items()
        ]
        exact = encode(bert, texts)
        for hook in hooks:
            hook.remove()
        loss = {}
        for name, layer in layers.items():
            weight = layer.weight.data
            hook = layer.register_forward_pre_hook(_round_input(*ranges[name]))
            layer.weight.data = rounded(weight)
            loss[name] = 1 - mean_cosine(encode(bert, texts), exact)
            layer.weight.data = weight
            hook.remove()
    return sorted(loss, key=lambda name: -loss[name])


def _watch(ranges: dict[str, tuple[Tensor, Tensor]], name: str) -> Any:
    def hook(_: nn.Module, inputs: tuple[Tensor]) -> None:
        ranges[name] = torch.aminmax(inputs[0])

    return hook


def _round_input(low: Tensor, high: Tensor) -> Any:
    step = (high - low).clamp_min(1e-12) / 255

    def hook(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (((inputs[0] - low) / step).round() * step + low,)

    return hook
