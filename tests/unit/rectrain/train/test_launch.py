"""What the driver refuses before it touches a run's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from rectrain.data.config import DataConfig
from rectrain.errors import ConfigError, ResourceError, StorageError
from rectrain.train.config import RunConfig, TrackingConfig, TrainConfig
from rectrain.train.launch import check_resources
from rectrain.train.preflight import RunPlace, begin, claim
from rectrain.train.storage import Store


def run(tmp_path: Path, **more: object) -> RunConfig:
    return RunConfig(
        name="Documents", output=str(tmp_path), data=DataConfig(paths=("data",)), **more
    )


def place(tmp_path: Path, *, overwrite: bool = False) -> RunPlace:
    return RunPlace(Store.open(str(tmp_path / "Documents")), None, overwrite)


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_that_holds_no_run_is_left_alone(tmp_path: Path, overwrite: bool) -> None:
    letter = tmp_path / "Documents" / "letter.txt"
    letter.parent.mkdir()
    letter.write_text("mine")
    with pytest.raises(ConfigError, match="holds other files"):
        claim(run(tmp_path), overwrite=overwrite)
    assert letter.read_text() == "mine"


def test_another_number_of_workers_is_told_how_to_go_on(tmp_path: Path) -> None:
    begin(run(tmp_path, train=TrainConfig(num_workers=2)), place(tmp_path))
    with pytest.raises(ConfigError, match=r"fix: add --train\.num_micro_batches=2, or"):
        claim(run(tmp_path, train=TrainConfig(num_workers=4)), overwrite=False)


def test_a_stored_setting_that_is_no_more_is_named_with_the_runs_own_file(tmp_path: Path) -> None:
    begin(run(tmp_path), place(tmp_path))
    stored = tmp_path / "Documents" / "config.yaml"
    for text in ("train: {old_setting: 1}", "train: [", "- 1"):
        stored.write_text(text)
        with pytest.raises(ConfigError) as caught:
            claim(run(tmp_path), overwrite=False)
        assert str(stored) in str(caught.value)


def test_a_run_is_written_without_passwords(tmp_path: Path) -> None:
    tracking = TrackingConfig(mlflow="http://me:secret@host")
    begin(run(tmp_path, tracking=tracking), place(tmp_path))
    text = (tmp_path / "Documents" / "config.yaml").read_text()
    assert "http://host" in text and "secret" not in text


@pytest.mark.parametrize(
    ("have", "problem"),
    [
        ({"CPU": 4.0}, None),
        ({"CPU": 3.0}, "2 workers of 2 CPUs; the cluster has 3 CPUs"),
        ({}, "the cluster has 0 CPUs"),
        ({"CPU": 4.0, "GPU": 1.0}, "the cluster has 1 GPUs, one a worker"),
        ({"CPU": 4.0, "GPU": 2.0}, None),
    ],
)
def test_a_cluster_too_small_for_the_fewest_workers_is_refused(
    tmp_path: Path, have: dict[str, float], problem: str | None
) -> None:
    config = run(tmp_path, train=TrainConfig(num_workers=(2, 8), threads_per_worker=2))
    if problem is None:
        assert check_resources(config, have) is ("GPU" in have)
    else:
        with pytest.raises(ResourceError, match=problem):
            check_resources(config, have)


def test_a_lock_that_is_a_link_is_refused_and_what_it_names_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "mine")
    store = Store.open(str(tmp_path / "run"))
    with pytest.raises(StorageError, match="a symbolic link"), store.locked():
        pass
    assert (tmp_path / "mine").read_text() == "kept"


def test_one_process_at_a_time_holds_a_run(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "Documents"))
    with store.locked():
        with pytest.raises(ResourceError, match="one process at a time"), store.locked():
            pass
        begin(run(tmp_path), place(tmp_path))
        (tmp_path / "Documents" / "checkpoints").mkdir()
        (tmp_path / "Documents" / "metrics.jsonl").write_text("{}")
        begin(run(tmp_path, seed=1), place(tmp_path, overwrite=True))
        with pytest.raises(ResourceError), store.locked():  # overwriting lets nobody in
            pass
    assert store.entries() == [".lock", "config.yaml"]
    with store.locked():
        pass
