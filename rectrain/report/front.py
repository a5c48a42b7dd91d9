"""What a search found, as one HTML file: the front, how it grew, and what shaped it.

The front is that of all three objectives, among trials that hold the constraints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rectrain.report.page import PALETTE, Section, chart, paragraph, render_page, table
from rectrain.tune.pareto import hypervolume_curve, knee, minimised, non_dominated
from rectrain.tune.trials import DIRECTIONS, OBJECTIVES, StudyFacts, Trial, chips_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["Front", "front_of", "render_front"]

Floats = NDArray[np.float64]
Importances = Mapping[str, Mapping[str, float]]
Chosen = Mapping[int, Sequence[str]]

_MAXIMISE = [one == "maximize" for one in DIRECTIONS]
_NAMES = {"mean_lift": "lift", "cost_per_1000": "cost of 1,000 requests", "p99_ms": "p99"}
_GREY = "#9aa1ab"


@dataclass(frozen=True)
class Front:
    """The best of a search's trials.

    Attributes:
        trials: non-dominated feasible ones, the cheapest first.
        knee: the number of the trial at the front's knee; None where there is no front.
    """

    trials: tuple[Trial, ...]
    knee: int | None


def front_of(trials: Sequence[Trial]) -> Front:
    """The front of three objectives; infeasible and unfinished trials are in none."""
    points = _points(trials)
    at = knee(points)
    found = [trials[place] for place in np.flatnonzero(non_dominated(points)).tolist()]
    found.sort(key=lambda trial: _cost(trial))
    return Front(tuple(found), None if at is None else trials[at].number)


def render_front(
    trials: Sequence[Trial],
    facts: StudyFacts,
    *,
    importances: Importances,
    chosen: Chosen | None = None,
) -> str:
    """The page as HTML.

    Args:
        trials: of `read_study`.
        facts: of `read_facts`.
        importances: see `rectrain.tune.pareto.importances`.
        chosen: numbers of the trials that were packaged -> limits that the package exceeds.
    """
    front, chosen = front_of(trials), chosen or {}
    sections = [
        Section(
            "Quality against cost",
            [
                paragraph(_what_is_drawn(front, chosen)),
                _quality(trials, front, facts, chosen),
            ],
        ),
        Section("The front", [_front_table(front, facts, chosen)]),
        Section("How the front grew", _growth(trials, facts)),
        Section("What each parameter explains", _explained(importances)),
        Section("Trials without a result", _failures(trials)),
    ]
    return render_page("What the search found", lead=_lead(trials, front, facts), sections=sections)


def _points(trials: Sequence[Trial]) -> Floats:
    """[n, 3], to be minimised; NaN of what can't be in the front."""
    return minimised([_values(trial) for trial in trials], maximise=_MAXIMISE)


def _values(trial: Trial) -> tuple[float, ...]:
    if trial.objectives is None or not trial.is_feasible:
        return (np.nan,) * len(OBJECTIVES)
    return trial.objectives.values()


def _cost(trial: Trial) -> float:
    assert trial.objectives is not None
    return trial.objectives.cost_per_1000


# ── words ────────────────────────────────────────────────────────────────────────────────────────


def _lead(trials: Sequence[Trial], front: Front, facts: StudyFacts) -> str:
    ended = sum(trial.objectives is not None for trial in trials)
    infeasible = sum(trial.objectives is not None and not trial.is_feasible for trial in trials)
    spent = facts.preparation_seconds + sum(trial.device_seconds for trial in trials)
    beyond = f", {infeasible} of them beyond a constraint" if infeasible else ""
    before = (
        f", {facts.preparation_seconds:,.0f} of them before the first trial"
        if facts.preparation_seconds
        else ""
    )
    return (
        f"{len(trials)} trials ({facts.way}), {ended} with a result{beyond}; "
        f"{len(front.trials)} in the front. {spent:,.0f} device-seconds{before}.{_mixed(trials)}"
    )


def _mixed(trials: Sequence[Trial]) -> str:
    """What is to be said of a search that went on on another machine, or on unlike nodes."""
    chips = chips_of(trials)
    if len(chips) < 2:
        return ""
    return (
        f" Timed on {' and '.join(chips)}: cost and p99 of trials on different processors don't "
        "compare."
    )


