"""What the driver refuses before it touches a run's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from rectrain.data.config import DataConfig
from rectrain.errors import ConfigError
from rectrain.train.config import RunConfig
from rectrain.train.launch import claim


def run(tmp_path: Path, **more: object) -> RunConfig:
    return RunConfig(
        name="Documents", output=str(tmp_path), data=DataConfig(paths=("data",)), **more
    )


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_that_holds_no_run_is_left_alone(tmp_path: Path, overwrite: bool) -> None:
    letter = tmp_path / "Documents" / "letter.txt"
    letter.parent.mkdir()
    letter.write_text("mine")
    with pytest.raises(ConfigError, match="holds other files"):
        claim(run(tmp_path), overwrite=overwrite)
    assert letter.read_text() == "mine"
