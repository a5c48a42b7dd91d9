"""The pictures of a cost report, for its page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rectrain.cost.findings import Findings
from rectrain.cost.ranges import Effect
from rectrain.report.page import PALETTE, chart

__all__ = ["cumulative", "made_of", "monthly", "tornado", "volumes"]

_PARTS = (
    "#2563eb", "#60a5fa", "#7c3aed", "#c4b5fd", "#0d9488", "#5eead4", "#b45309", "#fcd34d",
    "#be123c", "#fda4af", "#4d7c0f", "#bef264", "#475569",
)  # fmt: skip
_INK = "#1b2028"
_INPUTS = {
    "traffic": "requests a second", "growth": "growth", "throughput": "throughput of a core",
    "deferred": "share deferred", "training": "device hours of training",
    "prices": "hardware prices", "effort": "people's hours", "worth": "worth of answers",
}  # fmt: skip


def _colour(place: int) -> str:
    """Of a route, by its place among them."""
    return PALETTE[place % len(PALETTE)]


def monthly(found: Findings) -> str:
    """Cost of a month of each route, with the range that eight of ten draws lie in."""
    from plotly import graph_objects as go

    names = list(found.routes)
    middle = np.array([found.routes[name].monthly for name in names])
    low = np.array([found.ranges[name].low for name in names])
    high = np.array([found.ranges[name].high for name in names])
    error = {
        "type": "data", "symmetric": False, "array": np.maximum(high - middle, 0).tolist(),
        "arrayminus": np.maximum(middle - low, 0).tolist(), "color": _INK, "thickness": 1.5,
    }  # fmt: skip
    bars = go.Bar(
        y=names, x=middle.tolist(), orientation="h", error_x=error,
        marker_color=[_colour(place) for place in range(len(names))],
        hovertemplate="%{y}: %{x:,.2f} " + found.currency + "<extra></extra>",
    )  # fmt: skip
    figure = go.Figure(bars)
    figure.update_xaxes(title=f"{found.currency} a month", rangemode="tozero")
    figure.update_yaxes(autorange="reversed")
    label = "Cost of a month of each route, with its range"
    return chart(figure, name="monthly", label=label, height=90 + 56 * len(names))


def made_of(found: Findings) -> str:
    """What a month is made of, a bar a route."""
    from plotly import graph_objects as go

    names = list(found.routes)
    parts = {name: found.routes[name].parts() for name in names}
    labels = list(dict.fromkeys(label for one in parts.values() for label in one))
    months = found.case.traffic.horizon_months
    figure = go.Figure(
        [
            go.Bar(
                y=names, x=[parts[name].get(label, 0.0) / months for name in names], name=label,
                orientation="h", marker_color=_PARTS[place % len(_PARTS)],
                hovertemplate="%{x:,.2f} " + found.currency + "<extra>" + label + "</extra>",
            )
            for place, label in enumerate(labels)
        ]
    )  # fmt: skip
    figure.update_layout(barmode="stack", legend_traceorder="normal")
    figure.update_xaxes(title=f"{found.currency} a month")
    figure.update_yaxes(autorange="reversed")
    height = 150 + 46 * len(names) + 20 * len(labels)
    return chart(figure, name="made-of", label="Parts of each route's cost", height=height)


def cumulative(found: Findings) -> str:
    """What was spent until the end of each month, less what answers are known to be worth."""
    from plotly import graph_objects as go

    figure = go.Figure()
    for place, (name, one) in enumerate(found.routes.items()):
        figure.add_scatter(
            x=list(range(1, len(one.costs) + 1)), y=np.cumsum(one.costs - one.worth).tolist(),
            name=name, mode="lines", line={"color": _colour(place), "width": 2.5},
            hovertemplate="month %{x}: %{y:,.0f} " + found.currency,
        )  # fmt: skip
    figure.update_xaxes(title="month")
    less = " less what answers are worth" if found.has_worth else ""
    figure.update_yaxes(title=f"{found.currency} spent{less}", rangemode="tozero")
    label = f"Money spent{less} until each month"
    return chart(figure, name="cumulative", label=label, height=340)


def volumes(found: Findings) -> str:
    """What the cheapest machines of each route cost for 1,000 requests, by traffic."""
    from plotly import graph_objects as go

    figure = go.Figure()
    for place, name in enumerate(found.routes):
        here = [step for step in found.steps if name in step.costs]
        if here:
            rates, costs = [one.rate for one in here], [one.costs[name] for one in here]
            per_1000 = [1000 * one.costs[name] / one.requests for one in here]
            figure.add_scatter(
                x=rates, y=per_1000, name=name, mode="lines", customdata=costs,
                line={"color": _colour(place), "width": 2.5},
                hovertemplate="%{x:.3g} requests/s: %{y:.4f} " + found.currency
                + " per 1,000, %{customdata:,.0f} a month",
            )  # fmt: skip
    figure.add_vline(x=found.bounds.mean_rate, line={"color": _INK, "dash": "dot", "width": 1.5})
    figure.add_annotation(
        x=float(np.log10(found.bounds.mean_rate)), y=1, yref="paper", text="you", showarrow=False,
        xanchor="left", yanchor="top", xshift=4,
    )  # fmt: skip
    figure.update_xaxes(type="log", title="requests a second, on average", dtick=1)
    figure.update_yaxes(type="log", title=f"{found.currency} per 1,000", dtick=1)
    label = "Machines' cost of 1,000 requests of each route against traffic"
    return chart(figure, name="volumes", label=label, height=360)


def tornado(effects: Sequence[Effect], *, centre: float, currency: str, name: str) -> str:
    """Results at an input's tenth and ninetieth of a hundred, around the one as given."""
    from plotly import graph_objects as go

    shown = [one for one in effects if one.swing > 0]
    labels = [_INPUTS[one.name] for one in shown]
    figure = go.Figure()
    for side, colour, told in (("low", "#60a5fa", "less of it"), ("high", "#f59e0b", "more")):
        ends = [getattr(one, side) for one in shown]
        figure.add_bar(
            y=labels, x=[end - centre for end in ends], base=centre, orientation="h", name=told,
            marker_color=colour, customdata=ends, hovertemplate="%{customdata:,.2f} " + currency,
        )  # fmt: skip
    figure.update_layout(barmode="overlay")
    figure.update_xaxes(title=f"{currency} a month")
    figure.update_yaxes(autorange="reversed")
    label = "How far each uncertain input moves the result"
    return chart(figure, name=name, label=label, height=130 + 34 * max(1, len(shown)))
