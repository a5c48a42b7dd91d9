"""What a report says of each model that was measured: its shape, its answers, the linear model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rectrain.cost.assemble import lift_of, request_cost
from rectrain.cost.findings import Findings
from rectrain.cost.linear import Candidate, Run
from rectrain.cost.linear_costs import Linear, LinearSettings, linear, training_runs
from rectrain.cost.measure import Past, history, maker
from rectrain.cost.prices import Prices
from rectrain.cost.routes import Speed, lone
from rectrain.cost.serving import Served
from rectrain.cost.shapes import figures_of
from rectrain.cost.trained import last_work
from rectrain.package import Package

__all__ = ["compared", "linear_models", "model_figures", "trained_runs"]

Figures = Mapping[str, Mapping[str, Any]]
"""Name -> what `model_figures` says of a model."""


def compared(
    found: Findings,
    packages: Mapping[str, Package],
    served: Mapping[str, Served],
    speeds: Mapping[str, Speed],
    *,
    lifts: Mapping[str, float],
) -> list[dict[str, Any]]:
    """What each model's encoder is, and what its answers take where it answers alone.

    Args:
        found: the answers; the best plan's machine is what requests are priced on.
        packages, served, speeds: name -> the package, and what was measured of it.
        lifts: name -> what a search says of it.
    """
    rows = []
    best, traffic = found.choice.best, found.case.traffic
    for name, package in packages.items():
        route = lone(speeds[name], traffic)
        shape = json.loads((package.path / "encoder" / "config.json").read_text())
        rows.append(
            {
                "model": name,
                "layers": shape["num_hidden_layers"],
                "hidden": shape["hidden_size"],
                "intermediate": shape["intermediate_size"],
                "run_by": served[name].backend,
                "core_s": speeds[name].request_s(traffic),
                "per_1000": None if best is None else request_cost(route, best.server),
                "memory_bytes": served[name].memory_bytes,
                "lift": lifts.get(name),
            }
        )
    return rows


def model_figures(
    packages: Mapping[str, Package],
    served: Mapping[str, Served],
    *,
    candidates: int,
    tokens: int,
) -> dict[str, dict[str, Any]]:
    """What each model is in closed form, and the memory that it takes.

    Args:
        packages, served: as of `compared`.
        candidates, tokens: of a request, and of a text.
    """
    found = {}
    for name, package in packages.items():
        made = last_work(str(package.path))
        figures = figures_of(package, candidates=candidates, tokens=tokens, made=made)
        found[name] = {**asdict(figures), "memory_bytes": served[name].memory_bytes}
    return found


def trained_runs(
    pasts: Mapping[str, Sequence[Past]],
    packages: Mapping[str, Package],
    prices: Prices,
    *,
    search: str | None,
    currency: str,
    tokens: int,
) -> list[Run]:
    """What training has cost, of all runs that are known: of the models, and of a search's trials.

    Args:
        pasts: what went into the models.
        packages: of these, and of what the search has packaged.
        prices: of machines.
        search: its folder.
        currency: of the costs.
        tokens: of a text.
    """
    works = [past for found in pasts.values() for past in found]
    works += history(search) if search and maker(search) else []
    works += [past for package in packages.values() for past in last_work(str(package.path))]
    return training_runs(works, prices, currency=currency, tokens=tokens)


def linear_models(
    found: Findings,
    packages: Mapping[str, Package],
    speeds: Mapping[str, Speed],
    figures: Figures,
    runs: Sequence[Run],
    stated: LinearSettings,
) -> list[Linear]:
    """The linear model of what requests cost, and of what training does.

    The cheapest is one of the models that were measured, by its latency alone at its load.

    Args:
        found, packages, speeds: as of `compared`.
        figures: of the models.
        runs: of `trained_runs`.
        stated: coefficients and bounds, in the report's currency.
    """
    best, traffic = found.choice.best, found.case.traffic
    mix = traffic.shares(packages["large"].tasks)
    first = packages["large"].manifest.get("metrics") or {}
    served: list[Run] = []
    candidates: list[Candidate] = []
    for name, package in packages.items():
        p, c = figures[name]["parameters"] / 1e6, figures[name]["complexity"]
        route = lone(speeds[name], traffic)
        lifts = lift_of(package.manifest.get("metrics") or {}, first)
        quality = 1.0 if name == "large" else _mean(lifts, mix)
        candidates.append(Candidate(name, p, c, quality, route.p99_ms))
        paid = None if best is None else request_cost(route, best.server)
        if paid is not None:
            served.append(Run(name, p, c, {"hardware": paid}))
    return [
        linear(
            of, points, given, candidates, least_lift=stated.least_lift,
            latency_ms=traffic.latency_ms,
        )
        for of, points, given in (
            ("1,000 requests", served, stated.requests),
            ("training on a million tokens", runs, stated.training),
        )
    ]  # fmt: skip


def _mean(lifts: Mapping[str, float], mix: Mapping[str, float]) -> float:
    """Over the tasks of the mix, by their shares; the worst there is where nothing is known."""
    known = {task: share for task, share in mix.items() if task in lifts}
    if not known:
        return float("-inf")
    return sum(share * lifts[task] for task, share in known.items()) / sum(known.values())
