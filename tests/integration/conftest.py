"""What the integration tests share: one small prepared marketplace, and an untrained run on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from chromium import browser
from untrained import write_run

from jobs import prepare

__all__ = ["browser"]


@pytest.fixture(autouse=True, scope="module")
def _threads() -> Iterator[None]:
    """Opening a model sets the process's threads, and float sums depend on their number."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def marketplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The simulated marketplace at its smallest, prepared."""
    output = tmp_path_factory.mktemp("marketplace") / "prepared"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        prepare.main(["--source=simulated", "--size=tiny", f"--output={output}"])
    finally:
        ray.shutdown()
    return output


@pytest.fixture(scope="session")
def untrained_run(marketplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder whose checkpoint holds fresh weights."""
    return write_run(tmp_path_factory.mktemp("runs") / "untrained", marketplace)
