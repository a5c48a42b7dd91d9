"""What a large model, a small one and their cascade cost, and which to run: a report.

    python -m jobs.cost --models runs/demo/package runs/demo-small/package \\
        --traffic traffic.yaml --prices prices.yaml --output runs/cost

Measures on this machine what each package takes to answer (kept in OUTPUT/measured.json), takes
what training took from the runs' own records, and looks months ahead. Without --traffic and
--prices, the defaults below and the list prices of rectrain/cost/prices.yaml count. What a search
has packaged (--search) stands beside them. Writes report.html, ledger.csv and cost.json
(docs/cost.md).
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from jobs.cli import JobParser, count, output_folder, run, seed
from rectrain.cascade import read_policy
from rectrain.config import help_text
from rectrain.cost.assemble import (
    Models,
    answer_costs,
    closed_form_factors,
    lift_of,
    make_case,
    measured_factors,
    options_of,
    routes_of,
)
from rectrain.cost.case import Method
from rectrain.cost.findings import Findings, find
from rectrain.cost.ledger import Ledger
from rectrain.cost.linear_costs import load_linear
from rectrain.cost.measure import Past, training_ledger
from rectrain.cost.per_model import compared, linear_models, model_figures, trained_runs
from rectrain.cost.prices import Prices, load_prices
from rectrain.cost.routes import Speed
from rectrain.cost.serving import SPREAD, Served, measure_served, to_speed
from rectrain.cost.shapes import stored_bytes
from rectrain.cost.traffic import Traffic, load_traffic
from rectrain.cost.trained import pasts_of, trainings
from rectrain.errors import ConfigError
from rectrain.inference.engine import steady_backend
from rectrain.inference.packaged import load
from rectrain.package import Package, open_package
from rectrain.report.cost import cost_table, write_cost
from rectrain.report.search import FRONT_PAGE, read_front
from rectrain.strict_json import strict_json
from rectrain.train.usage import cpu_name

__all__ = ["main"]

_MEASURED = "measured.json"
_TOKENS = 12  # of a text, where nobody says: a product's title
_ADAPTERS = "runs/bench/adapters.json"


def main(argv: list[str]) -> int:
    """Runs the job; see the module's docstring."""
    parser = _parser()
    options, overrides = parser.parse_known_args(argv)

    import plotly  # noqa: F401 - missing, it must be told now

    traffic = load_traffic(options.traffic, overrides=overrides)
    prices = load_prices(options.prices)
    packages = _by_role(options.models)
    front = read_front(Path(options.search)) if options.search else None
    chosen = _chosen(front, tasks=packages["large"].tasks)
    every = {**packages, **{name: package for name, (package, _) in chosen.items()}}
    output = output_folder(options.output, checkpoint="")
    _check_writable(output)
    pasts = pasts_of({role: str(one.path) for role, one in packages.items()})
    # Before anything is measured: what can't be priced must be told at once.
    money = traffic.currency or prices.currency
    spent = _spent(pasts, prices, money)
    stated = load_linear(options.linear).into(money, prices.rates)
    tokens = traffic.tokens or _TOKENS
    runs = trained_runs(pasts, every, prices, search=options.search, currency=money, tokens=tokens)
    factors, source = _factors(options.adapters)
    training, told = trainings(pasts, traffic, prices, factors=factors, source=source)
    case = make_case(traffic, prices, training, device="cpu")
    mix = traffic.shares(packages["large"].tasks)
    print("\n".join([*_plan(every, traffic, mix), *(f"cost: {one}" for one in told)]))
    if options.dry_run:
        return 0
    served = {
        role: _measured(role, package, traffic.candidates, tokens, output, options.backend)
        for role, package in every.items()
    }
    speeds = _speeds(served, traffic, mix)
    models, more = _models(packages, speeds)
    case = replace(case, routes=routes_of(models, traffic))
    print("cost: looking ahead", flush=True)
    found = find(
        case, options=partial(options_of, models), currency=money, seed=options.seed,
        num_draws=options.num_draws,
    )  # fmt: skip
    notes = [*told, *more, f"Prices: version {prices.version}."]
    facts = _facts(found, models, served, packages, notes)
    figures = model_figures(every, served, candidates=traffic.candidates, tokens=tokens)
    facts["models"] = figures
    facts["linear"] = [
        one.to_json() for one in linear_models(found, every, speeds, figures, runs, stated)
    ]
    if front is not None:
        lifts = {name: made["objectives"]["mean_lift"] for name, (_, made) in chosen.items()}
        facts["searched"] = {
            "page": str(Path(options.search) / FRONT_PAGE),
            "models": compared(found, every, served, speeds, lifts=lifts) if chosen else [],
            **{key: front[key] for key in ("currency", "front", "knee")},
        }
    write_cost(output, found, facts, spent)
    print(f"\n{cost_table(found)}\n\n{_verdict(found)}")
    for name, file in (("report", "report.html"), ("ledger", "ledger.csv"), ("json", "cost.json")):
        print(f"{name:10}{output / file}")
    return 0


