"""Quality on real data and on the simulated marketplace (T6).

    python -m benchmarks.quality [--quick] [--only real,market] [--folder runs/quality]

Real data: one joint run of six tasks beside six runs of one task each, which together see as many
tokens; every system's scores of the same test rows are resampled together. The first fold runs with
three seeds, every fold once. Interrupted and run again, it goes on: finished runs are kept.
Marketplace: one choice is changed at a time.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.quality_runs import Scale, Study, Systems, concatenate
from benchmarks.table import Figure, print_table, write_figures
from rectrain.inference.evaluate import MODEL
from rectrain.metrics import Interval, bootstrap_interval, paired_difference
from rectrain.tasks import TASKS

__all__ = ["main"]

_OUTPUT = Path("runs/bench")
_SHARED = Path("../shared/data")
_FULL = Scale(joint_steps=170, head_steps=500, seeds=(0, 1, 2), folds=5, market_steps=120)
_QUICK = Scale(joint_steps=12, head_steps=40, seeds=(0,), folds=1, market_steps=6)

#: data set -> (task, the baseline of ../shared/data/README.md that T6 counts)
DATASETS = {
    "online_retail": ("recommendation", "item_knn"),
    "chorus": ("search_ranking", "bm25"),
    "upworthy": ("ad_headline", "tfidf_difference"),
    "bank_marketing": ("ad_ctr", "gbdt"),
    "returns": ("risk", "both"),
    "dark_patterns": ("risk_text", "tfidf_c10"),
}
#: variant of the marketplace -> the settings that it changes
MARKET: Mapping[str, tuple[str, ...]] = {
    "shared_bottom": (),
    "gated_experts": ("--model.sharing=gated_experts",),
    "mmoe": ("--model.sharing=mmoe",),
    "ple": ("--model.sharing=ple",),
    "uncertainty": ("--train.balancer=uncertainty",),
    "dwa": ("--train.balancer=dwa",),
    "pcgrad": ("--train.balancer=pcgrad",),
    "cagrad": ("--train.balancer=cagrad",),
    "upgrad": ("--train.balancer=upgrad",),
}


@dataclass(frozen=True)
class Pooled:
    """One system's and its rivals' scores of a data set, over folds; rows stand alike in all."""

    task: str
    systems: Systems

    @property
    def metric(self) -> str:
        """The task's primary metric."""
        return TASKS[self.task].primary

    def value(self, system: str) -> Interval:
        """The metric with its 95% bootstrap interval."""
        return bootstrap_interval(self.metric, self.systems[system])

    def difference(self, first: str, second: str) -> Interval:
        """metric(first) - metric(second), paired."""
        return paired_difference(self.metric, self.systems[first], self.systems[second])


def main(argv: Sequence[str]) -> int:
    """Trains what is not yet trained, judges, prints the table, writes it as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="does it run? no figures to keep")
    parser.add_argument("--only", default="real,market", help="parts to run (default: both)")
    parser.add_argument("--folder", help="of runs and data (default: runs/quality[-quick])")
    options = parser.parse_args(argv)
    logging.getLogger("ray").setLevel(logging.WARNING)
    folder = Path(options.folder or f"runs/quality{'-quick' if options.quick else ''}")
    study = Study(folder, scale=_QUICK if options.quick else _FULL, shared=_SHARED)
    figures: list[Figure] = []
    if "real" in options.only.split(","):
        figures += _real(study)
    if "market" in options.only.split(","):
        figures += _market(study)
    print_table(figures)
    path = _OUTPUT / ("quality-quick.json" if options.quick else "quality.json")
    write_figures(path, figures)
    print(f"written: {path}")
    return 0


def _real(study: Study) -> list[Figure]:
    tasks = {name: task for name, (task, _) in DATASETS.items()}
    cells = [(0, seed) for seed in study.scale.seeds]
    cells += [(fold, study.scale.seeds[0]) for fold in range(1, study.scale.folds)]
    found = {cell: study.real(tasks.values(), fold=cell[0], seed=cell[1]) for cell in cells}
    figures, worse, better, beaten = [], [], [], []
    for name, (task, baseline) in DATASETS.items():
        folds = [(fold, study.scale.seeds[0]) for fold in range(study.scale.folds)]
        pooled = Pooled(task, _pool([found[cell][task] for cell in folds if cell in found]))
        joint, single = pooled.value(MODEL), pooled.value("single")
        figures.append(_figure(f"quality/{name}/joint", joint, pooled.metric, "95% interval"))
        figures.append(_figure(f"quality/{name}/single", single, pooled.metric, "95% interval"))
        figures.append(
            _figure(f"quality/{name}/{baseline}", pooled.value(baseline), pooled.metric, "baseline")
        )
        gain = pooled.difference(MODEL, "single")
        figures.append(_figure(f"quality/{name}/joint-single", gain, pooled.metric, "single-task"))
        lead = pooled.difference(MODEL, baseline)
        figures.append(_figure(f"quality/{name}/joint-{baseline}", lead, pooled.metric, baseline))
        seeds = [
            Pooled(task, found[0, seed][task]).value(MODEL).value for seed in study.scale.seeds
        ]
        figures.append(_spread(f"quality/{name}/seeds", seeds, pooled.metric))
        worse += [name] if gain.high < 0 else []
        better += [name] if gain.low > 0 else []
        beaten += [name] if lead.low > 0 else []
    return [
        *figures,
        _count("T6/worse", worse, "single-task runs of the same tokens"),
        _count("T6/better", better, "single-task runs of the same tokens"),
        _count("T6/baselines_beaten", beaten, "../shared/data/README.md"),
    ]


def _market(study: Study) -> list[Figure]:
    """Each variant against the first, on the same test rows; each task."""
    found = {name: study.market(name, settings) for name, settings in MARKET.items()}
    first = next(iter(MARKET))
    figures = []
    for task, systems in found[first].items():
        for name in MARKET:
            pair = Pooled(task, {"this": found[name][task][MODEL], "first": systems[MODEL]})
            value = pair.value("this")
            figures.append(_figure(f"quality/market-{task}/{name}", value, pair.metric, "95%"))
            if name != first:
                gap = pair.difference("this", "first")
                title = f"quality/market-{task}/{name}-{first}"
                figures.append(_figure(title, gap, pair.metric, first))
    return figures


def _pool(folds: Sequence[Systems]) -> Systems:
    """The test rows of all folds as one; a group of one fold is none of another.

    A data set without folds has the same test rows in each: then the first stands.
    """
    first = folds[0]
    if all(_same_rows(fold, first) for fold in folds[1:]):
        return first
    return {system: concatenate([fold[system] for fold in folds]) for system in first}


def _same_rows(one: Systems, other: Systems) -> bool:
    a, b = one[MODEL], other[MODEL]
    return (
        len(a.label) == len(b.label)
        and np.array_equal(a.label, b.label)
        and np.array_equal(a.groups, b.groups)
    )


def _figure(title: str, found: Interval, unit: str, peer: str) -> Figure:
    return Figure(title, found.value, unit, peer, found.low, found.high, 1)


def _spread(title: str, values: Sequence[float], unit: str) -> Figure:
    middle = float(np.median(values))
    return Figure(title, middle, unit, "seeds of fold 0", min(values), max(values), len(values))


def _count(title: str, names: Sequence[str], peer: str) -> Figure:
    unit = f"data sets of {len(DATASETS)} ({', '.join(names) or 'none'})"
    return Figure(title, len(names), unit, peer, len(names), len(names), 1)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
