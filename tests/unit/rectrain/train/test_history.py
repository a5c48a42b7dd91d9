"""What validations decide: gains, the falling rate, the end of a run, and its best checkpoint."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rectrain.data.config import DataConfig
from rectrain.errors import ConfigError
from rectrain.train import preflight
from rectrain.train.config import RunConfig, TrainConfig
from rectrain.train.history import (
    has_stopped,
    num_reductions,
    num_stale,
    read_history,
    watched_value,
)
from rectrain.train.selection import best_complete, prune, result_checkpoint
from rectrain.train.storage import Store

EARLY = TrainConfig(evaluate_interval=10, early_stopping=2, min_delta=0.1)


def test_a_run_watches_one_task_or_the_mean_of_those_known() -> None:
    values = {"risk": 0.5, "ad_ctr": 0.75}
    assert watched_value(values, watch="mean") == 0.625
    assert watched_value(values, watch="risk") == 0.5
    assert watched_value(values, watch="search_ranking") is None
    assert watched_value({}, watch="mean") is None


def test_pre_training_goes_by_its_loss_the_lower_the_better():
    assert watched_value({"loss": 2.0, "perplexity": 7.389}, watch="mean") == -2.0


@pytest.mark.parametrize(
    ("values", "stale"),
    [
        ([], 0),
        ([0.5], 0),
        ([0.5, 0.6], 1),  # 0.1 more is not more than 0.1 more
        ([0.5, 0.61], 0),
        ([0.5, 0.55, 0.62], 0),  # against the best before, not against the last
        ([0.5, 0.45, 0.56], 2),
        ([0.5, 0.7, 0.7, 0.75, 0.1], 3),
    ],
)
def test_validations_without_a_gain_are_counted(values: list[float], stale: int) -> None:
    assert num_stale(values, min_delta=0.1) == stale


@given(
    st.lists(st.integers(-20, 20).map(lambda n: n / 10), max_size=25),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.25]),
)
def test_plateaus_are_those_of_torch(values: list[float], patience: int, min_delta: float) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        mode="max",
        factor=0.5,
        patience=patience - 1,  # torch acts one validation later than its patience says
        threshold=min_delta,
        threshold_mode="abs",
        eps=0.0,
    )
    for value in values:
        reference.step(value)
    reductions = num_reductions(values, patience=patience, min_delta=min_delta)
    assert optimizer.param_groups[0]["lr"] == 0.5**reductions


def test_a_run_stops_after_its_patience_and_not_before() -> None:
    history = ((10, 0.5), (20, 0.7), (30, 0.75), (40, 0.79))
    assert [has_stopped(history[:n], train=EARLY) for n in range(5)] == [False] * 4 + [True]
    never = EARLY.model_copy(update={"early_stopping": None})
    assert not has_stopped(history, train=never)


def test_history_survives_a_checkpoint() -> None:
    history = ((10, 0.1), (20, 1 / 3))
    meta = json.loads(json.dumps({"history": history}))
    assert read_history(meta) == history
    assert read_history({}) == ()


def checkpoint(run: Path, step: int, score: float | None, *, early_stopping: int | None) -> None:
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    meta = {
        "score": score,
        "step": step,
        "history": [],
        "config": {"train": {"early_stopping": early_stopping}},
    }
    data = json.dumps(meta).encode()
    (folder / "meta.json").write_bytes(data)
    facts = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest = json.dumps({"format": 1, "files": {"meta.json": facts}}).encode()
    (folder / "manifest.json").write_bytes(manifest)
    (folder / "COMPLETE").write_text(hashlib.sha256(manifest).hexdigest())


SCORES = ((10, 0.5), (20, 0.9), (30, 0.9), (40, 0.7), (50, None))


@pytest.mark.parametrize(("early_stopping", "step"), [(2, 30), (None, 50)])
def test_the_result_is_the_best_checkpoint_only_with_early_stopping(
    tmp_path: Path, early_stopping: int | None, step: int
) -> None:
    for done, score in SCORES:
        checkpoint(tmp_path, done, score, early_stopping=early_stopping)
    run = Store.open(str(tmp_path))
    found = result_checkpoint(run)
    assert found is not None and found.root.endswith(f"step-{step:08d}")
    prune(run.sub("checkpoints"), keep_last=1)
    assert result_checkpoint(run) == found
    assert run.folders() == ["checkpoints"]
    assert run.sub("checkpoints").folders() == ["step-00000030", "step-00000050"]


def test_a_damaged_best_checkpoint_is_skipped(tmp_path: Path) -> None:
    for done, score in SCORES:
        checkpoint(tmp_path, done, score, early_stopping=2)
    damaged = tmp_path / "checkpoints" / "step-00000030" / "meta.json"
    damaged.write_text(damaged.read_text() + " ")
    with pytest.warns(UserWarning, match="step-00000030"):
        found = best_complete(Store.open(str(tmp_path / "checkpoints")))
    assert found is not None and found.root.endswith("step-00000020")


@pytest.mark.parametrize(
    ("more", "is_free"),
    [({}, True), ({"early_stopping": 2}, False), ({"schedule": "plateau"}, False)],
)
def test_how_a_run_validates_may_change_where_nothing_follows_it(
    tmp_path: Path, more: dict[str, object], is_free: bool
) -> None:
    def config(interval: int) -> RunConfig:
        train = TrainConfig(evaluate_interval=interval, **more)  # type: ignore[arg-type]
        return RunConfig(output=str(tmp_path), data=DataConfig(paths=("d",)), train=train)

    preflight.begin(config(5), preflight.RunPlace(Store.open(str(tmp_path / "run")), None, False))
    if is_free:
        preflight._check_same(config(6), Store.open(str(tmp_path / "run")))
        return
    with pytest.raises(ConfigError, match=r"another train\.evaluate_interval"):
        preflight._check_same(config(6), Store.open(str(tmp_path / "run")))
