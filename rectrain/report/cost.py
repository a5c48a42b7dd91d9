"""A cost report as files: report.html, which needs nothing beside it, ledger.csv and cost.json."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rectrain.cost.findings import Crossing, Findings
from rectrain.cost.forecast import METHODS, Forecast
from rectrain.cost.ledger import Ledger
from rectrain.cost.plan import Change, Plan
from rectrain.report.cost_pictures import (
    cumulative,
    made_of,
    monthly,
    plotly_js,
    tornado,
    volumes,
)

__all__ = ["cost_json", "cost_page", "cost_table", "write_cost"]

REPORT, LEDGER, SUMMARY = "report.html", "ledger.csv", "cost.json"
_FORMAT = 1
_SHORT = 24  # characters of a cell


def money(value: float, currency: str) -> str:
    """An amount for people: about three digits, never fewer than the cents of large ones."""
    if value and abs(value) < 0.0995:
        return f"{currency} {value:.3g}"
    if abs(value) < 100:
        return f"{currency} {value:,.2f}"
    return f"{currency} {value:,.0f}"


def cost_table(found: Findings) -> str:
    """One line a route, in markdown."""
    lines = [
        "| model | a month | 8 of 10 draws | per 1,000 requests | of it machines | p99 |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in found.routes.items():
        cells = _route_cells(found, name, one)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _route_cells(found: Findings, name: str, one: Forecast) -> list[str]:
    low, _, high = found.ranges[name]
    return [
        name, money(one.monthly, found.currency), f"{low:,.0f} to {high:,.0f}",
        money(one.per_1000, found.currency), money(one.serving_per_1000, found.currency),
        f"{found.case.routes[name].p99_ms:.0f} ms",
    ]  # fmt: skip


# --- JSON --------------------------------------------------------------------------------------


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
             "payback_month": one.month}
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


# --- HTML --------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML; short ones are kept on a line."""

    def shown(cell: str) -> str:
        return f'<td class="text">{cell}</td>' if len(cell) > _SHORT else f"<td>{cell}</td>"

    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(map(shown, row))}</tr>" for row in rows)
    return (
        f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _section(name: str, title: str, *parts: str) -> str:
    return f'<section id="{name}"><h2>{escape(title)}</h2>{"".join(parts)}</section>'


def _p(text: str, *, kind: str = "") -> str:
    return f'<p class="{kind}">{text}</p>' if kind else f"<p>{text}</p>"


def cost_page(found: Findings, facts: Mapping[str, Any]) -> str:
    """report.html.

    Args:
        found: the answers.
        facts: see `cost_json`.
    """
    searched = facts.get("searched")
    sections = [
        _what(found), _made(found), *([_searched(found, searched)] if searched else []),
        _pays(found), _run(found), _sure(found), _known(found, facts),
    ]  # fmt: skip
    nav = "".join(
        f'<a href="#{name}">{title}</a>'
        for name, title in (
            ("what", "What"), ("made", "Of what"), ("searched", "Other shapes"),
            ("pays", "When it pays"), ("run", "What to run"), ("sure", "How sure"),
            ("known", "From what"),
        )
        if searched or name != "searched"
    )  # fmt: skip
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>What it costs</title><style>{_STYLE}</style>'
        f"<script>{plotly_js()}</script></head><body>"
        f"<header><h1>What it costs</h1>{_headline(found)}<nav>{nav}</nav></header>"
        f"<main>{''.join(sections)}</main></body></html>\n"
    )


def _headline(found: Findings) -> str:
    traffic, best = found.case.traffic, found.choice.best
    rate = (
        f"{found.bounds.mean_rate:,.3g} requests a second ({found.bounds.peak_rate:,.3g} at peak)"
    )
    if best is None:
        return _p(
            f"At {rate}, nothing answers 99 of 100 requests within {traffic.latency_ms:g} ms "
            f"{'within the budget ' if traffic.budget_per_month else ''}on these machines.",
            kind="lead",
        )
    per_1000 = 1000 * best.cost / (found.bounds.mean_rate * 3600 * 730)
    return _p(
        f"At {rate}, run <b>{escape(str(best))}</b>: {money(best.cost, found.currency)} a month "
        f"for the machines that answer, {money(per_1000, found.currency)} per 1,000 requests, "
        f"99 of 100 within {best.route.p99_ms:.0f} ms.",
        kind="lead",
    )


