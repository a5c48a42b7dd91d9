"""What the card of a small model says: of what it was made, how, and how good it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rectrain.compress.config import CompressConfig
from rectrain.compress.measure import Measured
from rectrain.model.shape import Shape
from rectrain.package import Card, ModelParts
from rectrain.train.export import base_model

__all__ = ["small_card"]


def small_card(
    config: CompressConfig,
    parts: ModelParts,
    *,
    source: str,
    teacher: Mapping[str, Any],
    shape: Shape,
    facts: Mapping[str, Any],
    measured: Measured | None = None,
) -> Card:
    """The card of a small model.

    Args:
        config: of the compression.
        parts: the small model.
        source: SHA-256 of the checkpoint that it comes from.
        teacher: meta.json of the teacher's checkpoint.
        shape: that the encoder was cut to.
        facts: JSON-serialisable details for the manifest.
        measured: what it is worth, where that is known.
    """
    train = config.train
    card = Card(
        source=source,
        made=[
            f"The encoder of a model that was trained on {', '.join(parts.specs)} for "
            f"{teacher['step']:,} steps was cut to {_layers(config, shape)}, "
            f"hidden size {shape.hidden}, {shape.heads} heads and inner size "
            f"{shape.intermediate}, and refitted to the large one's hidden states"
            f"{', within a super-network of several such' if config.encoder else ''}.",
            f"Encoder and heads learned of that model for {train.num_steps:,} steps: "
            f"{train.distill_weight:.0%} soft labels at temperature "
            f"{train.distill_temperature:g}, relation of texts × {train.distill_relation:g}.",
            f"The heads alone learned of it for {config.head_steps:,} steps.",
            "The vocabulary was trimmed to the pieces of the training texts.",
        ],
        base_model=base_model(teacher),
        facts=facts,
    )
    if measured is None:
        return card
    return replace(
        card,
        metrics={task: {parts.specs[task].primary: v} for task, v in measured.metrics.items()},
        measured=f"On the {config.split} split, by the graph {measured.backend}, the fastest where "
        "it was made; intervals are 95% of a bootstrap over groups.",
    )


def _layers(config: CompressConfig, shape: Shape) -> str:
    """Which of the parent's, or how many where it was cut elsewhere."""
    if config.encoder is not None:
        return f"{len(shape.layers)} layers"
    return f"layers {', '.join(map(str, shape.layers))}"
