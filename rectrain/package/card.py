"""The model card of a package: what people read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rectrain.metrics import Interval
from rectrain.package.parts import ModelParts

__all__ = ["Card", "encoder_card", "package_card"]


@dataclass(frozen=True)
class Card:
    """What a package says of its model to people.

    Attributes:
        source: SHA-256 of the checkpoint that the model comes from.
        made: how the model was made, a sentence a step, in order.
        base_model: the encoder that training began with.
        metrics: task -> metric -> value, with its 95% interval where it is known.
        measured: on what the metrics were measured, in a sentence.
        facts: JSON-serialisable details for the manifest: settings, the calibration data's hash.
    """

    source: str
    made: Sequence[str]
    base_model: str = "unknown"
    metrics: Mapping[str, Mapping[str, float | Interval]] = field(default_factory=dict)
    measured: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


def _front_matter(card: Card, *, library: str) -> list[str]:
    return [
        "---",
        f"library_name: {library}",
        "license: other",
        "license_name: that-of-the-base-encoder-and-data",
        f"base_model: {card.base_model}",
        "---",
        "",
    ]


def encoder_card(card: Card) -> str:
    """The README.md of the encoder's folder, which may travel alone."""
    lines = [
        *_front_matter(card, library="sentence-transformers"),
        "# Text encoder of a rectrain model",
        "",
        "A text's vector is the mean of its tokens' last hidden states. The heads of the tasks, "
        "the metrics and how it was made are in the folder above.",
        "",
    ]
    return "\n".join(lines)


def package_card(
    parts: ModelParts, card: Card, *, version: str, files: Mapping[str, Mapping[str, Any]]
) -> str:
    """The package's README.md.

    Args:
        parts: the model.
        card: what the publisher says of it.
        version: of the package.
        files: path -> bytes and sha256, of its other files.
    """
    lines = [
        *_front_matter(card, library="rectrain"),
        f"# rectrain model of {', '.join(parts.specs)}",
        "",
        f"Version {version[:12]}, from checkpoint {card.source[:12]}.",
        "",
        "```python",
        "import rectrain",
        'model = rectrain.load("path/of/this/folder")',
        *_calls(parts),
        "```",
        "",
        "`rows` is a list of dicts or a pyarrow Table; `model.fields(task)` says what a row has. "
        "Loading verifies every file first.",
        "",
        "## How it was made",
        "",
        *(f"{number}. {step}" for number, step in enumerate(card.made, 1)),
        "",
        "## Metrics",
        "",
        *_metrics(parts, card),
        *(f"![{Path(name).stem}]({name})\n" for name in files if name.endswith(".png")),
        "## Sizes",
        "",
        *_sizes(parts, files),
        "",
        "## Licence",
        "",
        "The weights derive from the base encoder and the training data; state theirs here before "
        "publishing.",
        "",
    ]
    return "\n".join(lines)


def _calls(parts: ModelParts) -> list[str]:
    return [
        "model.recommend(rows, k=10)" if spec.has_catalogue else f'model.predict("{task}", rows)'
        for task, spec in parts.specs.items()
    ]


def _metrics(parts: ModelParts, card: Card) -> list[str]:
    rows = []
    for task, spec in parts.specs.items():
        missing = {spec.primary: None}
        found: Mapping[str, float | Interval | None] = card.metrics.get(task) or missing
        rows += [f"| {task} | {name} | {_value(value)} |" for name, value in found.items()]
    measured = [card.measured, ""] if card.measured else []
    return [*measured, "| task | metric | value [95%] |", "|---|---|---|", *rows, ""]


def _sizes(parts: ModelParts, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    bert = parts.model.encoder.config
    num_weights = sum(parameter.numel() for parameter in parts.model.parameters())
    return [
        f"The encoder is a BERT of {bert.num_hidden_layers} layers, hidden size "
        f"{bert.hidden_size}, {bert.num_attention_heads} heads, inner size "
        f"{bert.intermediate_size} and {bert.vocab_size:,} pieces. With the heads, the model has "
        f"{num_weights:,} weights.",
        "",
        "| file | bytes |",
        "|---|---|",
        *(f"| {name} | {facts['bytes']:,} |" for name, facts in sorted(files.items())),
    ]


def _value(value: float | Interval | None) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, Interval) and not math.isnan(value.low):
        return f"{value.value:.4f} [{value.low:.4f}, {value.high:.4f}]"
    return f"{value.value if isinstance(value, Interval) else value:.4f}"
