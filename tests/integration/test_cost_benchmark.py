"""The benchmark of costs at its smallest: trains, serves, and compares with what was predicted."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from served_toy import write_deferring_pair

from benchmarks import cost, cost_training

OVERHEAD = ("request_ms", "candidate_ms", "idle_share")


@pytest.mark.slow  # five starts of a training process, and one of the serving graph
def test_predictions_are_compared_with_runs_and_with_a_served_graph(
    marketplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "_OUTPUT", tmp_path)
    monkeypatch.setattr(cost_training, "simulated", lambda size: (str(marketplace),))
    monkeypatch.chdir(tmp_path)  # its runs go there
    packages = write_deferring_pair(tmp_path / "pair")
    paths = [f"--{name}={package.path}" for name, package in packages.items()]
    assert cost.main(["--quick", "--only=training,serving", *paths]) == 0
    figures = json.loads((tmp_path / "cost-quick.json").read_text())
    found = {one["id"]: one["value"] for one in figures}
    assert all(math.isfinite(value) for value in found.values())
    # So short and beside other tests nothing is exact; what has no part in a fit is of the size.
    assert 0.2 < found["C1/training/tiny"] < 5
    for model in ("small", "shop", "large"):
        for rate in ("6", "9", "12"):
            assert 0.2 < found[f"C1/serving/{model}/{rate}"] < 5
    assert all(found[f"C1/serving/overhead/{name}"] >= 0 for name in OVERHEAD)
    assert found["C1/serving/overhead/idle_share"] > 0
    assert 0 <= found["C3/order"] <= 1
