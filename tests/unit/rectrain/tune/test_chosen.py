"""Which models of a front are made, and that trials are noted where people look."""

from __future__ import annotations

import pytest

from rectrain.tune.chosen import choose
from rectrain.tune.config import FinishConfig, SearchConfig
from rectrain.tune.tracking import TrialTracker
from rectrain.tune.trials import Objectives, Trial


def trial(number: int, lift: float, cost: float, p99: float = 10.0, **more) -> Trial:
    return Trial(number, {"layers": number}, "complete", Objectives(lift, cost, p99), **more)


TRIALS = [
    trial(0, 0.5, 1.0),
    trial(1, 0.92, 2.0),
    trial(2, 0.97, 4.0),
    trial(3, 1.0, 20.0),
    trial(4, 0.9, 3.0),  # trial 1 is better and cheaper
    trial(5, 1.5, 0.1, constraints={"p99_ms": 0.2}),  # beyond a limit
    Trial(6, {}, "failed", error="ValueError: no"),
]


def numbers(config: FinishConfig, trials=TRIALS) -> dict[str, int]:
    return {name: one.number for name, one in choose(trials, config).items()}


def test_the_knee_the_cheapest_that_is_good_enough_and_the_best():
    found = numbers(FinishConfig(least_lift=0.9))
    assert found["cheapest"] == 1 and found["best"] == 3
    assert found["knee"] in (1, 2)
    assert numbers(FinishConfig(least_lift=0.0))["cheapest"] == 0
    assert numbers(FinishConfig(least_lift=0.95))["cheapest"] == 2


def test_only_what_is_wanted():
    assert numbers(FinishConfig(models=("best",))) == {"best": 3}
    assert numbers(FinishConfig(models=())) == {}


def test_nothing_is_chosen_where_nothing_keeps_the_limits():
    assert numbers(FinishConfig(), TRIALS[5:]) == {}


@pytest.fixture
def config(tmp_path) -> SearchConfig:
    return SearchConfig.model_validate({"teacher": "t", "output": str(tmp_path / "tune")})


def test_each_trial_is_a_run_of_mlflow_and_a_point_of_tensorboard(config, tmp_path):
    from mlflow import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    said: list[str] = []
    tracker = TrialTracker(config, say=said.append)
    tracker.record(trial(0, 0.5, 1.0, facts={"values": {"risk": 0.7}}), hypervolume=0.25)
    tracker.record(TRIALS[6], hypervolume=0.25)
    assert not said
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("rectrain")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert runs["tune-0000"].data.metrics["mean_lift"] == 0.5
    assert runs["tune-0000"].data.metrics["validation/risk"] == 0.7
    assert runs["tune-0006"].info.status == "FAILED"
    events = EventAccumulator(str(tmp_path / "tune" / "tensorboard"))
    events.Reload()
    assert [one.value for one in events.Scalars("hypervolume")] == [0.25, 0.25]


def test_a_tracker_that_fails_is_given_up_with_a_line(config, monkeypatch):
    said: list[str] = []
    config = config.model_copy(
        update={"tracking": config.tracking.model_copy(update={"mlflow": "off"})}
    )
    tracker = TrialTracker(config, say=said.append)

    def refuse(trial: Trial, hypervolume: float) -> None:
        raise OSError("no space left")

    monkeypatch.setitem(tracker._sinks, "tensorboard", refuse)
    tracker.record(TRIALS[0], hypervolume=0.0)
    tracker.record(TRIALS[1], hypervolume=0.0)
    assert said == ["warning: tensorboard has no trials: OSError: no space left"]
