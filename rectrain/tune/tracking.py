"""Where trials can be watched: TensorBoard and MLflow, each trial once.

OUTPUT/tracked.json      which trials each place has: a driver that was killed may have told the
                         study of a trial, and nobody else
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rectrain.errors import without_credentials
from rectrain.strict_json import strict_json
from rectrain.train.storage import Store
from rectrain.tune.config import SearchConfig
from rectrain.tune.trials import Trial

__all__ = ["TrialTracker", "mlflow_uri"]

Say = Callable[[str], None]
Sink = Callable[[Trial, float], None]

_TRACKED = "tracked.json"


class TrialTracker:
    """Writes each trial that has ended; a place that fails is given up with a warning.

    Args:
        config: of the search, with absolute paths.
        say: is given warnings.
    """

    def __init__(self, config: SearchConfig, *, say: Say) -> None:
        self._say = say
        self._sinks: dict[str, Sink] = {}
        self._places = {"tensorboard": "tensorboard", "mlflow": _mlflow_place(config)}
        self._store = Store.open(config.output)
        self._tracked: dict[str, list[int]] = {}  # place -> numbers of the trials that it has
        if self._store.exists(_TRACKED):
            self._tracked = json.loads(self._store.read(_TRACKED))
        if config.tracking.tensorboard:
            self._open("tensorboard", lambda: _tensorboard(Path(config.output) / "tensorboard"))
        if config.tracking.mlflow != "off":
            self._open("mlflow", lambda: _mlflow(config))

    def _open(self, name: str, make: Callable[[], Sink]) -> None:
        try:
            self._sinks[name] = make()
        except Exception as error:  # whatever a server or library fails with
            self._warn(name, error)

    def catch_up(self, trials: Sequence[Trial], *, volume: Callable[[list[Trial]], float]) -> None:
        """Takes those that it doesn't have of trials that have ended.

        Args:
            trials: all of the search.
            volume: the hypervolume of some of them.
        """
        ended = [one for one in trials if one.finished is not None]
        ended.sort(key=lambda one: (one.finished, one.number))
        for place, trial in enumerate(ended, start=1):
            if any(trial.number not in self._has(name) for name in self._sinks):
                self.record(trial, hypervolume=volume(ended[:place]))

    def record(self, trial: Trial, *, hypervolume: float) -> None:
        """Takes a trial that has ended, where it was not taken before."""
        for name, sink in list(self._sinks.items()):
            if trial.number in self._has(name):
                continue
            try:
                sink(trial, hypervolume)
            except Exception as error:
                del self._sinks[name]
                self._warn(name, error)
            else:
                self._has(name).append(trial.number)
                self._store.replace(_TRACKED, strict_json(self._tracked).encode())

    def _has(self, name: str) -> list[int]:
        return self._tracked.setdefault(self._places[name], [])

    def _warn(self, name: str, error: Exception) -> None:
        text = f"warning: {name} has no trials: {type(error).__name__}: {error}"
        self._say(" ".join(without_credentials(text).split()))


def _scalars(trial: Trial, hypervolume: float) -> dict[str, float]:
    found = {"device_seconds": trial.device_seconds, "hypervolume": hypervolume}
    if trial.objectives is not None:
        found |= vars(trial.objectives)
    values: Mapping[str, Any] = (trial.facts or {}).get("values", {})
    return found | {f"validation/{task}": float(value) for task, value in values.items()}


def _tensorboard(folder: Path) -> Sink:
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(str(folder))

    def write(trial: Trial, hypervolume: float) -> None:
        for name, value in _scalars(trial, hypervolume).items():
            writer.add_scalar(name, value, trial.number)
        text = ", ".join(f"{name} {value}" for name, value in trial.parameters.items())
        writer.add_text("parameters", text, trial.number)
        writer.flush()

    return write


def mlflow_uri(config: SearchConfig) -> str:
    """The tracking server's URI: by default an SQLite file beside the search's folder."""
    if config.tracking.mlflow != "auto":
        return config.tracking.mlflow
    return f"sqlite:///{Path(config.output).parent}/mlflow.db"


def _mlflow_place(config: SearchConfig) -> str:
    """The experiment and its server, without secrets."""
    return f"{config.tracking.mlflow_experiment} at {without_credentials(mlflow_uri(config))}"


def _mlflow(config: SearchConfig) -> Sink:
    """A run a trial, named after the search and its number."""
    import mlflow
    from mlflow.entities import Metric, Param

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    client = mlflow.MlflowClient(tracking_uri=mlflow_uri(config))
    name = config.tracking.mlflow_experiment
    found = client.get_experiment_by_name(name)
    experiment = found.experiment_id if found else client.create_experiment(name)
    search = Path(config.output).name

    def write(trial: Trial, hypervolume: float) -> None:
        tags = {"search": search, "state": trial.state}
        run = client.create_run(experiment, run_name=f"{search}-{trial.number:04d}", tags=tags)
        metrics = [
            Metric(key.replace("@", "_at_"), value, 0, trial.number)
            for key, value in _scalars(trial, hypervolume).items()
        ]
        params = [Param(key, str(value)) for key, value in trial.parameters.items()]
        client.log_batch(run.info.run_id, metrics=metrics, params=params)
        status = "FINISHED" if trial.objectives is not None else "FAILED"
        client.set_terminated(run.info.run_id, status=status)

    return write
