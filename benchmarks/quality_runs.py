"""The runs behind the quality benchmark: prepared data, training, scores; all kept on disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from math import ceil
from pathlib import Path

import numpy as np
import ray

from benchmarks.one_process import in_processes, train_here
from jobs import prepare
from rectrain.data.shards import Prepared
from rectrain.inference.compare import MODEL
from rectrain.inference.evaluate import judged_systems
from rectrain.inference.predictor import Predictor, open_prepared
from rectrain.metrics import Examples
from rectrain.train.build import open_data
from rectrain.train.config import PretrainConfig, RunConfig
from rectrain.train.run_plan import plan_run

__all__ = [
    "AUGMENTED",
    "PRETRAINED",
    "SINGLE",
    "Cell",
    "Scale",
    "Study",
    "Systems",
    "load_systems",
    "save_systems",
]

#: a system's name -> its scores of the same rows
Systems = Mapping[str, Examples]

SINGLE = "single"
PRETRAINED = "pretrained"
AUGMENTED = "augmented"
_NUM_WORKERS = 2  # that runs are made for: their micro-batches a step
_NUM_PROCESSES = 2
_ARRAYS = ("label", "score", "group", "weight", "rank")


@dataclass(frozen=True)
class _Phase:
    """One of the two runs that make a model: encoder and heads, then the heads alone.

    Attributes:
        tokens: real tokens of a joint micro-batch.
        temperature: of the task mixing.
        weights: task -> what its share is multiplied by.
        settings: what else is set.
    """

    tokens: int
    temperature: float
    weights: Mapping[str, float]
    settings: tuple[str, ...]


# Nearly equal shares, but more for the task that gains most from a trained encoder, and less for
# those that live on features.
_ENCODER = _Phase(
    4096,
    8.0,
    {"ad_ctr": 0.3, "risk": 0.6, "risk_text": 1.6},
    ("--train.head_learning_rate=2e-3", "--data.num_negatives=64"),
)
# Rows are cheap now. A row of recommendation is a history of 300 tokens, and a whole pass over
# these rows pays; the others come 2 to 15 times.
_HEADS = _Phase(
    32_768,
    1.2,
    {
        "recommendation": 6.0,
        "search_ranking": 0.6,
        "risk": 0.3,
        "risk_text": 1.5,
    },
    (
        "--train.freeze=encoder",
        "--train.head_learning_rate=2e-3",
        "--data.num_negatives=512",
        "--model.dropout=0.2",
    ),
)
_MARKET = ("--data.tokens_per_micro_batch=2048", "--train.head_learning_rate=2e-3")


@dataclass(frozen=True)
class Scale:
    """How much is trained.

    Attributes:
        encoder_steps: steps of encoder and heads together.
        head_steps: steps of the heads alone after that.
        seeds: of the first fold; the others run with the first seed.
        folds: of the data sets that have folds.
        market_steps: steps of a run on the marketplace (no heads alone after it).
    """

    encoder_steps: int
    head_steps: int
    seeds: tuple[int, ...]
    folds: int
    market_steps: int


@dataclass(frozen=True)
class Cell:
    """One seed on one fold, and the tasks that it is judged on."""

    fold: int
    seed: int
    judged: tuple[str, ...]


@dataclass(frozen=True)
class _Model:
    """One of a cell's models: of the joint run's tasks, or of one of them."""

    cell: Cell
    joint: tuple[str, ...]
    trained: tuple[str, ...]

    @property
    def name(self) -> str:
        what = "joint" if self.trained == self.joint else self.trained[0]
        return f"real-{self.cell.fold}-{self.cell.seed}-{what}"


class Study:
    """Runs what is not yet there.

    Args:
        folder: of prepared data, runs and scores.
        scale: sizes.
        shared: folder of the real data.
    """

    def __init__(self, folder: Path, *, scale: Scale, shared: Path) -> None:
        self.scale = scale
        self._folder = folder
        self._shared = shared

    def real(self, tasks: Sequence[str], *, cells: Sequence[Cell]) -> list[dict[str, Systems]]:
        """Of each cell, of each judged task: the joint model of all tasks, its baselines, `SINGLE`.

        `SINGLE` is a model of that task alone, trained for as many steps on micro-batches of as
        many tokens of the task: together the single models see as many as the joint model.
        """
        self._prepare(source for cell in cells for source in self._real_sources(cell.fold).items())
        models = [
            _Model(cell, tuple(tasks), trained)
            for cell in cells
            for trained in (tuple(tasks), *((task,) for task in cell.judged))
        ]
        in_processes(self._make, models, processes=_NUM_PROCESSES)
        return [self._systems(cell, tuple(tasks)) for cell in cells]

    def joint(self, name: str, tasks: Sequence[str], *, sources: Sequence[str]) -> Path:
        """The run of a joint model of some tasks, with one seed on the first fold.

        Args:
            name: of the run.
            tasks: to train.
            sources: folders of the data sets that have them: retail, chorus-0, upworthy, bank,
                pages-0.
        """
        known = self._real_sources(0)
        self._prepare((source, known[source]) for source in sources)
        paths = [self._path(source) for source in sources]
        train = partial(self._two_runs, name, paths, seed=0)
        in_processes(train, [tuple(tasks)], processes=1)
        return self._folder / "runs" / name

    def market(self, variants: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Systems]]:
        """Of each variant, of each task: a model of the marketplace under its settings."""
        self._prepare([_market_source(name) for name in variants])
        in_processes(self._make_variant, list(variants.items()), processes=_NUM_PROCESSES)
        found: dict[str, dict[str, Systems]] = {}
        for name in variants:
            path = self._path(_market_source(name)[0])
            run = self._folder / "runs" / f"market-{name}"
            found[name] = {
                task: self._scores(run, [path], task, baselines=False)
                for task in Prepared.open(path).tasks
            }
        return found

    def _make(self, model: _Model) -> None:
        """Trains and scores one model, unless that is done."""
        cell, paths = model.cell, self._real_paths(model.cell.fold)
        shares = model.joint if len(model.trained) == 1 else None
        run = self._two_runs(model.name, paths, model.trained, seed=cell.seed, shares=shares)
        for task in cell.judged if shares is None else model.trained:
            baselines = shares is None and cell.seed == self.scale.seeds[0]
            self._scores(run, paths, task, baselines=baselines)

    def _systems(self, cell: Cell, tasks: tuple[str, ...]) -> dict[str, Systems]:
        paths, runs = self._real_paths(cell.fold), self._folder / "runs"
        joint, found = runs / _Model(cell, tasks, tasks).name, {}
        for task in cell.judged:
            single = runs / _Model(cell, tasks, (task,)).name
            systems = dict(self._scores(joint, paths, task, baselines=False))
            systems[SINGLE] = self._scores(single, paths, task, baselines=False)[MODEL]
            found[task] = systems
        return found

    def _make_variant(self, variant: tuple[str, Sequence[str]]) -> None:
        name, settings = variant
        path = self._path(_market_source(name)[0])
        if name == PRETRAINED:
            settings = [*settings, f"--model.encoder={self._pretrained(path) / 'encoder'}"]
        steps = f"--train.num_steps={self.scale.market_steps}"
        run = self._train(f"market-{name}", [path], [steps, *_MARKET, *settings], seed=0)
        for task in Prepared.open(path).tasks:
            self._scores(run, [path], task, baselines=False)

    # ── data ─────────────────────────────────────────────────────────────────────────────────────

    def _real_sources(self, fold: int) -> dict[str, list[str]]:
        """Folder of prepared data -> settings of `jobs.prepare`."""
        retail = self._shared / "recommendation" / "online_retail.parquet"
        search, ads = self._shared / "search_ranking", self._shared / "ad_ctr"
        judged = f"{search / 'judgments.csv'},{search / 'products.parquet'}"
        pages = self._shared / "risk" / "dark_patterns.tsv"
        of_fold = f"--split.fold={fold}"
        return {
            "retail": ["--source=online_retail", f"--input={retail}", "--max_history=48"],
            f"chorus-{fold}": ["--source=chorus", f"--input={judged}", of_fold],
            "upworthy": ["--source=upworthy", f"--input={ads / 'upworthy_headline_pairs.csv'}"],
            "bank": ["--source=bank_marketing", f"--input={ads / 'bank_marketing.csv'}"],
            f"pages-{fold}": ["--source=dark_patterns", f"--input={pages}", of_fold],
        }

    def _real_paths(self, fold: int) -> list[str]:
        return [self._path(name) for name in self._real_sources(fold)]

    def _prepare(self, sources: Iterable[tuple[str, Sequence[str]]]) -> None:
        """Prepares what is not yet there; refuses what was prepared from something else."""
        for name, settings in {name: tuple(settings) for name, settings in sources}.items():
            status = prepare.main([*settings, f"--output={self._path(name)}"])
            assert status == 0, f"{name} could not be prepared"
        ray.shutdown()  # its processes would take memory from the runs

    def _path(self, name: str) -> str:
        return str(self._folder / "data" / name)

    # ── training ─────────────────────────────────────────────────────────────────────────────────

    def _two_runs(
        self,
        name: str,
        paths: Sequence[str],
        tasks: Iterable[str],
        *,
        seed: int,
        shares: tuple[str, ...] | None = None,
    ) -> Path:
        """Encoder and heads, then the heads alone; the second run's folder.

        Args:
            name: of the second run.
            paths: prepared data.
            tasks: to train.
            seed: of the runs.
            shares: tasks of a joint run; of its micro-batches these tasks' part is taken.
        """
        chosen = tuple(tasks)

        def run(name: str, phase: _Phase, *settings: str) -> Path:
            tokens = phase.tokens
            if shares is not None:
                tokens = ceil(tokens * self._share(paths, chosen[0], shares, phase=phase))
            argv = [
                f"--train.tasks={_listed(chosen)}",
                f"--data.tokens_per_micro_batch={tokens}",
                f"--data.temperature={phase.temperature}",
                *(f"--data.mixing_weights.{t}={phase.weights.get(t, 1.0)}" for t in chosen),
            ]
            return self._train(name, paths, [*argv, *phase.settings, *settings], seed=seed)

        first = run(f"{name}-encoder", _ENCODER, f"--train.num_steps={self.scale.encoder_steps}")
        steps = f"--train.num_steps={self.scale.head_steps}"
        return run(name, _HEADS, steps, f"--train.start_from={first}")

    def _share(
        self, paths: Sequence[str], task: str, tasks: tuple[str, ...], *, phase: _Phase
    ) -> float:
        """A task's share of the tokens of a joint run's micro-batches."""
        data = {
            "paths": tuple(paths),
            "tokens_per_micro_batch": phase.tokens,
            "temperature": phase.temperature,
            "mixing_weights": {task: phase.weights.get(task, 1.0) for task in tasks},
        }
        run = {"tasks": tasks, "num_workers": _NUM_WORKERS}
        config = RunConfig.model_validate({"data": data, "train": run})
        return plan_run(config, open_data(config)).plan.shares[task]

    def _train(
        self, name: str, paths: Sequence[str], settings: Sequence[str], *, seed: int
    ) -> Path:
        train_here([*self._common(name, paths, seed=seed), *settings], job=RunConfig)
        return self._folder / "runs" / name

    def _pretrained(self, path: str) -> Path:
        steps = f"--train.num_steps={self.scale.market_steps}"
        train_here([*self._common("pretrain", [path], seed=0), steps, *_MARKET], job=PretrainConfig)
        return self._folder / "runs" / "pretrain"

    def _common(self, name: str, paths: Sequence[str], *, seed: int) -> list[str]:
        return [
            f"--name={name}",
            f"--output={self._folder / 'runs'}",
            f"--seed={seed}",
            f"--data.paths={_listed(paths)}",
            f"--train.num_workers={_NUM_WORKERS}",
            "--train.learning_rate=1e-4",
            "--train.checkpoint_interval=100000",  # at the end alone
            "--train.evaluate_rows=200",
            "--tracking.mlflow=off",
            "--tracking.tensorboard=false",
        ]

    # ── scores ───────────────────────────────────────────────────────────────────────────────────

    def _scores(self, run: Path, paths: Sequence[str], task: str, *, baselines: bool) -> Systems:
        data_sha256 = sha256(b"".join((Path(p) / "manifest.json").read_bytes() for p in paths))
        path = run / f"scores-{task}-{data_sha256.hexdigest()[:12]}.npz"
        if not path.exists():
            predictor = Predictor.from_checkpoint(str(run))
            data = open_prepared(predictor, paths, tasks=[task])
            save_systems(
                path, judged_systems(predictor, data[task], task=task, baselines=baselines)
            )
        return load_systems(path)


def save_systems(path: Path, systems: Systems) -> None:
    """Writes scores into an .npz at once."""
    arrays = {
        f"{system}/{name}": getattr(examples, name)
        for system, examples in systems.items()
        for name in _ARRAYS
        if getattr(examples, name) is not None
    }
    draft = path.with_name(f".{path.name}")
    with draft.open("wb") as file:
        np.savez(file, **arrays)
    draft.replace(path)


def load_systems(path: Path) -> Systems:
    """The inverse of `save_systems`."""
    with np.load(path, allow_pickle=False) as stored:
        parts: dict[str, dict[str, np.ndarray]] = {}
        for key in stored.files:
            system, _, name = key.rpartition("/")
            parts.setdefault(system, {})[name] = stored[key]
    return {system: Examples(**arrays) for system, arrays in parts.items()}


def _listed(values: Iterable[str]) -> str:
    return f"[{','.join(values)}]"


def _market_source(variant: str) -> tuple[str, list[str]]:
    """Folder of the marketplace's data, and settings of `jobs.prepare`."""
    settings = ["--source=simulated", "--size=demo"]
    if variant == AUGMENTED:
        return "market-augmented", [*settings, "--augment.copies=1"]
    return "market", settings
