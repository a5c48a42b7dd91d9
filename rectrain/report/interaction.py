"""What each task of a joint model gains or loses from the others: gradients, and single runs.

Two tasks pull the shared encoder the same way where the cosine of their gradients is above 0, and
against each other where it is below (Yu et al. 2020, "Gradient Surgery for Multi-Task Learning",
definition 1). Whether that helps shows only beside a model trained on the task alone.

Shapes: K tasks, P parameters of the encoder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rectrain.data.batch import MicroBatch
from rectrain.errors import ConfigError
from rectrain.metrics import Interval
from rectrain.model.balancing import task_gradients
from rectrain.model.multitask import MultiTaskModel
from rectrain.strict_json import number, strict_json

__all__ = [
    "Gain",
    "GradientReport",
    "GradientSums",
    "compare_runs",
    "draw_interactions",
    "markdown",
    "write_interactions",
]

Evaluation = Mapping[str, Any]
Matrix = list[list[float | None]]


@dataclass(frozen=True)
class GradientReport:
    """Cosines of the tasks' gradients at the encoder; None where a gradient is zero.

    Attributes:
        tasks: K names.
        num_micro_batches: how many were looked at.
        norms: [K], of each task's mean gradient, times its loss weight.
        cosines: [K, K], of the mean gradients of all micro-batches.
        means: [K, K], the mean of the micro-batches' own cosines, which noise draws towards 0.
        margins: [K, K], half of that mean's 95% interval.
        conflicts: [K, K], share of the micro-batches whose cosine is below 0.
    """

    tasks: tuple[str, ...]
    num_micro_batches: int
    norms: list[float]
    cosines: Matrix
    means: Matrix
    margins: Matrix
    conflicts: Matrix


class GradientSums:
    """Collects gradients of micro-batches; holds one [K, P] beside the current one.

    Args:
        tasks: K names, in the model's order.
        weights: w, each task's fixed loss weight.
    """

    def __init__(self, tasks: Sequence[str], *, weights: Sequence[float]) -> None:
        self._tasks, self._weights = tuple(tasks), torch.tensor(weights)
        self._sum: Tensor | None = None
        self._cosines: list[Tensor] = []

    def add(self, gradients: Tensor) -> None:
        """Takes the gradients of one micro-batch, float32 [K, P]."""
        self._cosines.append(_cosines(gradients))
        self._sum = gradients if self._sum is None else self._sum.add_(gradients)

    def add_batch(self, model: MultiTaskModel, batch: MicroBatch) -> None:
        """Takes those of a micro-batch at the model's encoder."""

        def take(losses: Tensor) -> Tensor:
            self.add(task_gradients(losses, model.shared_parameters("encoder")))
            return losses.detach().sum()

        model(batch, balance=take)

    def report(self) -> GradientReport:
        """What was collected, at least one micro-batch."""
        assert self._sum is not None, "no micro-batch"
        count = len(self._cosines)
        single = torch.stack(self._cosines)  # [micro-batches, K, K]
        known = single.isfinite()
        num_known = known.sum(0)
        means = single.nanmean(0)
        squares = ((single - means) ** 2).nan_to_num().sum(0)
        spread = (squares / (num_known - 1)).sqrt()  # NaN for one micro-batch
        norms = self._sum.norm(dim=1).cpu() / count * self._weights
        return GradientReport(
            tasks=self._tasks,
            num_micro_batches=count,
            norms=norms.tolist(),
            cosines=_matrix(_cosines(self._sum)),
            means=_matrix(means),
            margins=_matrix(1.96 * spread / num_known.sqrt()),
            conflicts=_matrix((single < 0).sum(0) / num_known),
        )


def _cosines(gradients: Tensor) -> Tensor:
    """[K, P] -> float32 [K, K] on the CPU, NaN where a gradient is zero."""
    norms = gradients.norm(dim=1)
    products: Tensor = gradients @ gradients.T
    cosines: Tensor = products / (norms[:, None] * norms)
    return cosines.cpu()


