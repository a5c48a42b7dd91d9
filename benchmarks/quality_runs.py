"""The runs behind the quality benchmark: prepared data, training, scores; all kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jobs import prepare, train
from rectrain.inference.evaluate import MODEL, judged_systems
from rectrain.inference.predictor import Predictor, open_prepared
from rectrain.metrics import Examples
from rectrain.train.build import open_data
from rectrain.train.config import RunConfig
from rectrain.train.outline import plan_run

__all__ = ["Scale", "Study", "Systems", "concatenate"]

#: a system's name -> its scores of the same rows
Systems = Mapping[str, Examples]

_JOINT_TOKENS, _HEAD_TOKENS = 2048, 8192
_NUM_WORKERS = 2
_JOINT_HEAD_RATE, _HEAD_RATE = (f"--train.head_learning_rate={rate}" for rate in ("3e-3", "1e-3"))
_ARRAYS = ("label", "score", "group", "weight", "rank")


@dataclass(frozen=True)
class Scale:
    """How much is trained.

    Attributes:
        joint_steps: steps of encoder and heads together.
        head_steps: steps of the heads alone after that.
        seeds: of the first fold; the others run with the first seed.
        folds: of the data sets that have folds.
        market_steps: steps of a run on the marketplace (no heads alone after it).
    """

    joint_steps: int
    head_steps: int
    seeds: tuple[int, ...]
    folds: int
    market_steps: int


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

    def real(self, tasks: Collection[str], *, fold: int, seed: int) -> dict[str, Systems]:
        """Of each task: the joint model, its baselines, and "single" (a model of this task)."""
        paths = self._real_data(fold)
        name = f"real-{fold}-{seed}"
        joint = self._two_runs(f"{name}-joint", paths, tasks, seed=seed)
        found = {}
        for task in tasks:
            systems = self._scores(joint, paths, task)
            alone = self._two_runs(f"{name}-{task}", paths, [task], seed=seed, beside=tuple(tasks))
            single = self._scores(alone, paths, task, only_model=True)[MODEL]
            found[task] = {**systems, "single": single}
        return found

    def market(self, name: str, settings: Sequence[str]) -> dict[str, Systems]:
        """Of each task: a model of the marketplace under some settings."""
        path = self._prepared("market", ["--source=simulated", "--size=demo"])
        steps = [f"--train.num_steps={self.scale.market_steps}", _JOINT_HEAD_RATE]
        run = self._train(f"market-{name}", [path], [*steps, *settings], seed=0)
        tasks = Predictor.from_checkpoint(str(run)).tasks
        return {task: self._scores(run, [path], task) for task in tasks}

    # ── data ─────────────────────────────────────────────────────────────────────────────────────

    def _real_data(self, fold: int) -> list[str]:
        retail = self._shared / "recommendation" / "online_retail.parquet"
        search, ads = self._shared / "search_ranking", self._shared / "ad_ctr"
        judged = f"{search / 'judgments.csv'},{search / 'products.parquet'}"
        pages = self._shared / "risk" / "dark_patterns.tsv"
        return [
            self._prepared("retail", ["--source=online_retail", f"--input={retail}"]),
            self._prepared(
                f"chorus-{fold}", ["--source=chorus", f"--input={judged}", f"--split.fold={fold}"]
            ),
            self._prepared(
                "upworthy", ["--source=upworthy", f"--input={ads / 'upworthy_headline_pairs.csv'}"]
            ),
            self._prepared(
                "bank", ["--source=bank_marketing", f"--input={ads / 'bank_marketing.csv'}"]
            ),
            self._prepared(
                f"pages-{fold}",
                ["--source=dark_patterns", f"--input={pages}", f"--split.fold={fold}"],
            ),
        ]

    def _prepared(self, name: str, argv: Sequence[str]) -> str:
        path = self._folder / "data" / name
        if not (path / "manifest.json").exists():
            prepare.main([*argv, f"--output={path}"])
        return str(path)

    # ── training ─────────────────────────────────────────────────────────────────────────────────

    def _two_runs(
        self,
        name: str,
        paths: Sequence[str],
        tasks: Iterable[str],
        *,
        seed: int,
        beside: tuple[str, ...] = (),
    ) -> Path:
        """Encoder and heads, then the heads alone; the second run's folder.

        With `beside`, both are as long as a run of those tasks spends tokens on this one.
        """
        chosen = tuple(tasks)

        def steps(num_steps: int, tokens: int) -> list[str]:
            wanted = num_steps
            if beside:
                slots = {
                    group: self._num_slots(paths, group, chosen[0], tokens=tokens)
                    for group in (chosen, beside)
                }
                wanted = max(1, round(num_steps * slots[chosen] / slots[beside]))
            return [f"--train.num_steps={wanted}", f"--data.tokens_per_micro_batch={tokens}"]

        which = [f"--train.tasks={_listed(chosen)}"]
        first = self._train(
            f"{name}-encoder",
            paths,
            [*which, _JOINT_HEAD_RATE, *steps(self.scale.joint_steps, _JOINT_TOKENS)],
            seed=seed,
        )
        alone = ["--train.freeze=encoder", f"--train.start_from={first}", _HEAD_RATE]
        return self._train(
            name, paths, [*which, *alone, *steps(self.scale.head_steps, _HEAD_TOKENS)], seed=seed
        )

    def _num_slots(
        self, paths: Sequence[str], tasks: tuple[str, ...], task: str, *, tokens: int
    ) -> int:
        """Micro-batches that an epoch of a task is cut into, in a run of some tasks."""
        config = RunConfig.model_validate(
            {
                "data": {"paths": tuple(paths), "tokens_per_micro_batch": tokens},
                "train": {"tasks": tasks, "num_workers": _NUM_WORKERS},
            }
        )
        return plan_run(config, open_data(config)).plan.num_slots(task)

    def _train(
        self, name: str, paths: Sequence[str], settings: Sequence[str], *, seed: int
    ) -> Path:
        runs = self._folder / "runs"
        train.main(
            [
                f"--name={name}",
                f"--output={runs}",
                f"--seed={seed}",
                f"--data.paths={_listed(paths)}",
                f"--train.num_workers={_NUM_WORKERS}",
                "--train.learning_rate=1e-4",
                "--tracking.mlflow=off",
                *settings,
            ]
        )
        return runs / name

    # ── scores ───────────────────────────────────────────────────────────────────────────────────

    def _scores(
        self, run: Path, paths: Sequence[str], task: str, *, only_model: bool = False
    ) -> Systems:
        path = run / f"scores-{task}.npz"
        if not path.exists():
            predictor = Predictor.from_checkpoint(str(run))
            data = open_prepared(predictor, paths, tasks=[task])
            _save(path, judged_systems(predictor, data[task], task=task))
        systems = _load(path)
        return {MODEL: systems[MODEL]} if only_model else systems


def concatenate(parts: Sequence[Examples]) -> Examples:
    """Rows of several splits as one; a group of one part is none of another."""

    def joined(take: Callable[[Examples], np.ndarray]) -> np.ndarray:
        return np.concatenate([take(part) for part in parts])

    before = np.cumsum([0, *(int(part.groups.max()) + 1 for part in parts)])
    return Examples(
        label=joined(lambda part: part.label),
        score=joined(lambda part: part.score),
        group=np.concatenate([part.groups + n for part, n in zip(parts, before, strict=False)]),
        weight=joined(lambda part: part.weights),
        rank=None if parts[0].rank is None else joined(lambda part: np.asarray(part.rank)),
    )


def _save(path: Path, systems: Systems) -> None:
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


def _load(path: Path) -> Systems:
    with np.load(path, allow_pickle=False) as stored:
        parts: dict[str, dict[str, np.ndarray]] = {}
        for key in stored.files:
            system, _, name = key.rpartition("/")
            parts.setdefault(system, {})[name] = stored[key]
    return {system: Examples(**arrays) for system, arrays in parts.items()}


def _listed(values: Iterable[str]) -> str:
    return f"[{','.join(values)}]"
