"""A cost report as one HTML file: six questions, each with its answer, tables and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rectrain.cost.case import METHODS
from rectrain.cost.findings import Crossing, Findings
from rectrain.cost.plan import Change, Plan
from rectrain.cost.traffic import SECONDS_PER_MONTH
from rectrain.report.cost_models import model_sections
from rectrain.report.cost_pictures import cumulative, made_of, monthly, tornado, volumes
from rectrain.report.page import Section, details, paragraph, render_page, table

__all__ = ["cost_page", "route_table"]

_METHODS = {"full": "all weights", "lora": "LoRA", "adalora": "AdaLoRA"}


def money(value: float, currency: str) -> str:
    """An amount for people: about three digits, never fewer than the cents of large ones."""
    if value and abs(value) < 0.0995:
        return f"{currency} {value:.3g}"
    if abs(value) < 100:
        return f"{currency} {value:,.2f}"
    return f"{currency} {value:,.0f}"


def route_table(found: Findings) -> tuple[list[str], list[list[str]]]:
    """What each route costs: a table's head, and its rows."""
    head = ["", "a month", "8 of 10 draws", "per 1,000 requests", "of it machines", "p99"]
    rows = []
    for name, one in found.routes.items():
        low, _, high = found.ranges[name]
        rows.append([
            name, money(one.monthly, found.currency), f"{low:,.0f} to {high:,.0f}",
            money(one.per_1000, found.currency), money(one.serving_per_1000, found.currency),
            f"{found.case.routes[name].p99_ms:.0f} ms",
        ])  # fmt: skip
    return head, rows


def cost_page(found: Findings, facts: Mapping[str, Any]) -> str:
    """report.html.

    Args:
        found: the answers.
        facts: see `cost_json`.
    """
    sections = [
        Section("What does each model, and the cascade, cost?", _what(found), "What"),
        Section("What is it made of?", _made(found), "Of what"),
        *_searched(found, facts.get("searched")),
        Section("When does extra training pay back?", _pays(found), "When it pays"),
        Section("What should I run at my traffic?", _run(found), "What to run"),
        Section("How sure is that?", _sure(found), "How sure"),
        *model_sections(facts, currency=found.currency),
        Section("From what is this computed?", _known(found, facts), "From what"),
    ]
    return render_page("What it costs", lead=_headline(found), sections=sections)


def _headline(found: Findings) -> str:
    traffic, best, bounds = found.case.traffic, found.choice.best, found.bounds
    rate = f"{bounds.mean_rate:,.3g} requests a second ({bounds.peak_rate:,.3g} at peak)"
    if best is None:
        return (
            f"At {rate}, nothing answers 99 of 100 requests within {traffic.latency_ms:g} ms "
            f"{'within the budget ' if traffic.budget_per_month else ''}on these machines."
        )
    per_1000 = 1000 * best.cost / (bounds.mean_rate * SECONDS_PER_MONTH)
    return (
        f"At {rate}, run **{best}**: {money(best.cost, found.currency)} a month "
        f"for the machines that answer, {money(per_1000, found.currency)} per 1,000 requests, "
        f"99 of 100 within {best.route.p99_ms:.0f} ms."
    )


# --- what it costs -------------------------------------------------------------------------------


def _what(found: Findings) -> list[str]:
    months = found.case.traffic.horizon_months
    parts = [
        paragraph(
            f"All of it, people too, on average over {months} months; the whiskers and the range "
            f"hold 8 of 10 of {found.num_draws:,} draws from the uncertain inputs. Machines: "
            f"{', '.join(sorted({one.machine for one in found.routes.values()}))}."
        ),
        monthly(found),
        table(*route_table(found)),
        *_late(found),
    ]
    if found.has_worth:
        rows = [
            [
                name, money(float(one.worth.mean()), found.currency),
                money(one.net / months, found.currency), f"{one.roi:,.1f}",
            ]
            for name, one in found.routes.items()
        ]  # fmt: skip
        parts += [
            paragraph("What the answers bring, as far as you said what they are worth:"),
            table(["", "worth a month", "less cost", "ROI"], rows),
        ]
    return parts


