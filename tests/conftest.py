"""What every test shares: no network, no foreign cluster, no time limits, the real data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Before transformers or ray is imported: they read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.pop("RAY_ADDRESS", None)  # tests never join a cluster that happens to run

settings.register_profile("any machine", deadline=None)  # of an example; tests never judge speed
settings.load_profile("any machine")

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent / "integration" in item.path.parents:
            item.add_marker(pytest.mark.integration)
        if item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real public data beside the project, or a skip."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real data is not there (../shared/data)")
    return folder
