"""An evaluation as files: markdown tables, JSON, and the short summary of a whole run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rectrain.inference.compare import MetricResult
from rectrain.inference.evaluate import TaskResult
from rectrain.metrics import Interval
from rectrain.strict_json import finite, strict_json

__all__ = ["details", "evaluation_json", "table", "write_evaluation", "write_summary"]

Results = Mapping[str, TaskResult]


def table(results: Results) -> str:
    """One line a task: its primary metric, the best baseline, the model, and the best possible."""
    lines = [
        "| task | metric | baseline | model [95%] | model - baseline [95%] | best possible |",
        "|---|---|---|---|---|---|",
    ]
    for task, result in results.items():
        metric = result.metrics[result.primary]
        lines.append(f"| {task} | {metric.name} | {' | '.join(_cells(metric))} |")
    return "\n".join(lines)


def details(results: Results, *, title: str) -> str:
    """All metrics of all tasks, as a markdown document."""
    parts = [f"# {title}", table(results)]
    for task, result in results.items():
        parts.append(f"## {task}")
        parts.append(
            f"{result.num_rows:,} rows in {result.num_groups:,} groups; "
            f"{result.num_left_out:,} groups of one class are left out of GAUC and rankings. "
            "Intervals are of a bootstrap over groups."
        )
        lines = [
            "| metric | best baseline | model [95%] | model - baseline [95%] | best possible |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {metric.name}{_arrow(metric)} | {' | '.join(_cells(metric))} |"
            for metric in result.metrics.values()
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _cells(metric: MetricResult) -> list[str]:
    name = metric.best_baseline
    best = "-" if metric.best_possible is None else _number(metric.best_possible)
    if name is None:
        return ["-", _interval(metric.model), "-", best]
    difference = metric.differences.get(name)
    return [
        f"{_number(metric.baselines[name].value)} ({name})",
        _interval(metric.model),
        _interval(difference) if difference is not None else "-",
        best,
    ]


def _arrow(metric: MetricResult) -> str:
    return {True: " ↑", False: " ↓", None: ""}[metric.higher_is_better]


def _interval(interval: Interval) -> str:
    if math.isnan(interval.low):
        return _number(interval.value)
    return f"{_number(interval.value)} [{_number(interval.low)}, {_number(interval.high)}]"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def evaluation_json(results: Results, **facts: object) -> dict[str, Any]:
    """The evaluation as a JSON object: facts, and tasks with every metric; NaN becomes null."""
    tasks = {}
    for task, result in results.items():
        tasks[task] = asdict(result) | {
            "metrics": {name: _metric_json(metric) for name, metric in result.metrics.items()}
        }
    return {**facts, "tasks": tasks}


def _metric_json(metric: MetricResult) -> dict[str, Any]:
    return {
        **_interval_json(metric.model),
        "best_baseline": metric.best_baseline,
        "baselines": {name: _interval_json(value) for name, value in metric.baselines.items()},
        "differences": {name: _interval_json(value) for name, value in metric.differences.items()},
        "best_possible": finite(metric.best_possible),
        "higher_is_better": metric.higher_is_better,
    }


def _interval_json(interval: Interval) -> dict[str, float | None]:
    return {name: finite(value) for name, value in interval._asdict().items()}


def write_evaluation(results: Results, directory: Path, **facts: object) -> None:
    """Writes evaluation.json and evaluation.md.

    Args:
        results: of `evaluate`.
        directory: made if it isn't there.
        facts: what was judged (checkpoint, data, split); JSON-serialisable.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _write(directory / "evaluation.json", strict_json(evaluation_json(results, **facts)))
    title = f"Evaluation of {facts.get('checkpoint', directory)}"
    _write(directory / "evaluation.md", details(results, title=title))


def write_summary(
    directory: Path,
    *,
    wall_s: float,
    peak_rss_bytes: int,
    served: Mapping[str, object] | None = None,
    searched: Mapping[str, object] | None = None,
) -> Path:
    """Writes a run's summary.json from its evaluation.json: the primary metric of each task.

    Args:
        directory: of the run; holds evaluation.json with the facts `checkpoint` and `config`.
        wall_s: seconds of the whole run, over all calls that it took.
        peak_rss_bytes: largest resident memory of all its processes together.
        served: what the served models answered, in JSON's types; None where nothing was served.
        searched: what a search found, in JSON's types; None where there was none.

    Returns:
        The path of summary.json.
    """
    evaluation = json.loads((directory / "evaluation.json").read_text(encoding="utf-8"))
    tasks = {}
    for task, result in evaluation["tasks"].items():
        metric = result["metrics"][result["primary"]]
        baseline = metric["baselines"].get(metric["best_baseline"])
        tasks[task] = {
            "metric": result["primary"],
            **{name: metric[name] for name in Interval._fields},
            "baseline": None if baseline is None else baseline["value"],
            "best_possible": metric["best_possible"],
        }
    summary = {
        "tasks": tasks,
        "wall_s": wall_s,
        "peak_rss_bytes": peak_rss_bytes,
        **({} if served is None else {"served": served}),
        **({} if searched is None else {"searched": searched}),
        "checkpoint": evaluation["checkpoint"],
        "config": evaluation["config"],
    }
    path = directory / "summary.json"
    _write(path, strict_json(summary))
    return path


def _write(path: Path, text: str) -> None:
    """Replaces the file at once, so that a reader never sees half of it."""
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
