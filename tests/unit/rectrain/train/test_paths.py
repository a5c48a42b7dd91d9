"""Where a run's files go: said at once when they can't."""

from __future__ import annotations

from pathlib import Path

import pytest

from rectrain.data.config import DataConfig
from rectrain.errors import ConfigError, StorageError
from rectrain.train.config import RunConfig
from rectrain.train.launch import resolve_paths
from rectrain.train.storage import Store


def test_a_submitted_job_refuses_an_output_that_would_vanish(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = RunConfig(data=DataConfig(paths=("data",)))
    assert Path(resolve_paths(config).output).is_absolute()
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match="output: got runs; a submitted job runs in a copy"):
        resolve_paths(config)
    for output in ("/mnt/runs", "s3://bucket/runs"):
        assert resolve_paths(config.model_copy(update={"output": output})).output == output


def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for use in (lambda: Store.open(str(file)).entries(), lambda: Store.open(f"{file}/x").make()):
        with pytest.raises(StorageError, match=r"output: got .*must be a folder"):
            use()
