"""An elastic run loses a node and gets it back, 2 → 1 → 2 workers, and learns the same."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

from jobs import train
from rectrain.train.tracking import read_records

NUM_STEPS = 40


def arguments(data: Path, output: Path, name: str, workers: str) -> list[str]:
    return [
        f"--data.paths={data}",
        f"--output={output}",
        f"--name={name}",
        f"--train.num_workers={workers}",
        f"--train.num_steps={NUM_STEPS}",
        "--model.encoder=small",
        # Ray looks for new nodes every 20 s: the steps must be slow enough.
        "--data.tokens_per_micro_batch=8192",
        "--train.zero_stage=3",
        "--train.stage3_persistence_threshold=0",
        "--train.checkpoint_interval=4",
        "--train.log_interval=1",
        "--train.learning_rate=1e-4",
        "--train.resize_interval_s=3",
        "--train.collective_timeout_s=30",
        "--tracking.mlflow=off",
    ]


def last_step(run: Path) -> int:
    return max((record["step"] for record in read_records(run / "metrics.jsonl")), default=0)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_that_shrinks_and_grows_learns_the_same(
    marketplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    node = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    run = tmp_path / "elastic"

    def wait_for(step: int) -> None:
        while trainer.is_alive() and last_step(run) < step:
            time.sleep(0.1)

    statuses: list[int] = []
    elastic = arguments(marketplace, tmp_path, "elastic", "[1,2]")
    trainer = threading.Thread(target=lambda: statuses.append(train.main(elastic)))
    try:
        assert train.main(arguments(marketplace, tmp_path, "fixed", "2")) == 0
        capsys.readouterr()
        trainer.start()
        wait_for(6)
        cluster.remove_node(node, allow_graceful=False)
        wait_for(last_step(run) + 1)
        cluster.add_node(num_cpus=1)  # only the main thread can
        trainer.join()
        lines = capsys.readouterr().out.splitlines()
    finally:
        ray.shutdown()
        cluster.shutdown()
    sizes = [line.split()[-2] for line in lines if line.startswith("training from")]
    assert statuses == [0]
    assert sizes == ["2", "1", "2"]
    _assert_same(tmp_path / "fixed", run)


def _assert_same(fixed: Path, elastic: Path) -> None:
    expected, got = _weights(fixed), _weights(elastic)
    for name, tensor in expected.items():
        if name.endswith("attention.self.key.bias"):  # its gradient is zero but for rounding
            continue
        gap = (got[name] - tensor).norm() / tensor.norm().clamp_min(1e-12)
        assert gap <= 1e-5, f"{name}: relative L2 {gap:.2e}"
    for left, right in zip(_losses(fixed), _losses(elastic), strict=True):
        assert left == pytest.approx(right, rel=1e-4, abs=1e-5)


def _weights(run: Path) -> dict[str, torch.Tensor]:
    weights = {}
    for part in (run / "checkpoints" / f"step-{NUM_STEPS:08d}").glob("model-*.safetensors"):
        weights |= load_file(part)
    return weights


def _losses(run: Path) -> list[dict[str, float]]:
    records = read_records(run / "metrics.jsonl")
    return [record["loss"] for record in records if record["kind"] == "log"]
