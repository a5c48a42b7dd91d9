"""Device-seconds of a training run before it runs, from shorter ones of other sizes.

    seconds = a + b · FLOPs + c · tokens + d · steps + e · steps · trained parameters

starting and ending; the products of the closed form (`flops.run_flops`); what a token takes
besides: rows, norms, activations; what a step does; the optimizer. No coefficient is below 0. It
holds for the chip, the threads, the number of workers and the settings of the runs that it is
fitted to: two encoders and three sizes of each tell the terms apart. Runs that tell fewer of them
apart predict what is a sum of their own sizes, and no other run. Not in it: validation and
checkpoints more often than in those runs.

    time = fit_time([recorded_run("runs/short"), recorded_run("runs/shorter"), ...])
    time.seconds(run_size(config))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rectrain.config import parse_yaml
from rectrain.cost.flops import run_flops
from rectrain.cost.linear import relative_nnls
from rectrain.errors import DataError
from rectrain.model.multitask import MultiTaskModel
from rectrain.train.build import new_model, open_data
from rectrain.train.config import RunConfig
from rectrain.train.run_plan import plan_run
from rectrain.train.storage import Store
from rectrain.train.usage import read_usage

__all__ = ["RecordedRun", "RunSize", "TrainingTime", "fit_time", "recorded_run", "run_size"]

_CONFIG = "config.yaml"
_FEWEST = 3
# Runs of one encoder and one budget are not quite proportional, for texts differ: what varies by
# less than the first of these tells nothing, and sizes may be off by the second.
_NOISE, _TOLERANCE = 0.01, 0.1


class RunSize(NamedTuple):
    """What is known of a run before it runs.

    Attributes:
        flops: of its products, forward and backward.
        tokens: real ones of all steps, each different text of a micro-batch once.
        steps: updates.
        parameters: that are trained.
    """

    flops: float
    tokens: float
    steps: int
    parameters: int

    @property
    def terms(self) -> tuple[float, ...]:
        """What the coefficients of the module's docstring multiply."""
        updated = float(self.steps) * self.parameters
        return 1.0, float(self.flops), float(self.tokens), float(self.steps), updated


@dataclass(frozen=True)
class RecordedRun:
    """A run and what it took.

    Attributes:
        size: of it.
        device_seconds: of all its lives.
        machine: chip, threads of a worker, workers.
    """

    size: RunSize
    device_seconds: float
    machine: tuple[str, int, int]


@dataclass(frozen=True)
class TrainingTime:
    """The fitted model.

    Attributes:
        coefficients: of each of `RunSize.terms`, at least 0.
        known: sizes that they were fitted to.
    """

    coefficients: tuple[float, ...]
    known: tuple[RunSize, ...]

    def seconds(self, size: RunSize) -> float:
        """Device-seconds of a run.

        Raises:
            DataError: the known runs don't tell its terms apart: it is no sum of their sizes.
        """
        terms = np.array([one.terms for one in self.known])
        scale = terms.max(axis=0)
        rows, wanted = terms / scale, np.array(size.terms) / scale
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        weights = np.linalg.lstsq(rows.T, wanted, rcond=_NOISE)[0]
        missing = np.linalg.norm(rows.T @ weights - wanted) / np.linalg.norm(wanted)
        if missing > _TOLERANCE:
            raise DataError(
                what="a run to predict", got=f"{size}",
                rule=f"must be a sum of the known runs' sizes; {missing:.0%} of it is not, so "
                "nothing tells what that takes",
                fix="record short runs of another encoder, of other tokens and of other steps",
            )  # fmt: skip
        return float(np.dot(self.coefficients, size.terms))


def run_size(config: RunConfig) -> RunSize:
    """The size of a run of `jobs.train`, in closed form.

    Args:
        config: its settings; the data must be there.

    Raises:
        DataError, ConfigError: as the run itself would.
    """
    data = open_data(config)
    model = new_model(config, data)
    assert isinstance(model, MultiTaskModel), "of jobs.train"
    flops = run_flops(data, model=model, run=(run := plan_run(config, data)))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return RunSize(float(flops.total), float(flops.tokens), run.num_steps, trained)


def recorded_run(folder: str) -> RecordedRun:
    """A run that ended, as its folder tells of it.

    Args:
        folder: of the run.

    Raises:
        DataError: it has not ended, or one of its lives was killed, whose lost work would count as
            the run's; its lives had different machines, or none was recorded.
        ConfigError: settings that are not of `jobs.train`.
    """
    store = Store.open(folder)
    lives = read_usage(store)
    machines = {(life.chip, life.num_devices, life.world_size) for life in lives}
    killed = sum(not life.finished for life in lives)
    if len(machines) != 1 or killed:
        raise DataError(
            what=f"run {folder}",
            got=f"{len(lives)} recorded lives on {len(machines)} kinds of machines, {killed} of "
            "them without an end",
            rule="must have ended, no life of it killed, on one kind of chip with one number of "
            "threads and workers",
            fix="let jobs.train end one, or leave it out",
        )
    config = parse_yaml(RunConfig, store.read(_CONFIG), name=f"{folder}/{_CONFIG}")
    seconds = sum(life.device_seconds for life in lives)
    return RecordedRun(run_size(config), seconds, next(iter(machines)))


def fit_time(runs: Sequence[RecordedRun]) -> TrainingTime:
    """The coefficients, by non-negative least squares on relative residuals.

    Args:
        runs: at least three, of different sizes, on one kind of machine.

    Raises:
        DataError: too few, or of different machines.
    """
    sizes, machines = {run.size for run in runs}, {run.machine for run in runs}
    if len(sizes) < _FEWEST or len(machines) > 1:
        raise DataError(
            what="runs to predict another from",
            got=f"{len(sizes)} sizes on {len(machines)} kinds of machines",
            rule=f"must be at least {_FEWEST} different sizes, all on the same chip with the same "
            "threads and workers",
            fix="record short runs of other steps, tokens and encoders here",
        )
    known = np.array([run.size.terms for run in runs])
    found = relative_nnls(known, np.array([run.device_seconds for run in runs]))
    return TrainingTime(tuple(found.tolist()), tuple(run.size for run in runs))
