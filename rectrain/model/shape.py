"""The size of a cut BERT: shares of its parent's, and what fits the parent.

Shapes: a parent has N layers, hidden size D, H heads of size K, inner size I.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from transformers import BertConfig

from rectrain.errors import ConfigError

__all__ = ["SHAPE_PRESETS", "Shape", "check_shape", "head_size", "preset_shape", "spread_layers"]

#: Name -> shares of the parent's (layers, heads and hidden size, inner size). Of a parent with 6
#: layers, hidden 384, 12 heads and inner size 1536, "small" is (2, 5) × 192 × 6 heads × 192.
SHAPE_PRESETS = {
    "mini": (Fraction(1, 6), Fraction(1, 2), Fraction(1, 8)),
    "small": (Fraction(1, 3), Fraction(1, 2), Fraction(1, 8)),
    "medium": (Fraction(1, 2), Fraction(1, 2), Fraction(1, 4)),
}


@dataclass(frozen=True)
class Shape:
    """The size of a cut BERT. Heads keep their size, so hidden and heads go together.

    Attributes:
        layers: which of the parent's layers stay, counted from 0, ascending.
        hidden: hidden size, heads × the parent's head size.
        heads: attention heads a layer.
        intermediate: inner size of the feed-forward blocks.
    """

    layers: tuple[int, ...]
    hidden: int
    heads: int
    intermediate: int

    @classmethod
    def of(cls, config: BertConfig) -> Shape:
        """A BERT's own."""
        return cls(
            layers=tuple(range(config.num_hidden_layers)),
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            intermediate=config.intermediate_size,
        )


def spread_layers(num_layers: int, num_kept: int) -> tuple[int, ...]:
    """Evenly spread layers with the last among them: 3 of 6 are (1, 3, 5).

    Args:
        num_layers: the parent's, at least num_kept.
        num_kept: at least 1.
    """
    return tuple((place + 1) * num_layers // num_kept - 1 for place in range(num_kept))


def preset_shape(name: str, config: BertConfig) -> Shape:
    """The shape of a preset for a parent.

    Args:
        name: of `SHAPE_PRESETS`.
        config: the parent's.

    Raises:
        ConfigError: no such preset.
    """
    if name not in SHAPE_PRESETS:
        raise ConfigError(
            what="preset", got=name, rule=f"must be one of {', '.join(SHAPE_PRESETS)}",
            fix="name one of these",
        )  # fmt: skip
    depth, width, inner = SHAPE_PRESETS[name]
    heads = _share(config.num_attention_heads, width)
    return Shape(
        layers=spread_layers(config.num_hidden_layers, _share(config.num_hidden_layers, depth)),
        hidden=heads * head_size(config),
        heads=heads,
        intermediate=_share(config.intermediate_size, inner),
    )


def _share(size: int, share: Fraction) -> int:
    return max(1, round(size * share))


def head_size(config: BertConfig) -> int:
    """K, the dimensions of one attention head."""
    return int(config.hidden_size // config.num_attention_heads)


def check_shape(shape: Shape, config: BertConfig) -> None:
    """Refuses a shape that doesn't fit its parent.

    Raises:
        ConfigError: see above.
    """
    size, num_layers = head_size(config), config.num_hidden_layers
    ascending = list(shape.layers) == sorted(set(shape.layers))
    inside = all(0 <= layer < num_layers for layer in shape.layers)
    rules = [
        (
            bool(shape.layers) and ascending and inside,
            "layers", shape.layers, f"must ascend within 0 to {num_layers - 1}",
        ),
        (
            1 <= shape.heads <= config.num_attention_heads,
            "heads", shape.heads, f"must be within 1 to {config.num_attention_heads}",
        ),
        (
            shape.hidden == shape.heads * size,
            "hidden", shape.hidden, f"must be {shape.heads} heads × {size} (a head keeps its size)",
        ),
        (
            1 <= shape.intermediate <= config.intermediate_size,
            "intermediate", shape.intermediate, f"must be within 1 to {config.intermediate_size}",
        ),
    ]  # fmt: skip
    for holds, name, got, rule in rules:
        if not holds:
            raise ConfigError(
                what=f"{name} of the shape", got=got, rule=rule, fix="change the shape or preset"
            )
