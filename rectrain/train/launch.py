"""From a configuration to a finished run: Ray Train's trainer, and the driver's side of a run."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.metrics import Gauge
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rectrain.config import dump_config, parse_yaml, yaml_mapping
from rectrain.errors import CheckpointError, ConfigError, ResourceError, without_credentials
from rectrain.model.encoder import MINILM, PRESETS
from rectrain.train.build import (
    check_start,
    finished_checkpoint,
    load_trained_encoder,
    new_model,
    newest_checkpoint,
    open_data,
)
from rectrain.train.checkpoint import latest_complete, manifest_sha256, open_checkpoint
from rectrain.train.config import PretrainConfig, RunConfig
from rectrain.train.export import export_encoder
from rectrain.train.memory import FEWEST_TOKENS, free_bytes, largest_micro_batch
from rectrain.train.outline import outline
from rectrain.train.run_plan import plan_run, with_micro_batch
from rectrain.train.storage import LOCK, Store
from rectrain.train.tracking import Tracker
from rectrain.train.worker import train_worker
from rectrain.train.zero import device_facts

__all__ = [
    "Channel",
    "Deaths",
    "RunPlace",
    "check_resources",
    "claim",
    "describe",
    "launch",
    "resolve_micro_batch",
    "resolve_paths",
]

Say = Callable[[str], None]

_CONFIG = "config.yaml"
_POLL_S = 0.5
_MAX_DEATHS = 3
_PRETRAIN_KEY = "mask_share"  # only these runs have it
_MICRO_BATCHES = "train.num_micro_batches"
_START = "train.start_from_sha256"
# Settings that decide how a run goes, and not what comes out of it: they may change on resuming.
_FREE = {
    "start_from",  # what lies there counts, by its SHA-256
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


class Channel:
    """An actor beside the driver: workers leave events here, and a mistake that ends the run."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._failure: Exception | None = None

    def put(self, event: dict[str, Any]) -> None:
        """Adds an event."""
        self._events.append(event)

    def take(self) -> list[dict[str, Any]]:
        """All events since the last call."""
        events, self._events = self._events, []
        return events

    def fail(self, error: Exception) -> None:
        """Notes an error that restarting can't mend; the first one counts."""
        self._failure = self._failure or error

    def failed(self) -> bool:
        """Whether there is such an error."""
        return self._failure is not None

    def failure(self) -> tuple[Exception | None]:
        """The error; in a tuple, or Ray would raise it."""
        return (self._failure,)


class Deaths(ray.train.UserCallback):
    """Ends a run that dies again and again without a new checkpoint in between.

    Lives in Ray Train's controller; what it notes in the channel lets the next workers return.
    """

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._last_saved, self._num_deaths = 0, 0

    def after_report(
        self, run_context: object, metrics: list[dict[str, Any]], checkpoint: object
    ) -> None:
        """Workers report after each checkpoint that is written."""
        if metrics[0]["step"] > self._last_saved:
            self._last_saved, self._num_deaths = metrics[0]["step"], 0

    def after_exception(
        self, run_context: object, worker_exceptions: Mapping[int, BaseException]
    ) -> None:
        """Some workers have died."""
        self._num_deaths += 1
        rank, cause = min(worker_exceptions.items(), key=lambda death: death[0])
        text = f"worker {rank} ended: {_last_line(cause)}"
        self._channel.put.remote({"kind": "note", "text": text})
        if self._num_deaths < _MAX_DEATHS:
            return
        error = ResourceError(
            what=f"worker {rank}",
            got=f"{_MAX_DEATHS} deaths without a new checkpoint; the last: {_last_line(cause)}",
            rule="a run must advance between deaths",
            fix="mend the cause (memory, network, a node), or lower train.checkpoint_interval; "
            "the same command goes on from the last checkpoint",
        )
        self._channel.fail.remote(error)  # unawaited: blocking would stop the controller's loop


