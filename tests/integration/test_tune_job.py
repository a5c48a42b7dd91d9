"""jobs.tune on a real cluster: from a teacher to a front and a package, and what kills leave."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import ray
import torch
from test_train_ray import beside, final_tensors, killing, newest_checkpoint

import rectrain
from jobs import tune
from jobs.cli import exit_status
from rectrain.model.slicing import cut, ordered
from rectrain.train.build import load_model
from rectrain.train.storage import Store
from rectrain.train.usage import read_usage
from rectrain.tune.trials import Trial, open_study, read_facts, read_study

NUM_STEPS, NUM_TRIALS = 4, 3
# An untrained teacher's encoder is better left alone: its heads learn on it.
SEPARATE_STEPS, LEAVES, SPOILS = 60, 1e-9, 1e-3
NO_ROOM = 1e-9
ROOT = Path(__file__).parents[2]


def arguments(teacher: Path, output: Path, *more: str) -> list[str]:
    return [
        f"--teacher={teacher}", f"--output={output}", "--tokens_per_micro_batch=256",
        "--refit_texts=200", "--space.layers=[1,2]", "--space.heads=[1,2]",
        "--space.intermediate=[64,512]", f"--num_trials={NUM_TRIALS}", "--measure.backend=torch",
        "--measure.requests=8", "--measure.rounds=1", "--train.num_workers=2",
        f"--train.num_steps={NUM_STEPS}", "--train.checkpoint_interval=2",
        "--train.learning_rate=1e-3",
        "--finish.models=[knee]", "--finish.package=plain", "--finish.head_steps=3", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def searched(cluster: None, untrained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("search") / "tune"
    assert exit_status(tune.main, arguments(untrained_run, output)) == 0
    return output


def ended(output: Path) -> list[Trial]:
    return [one for one in read_study(output / "study.db") if one.state != "running"]


def test_a_search_ends_with_a_study_that_anybody_can_open(searched: Path) -> None:
    trials = read_study(searched / "study.db")
    assert [one.state for one in trials] == ["complete"] * NUM_TRIALS
    assert len({str(one.parameters) for one in trials}) == NUM_TRIALS
    for one in trials:
        assert one.objectives is not None and one.device_seconds > 0
        assert min(one.objectives.cost_per_1000, one.objectives.p99_ms) > 0
    facts = read_facts(searched / "study.db")
    assert facts.way == "elastic" and facts.preparation_seconds > 0
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{searched}/study.db")
    assert [one.value for one in study.directions] == [2, 1, 1]


def test_the_front_and_its_package_lie_side_by_side(searched: Path) -> None:
    front = json.loads((searched / "front.json").read_text())
    best = {one["trial"] for one in front["front"]}
    knee = front["models"]["knee"]
    assert front["knee"] in best and knee["trial"] == front["knee"]
    assert knee["objectives"]["cost_per_1000"] > 0
    assert "<html" in (searched / "front.html").read_text()
    model = rectrain.load(knee["package"], backend="torch")
    shape = knee["parameters"]
    config = model.package.read().model.encoder.config
    assert config.num_hidden_layers == shape["layers"]
    assert config.num_attention_heads == shape["heads"]
    assert config.intermediate_size == shape["intermediate"]


def test_trials_are_in_tensorboard_and_mlflow(searched: Path) -> None:
    from mlflow import MlflowClient

    assert len(lifts_in_tensorboard(searched)) == NUM_TRIALS
    client = MlflowClient(tracking_uri=f"sqlite:///{searched.parent}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "rectrain"]
    runs = [r for r in client.search_runs([experiment.experiment_id]) if "search" in r.data.tags]
    assert len(runs) == NUM_TRIALS and all("p99_ms" in one.data.metrics for one in runs)


def lifts_in_tensorboard(output: Path) -> list[Any]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(output / "tensorboard"))
    events.Reload()
    return list(events.Scalars("mean_lift"))


def test_a_finished_search_does_nothing_again(
    cluster: None, searched: Path, untrained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in (searched / "chosen").rglob("*") if p.is_file()}
    trials = ended(searched)
    assert exit_status(tune.main, arguments(untrained_run, searched)) == 0
    assert "trial " not in capsys.readouterr().out.replace("knee      trial ", "")
    assert ended(searched) == trials
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_other_settings_are_refused_in_a_search_s_folder(
    searched: Path, untrained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(tune.main, arguments(untrained_run, searched, "--seed=3", "--dry-run")) == 2
    assert "a search with another seed" in capsys.readouterr().err


def test_the_sub_networks_of_the_trained_super_network_are_plain_berts(searched: Path) -> None:
    bert = load_model(str(searched / "supernet")).model.encoder
    start = load_model(str(searched / "supernet")).checkpoint.meta["config"]["model"]["encoder"]
    assert start == str(searched / "start")
    folder = searched / "chosen"
    (made,) = folder.glob("trial-*/cut")
    from rectrain.model.encoder import load_encoder
    from rectrain.model.shape import Shape, spread_layers

    found = load_encoder(str(made), vocab_size=bert.config.vocab_size)
    kept = spread_layers(bert.config.num_hidden_layers, found.config.num_hidden_layers)
    shape = Shape.of(found.config)
    shape = Shape(kept, shape.hidden, shape.heads, shape.intermediate)
    expected = cut(bert, shape=shape, importance=ordered(bert.config)).state_dict()
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, expected[name])


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    untrained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "none"
    assert exit_status(tune.main, arguments(untrained_run, output, "--dry-run")) == 0
    said = capsys.readouterr().out
    assert "space: 8 points" in said and "trials at a time" in said
    assert not output.exists()


def test_a_dry_run_leaves_a_search_alone_that_goes_on(
    searched: Path, untrained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "tune"
    output.mkdir()
    for name in ("tune.yaml", "study.db"):
        shutil.copy(searched / name, output / name)
    open_study(output / "study.db").ask()  # a driver draws the next point just now
    before = {path: path.read_bytes() for path in output.iterdir()}
    assert exit_status(tune.main, arguments(untrained_run, output, "--dry-run")) == 0
    assert f"{NUM_TRIALS} done" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in output.iterdir()} == before


def separate(teacher: Path, output: Path, *more: str, searched: dict[str, list[Any]]) -> list[str]:
    """A search of models that are trained apart, one after the other, with these settings."""
    file = output.parent / f"{output.name}.yaml"
    file.write_text(json.dumps({"space": {"settings": searched}}))
    own = ["--way=separate", "--sampler=grid", "--num_trials=2", "--max_concurrent=1",
           "--space.layers=[1]", "--space.heads=[1]", "--space.intermediate=[64]",
           "--train.num_workers=1", "--train.threads_per_worker=2",  # both CPUs
           f"--train.num_steps={SEPARATE_STEPS}", "--train.log_interval=1",
           "--train.checkpoint_interval=10", "--finish.models=[]", "--tracking.mlflow=off",
           f"--config={file}"]  # fmt: skip
    return arguments(teacher, output, *own, *more)


def test_a_separate_search_packages_a_model_with_the_settings_of_its_trial(
    cluster: None, untrained_run: Path, tmp_path: Path
) -> None:
    output = tmp_path / "tune"
    more = ["--num_trials=1", "--train.num_steps=2", "--finish.models=[knee]"]
    searched = {"model.sharing": ["mmoe"]}
    assert exit_status(tune.main, separate(untrained_run, output, *more, searched=searched)) == 0
    knee = json.loads((output / "front.json").read_text())["models"]["knee"]
    assert knee["parameters"]["model.sharing"] == "mmoe"
    assert rectrain.load(knee["package"], backend="torch").package.read().config.sharing == "mmoe"


def run_of(output: Path, trial: Trial) -> Path:
    return output / "trials" / f"{trial.number:04d}" / "run"


@pytest.fixture(scope="module")
def raced(cluster: None, untrained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By ASHA: a trial that gets ahead, one that has no room for vectors, one that falls behind,
    and that the chosen model has to wait for."""
    output = tmp_path_factory.mktemp("raced") / "tune"
    more = ["--objective=mean_lift", "--asha", "--train.evaluate_interval=10", "--num_trials=3",
            "--finish.models=[knee]"]  # fmt: skip
    rates, rooms = [LEAVES, SPOILS], [1.0, NO_ROOM]
    searched = {"train.learning_rate": rates, "train.frozen_cache_gib": rooms}
    given = separate(untrained_run, output, *more, searched=searched)
    assert exit_status(tune.main, given) == 0
    return output