def _what_is_drawn(front: Front, chosen: Chosen) -> str:
    words = [
        "A trial is in the front if no other is as good in lift, cost and p99 and better in one. "
        "Lift is the mean over tasks, 0 of a random order and 1 of the large model. The line is "
        "the most lift that a cost buys; a point of the front below it has a lower p99."
    ]
    if front.knee is not None:
        words.append(
            f"Trial {front.knee} is the knee: each objective scaled to 0..1 over the front, its "
            "sum is the least (Chiu, Yen and Juan 2016)."
        )
    if chosen:
        words.append(f"Packaged: {', '.join(str(number) for number in sorted(chosen))}.")
    if any(chosen.values()):
        words.append("A package may be beyond a limit that its trial kept; the table says so.")
    return " ".join(words)


def _parameters(trial: Trial) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in trial.parameters.items())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# ── charts and tables ────────────────────────────────────────────────────────────────────────────


def _quality(trials: Sequence[Trial], front: Front, facts: StudyFacts, chosen: Chosen) -> str:
    import plotly.graph_objects as go

    judged = [trial for trial in trials if trial.objectives is not None]
    best = {trial.number for trial in front.trials}
    figure = go.Figure()
    beyond = [trial for trial in judged if not trial.is_feasible]
    if beyond:
        _add(figure, beyond, "beyond a constraint", symbol="x", color=_GREY, size=7)
    rest = [trial for trial in judged if trial.is_feasible and trial.number not in best]
    scale = _scale(judged)
    _add(figure, rest, "other trials", size=8, **scale)
    costs, lifts = _bound(front)
    figure.add_scatter(
        x=costs, y=lifts, mode="lines", name="most lift for the cost", hoverinfo="skip",
        line={"shape": "hv", "color": PALETTE[-1], "width": 1.5},
    )  # fmt: skip
    outline = {"color": "#1b2028", "width": 1.5}
    _add(figure, front.trials, "front", size=12, line=outline, showscale=True, **scale)
    ring = {"color": "rgba(0,0,0,0)", "size": 22}
    marked = {
        "knee": ([one for one in front.trials if one.number == front.knee], PALETTE[1], "circle"),
        "packaged": ([one for one in judged if one.number in chosen], PALETTE[2], "square"),
    }
    for name, (some, color, symbol) in marked.items():
        if some:
            _add(figure, some, name, symbol=symbol, line={"color": color, "width": 2.5}, **ring)
    figure.update_layout(
        xaxis_title=f"cost of 1,000 requests, {facts.currency}", yaxis_title="lift"
    )
    label = "Lift of each trial against its cost, coloured by p99, with the front"
    return chart(figure, name="quality", label=label, height=500)


def _scale(judged: Sequence[Trial]) -> dict[str, Any]:
    """The colours of p99, the same for all marks."""
    found = [one.objectives.p99_ms for one in judged if one.objectives is not None] or [0.0]
    bar = {"title": {"text": "p99, ms"}, "orientation": "h", "thickness": 12, "y": -0.2,
           "yanchor": "top"}  # fmt: skip
    return {"colorscale": "Viridis", "cmin": min(found), "cmax": max(found), "colorbar": bar}


def _add(figure: Figure, trials: Sequence[Trial], name: str, **marker: Any) -> None:
    """Adds trials as points; those with a colour scale have the colour of their p99."""
    found = [one.objectives for one in trials if one.objectives is not None]
    if "colorscale" in marker:
        marker["color"] = [one.p99_ms for one in found]
    figure.add_scatter(
        x=[one.cost_per_1000 for one in found],
        y=[one.mean_lift for one in found],
        customdata=[[one.p99_ms] for one in found],
        text=[f"trial {one.number}<br>{_parameters(one)}" for one in trials],
        hovertemplate="%{text}<br>lift %{y:.3f}, cost %{x:.4g}, p99 %{customdata[0]:.1f} ms",
        mode="markers", name=name, marker=marker,
    )  # fmt: skip


def _bound(front: Front) -> tuple[list[float], list[float]]:
    """Costs and lifts of the front of these two alone, the cheapest first."""
    points = _points(front.trials)[:, :2]
    corners = points[non_dominated(points)]
    corners = corners[corners[:, 1].argsort()]
    return corners[:, 1].tolist(), (-corners[:, 0]).tolist()


