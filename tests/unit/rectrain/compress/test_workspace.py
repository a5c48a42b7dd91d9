"""The folder of a compression: what is done in it, for which settings, and by whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rectrain.compress.config import CompressConfig
from rectrain.compress.workspace import Workspace
from rectrain.errors import ConfigError, ResourceError, StorageError


def workspace(root: Path, **settings: Any) -> Workspace:
    return Workspace(CompressConfig(teacher="runs/large", output=str(root), **settings))


def test_a_step_is_done_when_it_says_so(tmp_path: Path) -> None:
    space = workspace(tmp_path / "small")
    with space.begun():
        (space.fresh("cut") / "model.safetensors").write_bytes(b"half")
        assert not space.is_done("cut")
        assert list(space.fresh("cut").iterdir()) == []
        (space.root / "cut" / "model.safetensors").write_bytes(b"whole")
        space.finish("cut", {"texts": 3})
    again = workspace(tmp_path / "small")
    assert again.is_done("cut") and again.facts("cut") == {"texts": 3}
    again.write("measured/cut.json", "{}")
    assert sorted(p.name for p in again.root.rglob("*.json")) == ["cut.json", "done.json"]
    for name in ("cut", "measured/cut.json", "never"):
        again.remove(name)
    assert not again.is_done("cut") and not (again.root / "measured" / "cut.json").exists()


def test_all_steps_have_the_same_settings_but_for_those_of_the_table(tmp_path: Path) -> None:
    with workspace(tmp_path).begun():
        pass
    workspace(tmp_path, split="validation", threads=2)
    with pytest.raises(ConfigError, match=r"made with another train\.distill_weight"):
        workspace(tmp_path, train={"distill_weight": 0.5})


def test_what_a_kill_left_of_a_package_goes(tmp_path: Path) -> None:
    with workspace(tmp_path).begun():
        pass
    for name in (".package.draft-host-3", ".package.old-7", ".mine", "package"):
        (tmp_path / name / "encoder").mkdir(parents=True)
    with workspace(tmp_path).begun():
        assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {".mine", "package"}


def test_an_output_that_can_not_be_made_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/small"):
        with pytest.raises(StorageError, match=r"output: got .*file is a file; must be a folder"):
            workspace(tmp_path / place)
    workspace(tmp_path / "new" / "small")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_one_process_at_a_time_writes(tmp_path: Path) -> None:
    other = workspace(tmp_path).begun()
    with workspace(tmp_path).begun(), pytest.raises(ResourceError, match="another process"):
        other.__enter__()