def _matrix(values: Tensor) -> Matrix:
    return [[_finite(value) for value in row] for row in values.tolist()]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


# ── Beside models of one task ────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Gain:
    """A task's primary metric in the joint run and in a run of its own.

    Attributes:
        task: its name.
        metric: its primary metric.
        single: value and 95% interval of the single-task run.
        joint: the same of the joint run.
        difference: joint - single, turned so that above 0 is better. Its interval adds both
            intervals' sides in quadrature (Zou and Donner 2008), as if the two were independent;
            they were judged on the same rows, so it is too wide rather than too narrow.
        steps: updates of the single run and of the joint one.
    """

    task: str
    metric: str
    single: Interval
    joint: Interval
    difference: Interval
    steps: tuple[int, int]

    @property
    def verdict(self) -> str:
        """ "gains", "loses", or "unclear" where the interval holds 0."""
        if self.difference.low > 0:
            return "gains"
        return "loses" if self.difference.high < 0 else "unclear"


def compare_runs(joint: Evaluation, singles: Mapping[str, Evaluation]) -> list[Gain]:
    """Compares a joint run's evaluation with those of runs of its tasks.

    Args:
        joint: the content of evaluation.json.
        singles: name of a run -> its own.

    Returns:
        One gain a task of the single runs, in the joint run's task order.

    Raises:
        ConfigError: a task that the joint run lacks or that stands twice, or other rows.
    """
    found: dict[str, Gain] = {}
    for name, single in singles.items():
        for task in single["tasks"]:
            if task not in joint["tasks"] or task in found:
                raise ConfigError(
                    what=f"single run {name}",
                    got=f"task {task}" + (" for a second time" if task in found else ""),
                    rule=f"each run adds other tasks of the joint one: {', '.join(joint['tasks'])}",
                    fix="leave the run out of --single",
                )
            _check_same_rows(task, name, joint, single)
            found[task] = _gain(task, joint, single)
    return [found[task] for task in joint["tasks"] if task in found]


def _check_same_rows(task: str, name: str, joint: Evaluation, single: Evaluation) -> None:
    facts = [
        (
            run["split"],
            *(run["tasks"][task][key] for key in ("num_rows", "num_groups", "primary")),
            run.get("rows_sha256", {}).get(task, "unknown")[:12],
        )
        for run in (single, joint)
    ]
    if facts[0] != facts[1]:
        raise ConfigError(
            what=f"single run {name}",
            got=f"{task} judged on {facts[0]}, the joint run on {facts[1]}",
            rule="both are judged on the same split, rows (by SHA-256) and metric",
            fix="evaluate both anew with the same --data and --split",
        )


def _gain(task: str, joint: Evaluation, single: Evaluation) -> Gain:
    name = joint["tasks"][task]["primary"]
    metrics = [run["tasks"][task]["metrics"][name] for run in (single, joint)]
    one, both = (Interval(*(number(m[key]) for key in Interval._fields)) for m in metrics)
    better, worse = (both, one) if metrics[0]["higher_is_better"] is not False else (one, both)
    value = better.value - worse.value
    below = math.hypot(better.value - better.low, worse.high - worse.value)
    above = math.hypot(better.high - better.value, worse.value - worse.low)
    difference = Interval(value=value, low=value - below, high=value + above)
    return Gain(task, name, one, both, difference, (int(single["step"]), int(joint["step"])))


# ── Files ────────────────────────────────────────────────────────────────────────────────────────


