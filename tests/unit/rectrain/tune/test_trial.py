"""What a trial of a search notes of itself, and what it says on its way."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from rectrain.train.storage import Store
from rectrain.train.usage import recorded
from rectrain.tune import trial
from rectrain.tune.config import SearchConfig
from rectrain.tune.objective import Standard
from rectrain.tune.study import Question, Result


@pytest.fixture
def clock(monkeypatch):
    """Seconds that go by when a test says so."""
    from rectrain.train import usage

    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr(usage.time, "monotonic", lambda: now.s)
    return now


def live(root, label, *, clock, seconds, threads=1):
    """A life of a process."""
    with recorded(Store.open(str(root)), work="tune", label=label, num_threads=threads,
                  on_gpu=False):  # fmt: skip
        clock.s += seconds


def test_a_trial_s_time_is_that_of_all_its_processes_and_of_no_other_trial(tmp_path, clock):
    live(tmp_path, "trial 4", clock=clock, seconds=3.0, threads=2)
    live(tmp_path, "trial 4", clock=clock, seconds=1.0)  # asked again
    live(tmp_path, "trial 14", clock=clock, seconds=100.0)
    live(tmp_path / "trials" / "0004" / "run", "run", clock=clock, seconds=10.0, threads=2)
    live(tmp_path / "trials" / "0014" / "run", "run", clock=clock, seconds=100.0)
    assert trial.noted_s(tmp_path, 4) == 3 * 2 + 1 + 10 * 2
    assert trial.noted_s(tmp_path, 5) == 0.0


def test_a_killed_life_and_a_failed_one_count_the_time_they_took(tmp_path, monkeypatch, clock):
    config = SearchConfig(teacher="t", output=str(tmp_path))
    live(tmp_path, "trial 4", clock=clock, seconds=3.0)  # of a process that was killed
    monkeypatch.setattr(trial, "_tried", lambda *_, **__: Result(device_seconds=2.0))
    assert trial.answer(config, Question(4, {}), report=pytest.fail).device_seconds == 5.0

    def failing(*_, **__):
        live(tmp_path, "trial 5", clock=clock, seconds=7.0)
        raise ValueError("no")

    live(tmp_path, "trial 5", clock=clock, seconds=4.0)
    monkeypatch.setattr(trial, "_tried", failing)
    found = trial.answer(config, Question(5, {}), report=pytest.fail)
    assert (found.error, found.device_seconds) == ("ValueError: no", 11.0)


def test_validations_on_the_way_are_told_and_that_of_the_last_step_is_not(tmp_path, monkeypatch):
    config = SearchConfig.model_validate(
        {"teacher": "t", "output": str(tmp_path), "way": "separate", "asha": True,
         "objective": "mean_lift", "train": {"num_steps": 100, "evaluate_interval": 30}}
    )  # fmt: skip
    standards = {
        "risk": Standard("auc", trivial=0.5, teacher=0.9, error=0.1),
        "ad_ctr": Standard("auc", trivial=0.5, teacher=0.7, error=0.1),
        "search_ranking": Standard("ndcg@10", trivial=0.5, teacher=0.5, error=0.1),  # says nothing
    }
    bench = SimpleNamespace(
        config=config, root=tmp_path, teacher=None, data={}, cut_encoder=lambda *_: None,
        space=SimpleNamespace(shape=lambda point: point, settings=lambda point: {}),
        run_values=lambda run: {}, standards=standards,
        judged=lambda *_, **__: Result(),
    )  # fmt: skip

    def trained(run, *, say, listen) -> None:
        def validated(step, **values):
            listen({"kind": "validation", "step": step, "num_steps": 100, "validation": values})

        listen({"kind": "log", "step": 30, "num_steps": 100})
        validated(30, risk=0.7, ad_ctr=0.5)
        validated(60, risk=0.7)  # of a task whose rows have one label there is no value
        validated(90, risk=0.9, ad_ctr=0.6, search_ranking=0.4)
        validated(100, risk=0.9, ad_ctr=0.7)

    monkeypatch.setattr(trial, "_bench", lambda settings: bench)
    monkeypatch.setattr(trial, "separate_run", lambda *_, **__: None)
    monkeypatch.setattr(trial, "train_run", trained)
    monkeypatch.setattr(trial.torch, "set_num_threads", lambda count: None)
    told = []
    assert trial.answer(config, Question(4, {}), report=told.append).error is None
    assert [one["step"] for one in told] == [30, 90]
    assert [one["mean_lift"] for one in told] == pytest.approx([(0.5 + 0.0) / 2, (1.0 + 0.5) / 2])


def test_a_separate_trial_does_not_count_the_time_in_which_its_workers_train(
    tmp_path, monkeypatch, held
):
    """Nor does it compute then: it holds what keeps clocks from its training."""
    config = SearchConfig(teacher="t", output=str(tmp_path), way="separate", threads_per_trial=3)
    noted, steps = [], []

    @contextmanager
    def recorded(store, *, label, num_threads, **_):
        noted.append((store.root, label, num_threads))
        yield
        noted.clear()

    def step(name, result=None):
        """Keeps what is being noted while it runs."""

        def called(*_, **__):
            steps.append((name, list(noted), held()))
            return result

        return called

    def judged(*_, noted, **__):
        step("waits to be alone")()
        with noted():
            return step("measured", Result())()

    bench = SimpleNamespace(
        config=config, root=tmp_path, teacher=None, data={}, cut_encoder=step("cut"),
        space=SimpleNamespace(shape=lambda point: point, settings=lambda point: {}),
        run_values=step("values", {}), judged=judged,
    )  # fmt: skip
    monkeypatch.setattr(trial, "_bench", lambda settings: bench)
    monkeypatch.setattr(trial, "recorded", recorded)
    monkeypatch.setattr(trial, "separate_run", lambda *_, **__: None)
    monkeypatch.setattr(trial, "train_run", step("train"))
    monkeypatch.setattr(trial.torch, "set_num_threads", lambda count: None)
    assert trial.answer(config, Question(4, {}), report=pytest.fail) == Result()
    own = [(str(tmp_path), "trial 4", 3)]
    beside = {"stopwatch": "with others"}
    assert steps == [
        ("cut", own, beside),
        ("train", [], {"training": "with others"}),
        ("values", own, beside),
        ("waits to be alone", [], {}),
        ("measured", own, {}),
    ]
