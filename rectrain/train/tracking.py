"""Where a run can be watched: progress lines, metrics.jsonl, TensorBoard, MLflow, curves.png.

All of it is written by the driver from the workers' events, so a worker's death leaves no gap and
no second line: an event at a step that was already recorded is a repetition and is dropped.
"""

from __future__ import annotations

import json
import logging
import ssl
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rectrain.errors import ConfigError, StorageError, without_credentials
from rectrain.tasks import TASKS
from rectrain.train.config import RunConfig
from rectrain.train.storage import Store

__all__ = [
    "Tracker",
    "curves",
    "draw_curves",
    "mlflow_uri",
    "progress_line",
    "public_settings",
    "read_records",
]

Event = Mapping[str, Any]
Say = Callable[[str], None]

_RECORDS, _CURVES = "metrics.jsonl", "curves.png"
_OFF = ", or turn it off (--tracking.tensorboard=false, --tracking.mlflow=off)"
_LINE_INTERVAL_S = 3.0
_KEPT = (
    "kind",
    "step",
    "loss",
    "loss_weight",
    "tokens_per_second",
    "learning_rate",
    "gradient_norm",
    "validation",
)


class Tracker:
    """Records a run's events; a context that completes the files at its end.

    A place that can't be written at the start is an error; one that fails later is given up with a
    warning, and training goes on.

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
        self._seen = {(record["kind"], record["step"]) for record in self._records}
        makers = _sinks(self._config, self._folder, self._store, self._records)
        self._sinks = {name: _opened(name, make) for name, make in makers.items()}
        return self

    def record(self, event: Event) -> None:
        """Takes one event of a worker (see worker._Session)."""
        kind = event["kind"]
        if kind == "note":
            self._warn(event["text"])
        elif kind == "start":
            self._start(event)
        elif kind == "stop":
            self._say(event["text"])
        elif (kind, event["step"]) not in self._seen:
            self._add({key: event[key] for key in _KEPT if key in event})
        if kind in ("log", "validation"):
            self._show(event)

    def _start(self, event: Event) -> None:
        self._began = (time.monotonic(), event["step"])
        self._last_line = -float("inf")  # the first line of each life is shown
        origin = f"from step {event['step']}" if event["step"] else "from the beginning"
        workers = event["num_workers"]
        self._say(f"training {origin} on {workers} worker{'s' if workers != 1 else ''}")

    def _add(self, record: dict[str, Any]) -> None:
        self._seen.add((record["kind"], record["step"]))
        self._records.append(record)
        self._feed(record)

    def _feed(self, record: Event | None) -> None:
        for name, sink in list(self._sinks.items()):
            try:
                sink(record)
            except Exception as error:  # whatever a server or library fails with
                del self._sinks[name]
                self._warn(f"{name} is no longer written: {type(error).__name__}: {error}")

    def _warn(self, text: str) -> None:
        self._say(" ".join(without_credentials(f"warning: {text}").split()))

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
        self._feed(None)
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
        settings[key] = without_credentials(str(value))
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


def _sinks(
    config: RunConfig, folder: Path, store: Store, records: list[dict[str, Any]]
) -> dict[str, Callable[[], Sink]]:
    makers: dict[str, Callable[[], Sink]] = {_CURVES: lambda: _curves(folder / _CURVES, records)}
    if config.tracking.tensorboard:
        makers["tracking.tensorboard"] = lambda: _tensorboard(folder / "tensorboard")
    if config.tracking.mlflow != "off":
        makers["tracking.mlflow"] = lambda: _mlflow(config, store)
    return makers | {_RECORDS: lambda: _lines(folder / _RECORDS, records)}


def _opened(name: str, make: Callable[[], Sink]) -> Sink:
    """Opens a sink before training starts; what its library fails with becomes one line."""
    try:
        return make()
    except ImportError as error:
        raise ConfigError(
            what=name,
            got=error,
            rule="needs a package that is not installed",
            fix=f"install it{_OFF}",
        ) from error
    except Exception as error:
        raise StorageError(
            what=name,
            got=f"{type(error).__name__}: {error}",
            rule="must take records before training starts",
            fix=f"start or mend it{_OFF}",
        ) from error


def _lines(path: Path, records: Iterable[Event]) -> Sink:
    file = path.open("w")
    for record in records:  # those read from it, without what a death cut off
        file.write(json.dumps(record) + "\n")
    file.flush()

    def write(record: Event | None) -> None:
        if record is None:
            file.close()
            return
        file.write(json.dumps(record) + "\n")
        file.flush()

    return write


def _curves(path: Path, records: list[dict[str, Any]]) -> Sink:
    import matplotlib  # noqa: F401 - missing, it must be told now

    def write(record: Event | None) -> None:
        if record is None and records:
            draw_curves(records, path)

    return write


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
    uri = mlflow_uri(config)
    _check_answers(uri)
    client = mlflow.MlflowClient(tracking_uri=uri)
    if store.exists("mlflow.json"):
        run_id = json.loads(store.read("mlflow.json"))["run_id"]
        client.update_run(run_id, status="RUNNING")
    else:
        experiment = _experiment(client, config.tracking.mlflow_experiment)
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


def _check_answers(uri: str) -> None:
    """MLflow tries a dead server for minutes; ask it once whether it is there."""
    if not uri.startswith(("http://", "https://")):
        return
    try:
        urllib.request.urlopen(without_credentials(uri), timeout=10).close()
    except urllib.error.HTTPError:
        return  # any status is an answer
    except urllib.error.URLError as error:
        if not isinstance(error.reason, ssl.SSLError):  # MLflow has its own settings for those
            raise


def _experiment(client: Any, name: str) -> str:
    """The experiment's id; made here, unless another run makes it at the same moment."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def draw_curves(records: list[dict[str, Any]], path: Path) -> None:
    """A picture of each task's loss and, below, of each validation metric, over the steps.

    Each has a panel with a scale of its own: losses of other kinds can't be compared.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = curves(records)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def curves(records: list[dict[str, Any]]) -> Any:
    """The figure of `draw_curves`; at least one record."""
    from matplotlib import pyplot
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows = [(key, _points(records, key)) for key in ("loss", "validation")]
    rows = [(key, found) for key, found in rows if found]
    size = len(rows), max(len(found) for _, found in rows)
    figure, axes = pyplot.subplots(
        *size,
        figsize=(3.4 * size[1], 2.8 * size[0]),
        squeeze=False,
        layout=ConstrainedLayoutEngine(w_pad=0.08),
    )
    last = max(record["step"] for record in records)
    for (key, found), places in zip(rows, axes, strict=True):
        for name, axis in zip(found, places, strict=False):
            axis.plot(*zip(*found[name], strict=True), marker="." if len(found[name]) < 30 else "")
            axis.set(title=name, ylabel=_quantity(key, name), xlabel="step (update)")
            axis.set_xlim(0, last * 1.03)
            axis.grid(alpha=0.3)
        for axis in places[len(found) :]:
            axis.remove()
    return figure


def _points(records: Iterable[Event], key: str) -> dict[str, list[tuple[int, float]]]:
    """Name of a task or metric -> (step, value) of each record that has it."""
    points: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for name, value in record.get(key, {}).items():
            points.setdefault(name, []).append((record["step"], value))
    return points


def _quantity(key: str, name: str) -> str:
    """What a panel shows, with its unit: losses are negative log-likelihoods."""
    if key == "loss":
        return "training loss (nats)"
    metric = TASKS[name].primary if name in TASKS else name
    return f"validation {metric}{' (nats)' if metric == 'loss' else ''}"
