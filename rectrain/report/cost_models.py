"""Of a cost report: what the models are, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rectrain.report.page import Section, paragraph, table

__all__ = ["model_sections"]


def model_sections(facts: Mapping[str, Any]) -> list[Section]:
    """What the models are, as far as a report's facts tell.

    Args:
        facts: of `rectrain.report.cost.cost_json`: "models".
    """
    sections = []
    if facts.get("models"):
        sections.append(Section("What are these models?", _closed_form(facts), "The models"))
    return sections


def _closed_form(facts: Mapping[str, Any]) -> list[str]:
    models: Mapping[str, Mapping[str, Any]] = facts["models"]
    head = [
        "", "encoder", "parameters", "GFLOP / 1,000 tokens", "GFLOP a request", "fp32", "int8",
        "in the package", "a process that answers", "its training",
    ]  # fmt: skip
    rows = [
        [
            name,
            f"{one['layers']} layers of {one['hidden']}, inner size {one['intermediate']}",
            f"{one['parameters'] / 1e6:,.2f} M", f"{one['complexity']:,.3g}",
            f"{one['request_gflop']:,.3g}",
            *(_size(one[key]) for key in ("fp32_bytes", "int8_bytes", "stored_bytes")),
            _size(one["memory_bytes"]), _size(one["training_bytes"]),
        ]
        for name, one in models.items()
    ]  # fmt: skip
    return [
        paragraph(
            "In closed form, of the encoder: parameters, forward FLOPs (a multiplication with its "
            "addition counts as two; look-ups, norms, softmax and heads are left out), bytes of "
            "its weights. Measured: bytes of all weights in the package, and the most memory of a "
            "process that answers and of the processes of the training that made it. FLOPs "
            "compare shapes; time, and so cost, is measured."
        ),
        table(head, rows, text=(1,)),
    ]


def _size(num_bytes: float | None) -> str:
    return "not recorded" if num_bytes is None else f"{num_bytes / 2**20:,.1f} MiB"
