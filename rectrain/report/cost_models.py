"""Of a cost report: what the models are, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rectrain.report.page import Section, paragraph, table

__all__ = ["model_sections"]


def model_sections(facts: Mapping[str, Any], *, currency: str) -> list[Section]:
    """What the models are, as far as a report's facts tell.

    Args:
        facts: of `rectrain.report.cost.cost_json`: "models" and "linear".
        currency: of all money.
    """
    sections = []
    if facts.get("linear"):
        sections.append(
            Section("What do width and depth cost?", _linear(facts, currency), "Width and depth")
        )
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


def _linear(facts: Mapping[str, Any], currency: str) -> list[str]:
    return [
        paragraph(
            "A cost as hardware, software and labour, each so much for a million parameters (P) "
            "and for a GFLOP per 1,000 tokens (C) of the encoder. It is for changes around what "
            "was measured: it has no constant. What is not stated of software and labour is 0."
        ),
        *(part for one in facts["linear"] for part in _one_linear(one, currency)),
    ]


def _one_linear(one: Mapping[str, Any], currency: str) -> list[str]:
    if "coefficients" not in one:
        return [paragraph(f"**{one['of'].capitalize()}:** {one['how']}.")]
    whole = [sum(pair[place] for pair in one["coefficients"].values()) for place in (0, 1)]
    said = f"**{one['of'].capitalize()}: {whole[0]:.3g} P + {whole[1]:.3g} C {currency}**"
    parts = ", ".join(
        f"{kind} {of_p:.3g} P + {of_c:.3g} C"
        for kind, (of_p, of_c) in one["coefficients"].items()
        if of_p or of_c
    )
    sure = ""
    if "hardware_range" in one:
        ranges = (f"{low:.3g} to {high:.3g}" for low, high in one["hardware_range"])
        sure = (
            f"; 95 of 100 fits to resampled points have {' and '.join(ranges)}, the points lie "
            f"{one['relative_error']:.0%} off the line"
        )
    cheapest = f"The cheapest by it that keeps {one['bounds']}: **{one['cheapest']}**."
    if one["cheapest"] is None:
        cheapest = f"No model keeps {one['bounds']}."
    rows = [
        [
            point["name"], f"{point['p']:,.2f}", f"{point['c']:,.3g}", f"{point['measured']:.3g}",
            f"{point['modelled']:.3g}",
            "-" if point["range"] is None else "{:.3g} to {:.3g}".format(*point["range"]),
        ]
        for point in one["points"]
    ]  # fmt: skip
    head = ["", "P", "C", f"measured hardware, {currency}", "H + S + L", "95 of 100"]
    return [
        paragraph(f"{said} ({parts or 'nothing'}; hardware {one['how']}{sure})."),
        *([table(head, rows)] if rows else []),
        paragraph(cheapest),
    ]


def _size(num_bytes: float | None) -> str:
    return "not recorded" if num_bytes is None else f"{num_bytes / 2**20:,.1f} MiB"
