"""What a trial of a search notes of itself."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from rectrain.tune import trial
from rectrain.tune.config import SearchConfig
from rectrain.tune.study import Question, Result


def test_a_separate_trial_does_not_count_the_time_in_which_its_workers_train(tmp_path, monkeypatch):
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
            steps.append((name, list(noted)))
            return result

        return called

    bench = SimpleNamespace(
        config=config, root=tmp_path, teacher=None, data={}, cut_encoder=step("cut"),
        space=SimpleNamespace(shape=lambda point: point, settings=lambda point: {}),
        run_values=step("values", {}), judged=step("judged", Result()),
    )  # fmt: skip
    monkeypatch.setattr(trial, "_bench", lambda settings: bench)
    monkeypatch.setattr(trial, "recorded", recorded)
    monkeypatch.setattr(trial, "separate_run", lambda *_, **__: None)
    monkeypatch.setattr(trial, "train_run", step("train"))
    monkeypatch.setattr(trial.torch, "set_num_threads", lambda count: None)
    assert trial.answer(config, Question(4, {}), report=pytest.fail) == Result()
    own = [(str(tmp_path), "trial 4", 3)]
    assert steps == [("cut", own), ("train", []), ("values", own), ("judged", own)]