def _late(found: Findings) -> list[str]:
    """What must be said of routes that can't keep the latency limit."""
    limit = found.case.traffic.latency_ms
    late = [name for name, route in found.case.routes.items() if route.p99_ms > limit]
    if not late:
        return []
    return [
        paragraph(
            f"**{', '.join(late)}** can't keep {limit:g} ms however few requests come: priced as "
            "busy as can be, and no choice below."
        )
    ]


def _made(found: Findings) -> list[str]:
    months = found.case.traffic.horizon_months
    ledgers = [one.ledger(found.currency) for one in found.routes.values()]
    totals = [ledger.totals("stage", "part", "kind") for ledger in ledgers]

    def a_month(amount: Any) -> str:
        return money(float(amount) / months, found.currency)

    rows = [
        [f"{key[0]}, {key[1]}", key[2], *(a_month(one.get(key, 0)) for one in totals)]
        for key in dict.fromkeys(key for one in totals for key in one)
    ]
    rows.append(["all", "", *(a_month(ledger.total()) for ledger in ledgers)])
    return [
        paragraph("A month, on average. Every line, month by month, is in ledger.csv."),
        made_of(found),
        table(["stage", "kind", *found.routes], rows, chosen=(len(rows) - 1,)),
    ]


def _searched(found: Findings, searched: Mapping[str, Any] | None) -> list[Section]:
    """Of a search that was given: what it packaged, and its front."""
    if not searched:
        return []
    rows = [
        [
            ", ".join(f"{name} {value}" for name, value in one["parameters"].items())
            + (" (knee)" if one["trial"] == searched["knee"] else ""),
            f"{one['objectives']['mean_lift']:.3f}",
            money(one["objectives"]["cost_per_1000"], searched["currency"]),
            f"{one['objectives']['p99_ms']:.1f} ms",
        ]
        for one in searched["front"]
    ]
    parts = [
        *(_packaged(found, searched["models"]) if searched["models"] else []),
        paragraph(
            "The front as the search found it: shapes compared with one another by its own "
            "requests, at the price of a core in its settings, without idle time; not comparable "
            "with the costs above. Lift is the share of its teacher's, on validation rows."
        ),
        table(["shape", "lift", "per 1,000 requests", "p99"], rows),
        paragraph(f"More of it: {searched['page']}."),
    ]
    return [Section("What would another shape cost?", parts, "Other shapes")]


def _packaged(found: Findings, models: Sequence[Mapping[str, Any]]) -> list[str]:
    best = found.choice.best
    machine = "" if best is None else f" on {best.server.name}, {best.server.purchase}"
    rows = [
        [
            one["model"],
            f"{one['layers']} layers of {one['hidden']}, inner size {one['intermediate']}",
            one["run_by"], f"{1000 * one['core_s']:.2f} ms",
            "-" if one["per_1000"] is None else money(one["per_1000"], found.currency),
            f"{one['memory_bytes'] / 2**20:,.0f} MiB",
            "-" if one["lift"] is None else f"{one['lift']:.3f}",
        ]
        for one in models
    ]  # fmt: skip
    return [
        paragraph(
            "What the search has packaged, measured by the same requests as the other models. Of "
            "each, answering alone: how long a request keeps a core busy, and what 1,000 of them "
            f"cost of the machines that answer{machine}, at the load that keeps the latency limit."
        ),
        table(["", "encoder", "run by", "a request", "per 1,000 requests", "memory", "lift"], rows),
    ]


# --- when extra training pays --------------------------------------------------------------------


