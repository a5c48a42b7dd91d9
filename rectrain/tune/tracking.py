"""Where trials can be watched: TensorBoard and MLflow, each trial once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rectrain.errors import without_credentials
from rectrain.tune.config import SearchConfig
from rectrain.tune.trials import Trial

__all__ = ["TrialTracker", "mlflow_uri"]

Say = Callable[[str], None]
Sink = Callable[[Trial, float], None]


class TrialTracker:
    """Writes each trial that has ended; a place that fails is given up with a warning.

    Args:
        config: of the search, with absolute paths.
        say: is given warnings.
    """

    def __init__(self, config: SearchConfig, *, say: Say) -> None:
        self._say = say
        self._sinks: dict[str, Sink] = {}
        if config.tracking.tensorboard:
            self._open("tensorboard", lambda: _tensorboard(Path(config.output) / "tensorboard"))
        if config.tracking.mlflow != "off":
            self._open("mlflow", lambda: _mlflow(config))

    def _open(self, name: str, make: Callable[[], Sink]) -> None:
        try:
            self._sinks[name] = make()
        except Exception as error:  # whatever a server or library fails with
            self._warn(name, error)

    def record(self, trial: Trial, *, hypervolume: float) -> None:
        """Takes a trial that has ended."""
        for name, sink in list(self._sinks.items()):
            try:
                sink(trial, hypervolume)
            except Exception as error:
                del self._sinks[name]
                self._warn(name, error)

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