def _what(found: Findings) -> str:
    months = found.case.traffic.horizon_months
    rows = [[escape(cell) for cell in _route_cells(found, name, one)] for name, one in
            found.routes.items()]  # fmt: skip
    parts = [
        _p(
            f"All of it, people too, on average over {months} months; the whiskers and the range "
            f"hold 8 of 10 of {found.num_draws:,} draws from the uncertain inputs. Machines: "
            f"{escape(', '.join(sorted({one.machine for one in found.routes.values()})))}."
        ),
        monthly(found),
        _table(["", "a month", "8 of 10", "per 1,000 requests", "of it, machines", "p99"], rows),
        *_late(found),
    ]
    if found.has_worth:
        parts += [
            _p("What the answers bring, as far as you said what they are worth:"),
            _table(
                ["", "worth a month", "less cost", "ROI"],
                (
                    [
                        escape(name), money(float(one.worth.mean()), found.currency),
                        money(one.net / months, found.currency), f"{one.roi:,.1f}",
                    ]
                    for name, one in found.routes.items()
                ),
            ),
        ]  # fmt: skip
    return _section("what", "What does each model, and the cascade, cost?", *parts)


def _late(found: Findings) -> list[str]:
    """What must be said of routes that can't keep the latency limit."""
    limit = found.case.traffic.latency_ms
    late = [name for name, route in found.case.routes.items() if route.p99_ms > limit]
    if not late:
        return []
    return [_p(f"<b>{escape(', '.join(late))}</b> can't keep {limit:g} ms however few requests come"
               ": priced as busy as can be, and no choice below.")]  # fmt: skip


def _made(found: Findings) -> str:
    months = found.case.traffic.horizon_months
    ledgers = {name: one.ledger(found.currency) for name, one in found.routes.items()}
    keys = list(dict.fromkeys(
        key for ledger in ledgers.values() for key in ledger.totals("stage", "part", "kind")
    ))  # fmt: skip
    totals = {name: ledger.totals("stage", "part", "kind") for name, ledger in ledgers.items()}
    rows = [
        [
            f"{stage}, {part}", kind,
            *(money(float(totals[name].get((stage, part, kind), 0)) / months, found.currency)
              for name in ledgers),
        ]
        for stage, part, kind in keys
    ]  # fmt: skip
    whole = [
        "<b>all</b>", "",
        *(f"<b>{money(float(one.total()) / months, found.currency)}</b>"
          for one in ledgers.values()),
    ]  # fmt: skip
    return _section(
        "made", "What is it made of?",
        _p("A month, on average. Every line, month by month, is in ledger.csv."),
        made_of(found),
        _table(["stage", "kind", *map(escape, ledgers)], [*rows, whole]),
    )  # fmt: skip


def _searched(found: Findings, searched: Mapping[str, Any]) -> str:
    parts = [_packaged(found, searched["models"])] if searched["models"] else []
    rows = [
        [
            escape(", ".join(f"{name} {value}" for name, value in one["parameters"].items()))
            + (" (knee)" if one["trial"] == searched["knee"] else ""),
            f"{one['objectives']['mean_lift']:.3f}",
            money(one["objectives"]["cost_per_1000"], searched["currency"]),
            f"{one['objectives']['p99_ms']:.1f} ms",
        ]
        for one in searched["front"]
    ]
    return _section(
        "searched", "What would another shape cost?", *parts,
        _p("The front as the search found it: shapes compared with one another by its own "
           "requests, at the price of a core in its settings, without idle time; not comparable "
           "with the costs above. Lift is the share of its teacher's, on validation rows."),
        _table(["shape", "lift", "per 1,000 requests", "p99"], rows),
        _p(f"More of it: {escape(searched['page'])}.", kind="soft"),
    )  # fmt: skip