def _last_line(error: BaseException) -> str:
    """Ray's errors end with the worker's own."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def resolve_paths(config: RunConfig, *, overwrite: bool = False) -> RunConfig:
    """The same run with absolute local paths: workers have other working directories.

    A run to start from becomes the checkpoint that it has now, and its SHA-256: workers must see
    no other one. A run that goes on does without it, where it is gone.

    Args:
        config: as the user gave it.
        overwrite: the run begins anew.

    Raises:
        CheckpointError: the run to start from has no complete checkpoint, or another one than
            `train.start_from_sha256` says.
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
    if config.train.start_from is None:
        return found
    return _with_start(found, absolute(config.train.start_from), overwrite=overwrite)


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
    def changed(location: str | None, sha256: str | None) -> RunConfig:
        update = {"start_from": location, "start_from_sha256": sha256}
        return config.model_copy(update={"train": config.train.model_copy(update=update)})

    try:
        location = newest_checkpoint(start)
    except CheckpointError:
        if overwrite or _own_checkpoint(config) is None:
            raise
        before = _stored(config).train
        if not f"{before.start_from}/".startswith(f"{without_credentials(start)}/"):
            raise
        return changed(before.start_from, before.start_from_sha256)
    sha256 = config.train.start_from_sha256 or manifest_sha256(Store.open(location))
    found = changed(location, sha256)
    check_start(found)
    return found


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
    start = config.train.start_from
    if start is not None and f"{_place(start)}/".startswith(f"{_place(store.root)}/"):
        raise ConfigError(
            what="train.start_from",
            got=without_credentials(start),
            rule="a run can't start from its own checkpoint",
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
    return RunPlace(store, None if overwrite else _result(config, store), overwrite)


def _place(location: str) -> str:
    """A path without links and `..`, or a URI: one text for one place."""
    return location.rstrip("/") if "://" in location else os.path.realpath(location)


def _result(config: RunConfig, store: Store) -> Store | None:
    num_steps = plan_run(config, open_data(config)).num_steps
    return finished_checkpoint(store, train=config.train, num_steps=num_steps)


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
        begun_from = before.train.start_from
        if changed == [_START] and begun_from != without_credentials(config.train.start_from or ""):
            fix = f"add --train.start_from={begun_from}, or {fix}"  # it may be gone by now
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
    return {
        "seed": config.seed,
        **({"mask_share": config.mask_share} if isinstance(config, PretrainConfig) else {}),
        **{f"data.{key}": value for key, value in data.items()},
        **{f"model.{key}": value for key, value in tree["model"].items()},
        **{f"train.{key}": value for key, value in train.items()},
    }


def launch(config: RunConfig, place: RunPlace, *, say: Say) -> Store:
    """Trains on the connected Ray cluster until the run is finished.

    Args:
        config: with absolute paths.
        place: from `claim`.
        say: is given the lines that a user should see.

    Returns:
        The checkpoint that the run has come to: the last, or with early stopping the best one.

    Raises:
        ResourceError: the cluster has too few CPUs or GPUs, or another process trains this run.
        RectrainError: a mistake that a worker met.
        RuntimeError: an error of our own in a worker, with its traceback.
    """
    use_gpu = check_resources(config, ray.cluster_resources())  # type: ignore[no-untyped-call]
    with place.store.locked():
        _begin(config, place)
        _run(config, place, use_gpu=use_gpu, say=say)
        result = _result(config, place.store)
        assert result is not None, "the workers ended without an error"
        export_encoder(load_trained_encoder(result), place.store)
        return result


def _run(config: RunConfig, place: RunPlace, *, use_gpu: bool, say: Say) -> None:
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    channel: Any = ray.remote(Channel).options(num_cpus=0, scheduling_strategy=node).remote()
    with _Listener(channel, config, place.store, say=say):
        try:
            _trainer(config, channel, use_gpu=use_gpu).fit()
        except SystemExit as stop:  # what Ray Train's own handler makes of Ctrl-C
            raise KeyboardInterrupt from stop
        except Exception:
            (failure,) = ray.get(channel.failure.remote())
            if failure is None:
                raise
        (failure,) = ray.get(channel.failure.remote())
        if failure is not None:
            raise failure


def _begin(config: RunConfig, place: RunPlace) -> None:
    """Writes the run's folder: only now, when nothing of the user's can be wrong any more."""
    if place.overwrite:
        for name in place.store.entries():
            if name not in (LOCK, _CONFIG):  # replaced below: its folder stays known as a run's
                place.store.remove(name)
    place.store.make()
    place.store.replace(_CONFIG, without_credentials(dump_config(config)).encode())


def _trainer(config: RunConfig, channel: Any, *, use_gpu: bool) -> TorchTrainer:
    train = config.train
    ray_train: Any = ray.train  # typed as version 1, which it is not
    return TorchTrainer(
        train_worker,
        train_loop_config={"config": config, "channel": channel},
        torch_config=TorchConfig(
            backend="nccl" if use_gpu else "gloo", timeout_s=int(train.collective_timeout_s)
        ),
        scaling_config=ray_train.ScalingConfig(
            num_workers=train.num_workers,
            elastic_resize_monitor_interval_s=train.resize_interval_s,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": train.threads_per_worker, "GPU": int(use_gpu)},
        ),
        run_config=ray_train.RunConfig(
            name="ray",
            storage_path=f"{config.output}/{config.name}",
            failure_config=ray_train.FailureConfig(max_failures=train.max_failures),
            callbacks=[Deaths(channel)],
            logging_config=ray_train.LoggingConfig(log_level="WARNING"),
        ),
    )


def check_resources(config: RunConfig, have: Mapping[str, float]) -> bool:
    """Whether to use GPUs; refuses what could only wait for ever.

    Args:
        config: the run.
        have: the cluster's "CPU" and "GPU".

    Raises:
        ResourceError: too few of them for the fewest workers.
    """
    train = config.train
    need = train.min_workers * train.threads_per_worker
    if need > have.get("CPU", 0):
        raise ResourceError(
            what="train.num_workers",
            got=f"{train.min_workers} workers of {train.threads_per_worker} CPUs",
            rule=f"the cluster has {have.get('CPU', 0):g} CPUs",
            fix="lower train.num_workers, give [fewest, most], or add nodes",
        )
    gpus = have.get("GPU", 0)
    if 0 < gpus < train.min_workers:
        raise ResourceError(
            what="train.num_workers",
            got=f"{train.min_workers} workers",
            rule=f"the cluster has {gpus:g} GPUs, one a worker",
            fix="lower train.num_workers, or add nodes",
        )
    return bool(gpus)


class _Gauges:
    """The run in Ray's metrics: the dashboard and Prometheus read them."""

    def __init__(self, run: str) -> None:
        tags = {"run": run}
        self._plain = {
            key: _gauge(name, text, ("run",), tags)
            for key, name, text in (
                ("step", "rectrain_train_step", "Updates made"),
                ("tokens_per_second", "rectrain_train_tokens_per_second", "Real tokens a second"),
                ("learning_rate", "rectrain_train_learning_rate", "Rate of the encoder"),
                ("gradient_norm", "rectrain_train_gradient_norm", "Global norm before clipping"),
            )
        }
        self._by_task = {
            key: _gauge(name, text, ("run", "task"), tags)
            for key, name, text in (
                ("loss", "rectrain_train_loss", "Mean loss since the last log line"),
                ("loss_weight", "rectrain_train_loss_weight", "What the balancer makes of it"),
                ("validation", "rectrain_train_validation", "Primary metric"),
            )
        }

    def set(self, event: dict[str, Any]) -> None:
        for key, gauge in self._plain.items():
            if key in event:
                gauge.set(event[key])
        for key, gauge in self._by_task.items():
            for task, value in event.get(key, {}).items():
                gauge.set(value, tags={"task": task})


def _gauge(name: str, text: str, keys: tuple[str, ...], tags: dict[str, str]) -> Any:
    gauge = Gauge(name, description=text, tag_keys=keys)
    gauge.set_default_tags(tags)
    return gauge


class _Listener:
    """Takes events from the channel on a thread: gauges, tracking, progress lines."""

    def __init__(self, channel: Any, config: RunConfig, store: Store, *, say: Say) -> None:
        self._channel = channel
        self._tracker = Tracker(config, store, say=say)
        self._gauges = _Gauges(config.name)
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._listen, name="rectrain-listener", daemon=True)

    def __enter__(self) -> _Listener:
        self._tracker.__enter__()  # here: what can't be written is an error before training
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._ended.set()
        self._thread.join()
        self._tracker.__exit__(None, None, None)
        if self._error is not None and error is None:
            raise self._error

    def _listen(self) -> None:
        try:
            last = False
            while not last:
                last = self._ended.is_set()
                for event in ray.get(self._channel.take.remote()):
                    self._gauges.set(event)
                    self._tracker.record(event)
                if not last:
                    time.sleep(_POLL_S)
        except BaseException as error:
            self._error = error