def _pays(found: Findings) -> list[str]:
    training = found.case.training
    base = found.routes[found.best_route].strategy
    by_method = {
        one.strategy.method: one
        for one in found.all
        if one.strategy._replace(method=base.method) == base
    }
    rows = [
        [
            _METHODS[method], f"{training.factors[method]:.2f}",
            f"{training.large * training.factors[method]:,.3g}",
            money(by_method[method].monthly, found.currency),
        ]
        for method in METHODS
        if method in by_method
    ]  # fmt: skip
    every = found.case.traffic.retrain_every_months
    rhythm = f"every {every} months" if every else "once"
    return [
        paragraph(
            "A small model takes a further training at first, and each time again; it is paid back "
            "by fewer machines."
        ),
        *(_crossing(one, found) for one in found.crossings),
        cumulative(found),
        paragraph("Machines that answer, sized for the peak, by traffic:"),
        volumes(found),
        paragraph(
            f"How the large model learns again ({rhythm}), in {found.best_route}; "
            f"{training.source}:"
        ),
        table(["training", "of all weights'", "device hours", "a month"], rows),
    ]


def _crossing(one: Crossing, found: Findings) -> str:
    return paragraph(
        f"**{one.one} against {one.other}.** {_paid_back(one, found)} {_cheaper(one, found)}"
    )


def _paid_back(one: Crossing, found: Findings) -> str:
    if one.month == 0:
        return f"It costs no more than {one.other}, from the first month on."
    more = found.routes[one.one].costs[0] - found.routes[one.other].costs[0]
    first = f"It costs {money(more, found.currency)} more in the first month, which is"
    if one.month is None:
        months = found.case.traffic.horizon_months
        return f"{first} not back within {months} months at this traffic."
    return f"{first} back after **month {one.month}**."


def _cheaper(one: Crossing, found: Findings) -> str:
    if not one.rates:
        first = found.routes[one.one].cost < found.routes[one.other].cost
        cheaper = one.one if first else one.other
        return f"{cheaper} is the cheaper of the two at any traffic that was looked at."
    rates = ", ".join(f"**{rate:,.3g}**" for rate in one.rates[:4])
    more = " …" if len(one.rates) > 4 else ""
    traffic = found.case.traffic
    return (
        f"The cheaper of the two, over {traffic.horizon_months} months, changes at "
        f"{rates}{more} requests a second (you have {traffic.mean:,.3g})."
    )


# --- what to run ---------------------------------------------------------------------------------


def _run(found: Findings) -> list[str]:
    best, relaxed = found.choice.best, found.relaxed
    free = relaxed and (
        f"{relaxed}, {money(relaxed.cost, found.currency)} a month, p99 "
        f"{relaxed.route.p99_ms:.0f} ms."
    )
    parts = []
    if best is None:
        parts.append(
            paragraph(
                "Nothing keeps to the budget and the latency limit. Without them: "
                f"{free or 'no machine has the memory.'}"
            )
        )
    else:
        parts += [paragraph(_goal(found)), _plan_text("Best", best, "", found)]
        parts += [
            _plan_text(name.capitalize(), plan, _wins_if(plan, change, best, found), found)
            for name, (plan, change) in found.rivals.items()
        ]
        if relaxed is not None and relaxed.key != best.key:
            parts.append(paragraph(f"If there were neither budget nor latency limit: {free}"))
    parts += [paragraph("The best plan, by traffic:"), _by_traffic(found)]
    parts += [paragraph("Strategies side by side, over the whole horizon:"), _side_by_side(found)]
    return parts


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
        f"{count} of the {stage.model} model"
        for stage, count in zip(plan.route.stages, plan.num_processes, strict=True)
    )
    worth = f", answers worth {money(plan.worth, found.currency)}" if found.has_worth else ""
    told = (
        f"**{name}: {plan}.** {money(plan.cost, found.currency)} a month"
        f"{worth}; processes: {counts}; p99 {plan.route.p99_ms:.0f} ms."
    )
    if wins:
        return paragraph(f"{told} It would win {wins}.", kind="note")
    return paragraph(told, kind="chosen note")