def _packaged(found: Findings, models: Sequence[Mapping[str, Any]]) -> str:
    best = found.choice.best
    machine = "" if best is None else f" on {escape(best.server.name)}, {best.server.purchase}"
    rows = [
        [
            escape(one["model"]),
            f"{one['layers']} layers of {one['hidden']}, inner size {one['intermediate']}",
            escape(one["run_by"]), f"{1000 * one['core_s']:.2f} ms",
            "-" if one["per_1000"] is None else money(one["per_1000"], found.currency),
            f"{one['memory_bytes'] / 2**20:,.0f} MiB",
            "-" if one["lift"] is None else f"{one['lift']:.3f}",
        ]
        for one in models
    ]  # fmt: skip
    return _p(
        "What the search has packaged, measured by the same requests as the other models. Of each, "
        "answering alone: how long a request keeps a core busy, and what 1,000 of them cost of the "
        f"machines that answer{machine}, at the load that keeps the latency limit. Lift is the "
        "share of its teacher's, on validation rows."
    ) + _table(["", "encoder", "run by", "a request", "per 1,000 requests", "memory", "lift"], rows)


def _crossing(one: Crossing, found: Findings) -> str:
    own, other = found.routes[one.one], found.routes[one.other]
    first = own.costs[0] - other.costs[0]
    if one.month == 0:
        back = f"It costs no more than {one.other}, from the first month on."
    elif one.month is None:
        back = (
            f"It costs {money(first, found.currency)} more in the first month, which is not back "
            f"within {found.case.traffic.horizon_months} months at this traffic."
        )
    else:
        back = (
            f"It costs {money(first, found.currency)} more in the first month, which is back after "
            f"<b>month {one.month}</b>."
        )
    if not one.rates:
        cheaper = one.one if own.cost < other.cost else one.other
        volume = f"{cheaper} is the cheaper of the two at any traffic that was looked at."
    else:
        rates = ", ".join(f"<b>{rate:,.3g}</b>" for rate in one.rates[:4])
        more = " …" if len(one.rates) > 4 else ""
        volume = (
            f"The cheaper of the two, over {found.case.traffic.horizon_months} months, changes at "
            f"{rates}{more} requests a second (you have {found.case.traffic.mean:,.3g})."
        )
    return _p(f"<b>{escape(one.one)} against {escape(one.other)}.</b> {back} {volume}")


def _pays(found: Findings) -> str:
    training = found.case.training
    base = found.routes[found.best_route].strategy
    by_method = {
        one.strategy.method: one
        for one in found.all
        if one.strategy._replace(method=base.method) == base
    }
    rows = [
        [
            {"full": "all weights", "lora": "LoRA", "adalora": "AdaLoRA"}[method],
            f"{training.factors[method]:.2f}",
            f"{training.large * training.factors[method]:,.3g}",
            money(by_method[method].monthly, found.currency),
        ]
        for method in METHODS
        if method in by_method
    ]
    every = found.case.traffic.retrain_every_months
    rhythm = f"every {every} months" if every else "once"
    return _section(
        "pays", "When does extra training pay back?",
        _p("A small model takes a further training at first, and each time again; it is paid back "
           "by fewer machines."),
        *(_crossing(one, found) for one in found.crossings),
        cumulative(found),
        _p("Machines that answer, sized for the peak, by traffic:"),
        volumes(found),
        _p(f"How the large model learns again ({rhythm}), in {escape(found.best_route)}; "
           f"{escape(training.source)}:"),
        _table(["training", "of all weights'", "device hours", "a month"], rows),
    )  # fmt: skip


def _run(found: Findings) -> str:
    best = found.choice.best
    parts = []
    if best is None:
        relaxed = found.relaxed
        parts.append(_p(
            "Nothing keeps to the budget and the latency limit. Without them: "
            + (escape(str(relaxed)) + f", {money(relaxed.cost, found.currency)} a month, p99 "
               f"{relaxed.route.p99_ms:.0f} ms." if relaxed else "no machine has the memory.")
        ))  # fmt: skip
    else:
        parts += [_p(_goal(found)), _plan_text("Best", best, "", found)]
        parts += [
            _plan_text(name.capitalize(), plan, _wins_if(plan, change, best, found), found)
            for name, (plan, change) in found.rivals.items()
        ]
        if found.relaxed is not None and found.relaxed.key != best.key:
            parts.append(_p(
                f"If there were neither budget nor latency limit: {escape(str(found.relaxed))}, "
                f"{money(found.relaxed.cost, found.currency)} a month, p99 "
                f"{found.relaxed.route.p99_ms:.0f} ms."
            ))  # fmt: skip
    parts += [_p("The best plan, by traffic:"), _by_traffic(found)]
    parts += [_p("Strategies side by side, over the whole horizon:"), _side_by_side(found)]
    return _section("run", "What should I run at my traffic?", *parts)


