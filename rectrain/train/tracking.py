"""Where a run can be watched: progress lines, metrics.jsonl, TensorBoard, MLflow, curves.png.

All of it is written by the driver from the workers' events, so a worker's death leaves no gap and
no second line: an event at a step that was already recorded is a repetition and is dropped.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rectrain.train.config import RunConfig
from rectrain.train.storage import Store

__all__ = [
    "Tracker",
    "draw_curves",
    "mlflow_uri",
    "progress_line",
    "public_settings",
    "read_records",
]

Event = Mapping[str, Any]
Say = Callable[[str], None]

_RECORDS = "metrics.jsonl"
_LINE_INTERVAL_S = 3.0
_KEPT = (
    "kind",
    "step",
    "loss",
    "tokens_per_second",
    "learning_rate",
    "gradient_norm",
    "validation",
)


class Tracker:
    """Records a run's events; a context that completes the files at its end.

    Args:
        config: the run.
        store: its folder; where it is not local, files are gathered in a temporary folder and
            copied when the context ends.
        say: is given progress lines and notes.
    """

    def __init__(self, config: RunConfig, store: Store, *, say: Say) -> None:
        self._config, self._store, self._say = config, store, say
        self._folder = store.local or Path(tempfile.mkdtemp(prefix="rectrain-run-"))
        self._last_line = -float("inf")
        self._began: tuple[float, int] | None = None

    def __enter__(self) -> Self:
        path = self._folder / _RECORDS
        if self._store.local is None and self._store.exists(_RECORDS):
            path.write_bytes(self._store.read(_RECORDS))
        self._records = read_records(path)
        self._file = path.open("w")
        for record in self._records:  # without what a death cut off
            self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        self._seen = {(record["kind"], record["step"]) for record in self._records}
        self._sinks = list(_open_sinks(self._config, self._folder, self._store))
        return self

    def record(self, event: Event) -> None:
        """Takes one event of a worker (see worker._Session)."""
        kind = event["kind"]
        if kind == "note":
            self._say(f"warning: {event['text']}")
        elif kind == "start":
            self._start(event)
        elif (kind, event["step"]) not in self._seen:
            self._add({key: event[key] for key in _KEPT if key in event})
        if kind in ("log", "validation"):
            self._show(event)

    def _start(self, event: Event) -> None:
        self._began = (time.monotonic(), event["step"])
        origin = f"from step {event['step']}" if event["step"] else "from the beginning"
        workers = event["num_workers"]
        self._say(f"training {origin} on {workers} worker{'s' if workers != 1 else ''}")

    def _add(self, record: dict[str, Any]) -> None:
        self._seen.add((record["kind"], record["step"]))
        self._records.append(record)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for sink in self._sinks:
            sink(record)

    def _show(self, event: Event) -> None:
        now = time.monotonic()
        final = event["step"] == event["num_steps"]
        if event["kind"] == "log" and now - self._last_line < _LINE_INTERVAL_S and not final:
            return
        self._last_line = now
        began, first = self._began or (now, event["step"])
        done = max(event["step"] - first, 1)
        left_s = (now - began) / done * (event["num_steps"] - event["step"])
        self._say(progress_line(event, left_s=left_s))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        for sink in self._sinks:
            sink(None)
        if self._records:
            draw_curves(self._records, self._folder / "curves.png")
        if self._store.local is None:
            for path in sorted(self._folder.rglob("*")):
                if path.is_file():
                    self._store.write(path.relative_to(self._folder).as_posix(), path.read_bytes())


def progress_line(event: Event, *, left_s: float) -> str:
    """One plain line: step, loss or metric of each task, real tokens a second, time left."""
    place = f"step {event['step']}/{event['num_steps']}"
    if event["kind"] == "validation":
        values = "  ".join(f"{task} {value:.4f}" for task, value in event["validation"].items())
        return f"{place}  validation: {values}"
    values = "  ".join(f"{task} {value:.4f}" for task, value in event["loss"].items())
    minutes, seconds = divmod(round(left_s), 60)
    speed = f"{event['tokens_per_second']:,.0f} tokens/s"
    return f"{place}  loss: {values}  {speed}  {minutes}:{seconds:02d} left"


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line that was cut off is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def public_settings(config: RunConfig) -> dict[str, str]:
    """All settings by dotted key, without the user names and passwords that URIs can hold."""
    settings = {}
    for key, value in _flat(config.model_dump(mode="json"), ""):
        settings[key] = re.sub(r"(?<=://)[^/@\s']*@", "", str(value))
    return settings


def _flat(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _scalars(record: Event) -> dict[str, float]:
    values: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            values |= {f"{key}/{task}": number for task, number in value.items()}
        elif key not in ("kind", "step"):
            values[key] = value
    return values


Sink = Callable[[Event | None], None]
"""Takes each record, and None at the end."""


def _open_sinks(config: RunConfig, folder: Path, store: Store) -> Iterator[Sink]:
    if config.tracking.tensorboard:
        yield _tensorboard(folder / "tensorboard")
    if config.tracking.mlflow != "off":
        yield _mlflow(config, store)


def _tensorboard(folder: Path) -> Sink:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))

    def write(record: Event | None) -> None:
        if record is None:
            writer.close()
            return
        for key, value in _scalars(record).items():
            writer.add_scalar(key, value, record["step"])
        writer.flush()

    return write


def mlflow_uri(config: RunConfig) -> str:
    """The tracking server's URI: by default an SQLite file beside the runs."""
    if config.tracking.mlflow != "auto":
        return config.tracking.mlflow
    folder = Path("runs").absolute() if "://" in config.output else Path(config.output)
    return f"sqlite:///{folder}/mlflow.db"


def _mlflow(config: RunConfig, store: Store) -> Sink:
    """A run of MLflow; a run that goes on is found again by the id in mlflow.json."""
    import mlflow
    from mlflow.entities import Metric, Param

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # or it tells of its tables
    client = mlflow.MlflowClient(tracking_uri=mlflow_uri(config))
    if store.exists("mlflow.json"):
        run_id = json.loads(store.read("mlflow.json"))["run_id"]
        client.update_run(run_id, status="RUNNING")
    else:
        name = config.tracking.mlflow_experiment
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else client.create_experiment(name)
        run_id = client.create_run(experiment, run_name=config.name).info.run_id
        params = [Param(key, value) for key, value in public_settings(config).items()]
        client.log_batch(run_id, params=params)
        store.replace("mlflow.json", json.dumps({"run_id": run_id}).encode())

    def write(record: Event | None) -> None:
        if record is None:
            client.set_terminated(run_id)
            return
        now_ms = int(time.time() * 1000)
        metrics = [
            Metric(key.replace("@", "_at_"), value, now_ms, record["step"])
            for key, value in _scalars(record).items()
        ]
        client.log_batch(run_id, metrics=metrics)

    return write


def draw_curves(records: list[dict[str, Any]], path: Path) -> None:
    """A picture of each task's loss and validation metric over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = [(kind, key) for kind, key in (("log", "loss"), ("validation", "validation"))]
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for (kind, key), axis in zip(kinds, axes, strict=True):
        chosen = [record for record in records if record["kind"] == kind]
        for task in dict.fromkeys(task for record in chosen for task in record[key]):
            points = [(r["step"], r[key][task]) for r in chosen if task in r[key]]
            axis.plot(*zip(*points, strict=True), label=task, marker="." if kind != "log" else "")
        axis.set(xlabel="step", title=key)
        if chosen:
            axis.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