def _front_table(front: Front, facts: StudyFacts, chosen: Chosen) -> str:
    if not front.trials:
        return paragraph("No trial has a result that holds the constraints.")
    names = list(dict.fromkeys(name for trial in front.trials for name in trial.parameters))
    head = ["trial", *names, "lift", f"{facts.currency} / 1,000 requests", "p99 ms", "MB", ""]
    rows, marked = [], []
    for place, trial in enumerate(front.trials):
        assert trial.objectives is not None
        lift, cost, p99_ms = trial.objectives.values()
        size = (trial.facts or {}).get("num_bytes")
        notes = ["knee"] * (trial.number == front.knee)
        if trial.number in chosen:
            broken = chosen[trial.number]
            notes.append("packaged" + (f" (beyond {', '.join(broken)})" if broken else ""))
            marked.append(place)
        rows.append(
            [
                str(trial.number),
                *(_short(trial.parameters.get(name, "-")) for name in names),
                f"{lift:.3f}", f"{cost:.4g}", f"{p99_ms:.1f}",
                "-" if size is None else f"{size / 1e6:.1f}", ", ".join(notes),
            ]
        )  # fmt: skip
    return table(head, rows, chosen=marked)


def _growth(trials: Sequence[Trial], facts: StudyFacts) -> list[str]:
    import plotly.graph_objects as go

    done = sorted(
        (trial for trial in trials if trial.finished is not None),
        key=lambda trial: (trial.finished, trial.number),
    )
    if not done:
        return [paragraph("No trial has ended.")]
    reference = minimised([facts.reference], maximise=_MAXIMISE)[0]
    volumes = hypervolume_curve(_points(done), reference=reference) / _whole(facts)
    spent = facts.preparation_seconds + np.cumsum([trial.device_seconds for trial in done])
    figure = go.Figure()
    figure.add_scatter(
        x=[facts.preparation_seconds, *spent], y=[0.0, *volumes],
        text=["before the first trial", *(f"trial {trial.number}" for trial in done)],
        hovertemplate="%{text}<br>%{x:,.0f} device-seconds: %{y:.4f}<extra></extra>",
        mode="lines+markers", marker_size=5, line={"shape": "hv"}, showlegend=False,
    )  # fmt: skip
    figure.update_xaxes(title="device-seconds", rangemode="tozero")
    figure.update_yaxes(title="hypervolume, share of the most", rangemode="tozero")
    parts = (
        f"{name} {_short(value)}"
        for name, value in zip(_NAMES.values(), facts.reference, strict=True)
    )
    words = (
        f"Hypervolume up to the reference point ({', '.join(parts)} ms), as a share of what a "
        "model of lift 1 without cost and delay would have; trials in the order in which they "
        "ended, those without a result with the time they took."
    )
    label = "Hypervolume of the front against device-seconds spent"
    return [paragraph(words), chart(figure, name="growth", label=label, height=340)]


def _whole(facts: StudyFacts) -> float:
    """The volume between the reference and a model of lift 1 without cost and delay."""
    lift, cost, p99_ms = facts.reference
    return max(1.0 - lift, 0.0) * cost * p99_ms or 1.0


def _explained(importances: Importances) -> list[str]:
    import plotly.graph_objects as go

    if not importances:
        return [paragraph("Too few trials, or nothing in them that differs.")]
    names = list(dict.fromkeys(name for shares in importances.values() for name in shares))
    figure = go.Figure()
    for objective, shares in importances.items():
        figure.add_bar(
            y=names, x=[shares.get(name, 0.0) for name in names], orientation="h",
            name=_NAMES.get(objective, objective), hovertemplate="%{y}: %{x:.0%}",
        )  # fmt: skip
    figure.update_xaxes(title="share of variance", tickformat=".0%", range=[0, 1])
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(barmode="group")
    words = (
        "fANOVA with a random forest (Hutter et al. 2014): main effects, scaled to a sum of 1. It "
        "is about all trials with a result, which a sampler chose, and not about the best alone."
    )
    label = "Share of each objective's variance that each parameter explains"
    height = 150 + 55 * len(names)
    return [paragraph(words), chart(figure, name="importance", label=label, height=height)]


def _failures(trials: Sequence[Trial]) -> list[str]:
    failed = [trial for trial in trials if trial.objectives is None]
    if not failed:
        return [paragraph("Every trial has a result.")]
    rows = [
        [
            str(trial.number), trial.state, trial.error or "-", _parameters(trial),
            f"{trial.device_seconds:,.0f}",
        ]
        for trial in failed
    ]  # fmt: skip
    return [table(["trial", "state", "reason", "parameters", "device-seconds"], rows, text=(2, 3))]
