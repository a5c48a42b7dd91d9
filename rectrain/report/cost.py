"""A cost report as files: report.html, which needs nothing beside it, ledger.csv and cost.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rectrain.cost.findings import Findings
from rectrain.cost.forecast import Forecast
from rectrain.cost.ledger import Ledger
from rectrain.cost.plan import Plan
from rectrain.report.cost_page import cost_page, route_table
from rectrain.strict_json import strict_json

__all__ = ["SPENT", "cost_json", "cost_table", "write_cost"]

#: Scenario of the entries that were paid already; the others' are the names of routes.
SPENT = "spent"

REPORT, LEDGER, SUMMARY = "report.html", "ledger.csv", "cost.json"
_FORMAT = 1


def cost_table(found: Findings) -> str:
    """One line a route, in markdown."""
    head, rows = route_table(found)
    head[0] = "model"
    first, *others = (f"| {' | '.join(cells)} |" for cells in [head, *rows])
    return "\n".join([first, f"|{'---|' * len(head)}", *others])


def write_cost(folder: Path, found: Findings, facts: Mapping[str, Any], spent: Ledger) -> None:
    """Writes report.html, ledger.csv and cost.json.

    Args:
        folder: where; made.
        found: the answers.
        facts: see `cost_json`.
        spent: what was paid already; its entries stand before those of the forecasts, each of which
            is a scenario of its own: of the routes one is taken.
    """
    ledger = spent.of(SPENT)
    for name, one in found.routes.items():
        ledger = ledger + one.ledger(found.currency).of(name)
    summary = cost_json(found, facts)
    files = {
        REPORT: cost_page(found, facts),
        LEDGER: ledger.to_csv(),
        SUMMARY: strict_json(summary),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        draft = folder / f".{name}.tmp"
        draft.write_text(content, encoding="utf-8")
        draft.replace(folder / name)


def cost_json(found: Findings, facts: Mapping[str, Any]) -> dict[str, Any]:
    """All figures of a report, JSON-serialisable.

    Args:
        found: the answers.
        facts: further entries: what was measured, versions, sources.
    """
    best, second = found.choice
    return {
        "format": _FORMAT,
        "currency": found.currency,
        "months": found.case.traffic.horizon_months,
        "routes": {name: _forecast(found, name, one) for name, one in found.routes.items()},
        "plan": None if best is None else _plan(best),
        "runner_up": None if second is None else _plan(second),
        "rivals": {
            name: {**_plan(plan), "wins_if": vars(change)}
            for name, (plan, change) in found.rivals.items()
        },
        "break_even": [
            {"of": one.one, "against": one.other, "requests_per_s": list(one.rates),
             "payback_month": one.month, "behind": one.behind}
            for one in found.crossings
        ],
        "strategies": [
            {**one.strategy._asdict(), "machine": one.machine, "month": one.monthly,
             "per_1000": one.per_1000, "worth": float(one.worth.sum()), "net": one.net,
             "roi": one.roi}
            for one in found.all
        ],
        "sensitivity": {
            "net": {one.name: [one.low, one.high] for one in found.effects},
            "lead": {one.name: [one.low, one.high] for one in found.leads},
            "over": found.next_route,
        },
        "num_draws": found.num_draws,
        **facts,
    }  # fmt: skip


def _forecast(found: Findings, name: str, one: Forecast) -> dict[str, Any]:
    months = found.case.traffic.horizon_months
    route = found.case.routes[name]
    return {
        "month": one.monthly,
        "range": list(found.ranges[name]),
        "wins": found.wins[name],
        "per_1000": one.per_1000,
        "serving_per_1000": one.serving_per_1000,
        "parts": {label: amount / months for label, amount in one.parts().items()},
        "worth": float(one.worth.sum()),
        "net": one.net,
        "roi": one.roi,
        "machine": one.machine,
        "core_s": route.core_s,
        "busy": route.busy,
        "deferred": route.deferred,
        "p99_ms": route.p99_ms,
        "months": {"cost": one.costs.tolist(), "requests": one.requests.tolist(),
                   "worth": one.worth.tolist(), "machines": one.machines.tolist()},
    }  # fmt: skip


def _plan(plan: Plan) -> dict[str, Any]:
    return {
        "machine": plan.server.name,
        "purchase": plan.server.purchase,
        "machines": plan.num_servers,
        "route": plan.route.name,
        "deferred": plan.route.deferred,
        "processes": {
            stage.model: count
            for stage, count in zip(plan.route.stages, plan.num_processes, strict=True)
        },
        "p99_ms": plan.route.p99_ms,
        "month": plan.cost,
        "worth": plan.worth,
    }
