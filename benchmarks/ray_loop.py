"""Our loop, the same as in benchmarks.loop, inside Ray Train.

python -m benchmarks.ray_loop RUN.json
"""

from __future__ import annotations

import logging
import sys
import tempfile
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from benchmarks.loop import TIMEOUT_S, Run, measure

__all__ = ["train_in_ray"]

_REPORT_INTERVAL = 10  # steps


def train_in_ray(run: Run) -> None:
    """Runs the loop on Ray workers of one CPU each, on a cluster of its own."""
    ray.init(
        address="local",
        num_cpus=run.world_size,
        include_dashboard=False,
        logging_level=logging.WARNING,
    )
    with tempfile.TemporaryDirectory() as directory:
        TorchTrainer(
            _work,
            train_loop_config={"run": run},
            torch_config=TorchConfig(backend="gloo", timeout_s=int(TIMEOUT_S)),
            scaling_config=ray.train.ScalingConfig(
                num_workers=run.world_size, resources_per_worker={"CPU": 1}
            ),
            run_config=ray.train.RunConfig(name="bench", storage_path=directory),
        ).fit()
    ray.shutdown()


def _work(config: dict[str, Any]) -> None:
    from rectrain.train.step import join_deepspeed

    join_deepspeed(timeout_s=TIMEOUT_S)
    run: Run = config["run"]
    measurement = measure(run, on_step=_report)
    if ray.train.get_context().get_world_rank() == 0:
        run.keep(measurement)


def _report(step: int, loss: float) -> None:
    if step % _REPORT_INTERVAL == 0:
        ray.train.report({"step": step, "loss": loss})


if __name__ == "__main__":
    train_in_ray(Run.read(sys.argv[1]))