@pytest.mark.slow
def test_asha_ends_what_is_behind_and_what_comes_to_its_end_is_judged(raced: Path) -> None:
    ahead, failed, behind = read_study(raced / "study.db")
    assert ahead.state == "complete" and ahead.objectives is not None
    assert load_model(str(run_of(raced, ahead))).checkpoint.step == SEPARATE_STEPS
    assert failed.state == "failed" and "frozen_cache_gib" in (failed.error or "")
    assert behind.state == "pruned" and "ended early" in (behind.error or "")
    assert newest_checkpoint(run_of(raced, behind)) < SEPARATE_STEPS
    lives = read_usage(Store.open(str(run_of(raced, ahead))))
    assert ahead.device_seconds > sum(life.device_seconds for life in lives)
    assert failed.device_seconds > 0 and behind.device_seconds > 0
    front = json.loads((raced / "front.json").read_text())
    assert [one["trial"] for one in front["front"]] == [ahead.number]
    assert front["device_seconds"] == sum(o.device_seconds for o in (ahead, failed, behind))
    assert front["models"]["knee"]["trial"] == ahead.number


@pytest.mark.slow
def test_a_separate_trial_s_killed_worker_and_its_killed_process_lose_no_trial(
    cluster: None, raced: Path, untrained_run: Path, tmp_path: Path
) -> None:
    """The first trial's worker, then the second's process; both go on from a checkpoint."""
    output = tmp_path / "tune"
    searched = {"train.learning_rate": [LEAVES, SPOILS]}
    given = separate(untrained_run, output, searched=searched)
    runs = [output / "trials" / name / "run" for name in ("0000", "0001")]
    (status, killed), processes = killing_trial(
        runs[1], lambda: killing(runs[0], [10], lambda: exit_status(tune.main, given))
    )
    assert status == 0 and killed and processes
    trials = read_study(output / "study.db")
    assert [one.state for one in trials] == ["complete", "complete"]
    for one, run in zip(trials, runs, strict=True):
        lives = read_usage(Store.open(str(run)))
        assert [life.finished for life in lives].count(True) == 1 and len(lives) > 1
        assert one.device_seconds > sum(life.device_seconds for life in lives)
    expected = final_tensors(run_of(raced, read_study(raced / "study.db")[0]), SEPARATE_STEPS)
    found = final_tensors(runs[0], SEPARATE_STEPS)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def killing_trial(run: Path, action: Callable[[], Any]) -> tuple[Any, list[int]]:
    """What an action returns while the process of a run's trial is killed beside it; and which."""
    killed: list[int] = []

    def kill(done: threading.Event) -> None:
        while not done.wait(0.1) and not killed:
            if newest_checkpoint(run) > 0:
                killed.extend(trial_processes(os.getpid())[-1:])
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)

    return beside(kill, action), killed


