"""jobs.tune: what it does in which order, without a cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jobs import tune
from rectrain.report import search
from rectrain.tune import leftovers, session


def test_what_trials_reserved_is_freed_until_the_chosen_models_are_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last trial may end early, and nothing after it but the sweep frees its CPUs."""
    done: list[str] = []

    class Session:
        def __init__(self, config: Any, *, say: Any) -> None:
            self.root = Path(config.output)

        def plan(self) -> str:
            return "plan"

        def check(self, have: Mapping[str, float]) -> int:
            return 1

        @contextmanager
        def begun(self) -> Iterator[None]:
            yield

        def search(self) -> None:
            done.append("search")

        def finish(self) -> dict[str, Any]:
            done.append("finish")
            return {}

    @contextmanager
    def sweeping() -> Iterator[None]:
        done.append("sweep")
        yield
        done.append("swept")

    monkeypatch.setattr(session, "Session", Session)
    monkeypatch.setattr(leftovers, "removing_leftovers", sweeping)
    monkeypatch.setattr(search, "write_front", lambda root, **_: root / "front.html")
    monkeypatch.setattr(tune, "connect", lambda: done.append("connect"))
    monkeypatch.setattr(tune, "resources", lambda: ("here", {"CPU": 2.0}))
    assert tune.main(["--teacher=t", f"--output={tmp_path / 'tune'}"]) == 0
    assert done == ["connect", "sweep", "search", "finish", "swept"]
