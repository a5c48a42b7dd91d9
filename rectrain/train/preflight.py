"""A run before it starts: its settings resolved, its plan described, its folder claimed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rectrain.config import dump_config, parse_yaml, yaml_mapping
from rectrain.errors import CheckpointError, ConfigError, without_credentials
from rectrain.model.encoder import MINILM, PRESETS
from rectrain.train.build import new_model, open_data
from rectrain.train.checkpoint import manifest_sha256, open_checkpoint
from rectrain.train.config import PretrainConfig, RunConfig
from rectrain.train.memory import FEWEST_TOKENS, free_bytes, largest_micro_batch
from rectrain.train.outline import outline
from rectrain.train.provenance import ORIGINS, Origin, check_origin
from rectrain.train.run_plan import plan_run, with_micro_batch
from rectrain.train.selection import finished_checkpoint, latest_complete, newest_checkpoint
from rectrain.train.storage import LOCK, Store
from rectrain.train.zero import device_facts

__all__ = [
    "RunPlace",
    "begin",
    "claim",
    "describe",
    "resolve_micro_batch",
    "resolve_paths",
    "result",
]

_CONFIG = "config.yaml"
_PRETRAIN_KEY = "mask_share"  # only these runs have it
_MICRO_BATCHES = "train.num_micro_batches"
# Settings that decide how a run goes, and not what comes out of it: they may change on resuming.
_FREE = {
    *ORIGINS,  # what lies there counts, by its SHA-256
    "num_workers",
    "num_micro_batches",  # compared as resolved, below
    "zero_stage",
    "offload",
    "activation_checkpointing",
    "log_interval",
    "checkpoint_interval",
    "keep_last",
    "evaluate_interval",
    "evaluate_rows",
    "vector_cache",
    "max_failures",
    "collective_timeout_s",
    "resize_interval_s",
    "threads_per_worker",
    "stage3_persistence_threshold",
}
_VALIDATION = {"evaluate_interval", "evaluate_rows"}  # decide the result where it is followed


@dataclass(frozen=True)
class RunPlace:
    """A run's folder as `claim` found it; `result` is the checkpoint of one that is finished."""

    store: Store
    result: Store | None
    overwrite: bool


def resolve_paths(config: RunConfig, *, overwrite: bool = False) -> RunConfig:
    """The same run with absolute local paths: workers have other working directories.

    A run to start from, or to learn from, becomes the checkpoint that it has now, and its SHA-256:
    workers must see no other one. A run that goes on does without its start, where that is gone.

    Args:
        config: as the user gave it.
        overwrite: the run begins anew.

    Raises:
        CheckpointError: the other run has no complete checkpoint, or another one than
            `train.start_from_sha256` or `train.teacher_sha256` says.
    """

    def absolute(path: str) -> str:
        return path if "://" in path else str(Path(path).expanduser().absolute())

    data = config.data.model_copy(
        update={"paths": tuple(absolute(path) for path in config.data.paths)}
    )
    update: dict[str, Any] = {"output": absolute(config.output), "data": data}
    if config.model.encoder not in (*PRESETS, MINILM):
        update["model"] = config.model.model_copy(
            update={"encoder": absolute(config.model.encoder)}
        )
    found = config.model_copy(update=update)
    if config.train.vector_cache is not None:
        kept = {"vector_cache": absolute(config.train.vector_cache)}
        found = found.model_copy(update={"train": found.train.model_copy(update=kept)})
    if config.train.teacher is not None:
        found = _noted(found, "teacher", newest_checkpoint(absolute(config.train.teacher)))
    if config.train.start_from is not None:
        found = _with_start(found, absolute(config.train.start_from), overwrite=overwrite)
    return found


def resolve_micro_batch(config: RunConfig, *, overwrite: bool) -> RunConfig:
    """The same run with a number for `data.tokens_per_micro_batch=auto`.

    A run that goes on keeps its number: the rows of a step must not depend on what is free now.

    Args:
        config: with absolute paths.
        overwrite: the run begins anew.

    Raises:
        ConfigError: the folder holds a run of the other job.
        ResourceError: see `largest_micro_batch`.
    """
    if config.data.tokens_per_micro_batch != "auto":
        return config
    store = Store.open(f"{config.output}/{config.name}")
    if store.exists(_CONFIG) and not overwrite:
        return with_micro_batch(config, _stored(config).data.micro_batch_tokens)
    data = open_data(config)
    model = new_model(with_micro_batch(config, FEWEST_TOKENS), data)
    memory = free_bytes(num_workers=config.train.max_workers)
    return with_micro_batch(
        config, largest_micro_batch(config, data, model=model, memory_bytes=memory)
    )


def _with_start(config: RunConfig, start: str, *, overwrite: bool) -> RunConfig:
    try:
        location = newest_checkpoint(start)
    except CheckpointError:
        if overwrite or _own_checkpoint(config) is None:
            raise
        before = _stored(config).train
        if not f"{before.start_from}/".startswith(f"{without_credentials(start)}/"):
            raise
        return _with_origin(config, "start_from", before.start_from, before.start_from_sha256)
    return _noted(config, "start_from", location)


def _noted(config: RunConfig, setting: Origin, location: str) -> RunConfig:
    """The same run with a checkpoint that it takes of another, and its SHA-256."""
    given = getattr(config.train, f"{setting}_sha256")
    sha256 = given or manifest_sha256(Store.open(location))
    found = _with_origin(config, setting, location, sha256)
    check_origin(found.train, setting)
    return found


def _with_origin(
    config: RunConfig, setting: Origin, location: str | None, sha256: str | None
) -> RunConfig:
    update = {setting: location, f"{setting}_sha256": sha256}
    return config.model_copy(update={"train": config.train.model_copy(update=update)})