def trial_processes(parent: int) -> list[int]:
    """Processes of trials below one, the newest last."""
    found = []
    for child in psutil.Process(parent).children(recursive=True):
        try:
            if "ImplicitFunc" in " ".join(child.cmdline()):
                found.append((child.create_time(), child.pid))
        except psutil.Error:
            continue
    return [pid for _, pid in sorted(found)]


class Driver:
    """A search in a process of its own, whose lines can be waited for."""

    def __init__(self, given: list[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jobs.tune", *given],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        self.lines: list[str] = []

    def wait_for(self, pattern: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if re.search(pattern, line):
                return
        raise AssertionError("".join(self.lines))

    def kill(self) -> None:
        """Ends the driver at once; what it started ends with it, or is ended."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        _, alive = psutil.wait_procs(below, timeout=20)
        for one in alive:
            one.kill()


def test_a_killed_trial_and_a_killed_driver_lose_nothing_that_has_ended(
    cluster: None, searched: Path, untrained_run: Path, tmp_path: Path
) -> None:
    output = tmp_path / "tune"
    output.mkdir()
    for name in ("start", "supernet"):
        shutil.copytree(searched / name, output / name)
    for name in ("tune.yaml", "spent.json", "standards.json"):
        shutil.copy(searched / name, output / name)
    more = ["--num_trials=4", "--finish.models=[]", "--tracking.mlflow=off"]
    given = arguments(untrained_run, output, *more)
    driver = Driver(given)
    try:
        driver.wait_for(r"^trial 1/4")
        victims = trial_processes(driver.process.pid)
        assert victims, "trials run in processes of their own"
        os.kill(victims[0], signal.SIGKILL)
        driver.wait_for(r"^trial 2/4")
    finally:
        driver.kill()
    before = {one.number: one for one in ended(output)}
    assert 2 <= len(before) < 4
    shutil.rmtree(output / "tensorboard")
    (output / "tracked.json").unlink()  # as of a driver that died before it had told anybody
    assert exit_status(tune.main, given) == 0
    trials = {one.number: one for one in ended(output)}
    assert len(trials) == 4 and len({str(one.parameters) for one in trials.values()}) == 4
    failed = [one for one in trials.values() if one.state != "complete"]
    assert not failed, failed  # the killed one was run again
    assert {number: trials[number] for number in before} == before
    assert {one.step for one in lifts_in_tensorboard(output)} == set(trials)
    assert read_facts(output / "study.db").preparation_seconds > 0


@pytest.mark.slow
def test_a_killed_worker_changes_nothing_of_the_super_network(
    cluster: None, searched: Path, untrained_run: Path, tmp_path: Path
) -> None:
    output = tmp_path / "tune"
    given = arguments(untrained_run, output, "--num_trials=1", "--tracking.mlflow=off")
    status, killed = killing(output / "supernet", [2], lambda: exit_status(tune.main, given))
    assert status == 0 and killed
    expected = final_tensors(searched / "supernet", NUM_STEPS)
    found = final_tensors(output / "supernet", NUM_STEPS)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.slow
def test_the_chosen_models_in_int8(
    cluster: None, searched: Path, untrained_run: Path, tmp_path: Path
) -> None:
    """Of a search that has made them plain: those stay, for they may be in use."""
    output = tmp_path / "tune"
    shutil.copytree(searched, output)
    (plain,) = (output / "chosen").iterdir()
    before = {path: path.stat().st_mtime_ns for path in plain.rglob("*")}
    more = ["--finish.package=int8", "--finish.num_steps=3", "--finish.max_drop=0.9",
            "--tracking.mlflow=off"]  # fmt: skip
    assert exit_status(tune.main, arguments(untrained_run, output, *more)) == 0
    knee = json.loads((output / "front.json").read_text())["models"]["knee"]
    package = rectrain.load(knee["package"]).package
    assert any(name.endswith("-int8") for name in package.graphs)
    assert knee["facts"]["num_bytes"] < 20_000_000
    assert Path(knee["package"]).is_relative_to(output / "chosen")
    assert {path: path.stat().st_mtime_ns for path in plain.rglob("*")} == before
