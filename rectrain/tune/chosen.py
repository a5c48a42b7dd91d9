"""The models that a search ends with: chosen from the front, trained on, packaged, priced."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from transformers import BertModel

from rectrain.compress.config import CompressConfig
from rectrain.compress.cutting import write_encoder
from rectrain.compress.measure import TokenisingPredictor
from rectrain.compress.pipeline import Pipeline, resolve
from rectrain.compress.runs import train_run
from rectrain.inference.engine import open_engine
from rectrain.inference.golden import GOLDEN, publish_golden
from rectrain.inference.packaged import item_indexes
from rectrain.inference.predictor import Predictor
from rectrain.package import Card, ModelParts, Package, num_head_bytes, open_package, write_package
from rectrain.strict_json import strict_json
from rectrain.train.build import load_model, load_trained_encoder
from rectrain.train.checkpoint import manifest_sha256
from rectrain.train.config import RunConfig
from rectrain.train.export import base_model, history
from rectrain.train.selection import find_checkpoint
from rectrain.train.storage import Store
from rectrain.tune.config import FinishConfig
from rectrain.tune.latency import time_requests
from rectrain.tune.pareto import knee, minimised, non_dominated
from rectrain.tune.quality import values_of
from rectrain.tune.runs import VECTORS, heads_run, with_settings
from rectrain.tune.stopwatch import alone, busy, training
from rectrain.tune.study import Result
from rectrain.tune.trials import DIRECTIONS, Trial, with_numbers
from rectrain.tune.workbench import Workbench

__all__ = ["choose", "finish", "folder_name"]

Say = Callable[[str], None]
_MADE = "made.json"  # written last


def choose(trials: Sequence[Trial], config: FinishConfig) -> dict[str, Trial]:
    """Name of `finish.models` -> trial of the front; one trial may have several names.

    Args:
        trials: of the search.
        config: what is wanted.

    Returns:
        Empty where no trial ended well within the limits.
    """
    feasible = [one for one in trials if one.is_feasible]
    values = [one.objectives.values() for one in feasible if one.objectives]
    points = minimised(values, maximise=[one == "maximize" for one in DIRECTIONS])
    front = [one for one, best in zip(feasible, non_dominated(points), strict=True) if best]
    place = knee(points)
    if not front or place is None:
        return {}
    best = max(front, key=_lift)
    able = [one for one in front if _lift(one) >= config.least_lift * _lift(best)]
    found = {
        "knee": feasible[place],
        "cheapest": min(able or [best], key=lambda one: one.objectives.cost_per_1000),  # type: ignore[union-attr]
        "best": best,
    }
    return {name: found[name] for name in config.models}


def _lift(trial: Trial) -> float:
    assert trial.objectives is not None
    return trial.objectives.mean_lift


def folder_name(trial: Trial, config: FinishConfig) -> str:
    """Of a chosen model: other settings make another, beside those that may be in use.

    Args:
        trial: of the front.
        config: how the model is made.

    Returns:
        Such as "trial-0007-plain-300" or "trial-0007-int8-200-300-0.002": the package, the updates
        of encoder and heads, those of the heads, and the most that int8 may lose.
    """
    settings: list[float] = [config.head_steps]
    if config.package == "int8":
        settings = [config.num_steps, config.head_steps, config.max_drop]
    parts = (f"trial-{trial.number:04d}", config.package, *map(str, settings))
    return "-".join(parts)


def finish(bench: Workbench, trial: Trial, *, say: Say) -> dict[str, Any]:
    """Trains the model of a trial on, packages it and measures the package; once.

    Args:
        bench: of the search.
        trial: of the front.
        say: is given the lines that a user should see.

    Returns:
        What front.json says of it: the package's folder and version, its three objectives and by
        what share they exceed each limit, and beside them, as `promised`, the trial's objectives.
    """
    assert trial.objectives is not None
    promised = asdict(trial.objectives)
    folder = bench.root / "chosen" / folder_name(trial, bench.config.finish)
    if (folder / _MADE).exists():
        found = with_numbers(json.loads((folder / _MADE).read_bytes()))
        return {**found, "promised": promised}  # that of an earlier version may lack it
    package = (_int8 if bench.config.finish.package == "int8" else _plain)(
        bench, trial, folder, say=say
    )
    result, engine = _measured(bench, package)
    assert result.objectives is not None
    facts = {
        "trial": trial.number,
        "parameters": dict(trial.parameters),
        "package": str(package.path),
        "version": package.version,
        "engine": engine,
        **result.to_json(),
        "promised": promised,
    }
    Store.open(str(folder)).replace(_MADE, strict_json(facts).encode())
    return facts


def _int8(bench: Workbench, trial: Trial, folder: Path, *, say: Say) -> Package:
    """All of jobs.compress but the cut."""
    config = bench.config
    _write_cut(bench, trial, folder)
    train = config.train.model_dump(exclude={"teacher", "teacher_sha256"})
    settings = bench.space.settings(trial.parameters)
    found = with_settings({"train": train, "model": {}}, settings)
    made = CompressConfig.model_validate(
        {
            "teacher": config.teacher,
            "output": str(folder / "made"),
            "encoder": str(folder / "cut"),
            "data": list(config.data),
            "tokens_per_micro_batch": config.tokens_per_micro_batch,
            "seed": config.seed,
            "head_steps": config.finish.head_steps,
            "max_drop": config.finish.max_drop,
            "split": "validation",
            "train": {
                **found["train"],
                "num_steps": config.finish.num_steps,
                "vector_cache": str(bench.root / VECTORS),
            },
        }
    )
    Pipeline(
        resolve(made), say=say, train=partial(_train, bench, say=say),
        quiet=partial(alone, bench.root), model=found["model"],
    ).run()  # fmt: skip
    return open_package(folder / "made" / "package")


def _plain(bench: Workbench, trial: Trial, folder: Path, *, say: Say) -> Package:
    """Heads of its own on the encoder as it is, in fp32."""
    _write_cut(bench, trial, folder)
    settings = bench.space.settings(trial.parameters)
    run = heads_run(bench.config, bench.teacher, bench.data, root=folder, settings=settings)
    _train(bench, run, say=say)
    loaded = load_model(str(folder / "heads"))
    parts = ModelParts.of(loaded)
    catalogues = {task: one for task, one in bench.data.items() if one.has_items(task)}
    meta = loaded.checkpoint.meta
    size = ", ".join(f"{name} {value}" for name, value in trial.parameters.items())
    card = Card(
        source=manifest_sha256(find_checkpoint(Store.open(str(folder / "heads")))),
        made=[f"A search found the encoder's shape: {size} ({bench.config.way}).", history(meta)],
        base_model=base_model(bench.teacher.checkpoint.meta),
    )
    package = write_package(
        folder / "package",
        parts,
        card=card,
        indexes=partial(item_indexes, parts, catalogues),
        overwrite=True,  # a kill may have come before its golden requests
    )
    if not (package.path / GOLDEN).exists():
        with busy():
            publish_golden(package)
    return open_package(package.path)


def _train(bench: Workbench, run: RunConfig, *, say: Say) -> None:
    """Trains a run to its end, and nothing of the search is timed beside it."""
    with training(bench.root):
        train_run(run, say=say)


def _write_cut(bench: Workbench, trial: Trial, folder: Path) -> None:
    """The trial's encoder as a folder, whole or not at all."""
    if (folder / "cut").exists():
        return
    store = Store.open(str(folder))
    store.remove(".cut.draft")
    (folder / ".cut.draft").mkdir(parents=True)
    tokenizer = Path(bench.teacher.tokenizer_path)
    write_encoder(_encoder(bench, trial), folder / ".cut.draft", tokenizer=tokenizer)
    store.rename(".cut.draft", "cut")


