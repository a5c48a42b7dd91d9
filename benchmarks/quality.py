"""Quality on real data and on the simulated marketplace (T6).

    python -m benchmarks.quality [--quick] [--only real,market] [--folds 5] [--folder runs/quality]

Real data: one joint model of six tasks beside six models of one task each, which together are
trained on as many tokens; all systems' scores of the same test rows are resampled together. The
first fold runs with three seeds, every fold once. Interrupted and run again, it goes on: finished
runs are kept. Marketplace: one choice is changed at a time, with one seed.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.picture import draw_differences
from benchmarks.quality_runs import AUGMENTED, PRETRAINED, SINGLE, Cell, Scale, Study, Systems
from benchmarks.table import Figure, print_table, write_figures
from rectrain.inference.evaluate import MODEL
from rectrain.metrics import Examples, Interval, metric, resample, summarise
from rectrain.tasks import TASKS

__all__ = ["main"]

_OUTPUT = Path("runs/bench")
_SHARED = Path("../shared/data")
_FULL = Scale(encoder_steps=40, head_steps=440, seeds=(0, 1, 2), folds=5, market_steps=60)
_QUICK = Scale(encoder_steps=3, head_steps=20, seeds=(0,), folds=1, market_steps=12)


@dataclass(frozen=True)
class Dataset:
    """One of the real data sets.

    Attributes:
        task: what it is used for.
        baseline: the one of ../shared/data/README.md that T6 counts.
        has_folds: whether each fold tests other rows.
    """

    task: str
    baseline: str
    has_folds: bool = False


DATASETS = {
    "online_retail": Dataset("recommendation", "item_knn"),
    "chorus": Dataset("search_ranking", "bm25", has_folds=True),
    "upworthy": Dataset("ad_headline", "tfidf_difference"),
    "bank_marketing": Dataset("ad_ctr", "gbdt"),
    "returns": Dataset("risk", "both"),
    "dark_patterns": Dataset("risk_text", "tfidf_c10", has_folds=True),
}
_FIRST = "shared_bottom"
#: variant of the marketplace -> the settings that it changes; adapters learn at a rate of their own
MARKET: Mapping[str, tuple[str, ...]] = {
    _FIRST: (),
    "gated_experts": ("--model.sharing=gated_experts",),
    "mmoe": ("--model.sharing=mmoe",),
    "ple": ("--model.sharing=ple",),
    "uncertainty": ("--train.balancer=uncertainty",),
    "dwa": ("--train.balancer=dwa",),
    "pcgrad": ("--train.balancer=pcgrad",),
    "cagrad": ("--train.balancer=cagrad",),
    "upgrad": ("--train.balancer=upgrad",),
    PRETRAINED: (),
    AUGMENTED: (),
    "lora": ("--train.adapter=lora", "--train.learning_rate=1e-3"),
    "adalora": ("--train.adapter=adalora", "--train.learning_rate=1e-3", "--train.zero_stage=0"),
}


class Judge:
    """A system's metric: the mean over folds of the mean over seeds, with its bootstrap interval.

    Groups of all folds are drawn together; the seeds of a fold are judged on the same draws.

    Args:
        task: whose primary metric it is.
        folds: of each fold, of each seed, the systems' scores; rows of a fold stand alike in all.
    """

    def __init__(self, task: str, folds: Sequence[Sequence[Systems]]) -> None:
        for seeds in folds:
            _check_pairing([examples for systems in seeds for examples in systems.values()])
        self.metric = TASKS[task].primary
        self._folds = folds
        first = [next(iter(seeds[0].values())) for seeds in folds]
        self._ends = np.cumsum([len(fold.label) for fold in first])
        before = np.cumsum([0, *(fold.num_groups for fold in first)])
        self._unit = np.concatenate(
            [fold.groups + n for fold, n in zip(first, before, strict=False)]
        )
        self._weight = np.concatenate([fold.weights for fold in first])

    def value(self, system: str) -> Interval:
        """The metric of a system."""
        return self._interval([self._statistic(system)], lambda values: values[:, 0])

    def difference(self, first: str, second: str) -> Interval:
        """metric(first) - metric(second), both on the same draws."""
        both = [self._statistic(first), self._statistic(second)]
        return self._interval(both, lambda values: values[:, 0] - values[:, 1])

    def of_seeds(self, system: str) -> list[float]:
        """The metric on the first fold of each seed."""
        return [self._measure(systems[system])(None) for systems in self._folds[0]]

    def differences_of_seeds(self, first: str, second: str) -> list[float]:
        """metric(first) - metric(second) on the first fold of each seed."""
        pairs = zip(self.of_seeds(first), self.of_seeds(second), strict=True)
        return [a - b for a, b in pairs]

    def _measure(self, examples: Examples) -> Callable[[np.ndarray | None], float]:
        statistic = metric(self.metric).prepare(examples)
        return lambda weight: statistic(examples.weights if weight is None else weight)

    def _statistic(self, system: str) -> Callable[[np.ndarray], float]:
        # A baseline has no seed: it stands in the first seed's scores alone.
        parts = [
            [self._measure(systems[system]) for systems in seeds if system in systems]
            for seeds in self._folds
        ]

        def mean(weight: np.ndarray) -> float:
            pieces = np.split(weight, self._ends[:-1])
            found = [
                np.mean([part(piece) for part in seeds])
                for seeds, piece in zip(parts, pieces, strict=True)
            ]
            return float(np.mean(found))

        return mean

    def _interval(
        self,
        statistics: Sequence[Callable[[np.ndarray], float]],
        combine: Callable[[np.ndarray], np.ndarray],
    ) -> Interval:
        drawn = resample(statistics, unit=self._unit, weight=self._weight)
        found = np.array([[statistic(self._weight) for statistic in statistics]])
        return summarise(float(combine(found)[0]), combine(drawn))


def _check_pairing(systems: Sequence[Examples]) -> None:
    first = systems[0]
    for other in systems[1:]:
        assert np.array_equal(first.groups, other.groups), "systems judged on other groups"
        assert np.array_equal(first.weights, other.weights), "systems judged on other weights"
        assert np.array_equal(first.label, other.label), "systems judged on other labels"


def main(argv: Sequence[str]) -> int:
    """Trains what is not yet trained, judges, prints the table, writes it as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="does it run? no figures to keep")
    parser.add_argument("--only", default="real,market", help="parts to run (default: both)")
    parser.add_argument("--folds", type=int, help="of the data sets that have folds (default: 5)")
    parser.add_argument("--folder", help="of runs and data (default: runs/quality[-quick])")
    options = parser.parse_args(argv)
    logging.getLogger("ray").setLevel(logging.WARNING)
    name = f"quality{'-quick' if options.quick else ''}"
    scale = _QUICK if options.quick else _FULL
    scale = replace(scale, folds=options.folds or scale.folds)
    study = Study(Path(options.folder or f"runs/{name}"), scale=scale, shared=_SHARED)
    parts = {"real": _real, "market": _market}
    for part in options.only.split(","):
        if part == "real" and not _SHARED.is_dir():
            print(f"skipped: real, for {_SHARED} is not here", file=sys.stderr)
            continue
        figures = parts[part](study)
        print_table(figures)
        path = _OUTPUT / f"{name}-{part}.json"
        write_figures(path, figures)
        draw_differences(path.with_suffix(".png"), _panels(figures))
        print(f"written: {path}, .png", flush=True)
    return 0


