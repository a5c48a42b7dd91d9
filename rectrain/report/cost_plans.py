"""Of a cost report: what to run, and what would have to change for another plan to win."""

from __future__ import annotations

from typing import Any

from rectrain.cost.findings import Findings, where_of
from rectrain.cost.plan import Plan
from rectrain.cost.rivals import Change
from rectrain.report.page import money, paragraph, table

__all__ = ["what_to_run"]


def what_to_run(found: Findings) -> list[str]:
    """HTML of the best plan, its rivals, plans by traffic, and all strategies."""
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
        if relaxed is not None and str(relaxed) != str(best):
            parts.append(paragraph(f"If there were neither budget nor latency limit: {free}"))
        parts += _forecast_best(found, best)
    budget = ", whatever the budget" if found.case.traffic.budget_per_month else ""
    parts += [paragraph(f"The best plan, by traffic{budget}:"), _by_traffic(found)]
    parts += [paragraph("Strategies side by side, over the whole horizon:"), _side_by_side(found)]
    return parts


def _forecast_best(found: Findings, best: Plan) -> list[str]:
    """Where the table of strategies has another one at its top than the plan, and why."""
    top, traffic = found.best_strategy, found.case.traffic
    if top is None:
        return []
    strategy = top.strategy
    if (strategy.route, strategy.hosting, strategy.purchase) == (best.route.name, *where_of(best)):
        return []
    why = (
        "it counts prices as they move, trainings on the machines that answer, and answers that"
        " leave a cloud"
    )
    if traffic.budget_per_month and top.serving.max() > traffic.budget_per_month:
        most = money(float(top.serving.max()), found.currency)
        why = f"its machines cost up to {most} a month, above the budget"
    elif strategy.hosting == "both":
        why = "a plan has one kind of machine, and doesn't mix them"
    elif best.route.name not in found.case.routes:
        why = "the plan may defer other shares of the requests"
    return [
        paragraph(
            f"Of the strategies below **{strategy}** ({top.machine}) has the highest worth less "
            f"cost, at {money(top.monthly, found.currency)} a month in all. It isn't the plan: "
            f"{why}."
        )
    ]


def _goal(found: Findings) -> str:
    traffic = found.case.traffic
    budget = ""
    if traffic.budget_per_month:
        most = money(traffic.budget_per_month, found.currency)
        budget = f", machines for at most {most} in any month"
    goal = "the highest worth less cost" if found.has_worth else (
        "the lowest cost (no worth of answers is given, so quality counts for nothing)"
    )  # fmt: skip
    machines = "follow each hour" if traffic.scales_hourly else "stand for each month's peak"
    return (
        f"Of all machines, numbers, purchases (one's own, too) and shares deferred: {goal}, "
        "trainings and people counted, on average over "
        f"{traffic.horizon_months} months at today's prices, with 99 of 100 answers within "
        f"{traffic.latency_ms:g} ms{budget}. Machines on demand and spot ones {machines}; reserved "
        "ones and one's own stay for their term."
    )


def _plan_text(name: str, plan: Plan, wins: str, found: Findings) -> str:
    counts = " and ".join(
        f"{count} of the {stage.model} model"
        for stage, count in zip(plan.route.stages, plan.num_processes, strict=True)
    )
    worth = f", answers worth {money(plan.worth, found.currency)}" if found.has_worth else ""
    told = (
        f"**{name}: {plan}.** {money(plan.cost, found.currency)} a month, "
        f"{money(plan.spent, found.currency)} with trainings and people{worth}; processes at most: "
        f"{counts}; p99 {plan.route.p99_ms:.0f} ms."
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
            count, cost = best.count, money(best.cost, found.currency)
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