def markdown(gradients: GradientReport, gains: Sequence[Gain]) -> str:
    """Both views as markdown tables."""
    head = f"| cosine of gradients | {' | '.join(gradients.tasks)} |"
    lines = [head, "|---" * (len(gradients.tasks) + 1) + "|"]
    for task, row in zip(gradients.tasks, gradients.cosines, strict=True):
        lines.append(f"| {task} | {' | '.join(_text(value) for value in row)} |")
    lines += ["", "| tasks | cosine | of one micro-batch [95%] | micro-batches in conflict |"]
    lines.append("|---|---|---|---|")
    for i, one in enumerate(gradients.tasks):
        for j, other in enumerate(gradients.tasks[:i]):
            cells = (
                f"{other}, {one}",
                _text(gradients.cosines[i][j]),
                f"{_text(gradients.means[i][j])} ± {_text(gradients.margins[i][j])}",
                _text(gradients.conflicts[i][j], percent=True),
            )
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| task | norm of its weighted gradient |", "|---|---|"]
    lines += [f"| {t} | {n:.4g} |" for t, n in zip(gradients.tasks, gradients.norms, strict=True)]
    if gains:
        lines += ["", "| task | metric | alone [95%] | joint [95%] | joint is better by [95%] | |"]
        lines.append("|---|---|---|---|---|---|")
    for gain in gains:
        values = " | ".join(map(_interval, (gain.single, gain.joint, gain.difference)))
        lines.append(f"| {gain.task} | {gain.metric} | {values} | {gain.verdict} |")
    return "\n".join(lines)


def _text(value: float | None, *, percent: bool = False) -> str:
    if value is None:
        return "-"
    return f"{value:.0%}" if percent else f"{value:.3f}"


def _interval(interval: Interval) -> str:
    return f"{interval.value:.4f} [{interval.low:.4f}, {interval.high:.4f}]"


def write_interactions(
    gradients: GradientReport, gains: Sequence[Gain], directory: Path, **facts: object
) -> None:
    """Writes interactions.json, interactions.md and interactions.png.

    Args:
        gradients: of `GradientSums`.
        gains: of `compare_runs`; may be empty.
        directory: made if it isn't there.
        facts: what was looked at; JSON-serialisable.
    """
    directory.mkdir(parents=True, exist_ok=True)
    content = {**facts, "gradients": asdict(gradients), "gains": [_gain_json(g) for g in gains]}
    (directory / "interactions.json").write_text(strict_json(content), encoding="utf-8")
    title = f"# Tasks of {facts.get('checkpoint', directory)} and one another"
    note = (
        f"Gradients of {gradients.num_micro_batches} micro-batches at the encoder, without dropout."
    )
    document = f"{title}\n\n{note}\n\n{markdown(gradients, gains)}\n"
    (directory / "interactions.md").write_text(document, encoding="utf-8")
    draw_interactions(gradients, directory / "interactions.png")


def _gain_json(gain: Gain) -> dict[str, Any]:
    intervals = {
        name: {key: _finite(value) for key, value in getattr(gain, name)._asdict().items()}
        for name in ("single", "joint", "difference")
    }
    return asdict(gain) | intervals | {"verdict": gain.verdict}


def draw_interactions(gradients: GradientReport, path: Path) -> None:
    """A heat map of the cosines between different tasks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = len(gradients.tasks)
    known = {
        (i, j): value
        for i, row in enumerate(gradients.cosines)
        for j, value in enumerate(row)
        if i != j and value is not None
    }
    values = [[known.get((i, j), math.nan) for j in range(size)] for i in range(size)]
    limit = max([0.1, *map(abs, known.values())])
    figure, axis = pyplot.subplots(figsize=(2.5 + size, 1.5 + size), layout="constrained")
    picture = axis.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit)
    axis.set_xticks(range(size), gradients.tasks, rotation=30, ha="right")
    axis.set_yticks(range(size), gradients.tasks)
    for (i, j), value in known.items():
        color = "white" if abs(value) > limit / 2 else "black"
        axis.text(j, i, _text(value), ha="center", va="center", color=color)
    axis.set_title("cosine of the tasks' gradients at the encoder")
    figure.colorbar(picture, ax=axis)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