def _own_checkpoint(config: RunConfig) -> Store | None:
    """What a run would go on from."""
    return latest_complete(Store.open(f"{config.output}/{config.name}/checkpoints"))


def describe(config: RunConfig, *, overwrite: bool = False) -> str:
    """The plan of a run as text; checks data, encoder and precision, and writes nothing.

    Args:
        config: with absolute paths.
        overwrite: the run begins anew.

    Raises:
        RectrainError: anything that the user must mend first.
    """
    data = open_data(config)
    own = None if overwrite else _own_checkpoint(config)
    notes: list[str] = []
    if own is None:
        model = new_model(config, data, say=notes.append)
    else:
        checkpoint = open_checkpoint(own)
        model = new_model(config, data, checkpoint=checkpoint)
        notes.append(f"start: step {checkpoint.step} of this run")
    plan = outline(config, data, model=model, device=device_facts(), run=plan_run(config, data))
    return "\n".join([plan, *notes])


def claim(config: RunConfig, *, overwrite: bool) -> RunPlace:
    """Looks at the run's folder: new, or one of the same run that goes on. Changes nothing.

    Args:
        config: with absolute paths.
        overwrite: `launch` is to remove what is there.

    Raises:
        ConfigError: the folder holds a run of other settings, or no run but other files.
    """
    store = Store.open(f"{config.output}/{config.name}")
    for setting in ORIGINS:
        origin = getattr(config.train, setting)
        if origin is not None and f"{_place(origin)}/".startswith(f"{_place(store.root)}/"):
            does = "start" if setting == "start_from" else "learn"
            raise ConfigError(
                what=f"train.{setting}",
                got=without_credentials(origin),
                rule=f"a run can't {does} from its own checkpoint",
                fix="give another --name",
            )
    if not store.exists(_CONFIG) and not {LOCK, f".{_CONFIG}.tmp"}.issuperset(store.entries()):
        raise ConfigError(
            what="the run's folder",
            got=f"{store.root}, which holds other files and no {_CONFIG}",
            rule="only a run's own folder is ever written or removed",
            fix="give another --name or --output",
        )
    if store.exists(_CONFIG) and not overwrite:
        _check_same(config, store)
    return RunPlace(store, None if overwrite else result(config, store), overwrite)


def begin(config: RunConfig, place: RunPlace) -> None:
    """Writes the run's folder: only now, when nothing of the user's can be wrong any more."""
    if place.overwrite:
        for name in place.store.entries():
            if name not in (LOCK, _CONFIG):  # replaced below: its folder stays known as a run's
                place.store.remove(name)
    place.store.make()
    place.store.replace(_CONFIG, without_credentials(dump_config(config)).encode())


def result(config: RunConfig, store: Store) -> Store | None:
    """The checkpoint that a run has come to; None while work is left."""
    num_steps = plan_run(config, open_data(config)).num_steps
    return finished_checkpoint(store, train=config.train, num_steps=num_steps)


def _place(location: str) -> str:
    """A path without links and `..`, or a URI: one text for one place."""
    return location.rstrip("/") if "://" in location else os.path.realpath(location)


def _stored(config: RunConfig) -> RunConfig:
    """The settings that the run of this name began with; refuses those of the other job."""
    root = f"{config.output}/{config.name}"
    text, name = Store.open(root).read(_CONFIG), f"{root}/{_CONFIG}"
    is_pretraining = isinstance(config, PretrainConfig)
    if (_PRETRAIN_KEY in yaml_mapping(text, name=name)) != is_pretraining:
        raise ConfigError(
            what=f"run {root}",
            got=f"a run of jobs.{'train' if is_pretraining else 'pretrain'}",
            rule="pre-training and training are two runs",
            fix="give another --name, or --overwrite to begin anew",
        )
    return parse_yaml(type(config), text, name=name)


def _check_same(config: RunConfig, store: Store) -> None:
    before = _stored(config)
    old, new = _identity(before), _identity(config)
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if changed:
        fix = "give another --name, or --overwrite to begin anew"
        if changed == [_MICRO_BATCHES]:  # another num_workers does that, and may change
            fix = f"add --{_MICRO_BATCHES}={old[_MICRO_BATCHES]}, or {fix}"
        for setting in ORIGINS:
            began, given = (getattr(one.train, setting) for one in (before, config))
            is_other = began != without_credentials(given or "")
            if changed == [f"train.{setting}_sha256"] and began is not None and is_other:
                fix = f"add --train.{setting}={began}, or {fix}"  # it may be gone by now
        raise ConfigError(
            what=f"run {store.root}",
            got=f"a run with another {', '.join(changed[:5])}",
            rule="a run goes on with the settings that it began with",
            fix=fix,
        )


def _identity(config: RunConfig) -> dict[str, Any]:
    """What decides a run's result, by dotted key."""
    tree = config.model_dump(mode="json")
    free = _FREE - (_VALIDATION if config.train.follows_validation else set())
    train = {key: value for key, value in tree["train"].items() if key not in free}
    train["num_micro_batches"] = config.train.micro_batches
    data = {key: value for key, value in tree["data"].items() if key != "prefetch"}
    if config.train.start_from is not None:
        del tree["model"]["encoder"]  # nothing reads it
    return {
        "seed": config.seed,
        **({"mask_share": config.mask_share} if isinstance(config, PretrainConfig) else {}),
        **{f"data.{key}": value for key, value in data.items()},
        **{f"model.{key}": value for key, value in tree["model"].items()},
        **{f"train.{key}": value for key, value in train.items()},
    }
