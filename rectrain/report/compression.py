"""What making a model small costs and gains: a table, JSON, and quality against latency."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rectrain.compress.measure import BATCH_SIZES, Measured
from rectrain.metrics import Interval
from rectrain.strict_json import strict_json

__all__ = ["compression_table", "draw_compression", "write_compression"]

_PICTURE = "quality.png"


def compression_table(rows: Sequence[Measured], *, metrics: Mapping[str, str]) -> str:
    """One line a model, the large one first.

    Args:
        rows: from `Pipeline.run`.
        metrics: task -> name of its primary metric.
    """
    latencies = [f"{q} ms at {size}" for size in BATCH_SIZES for q in ("p50", "p99")]
    head = ["model", *(f"{task} {name} [95%]" for task, name in metrics.items())]
    head += ["parameters", "MB", *latencies, "tokens/s", "run by"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row.name, *(_interval(row.metrics.get(task)) for task in metrics)]
        cells += [f"{row.num_parameters:,}", f"{row.num_bytes / 1e6:.1f}"]
        for size in BATCH_SIZES:
            found = row.latency.get(size)
            cells += ["-", "-"] if found is None else [f"{found.p50_ms:.2f}", f"{found.p99_ms:.2f}"]
        cells += [f"{row.tokens_per_s:,.0f}", row.backend]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(value: Interval | None) -> str:
    if value is None:
        return "-"
    if math.isnan(value.low):
        return f"{value.value:.4f}"
    return f"{value.value:.4f} [{value.low:.4f}, {value.high:.4f}]"


def draw_compression(rows: Sequence[Measured], *, metrics: Mapping[str, str]) -> bytes:
    """A PNG: each task's share of the large model's metric against the latency of 32 rows.

    Args:
        rows, metrics: as of `compression_table`; rows without metrics are left out.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [row for row in rows if row.metrics]
    size, large = max(BATCH_SIZES), shown[0].metrics
    drawing, axis = pyplot.subplots(figsize=(7.5, 4.5), layout="constrained")
    latency = [row.latency[size].p50_ms for row in shown]
    for task, name in metrics.items():
        if not large[task].value:
            continue  # no share of nothing
        shares = [row.metrics[task].value / large[task].value for row in shown]
        axis.plot(latency, shares, "o-", label=f"{task} {name}")
    for row, place in zip(shown, latency, strict=True):
        axis.annotate(
            row.name, (place, 1.0), xycoords=("data", "axes fraction"),
            xytext=(0, 3), textcoords="offset points", ha="center", fontsize=8,
        )  # fmt: skip
    axis.set_xscale("log")
    axis.set_xlabel(f"median latency of {size} rows, ms")
    axis.set_ylabel("metric, as a share of the large model's")
    axis.grid(alpha=0.3)
    axis.legend()
    image = io.BytesIO()
    drawing.savefig(image, format="png", dpi=110)
    pyplot.close(drawing)
    return image.getvalue()


def write_compression(
    folder: Path, rows: Sequence[Measured], *, metrics: Mapping[str, str], **facts: Any
) -> bytes:
    """Writes summary.md, summary.json and quality.png; returns the picture.

    Args:
        folder: where.
        rows, metrics: as of `compression_table`.
        facts: JSON-serialisable: what was made of what.
    """
    summary = {**facts, "metrics": dict(metrics), "models": [row.to_json() for row in rows]}
    picture = draw_compression(rows, metrics=metrics)
    table = compression_table(rows, metrics=metrics)
    text = (
        f"# A small model of {facts.get('teacher', 'a large one')}\n\n{table}\n\n![]({_PICTURE})\n"
    )
    files = {
        "summary.md": text.encode(),
        "summary.json": strict_json(summary).encode(),
        _PICTURE: picture,
    }
    for name, content in files.items():
        draft = folder / f".{name}.tmp"
        draft.write_bytes(content)
        draft.replace(folder / name)
    return picture
