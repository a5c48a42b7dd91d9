"""From a configuration to a finished run: Ray Train's trainer, and the driver's side of a run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.metrics import Gauge
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rectrain.errors import ResourceError
from rectrain.train.build import (
    load_trained_encoder,
)
from rectrain.train.config import RunConfig
from rectrain.train.export import export_encoder
from rectrain.train.preflight import RunPlace, begin, result
from rectrain.train.selection import checkpoint_steps
from rectrain.train.storage import Store
from rectrain.train.tracking import Tracker
from rectrain.train.worker import train_worker

__all__ = [
    "Channel",
    "Deaths",
    "check_resources",
    "launch",
]

Say = Callable[[str], None]
Listen = Callable[[Mapping[str, Any]], None]

_POLL_S = 0.5
_MAX_DEATHS = 3


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

    Args:
        channel: of the run.
        location: the run's folder. What is stored counts, not what workers reported: a report is
            lost when its worker dies before the controller looks.
    """

    def __init__(self, channel: Any, location: str) -> None:
        self._channel, self._location = channel, location
        self._newest, self._num_deaths = 0, 0

    def after_exception(
        self, run_context: object, worker_exceptions: Mapping[int, BaseException]
    ) -> None:
        """Some workers have died."""
        steps = checkpoint_steps(Store.open(self._location).sub("checkpoints"))
        if max(steps, default=0) > self._newest:
            self._newest, self._num_deaths = max(steps), 0
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


def launch(config: RunConfig, place: RunPlace, *, say: Say, listen: Listen | None = None) -> Store:
    """Trains on the connected Ray cluster until the run is finished.

    Args:
        config: with absolute paths.
        place: from `claim`.
        say: is given the lines that a user should see.
        listen: is given the workers' events, on a thread of its own.

    Returns:
        The checkpoint that the run has come to: the last, or with early stopping the best one.

    Raises:
        ResourceError: the cluster has too few CPUs or GPUs, or another process trains this run.
        RectrainError: a mistake that a worker met.
        RuntimeError: an error of our own in a worker, with its traceback.
    """
    use_gpu = check_resources(config, ray.cluster_resources())  # type: ignore[no-untyped-call]
    with place.store.locked():
        begin(config, place)
        _run(config, place, use_gpu=use_gpu, say=say, listen=listen)
        found = result(config, place.store)
        assert found is not None, "the workers ended without an error"
        export_encoder(load_trained_encoder(found), place.store)
        return found


def _run(
    config: RunConfig, place: RunPlace, *, use_gpu: bool, say: Say, listen: Listen | None
) -> None:
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    channel: Any = ray.remote(Channel).options(num_cpus=0, scheduling_strategy=node).remote()
    with _Listener(channel, config, place.store, say=say, listen=listen):
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
            callbacks=[Deaths(channel, f"{config.output}/{config.name}")],
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

    def __init__(
        self, channel: Any, config: RunConfig, store: Store, *, say: Say, listen: Listen | None
    ) -> None:
        self._channel, self._listener = channel, listen
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
                    if self._listener is not None:
                        self._listener(event)
                if not last:
                    time.sleep(_POLL_S)
        except BaseException as error:
            self._error = error