def _panels(figures: Sequence[Figure]) -> list[tuple[str, list[Figure]]]:
    """The differences, by what they are differences to."""
    panels: dict[str, list[Figure]] = {}
    for figure in figures:
        parts = figure.id.split("/")
        if len(parts) != 3 or "-" not in parts[2]:  # neither a difference nor of all seeds
            continue
        rival = parts[-1].partition("-")[2]
        if parts[1].startswith("market-"):
            title = f"{parts[1].removeprefix('market-')}: against {rival} ({figure.unit})"
            label = parts[-1].partition("-")[0]
        else:
            title = "joint - single-task" if rival == SINGLE else "joint - baseline"
            label = f"{parts[1]} ({figure.unit})"
        panels.setdefault(title, []).append(replace(figure, id=label))
    return list(panels.items())


def _real(study: Study) -> list[Figure]:
    figures, gains, leads = [], {}, {}
    for name, judge in _judges(study).items():
        baseline = DATASETS[name].baseline
        for system in (MODEL, SINGLE, baseline):
            title = "joint" if system == MODEL else system
            figures.append(_figure(f"{name}/{title}", judge.value(system), judge, "95% interval"))
        gains[name] = judge.difference(MODEL, SINGLE)
        figures.append(_figure(f"{name}/joint-single", gains[name], judge, "single-task"))
        seeds = judge.differences_of_seeds(MODEL, SINGLE)
        figures.append(_spread(f"{name}/joint-single/seeds", seeds, judge))
        leads[name] = judge.difference(MODEL, baseline)
        figures.append(_figure(f"{name}/joint-{baseline}", leads[name], judge, baseline))
        figures.append(_spread(f"{name}/joint/seeds", judge.of_seeds(MODEL), judge))
    alone, simple = "single-task models on as many tokens", "../shared/data/README.md"
    return [
        *figures,
        _count("T6/worse", [name for name, gain in gains.items() if gain.high < 0], alone),
        _count("T6/better", [name for name, gain in gains.items() if gain.low > 0], alone),
        _count("T6/baselines_beaten", [n for n, lead in leads.items() if lead.low > 0], simple),
        _count("T6/baselines_missed", [n for n, lead in leads.items() if lead.high < 0], simple),
    ]


