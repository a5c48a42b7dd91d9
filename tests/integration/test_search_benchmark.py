"""The benchmark of the search at its smallest: every part of it runs, and goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import search

SHAPES = 4


@pytest.mark.slow  # some minutes; tests/unit/benchmarks has what becomes of the figures
def test_it_runs_and_trains_nothing_twice(
    untrained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_OUTPUT", tmp_path)
    monkeypatch.setattr(search, "_REPLAYS", 2)
    command = ["--quick", f"--teacher={untrained_run}", f"--folder={tmp_path / 'made'}"]
    assert search.main(command) == 0
    found = {one["id"]: one for one in json.loads((tmp_path / "search-quick.json").read_text())}
    assert {one["n"] for name, one in found.items() if name != "C2/alone/rank"} == {2}
    assert found["C2/elastic/training/budget"]["value"] > 0
    assert found["C2/elastic/training/budget"]["value"] < found["C2/elastic/all/budget"]["value"]
    for kind in ("alone", "sub", "finished"):
        assert len(list((tmp_path / "made" / "seed-1" / kind).glob("*.json"))) == SHAPES
        assert not list((tmp_path / "made" / "seed-1" / kind).glob("*x*/"))  # runs are let go

    made = _written(tmp_path / "made")
    assert search.main(command) == 0
    assert _written(tmp_path / "made") == made


def _written(folder: Path) -> dict[Path, int]:
    """What was measured, and when."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")}
