"""The application that all files here share, for its start takes longer than most of them.

So no test may leave it otherwise than found; what kills, floods or updates a graph has one of its
own (test_serve_disturbed.py, test_serve_faults.py).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaged_toy import toy_parts
from served_toy import CARD, TASKS, free_port, served_pair

from rectrain.inference.golden import publish_golden
from rectrain.package import write_package
from serving.target import TOKENS, Target

LIMITS = {"body_bytes": 20_000, "body_s": 5.0, "candidates": 50, "requests": 3}


@pytest.fixture(scope="package")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A pair `shop` that defers everything and a lone model `bare` without a catalogue."""
    folder = tmp_path_factory.mktemp("served")
    parts = toy_parts(folder / "parts-bare", seed=2, tasks=TASKS)
    bare = publish_golden(write_package(folder / "bare", parts, card=CARD))
    # Ray's own folder: other clusters of this machine write theirs beside it. Paths of sockets
    # must be short.
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as ray_folder:
        options = {
            "_temp_dir": ray_folder,
            # It has endpoints that start code, and tells Prometheus what there is to read.
            "include_dashboard": True,
            "dashboard_port": free_port(),
        }
        with served_pair(
            folder,
            cluster_options=options,
            further_models={"bare": {"small": str(bare.path)}},
            security={"token_hashes": [hashlib.sha256(one.encode()).hexdigest() for one in TOKENS]},
            limits=LIMITS,
            golden={"required": True},
        ) as settings:
            yield Target(settings, Path(ray_folder))