def _encoder(bench: Workbench, trial: Trial) -> BertModel:
    if bench.config.way == "elastic":
        return bench.sub_network(trial.parameters)
    run = bench.root / "trials" / f"{trial.number:04d}" / "run"
    return load_trained_encoder(str(run)).encoder


def _measured(bench: Workbench, package: Package) -> tuple[Result, str]:
    """A package's objectives by the fastest of its engines, and that engine's name."""
    config, parts = bench.config.measure, package.read()
    with alone(bench.root):  # the engines are timed, too
        engine = open_engine(
            package,
            parts.model.encoder,
            backend="auto",
            threads=config.threads,
            device="cpu",
            max_length=max(limit.max_length for limit in parts.limits.values()),
        )
        predictor = TokenisingPredictor.of(parts, encoder=engine.encoder)
        tables = {task: predictor.tokenised(task, rows) for task, rows in bench.tables.items()}
        latency = time_requests(Predictor.of(parts, encoder=engine.encoder), tables, config)
    with busy():
        values = values_of(predictor, bench.data)
    num_bytes = _encoder_bytes(package, parts, engine.encoder.name) + num_head_bytes(parts)
    return bench.result(values, latency, num_bytes=num_bytes), engine.encoder.name


def _encoder_bytes(package: Package, parts: ModelParts, engine: str) -> int:
    """Of what the engine opens: a graph's files, or the weights in fp32."""
    graphs: Mapping[str, Path] = package.graphs
    if engine not in graphs:
        return 4 * sum(parameter.numel() for parameter in parts.model.encoder.parameters())
    first = graphs[engine]
    return sum(path.stat().st_size for path in first.parent.glob(f"{first.stem}.*"))