def _parser() -> JobParser:
    parser = JobParser(__doc__)
    parser.add_argument(
        "--models", nargs="+", required=True, metavar="PACKAGE",
        help="one or two packages; the one with more bytes is the large one",
    )  # fmt: skip
    parser.add_argument(
        "--search", metavar="FOLDER", help="output of jobs.tune, whose chosen models are priced too"
    )
    parser.add_argument("--traffic", metavar="FILE", help="YAML of the settings below")
    parser.add_argument(
        "--prices", metavar="FILE", help="YAML, what differs from rectrain/cost/prices.yaml"
    )
    parser.add_argument(
        "--linear", metavar="FILE", help="YAML, what is stated of the linear cost model"
    )
    parser.add_argument("--output", default="runs/cost", help="folder of the report")
    parser.add_argument(
        "--adapters", metavar="FILE",
        help=f"figures of benchmarks.adapters (default: {_ADAPTERS}, where that is)",
    )  # fmt: skip
    parser.add_argument(
        "--backend", default="auto", help="what runs the encoders; auto: what a server takes"
    )
    parser.add_argument("--num-draws", type=count, default=1000, help="of the Monte Carlo")
    parser.add_argument("--seed", type=seed, default=0, help="of the draws")
    parser.epilog = f"settings (in the traffic file, or --key=VALUE):\n{help_text(Traffic)}"
    return parser


def _by_role(paths: Sequence[str]) -> dict[str, Package]:
    """ "large" and, of two, "small"."""
    packages = sorted(map(open_package, paths), key=stored_bytes, reverse=True)
    versions = [one.version for one in packages]
    if len(packages) > 2 or len(set(versions)) < len(versions):
        raise ConfigError(
            what="--models",
            got=f"{len(packages)} packages of {len(set(versions))} versions",
            rule="a large model, and at most one small one beside it",
            fix="give one package, or two different ones",
        )
    if len(packages) == 2 and (missing := set(packages[0].tasks) ^ set(packages[1].tasks)):
        raise ConfigError(
            what="--models",
            got=f"{', '.join(sorted(missing))} in one of them alone",
            rule="both must have the same tasks, or they can't take each other's place",
            fix="give a small model that was made of the large one",
        )
    return dict(zip(("large", "small"), packages, strict=False))


def _chosen(
    front: Mapping[str, Any] | None, *, tasks: Sequence[str]
) -> dict[str, tuple[Package, Mapping[str, Any]]]:
    """Name -> package and figures of what a search has packaged; each package once."""
    found: dict[str, tuple[Package, Mapping[str, Any]]] = {}
    versions = set()
    for name, made in (front["models"] if front else {}).items():
        package = open_package(made["package"])
        if set(package.tasks) != set(tasks):
            raise ConfigError(
                what="--search",
                got=f"{name} with the tasks {', '.join(package.tasks)}",
                rule=f"must have those of the models: {', '.join(tasks)}",
                fix="give a search whose teacher is one of the models",
            )
        if package.version not in versions:
            found[name] = (package, made)
        versions.add(package.version)
    return found


