"""Locks of a test's own, and which of them it holds."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest

from rectrain.tune import stopwatch

_KINDS = {fcntl.LOCK_SH: "with others", fcntl.LOCK_EX: "alone"}


@pytest.fixture(autouse=True)
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks that no search on this machine holds; also of processes that a test starts."""
    folder = tmp_path / "locks"
    folder.mkdir()
    monkeypatch.setattr(stopwatch, "_folder", lambda: folder)
    monkeypatch.setenv("TMPDIR", str(folder))


@pytest.fixture
def held() -> Callable[[], dict[str, str]]:
    """What this thread holds: "stopwatch" or "training" -> how."""

    def found() -> dict[str, str]:
        here = stopwatch._held_here()
        return {path.suffix[1:]: _KINDS[kind] for path, kind in here.items()}

    return found