def _goal(found: Findings) -> str:
    traffic = found.case.traffic
    budget = ""
    if traffic.budget_per_month:
        budget = f", machines for at most {money(traffic.budget_per_month, found.currency)} a month"
    goal = "the highest worth less cost" if found.has_worth else (
        "the lowest cost (no worth of answers is given, so quality counts for nothing)"
    )  # fmt: skip
    return (
        f"Of all machines, numbers, purchases and shares deferred: {goal}, with 99 of 100 answers "
        f"within {traffic.latency_ms:g} ms{budget}."
    )


def _plan_text(name: str, plan: Plan, wins: str, found: Findings) -> str:
    counts = " and ".join(
        f"{count} of the {escape(stage.model)} model"
        for stage, count in zip(plan.route.stages, plan.num_processes, strict=True)
    )
    worth = f", answers worth {money(plan.worth, found.currency)}" if found.has_worth else ""
    told = (
        f"<b>{escape(name)}: {escape(str(plan))}.</b> {money(plan.cost, found.currency)} a month"
        f"{worth}; processes: {counts}; p99 {plan.route.p99_ms:.0f} ms."
    )
    if wins:
        return _p(f"{told}<br>It would win {wins}.", kind="rival")
    return _p(told, kind="rival best")


def _wins_if(plan: Plan, change: Change, best: Plan, found: Findings) -> str:
    said = []
    if change.rival_hourly is not None and change.rival_hourly != change.best_hourly:
        said.append(
            f"at {money(change.rival_hourly, found.currency)} an hour of {escape(plan.server.name)}"
            f" (now {money(plan.server.hourly, found.currency)})"
        )
    if change.best_hourly is not None:
        said.append(
            f"at {money(change.best_hourly, found.currency)} an hour of "
            f"{escape(best.server.name)} (now {money(best.server.hourly, found.currency)})"
        )
    for factor, told in ((change.traffic_up, "from"), (change.traffic_down, "down to")):
        if factor is not None:
            said.append(f"{told} {found.bounds.mean_rate * factor:,.3g} requests a second")
    if change.worth is not None and change.worth > 0:
        said.append(f"if answers were worth {change.worth:,.3g} times as much")
    return "; ".join(said) or "by no price and no traffic alone"


def _by_traffic(found: Findings) -> str:
    rows: list[list[str]] = []
    last = None
    for step in found.steps:
        told = "nothing" if step.best is None else (
            f"{step.best.server.name} {step.best.server.purchase}, {step.best.route.name}"
        )  # fmt: skip
        if told != last:
            best = step.best
            rows.append([
                f"from {step.rate:,.3g}", escape(told), str(best.num_servers) if best else "",
                money(best.cost, found.currency) if best else "",
            ])  # fmt: skip
        last = told
    return _table(["requests a second", "what", "machines", "a month"], rows)


def _side_by_side(found: Findings) -> str:
    shown = [one for one in found.all if one.strategy.method == "full"]
    shown.sort(key=lambda one: -one.net)
    return _table(
        ["model", "where", "machines", "a month", "per 1,000 requests", "worth less cost", "ROI"],
        (
            [
                escape(one.strategy.route),
                escape(str(one.strategy).split(", ", 2)[2]),
                escape(one.machine), money(one.monthly, found.currency),
                money(one.per_1000, found.currency), money(one.net, found.currency),
                f"{one.roi:,.1f}",
            ]
            for one in shown
        ),
    )  # fmt: skip


def _sure(found: Findings) -> str:
    best, months = found.best_route, found.case.traffic.horizon_months
    net = found.routes[best].net / months
    what = "worth less cost" if found.has_worth else "cost (as a negative number)"
    parts = [
        _p(f"In {found.num_draws:,} draws of all uncertain inputs at once, each route has the "
           f"highest {'worth less cost' if found.has_worth else 'saving'} in:"),
        _table(
            ["", "of the draws", "a month: tenth", "middle", "ninetieth of a hundred"],
            ([escape(name), f"{share:.0%}", *(money(v, found.currency) for v in found.ranges[name])]
             for name, share in found.wins.items()),
        ),
        _p(f"What moves {escape(best)}'s {what} of a month most, each input at the tenth and the "
           "ninetieth of a hundred of its own draws:"),
        tornado(found.effects, centre=net, currency=found.currency, name="effects"),
    ]  # fmt: skip
    if found.leads and any(one.swing > 0 for one in found.leads):
        lead = net - found.routes[found.next_route].net / months
        parts += [
            _p(f"And its lead over {escape(found.next_route)}; below 0 the other one is better:"),
            tornado(found.leads, centre=lead, currency=found.currency, name="leads"),
        ]
    return _section("sure", "How sure is that?", *parts)