def _judges(study: Study) -> dict[str, Judge]:
    tasks = [dataset.task for dataset in DATASETS.values()]
    folded = [dataset.task for dataset in DATASETS.values() if dataset.has_folds]
    scale = study.scale
    cells = [Cell(0, seed, tuple(tasks)) for seed in scale.seeds]
    cells += [Cell(fold, scale.seeds[0], tuple(folded)) for fold in range(1, scale.folds)]
    found = study.real(tasks, cells=cells)
    first, others = found[: len(scale.seeds)], found[len(scale.seeds) :]
    judges = {}
    for name, dataset in DATASETS.items():
        task = dataset.task
        folds = [[systems[task] for systems in first]]
        folds += [[systems[task]] for systems in others if dataset.has_folds]
        judges[name] = Judge(task, folds)
    return judges


def _market(study: Study) -> list[Figure]:
    """Each variant against the first, on the same test rows; each task."""
    found = study.market(MARKET)
    figures = []
    for task in found[_FIRST]:
        judge = Judge(task, [[{name: systems[task][MODEL] for name, systems in found.items()}]])
        for name in MARKET:
            title = f"market-{task}/{name}"
            figures.append(_figure(title, judge.value(name), judge, "95% interval"))
            if name != _FIRST:
                gap = judge.difference(name, _FIRST)
                figures.append(_figure(f"{title}-{_FIRST}", gap, judge, _FIRST))
    return figures


def _figure(title: str, found: Interval, judge: Judge, peer: str) -> Figure:
    return Figure(f"quality/{title}", found.value, judge.metric, peer, found.low, found.high, 1)


def _spread(title: str, values: Sequence[float], judge: Judge) -> Figure:
    peer = "seeds on the first fold"
    return Figure.of_rounds(f"quality/{title}", values, unit=judge.metric, peer=peer)


def _count(title: str, names: Sequence[str], peer: str) -> Figure:
    unit = f"data sets of {len(DATASETS)} ({', '.join(names) or 'none'})"
    return Figure(title, len(names), unit, peer, len(names), len(names), 1)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