def _check_writable(output: Path) -> None:
    """Nothing is made: what is there already must let a folder be made, or written into."""
    there = next(one for one in (output, *output.absolute().parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(
            what="--output", got=output,
            rule=f"{there} must be a folder that you may write into",
            fix="give another folder",
        )  # fmt: skip


def _plan(packages: Mapping[str, Package], traffic: Traffic, mix: Mapping[str, float]) -> list[str]:
    lines = [
        f"cost: {role} {one.path}, version {one.version[:12]}" for role, one in packages.items()
    ]
    shares = ", ".join(f"{task} {share:.0%}" for task, share in mix.items())
    lines.append(
        f"cost: {traffic.mean:g} requests a second ({traffic.peak:g} at peak) of"
        f" {traffic.candidates} candidates, 99 of 100 within {traffic.latency_ms:g} ms: {shares}"
    )
    return lines


# --- what is measured ----------------------------------------------------------------------------


def _measured(
    role: str, package: Package, candidates: int, tokens: int, output: Path, backend: str
) -> Served:
    """From OUTPUT/measured.json, or measured now and put there."""
    file = output / _MEASURED
    kept: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    backend = steady_backend(package, backend, device="cpu")  # as a server takes it
    key = f"{package.version} {cpu_name()} {backend} {candidates} {tokens}±{SPREAD:.0%}"
    if key in kept:
        print(f"cost: {role} was measured here before ({file})")
        return Served.from_json(kept[key])
    print(f"cost: measuring {role}", flush=True)
    # In a process of its own: its memory is what a server of this model takes, and no other
    # work's threads slow it down.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        found = pool.submit(_measure, str(package.path), backend, candidates, tokens).result()
    kept[key] = asdict(found)
    output.mkdir(parents=True, exist_ok=True)
    draft = output / f".{_MEASURED}.tmp"
    draft.write_text(strict_json(kept))
    draft.replace(file)
    return found


def _measure(path: str, backend: str, candidates: int, tokens: int) -> Served:
    model = load(path, backend=backend, threads=1, cached_texts=0)
    return measure_served(model, candidates=candidates, tokens=tokens)


def _speeds(
    served: Mapping[str, Served], traffic: Traffic, mix: Mapping[str, float]
) -> dict[str, Speed]:
    """Of each model as it is served, the server's overhead included."""
    return {
        role: to_speed(one, role, mix, candidates=traffic.candidates, overhead=traffic.overhead)
        for role, one in served.items()
    }


def _factors(adapters: str | None) -> tuple[dict[Method, float], str]:
    """What each way of training takes of a full one, and how that is known."""
    if adapters is None and not Path(_ADAPTERS).is_file():
        return closed_form_factors(), "closed form: LoRA and AdaLoRA save weight gradients"
    file = adapters or _ADAPTERS
    try:
        return measured_factors(json.loads(Path(file).read_text())), f"measured ({file})"
    except OSError as error:
        why = f"must be a readable file ({error.strerror})"
    except (ValueError, TypeError, KeyError, ZeroDivisionError) as error:
        why = f"must hold the figures of benchmarks.adapters as JSON ({error!r})"
    raise ConfigError(
        what="--adapters",
        got=file,
        rule=why,
        fix="run python -m benchmarks.adapters, or leave it out",
    )


def _spent(pasts: Mapping[str, Sequence[Past]], prices: Prices, currency: str) -> Ledger:
    """What was computed already, at the prices of its kinds of devices."""
    ledger = training_ledger([past for found in pasts.values() for past in found], prices)
    return ledger.convert(currency, prices.rates)


def _models(
    packages: Mapping[str, Package], speeds: Mapping[str, Speed]
) -> tuple[Models, list[str]]:
    large, small = packages["large"], packages.get("small")
    notes, policy = [], None
    if small is not None:
        policy = read_policy(small, large=large)
        if policy is None:
            notes.append("The small package has no policy (jobs.calibrate): no cascade.")
    metrics = {role: one.manifest.get("metrics") or {} for role, one in packages.items()}
    lift = None
    if all(metrics.values()):
        lift = {role: lift_of(found, metrics["large"]) for role, found in metrics.items()}
    elif small is not None:
        notes.append(
            "The packages' manifests hold no metrics: all models' answers count as equally good."
        )
    return Models(speeds["large"], speeds.get("small"), policy, lift), notes


# --- what is said --------------------------------------------------------------------------------


def _facts(
    found: Findings,
    models: Models,
    served: Mapping[str, Served],
    packages: Mapping[str, Package],
    notes: Sequence[str],
) -> dict[str, Any]:
    rows = []
    for role, one in served.items():
        rows.append(["version", role, one.version[:12]])
        rows.append(["run by", role, one.backend])
        rows.append(["memory of a process", role, f"{one.memory_bytes / 2**20:,.0f} MiB"])
        for task, (fixed, each) in one.tasks.items():
            text = f"{1000 * fixed:.2f} ms + {1000 * each:.3f} ms a candidate"
            rows.append([task, role, text if each else f"{1000 * fixed:.2f} ms"])
    best = found.choice.best
    answers = {}
    if best is not None:
        answers = answer_costs(models, found.case.traffic, best.server)
    return {
        "notes": list(notes),
        "measured_rows": rows,
        "measured": {role: asdict(one) for role, one in served.items()},
        "versions": {role: one.version for role, one in packages.items()},
        "lift": models.lift,
        "answers": answers,
    }


def _verdict(found: Findings) -> str:
    best, second = found.choice
    if best is None:
        return "cost: nothing keeps to the budget and the latency limit; see the report"
    text = f"cost: at this traffic run {best}: {best.cost:,.2f} {found.currency} a month"
    return text if second is None else f"{text}; next {second}: {second.cost:,.2f}"


if __name__ == "__main__":
    run(main)