def _known(found: Findings, facts: Mapping[str, Any]) -> str:
    traffic = found.case.traffic
    dumped = traffic.model_dump(exclude={"worth", "effort", "spread"})
    given = [[escape(key), escape(_said(value))] for key, value in dumped.items()]
    inner = [
        [f"{name}.{escape(key)}", escape(_said(value))]
        for name in ("effort", "worth", "spread")
        for key, value in dict(getattr(traffic, name)).items()
    ]
    parts = [_p(escape(line)) for line in facts.get("notes", ())]
    parts += [
        _p("What was measured:"),
        _table(["", "model", "figure"], facts.get("measured_rows", ())),
        "<details><summary>What you said, or the defaults where you said nothing</summary>",
        _table(["traffic", ""], [*given, *inner]),
        "</details><details><summary>Prices</summary>",
        _table(
            ["machine", "threads", "speed", "an hour"],
            (
                [escape(f"{one.name} {one.purchase}"), str(one.threads), f"{one.speed:g}",
                 money(one.hourly, found.currency)]
                for one in found.case.servers
            ),
        ),
        *(_p(escape(f"{what}: {source}"), kind="soft")
          for what, source in found.case.sources.items() if source),
        "</details>",
    ]  # fmt: skip
    return _section("known", "From what is this computed?", *parts)


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {part:g}" for key, part in value.items()) or "-"
    if isinstance(value, tuple | list):
        return ", ".join(f"{part:g}" for part in value) or "-"
    return "-" if value is None else str(value)


_STYLE = """
:root { color-scheme: light; --ink: #1f2937; --soft: #6b7280; --line: #e5e7eb; --accent: #2563eb }
* { box-sizing: border-box }
body { margin: 0; font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: #f8fafc }
header, main { max-width: 62rem; margin: 0 auto; padding: 0 1rem }
header { padding-top: 1.25rem }
h1 { font-size: 1.1rem; margin: 0; color: var(--soft); font-weight: 600 }
h2 { font-size: 1.15rem; margin: 0 0 .5rem }
p { margin: .6rem 0; overflow-wrap: anywhere }
.lead { font-size: 1.2rem; line-height: 1.4 }
.soft, small { color: var(--soft); font-size: .85rem }
nav { display: flex; flex-wrap: wrap; gap: .35rem 1rem; font-size: .9rem; margin-bottom: 1rem }
a { color: var(--accent) }
section { background: white; border: 1px solid var(--line); border-radius: 10px;
  padding: 1rem; margin-bottom: 1rem; min-width: 0 }
.wide { overflow-x: auto; margin: .5rem 0 }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; vertical-align: top;
  border-bottom: 1px solid var(--line); white-space: nowrap }
td.text { white-space: normal; min-width: 11rem }
details { margin: .6rem 0 }
summary { cursor: pointer; color: var(--accent) }
.rival { border-left: 3px solid var(--line); padding-left: .8rem }
.rival.best { border-color: var(--accent) }
th { color: var(--soft); font-weight: 600 }
.plotly-graph-div { width: 100% }
"""


# --- files -------------------------------------------------------------------------------------


def write_cost(folder: Path, found: Findings, facts: Mapping[str, Any], spent: Ledger) -> None:
    """Writes report.html, ledger.csv and cost.json.

    Args:
        folder: where; made.
        found: the answers.
        facts: see `cost_json`.
        spent: what was paid already; its entries stand before those of the forecasts.
    """
    ledger = spent
    for one in found.routes.values():
        ledger = ledger + one.ledger(found.currency)
    summary = cost_json(found, facts)
    files = {
        REPORT: cost_page(found, facts),
        LEDGER: ledger.to_csv(),
        SUMMARY: json.dumps(_finite(summary), indent=1, allow_nan=False) + "\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        draft = folder / f".{name}.tmp"
        draft.write_text(content, encoding="utf-8")
        draft.replace(folder / name)


def _finite(value: Any) -> Any:
    """The same with null for numbers that are none."""
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
