"""The serving graph loses no request to a death, an update or a broken version."""

from __future__ import annotations

import json
from pathlib import Path

from served_toy import free_port, write_pair

from benchmarks import faults

ZEROS = (
    *("R1/wrong", "R1/lost", "R1/unlogged", "R1/undeferred"),
    *("R3/failed", "R3/broken_failed", "R3/broken_taken"),
)


def test_killed_replicas_an_update_and_a_broken_version_cost_no_request(tmp_path: Path) -> None:
    packages = write_pair(tmp_path)
    arguments = [
        *("--quick", "--only", "R1", "R3", "--candidates", "8"),
        *(f"--small={packages['small'].path}", f"--large={packages['large'].path}"),
        *(f"--port={free_port()}", f"--output={tmp_path}"),
    ]
    faults.main(arguments)
    figures = {
        one["id"]: one["value"] for one in json.loads((tmp_path / "faults.json").read_text())
    }
    assert {name: figures[name] for name in ZEROS} == dict.fromkeys(ZEROS, 0)
