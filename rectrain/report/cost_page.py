"""A cost report as one HTML file: six questions, each with its answer, tables and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rectrain.cost.case import METHODS
from rectrain.cost.findings import Crossing, Findings
from rectrain.report.cost_models import model_sections
from rectrain.report.cost_pictures import cumulative, made_of, monthly, tornado, volumes
from rectrain.report.cost_plans import what_to_run
from rectrain.report.page import Section, details, money, paragraph, render_page, table

__all__ = ["cost_page", "route_table"]

_METHODS = {"full": "all weights", "lora": "LoRA", "adalora": "AdaLoRA"}


def route_table(found: Findings) -> tuple[list[str], list[list[str]]]:
    """What each route costs: a table's head, and its rows."""
    head = ["", "a month", "8 of 10 draws", "per 1,000 requests", "of it machines", "p99"]
    rows, limit = [], found.case.traffic.latency_ms
    for name, one in found.routes.items():
        low, _, high = found.ranges[name]
        p99 = found.case.routes[name].p99_ms
        rows.append([
            name, money(one.monthly, found.currency), f"{low:,.0f} to {high:,.0f}",
            money(one.per_1000, found.currency), money(one.serving_per_1000, found.currency),
            f"{p99:.0f} ms" + (f", above {limit:g}" if p99 > limit else ""),
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
        Section("What should I run at my traffic?", what_to_run(found), "What to run"),
        Section("How sure is that?", _sure(found), "How sure"),
        *model_sections(facts, currency=found.currency),
        Section("From what is this computed?", _known(found, facts), "From what"),
    ]
    return render_page("What it costs", lead=_headline(found), sections=sections)


def _headline(found: Findings) -> str:
    traffic, best, bounds = found.case.traffic, found.choice.best, found.bounds
    most = float(bounds.rates.max())
    rate = (
        f"{bounds.mean_rate:,.3g} requests a second ({bounds.peak_rate:,.3g} at peak, up to "
        f"{f'{most:,.3g}' if most < 1000 else f'{most:,.0f}'} within {traffic.horizon_months} "
        "months)"
    )
    if best is None:
        return (
            f"At {rate}, nothing answers 99 of 100 requests within {traffic.latency_ms:g} ms "
            f"{'within the budget ' if traffic.budget_per_month else ''}on these machines."
        )
    per_1000 = 1000 * best.cost / bounds.requests
    return (
        f"At {rate}, run **{best}**: {money(best.cost, found.currency)} a month "
        f"for the machines that answer, {money(per_1000, found.currency)} per 1,000 requests, "
        f"{money(best.spent, found.currency)} a month with trainings and people; "
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
            "A small model takes a further training at first, and each time again; what it saves "
            "or brings after that pays it back."
        ),
        *(_crossing(one, found) for one in found.crossings),
        cumulative(found),
        paragraph("The cheapest machines that answer, on average over the horizon, by traffic:"),
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
    counted = "With what answers are worth, it is" if found.has_worth else "By its costs, it is"
    if one.month == 0:
        return f"{counted} behind {one.other} in no month."
    first = f"{counted} behind by at most {money(one.behind, found.currency)}, which is"
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
            money(one.load_hourly, found.currency) if one.load_hourly else "-",
            str(one.term_months) if one.is_held else "-",
            one.source,
        ]
        for one in found.case.every_server
    ]  # fmt: skip
    head = [
        "machine", "threads", "speed", "an hour", "more under load", "held for months", "source"
    ]  # fmt: skip
    licences = {f"licence {name}": one.source for name, one in found.case.licences.items()}
    sources = [
        paragraph(f"{what}: {source}", kind="soft")
        for what, source in {**found.case.sources, **licences}.items()
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
        details("Prices", [table(head, machines, text=(6,)), *sources]),
    ]


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {part:g}" for key, part in value.items()) or "-"
    if isinstance(value, tuple | list):
        return ", ".join(f"{part:g}" for part in value) or "-"
    return "-" if value is None else str(value)
