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


FACTS = {
    "trial": 3, "package": "/out/package", "engine": "openvino-int8",
    "objectives": {"mean_lift": 0.91, "cost_per_1000": 0.0002, "p99_ms": 40.0},
    "promised": {"mean_lift": 0.95, "cost_per_1000": 0.0001, "p99_ms": 19.0},
}  # fmt: skip


@pytest.mark.parametrize(
    ("constraints", "said"),
    [
        ({"p99_ms": 1.0, "megabytes": -0.5, "cost_per_1000": 0.1}, "p99_ms, cost_per_1000"),
        ({"p99_ms": -0.1, "megabytes": 0.0}, ""),
        ({}, ""),
    ],
)
def test_a_last_line_has_a_package_beside_its_trial_and_the_limits_that_it_exceeds(
    constraints: dict[str, float], said: str
) -> None:
    beyond = f", beyond {said}" if said else ""
    assert tune._line("knee", {**FACTS, "constraints": constraints}, currency="EUR") == (
        "knee      trial 3: lift 0.910 (trial: 0.950), 0.0002 EUR / 1,000 requests (trial: 0.0001),"
        f" p99 40.0 ms (trial: 19.0){beyond} (openvino-int8): /out/package"
    )