def _wins_if(plan: Plan, change: Change, best: Plan, found: Findings) -> str:
    def at(hourly: float, server: Any) -> str:
        now = money(server.hourly, found.currency)
        return f"at {money(hourly, found.currency)} an hour of {server.name} (now {now})"

    said = []
    if change.rival_hourly is not None and change.rival_hourly != change.best_hourly:
        said.append(at(change.rival_hourly, plan.server))
    if change.best_hourly is not None:
        said.append(at(change.best_hourly, best.server))
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
        best, told, count, cost = step.best, "nothing", "", ""
        if best is not None:
            told = f"{best.server.name} {best.server.purchase}, {best.route.name}"
            count, cost = str(best.num_servers), money(best.cost, found.currency)
        if told != last:
            rows.append([f"from {step.rate:,.3g}", told, count, cost])
        last = told
    return table(["requests a second", "what", "machines", "a month"], rows, text=(1,))


def _side_by_side(found: Findings) -> str:
    shown = [one for one in found.all if one.strategy.method == "full"]
    shown.sort(key=lambda one: -one.net)
    rows = [
        [
            one.strategy.route, str(one.strategy).split(", ", 2)[2], one.machine,
            money(one.monthly, found.currency), money(one.per_1000, found.currency),
            money(one.net, found.currency), f"{one.roi:,.1f}",
        ]
        for one in shown
    ]  # fmt: skip
    head = ["model", "where", "machines", "a month", "per 1,000 requests", "worth less cost", "ROI"]
    return table(head, rows, text=(1, 2))


# --- how sure, and from what ---------------------------------------------------------------------


def _sure(found: Findings) -> list[str]:
    best, months = found.best_route, found.case.traffic.horizon_months
    net = found.routes[best].net / months
    what = "worth less cost" if found.has_worth else "cost (as a negative number)"
    rows = [
        [name, f"{share:.0%}", *(money(value, found.currency) for value in found.ranges[name])]
        for name, share in found.wins.items()
    ]
    parts = [
        paragraph(
            f"In {found.num_draws:,} draws of all uncertain inputs at once, each route has the "
            f"highest {'worth less cost' if found.has_worth else 'saving'} in:"
        ),
        table(["", "of the draws", "a month: tenth", "middle", "ninetieth of a hundred"], rows),
        paragraph(
            f"What moves {best}'s {what} of a month most, each input at the tenth and the "
            "ninetieth of a hundred of its own draws:"
        ),
        tornado(found.effects, centre=net, currency=found.currency, name="effects"),
    ]
    if any(one.swing > 0 for one in found.leads):
        lead = net - found.routes[found.next_route].net / months
        parts += [
            paragraph(f"And its lead over {found.next_route}; below 0 the other one is better:"),
            tornado(found.leads, centre=lead, currency=found.currency, name="leads"),
        ]
    return parts


def _known(found: Findings, facts: Mapping[str, Any]) -> list[str]:
    traffic = found.case.traffic.model_dump()
    inner = {
        f"{name}.{key}": value
        for name in ("effort", "worth", "spread")
        for key, value in traffic.pop(name).items()
    }
    said = [[key, _said(value)] for key, value in {**traffic, **inner}.items()]
    machines = [
        [
            f"{one.name} {one.purchase}", str(one.threads), f"{one.speed:g}",
            money(one.hourly, found.currency),
        ]
        for one in found.case.servers
    ]  # fmt: skip
    sources = [
        paragraph(f"{what}: {source}", kind="soft")
        for what, source in found.case.sources.items()
        if source
    ]
    return [
        *map(paragraph, facts.get("notes", ())),
        paragraph("What was measured:"),
        table(["", "model", "figure"], facts.get("measured_rows", ())),
        details(
            "What you said, or the defaults where you said nothing",
            [table(["traffic", ""], said, text=(1,))],
        ),
        details("Prices", [table(["machine", "threads", "speed", "an hour"], machines), *sources]),
    ]


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {part:g}" for key, part in value.items()) or "-"
    if isinstance(value, tuple | list):
        return ", ".join(f"{part:g}" for part in value) or "-"
    return "-" if value is None else str(value)
