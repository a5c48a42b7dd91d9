"""Which models of a front are made, and that trials are noted where people look."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from rectrain.tune import chosen
from rectrain.tune.chosen import choose, finish, folder_name
from rectrain.tune.config import FinishConfig, SearchConfig
from rectrain.tune.study import Result
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


def test_a_model_s_folder_is_named_by_the_settings_that_made_it():
    one = TRIALS[3]
    assert folder_name(one, FinishConfig()) == "trial-0003-int8-200-300-0.002"
    assert folder_name(one, FinishConfig(package="plain")) == "trial-0003-plain-300"
    only_choice = FinishConfig(package="plain", models=("best",), least_lift=0.5, num_steps=9)
    assert folder_name(one, only_choice) == "trial-0003-plain-300"


def test_other_settings_make_a_model_anew_and_the_same_ones_do_not(tmp_path, monkeypatch):
    made: list[str] = []

    def make(bench, trial, folder, *, say):
        folder.mkdir(parents=True)
        made.append(folder.name)
        return SimpleNamespace(path=folder / "package", version=f"v{len(made)}")

    monkeypatch.setattr(chosen, "_plain", make)
    monkeypatch.setattr(chosen, "_int8", make)
    measured = Result(TRIALS[3].objectives)
    monkeypatch.setattr(chosen, "_measured", lambda bench, package: (measured, "torch"))

    def finished(**settings) -> str:
        config = SimpleNamespace(finish=FinishConfig(**settings))
        bench = SimpleNamespace(root=tmp_path, config=config)
        return finish(bench, TRIALS[3], say=pytest.fail)["version"]

    assert [finished(package="plain", head_steps=3) for _ in range(2)] == ["v1", "v1"]
    assert finished(package="plain", head_steps=4) == "v2"
    assert finished(package="int8", head_steps=4) == "v3"
    assert finished(package="plain", head_steps=3) == "v1"
    assert made == ["trial-0003-plain-3", "trial-0003-plain-4", "trial-0003-int8-200-4-0.002"]


def test_a_package_is_timed_alone_and_judged_beside_others(tmp_path, monkeypatch, held):
    """Which of its engines is the fastest is measured, too."""
    steps = []

    def step(name, result):
        def called(*_, **__):
            steps.append((name, held()))
            return result

        return called

    engine = SimpleNamespace(encoder=SimpleNamespace(name="torch"))
    monkeypatch.setattr(chosen, "open_engine", step("chosen", engine))
    monkeypatch.setattr(chosen, "time_requests", step("timed", None))
    monkeypatch.setattr(chosen, "values_of", step("judged", {}))
    for name in ("TokenisingPredictor", "Predictor"):
        monkeypatch.setattr(chosen, name, SimpleNamespace(of=lambda *_, **__: None))
    monkeypatch.setattr(chosen, "_encoder_bytes", lambda *_: 1)
    monkeypatch.setattr(chosen, "num_head_bytes", lambda *_: 1)
    bench = SimpleNamespace(
        root=tmp_path, config=SearchConfig(teacher="t", output=str(tmp_path)), tables={}, data={},
        result=lambda *_, **__: Result(),
    )  # fmt: skip
    limits = {"risk": SimpleNamespace(max_length=8)}
    parts = SimpleNamespace(model=SimpleNamespace(encoder=None), limits=limits)
    package = SimpleNamespace(read=lambda: parts)
    assert chosen._measured(bench, package) == (Result(), "torch")
    alone = {"training": "alone", "stopwatch": "alone"}
    beside = {"stopwatch": "with others"}
    assert steps == [("chosen", alone), ("timed", alone), ("judged", beside)]


def test_what_was_made_stands_beside_what_its_trial_promised(tmp_path, monkeypatch):
    """A package is timed anew, and may be slower than its shape was, and than a limit."""
    package = SimpleNamespace(path=tmp_path / "package", version="v1")
    monkeypatch.setattr(chosen, "_plain", lambda *_, **__: package)
    slow = Result(Objectives(0.9, 2.0, 40.0), constraints={"p99_ms": 1.0})
    monkeypatch.setattr(chosen, "_measured", lambda *_: (slow, "torch"))
    config = SimpleNamespace(finish=FinishConfig(package="plain"))
    bench = SimpleNamespace(root=tmp_path, config=config)
    one = trial(7, 0.95, 1.0, 19.0, constraints={"p99_ms": -0.05})

    facts = finish(bench, one, say=pytest.fail)
    assert facts["objectives"] == {"mean_lift": 0.9, "cost_per_1000": 2.0, "p99_ms": 40.0}
    assert facts["promised"] == {"mean_lift": 0.95, "cost_per_1000": 1.0, "p99_ms": 19.0}
    assert facts["constraints"] == {"p99_ms": 1.0}
    (made,) = tmp_path.rglob("made.json")
    assert json.loads(made.read_bytes()) == facts
    earlier = {name: value for name, value in facts.items() if name != "promised"}
    made.write_text(json.dumps(earlier))  # of a version that did not note it
    assert finish(bench, one, say=pytest.fail) == facts


def test_a_package_whose_lift_is_no_number_is_null_for_others_and_nan_for_us(tmp_path, monkeypatch):
    package = SimpleNamespace(path=tmp_path / "package", version="v1")
    monkeypatch.setattr(chosen, "_plain", lambda *_, **__: package)
    poor = Result(Objectives(math.nan, 2.0, 40.0), facts={"values": {"risk": math.nan}})
    monkeypatch.setattr(chosen, "_measured", lambda *_: (poor, "torch"))
    config = SimpleNamespace(finish=FinishConfig(package="plain"))
    bench = SimpleNamespace(root=tmp_path, config=config)
    made = finish(bench, trial(7, 0.95, 1.0), say=pytest.fail)
    (file,) = tmp_path.glob("chosen/*/made.json")
    stored = json.loads(file.read_bytes(), parse_constant=pytest.fail)
    assert stored["objectives"]["mean_lift"] is None
    assert stored["facts"]["values"] == {"risk": None}
    again = finish(bench, trial(7, 0.95, 1.0), say=pytest.fail)
    assert repr(again) == repr(made)  # NaN is not equal to itself


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


def ended(number: int, minute: int) -> Trial:
    return trial(number, 0.5, 1.0, finished=datetime(2026, 1, 1, 0, minute, tzinfo=UTC))


def test_what_ended_while_nobody_tracked_is_tracked_once(config, tmp_path):
    from mlflow import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    TrialTracker(config, say=pytest.fail).record(ended(1, 1), hypervolume=0.1)
    trials = [Trial(0, {}, "running"), ended(1, 1), ended(2, 7), ended(3, 3)]
    for _ in range(2):
        again = TrialTracker(config, say=pytest.fail)
        again.catch_up(trials, volume=lambda some: sum(one.number for one in some))
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("rectrain")
    names = [run.info.run_name for run in client.search_runs([experiment.experiment_id])]
    assert sorted(names) == ["tune-0001", "tune-0002", "tune-0003"]
    events = EventAccumulator(str(tmp_path / "tune" / "tensorboard"))
    events.Reload()
    found = {one.step: one.value for one in events.Scalars("hypervolume")}
    assert found == {1: pytest.approx(0.1), 3: 1 + 3, 2: 1 + 3 + 2}


def test_another_place_is_given_what_the_first_one_has(config, tmp_path):
    def switched(**settings) -> SearchConfig:
        return config.model_copy(update={"tracking": config.tracking.model_copy(update=settings)})

    for place in (switched(mlflow="off"), switched(mlflow=f"sqlite:///{tmp_path}/other.db")):
        TrialTracker(place, say=pytest.fail).catch_up([ended(1, 1)], volume=lambda some: 0.0)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/other.db")
    experiment = client.get_experiment_by_name("rectrain")
    assert len(client.search_runs([experiment.experiment_id])) == 1


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
