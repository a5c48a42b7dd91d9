"""A worker really stays below what the plan says its memory must hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from train_toy import run_group

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5)


def _peak_bytes() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
    assert found
    return int(found[1]) << 10


def _growth(rank: int, data: str, stage: int) -> tuple[int, int]:
    """Growth of the resident memory in three steps, and its bound; in bytes."""
    from rectrain.data.loader import Loader
    from rectrain.train.build import new_model, open_data
    from rectrain.train.config import RunConfig
    from rectrain.train.memory import worker_bytes
    from rectrain.train.run_plan import plan_run
    from rectrain.train.step import build_engine, train_step

    config = RunConfig.model_validate(
        {
            "data": {"paths": [data], "tokens_per_micro_batch": 8192},
            "model": {"encoder": "small"},
            "train": {"zero_stage": stage},
        }
    )
    opened = open_data(config)
    run = plan_run(config, opened)
    CLEAR.write_text(RESET_PEAK)
    before = _peak_bytes()
    model = new_model(config, opened)
    bound = worker_bytes(config, opened, model=model, plan=run.plan, num_workers=1)
    engine = build_engine(model, train=config.train, hidden_size=256, num_accumulations=1)
    with Loader(run.shards, plan=run.plan, num_steps=3) as loader:
        for step, batches in loader:
            train_step(
                engine, batches, step=step, seed=0, learning_rate_share=1.0, tasks=list(opened)
            )
    return _peak_bytes() - before, sum(bound.values())


@pytest.mark.skipif(not CLEAR.exists(), reason="the peak can only be reset on Linux")
@pytest.mark.parametrize("stage", [0, 2])
def test_resident_memory_grows_by_no_more_than_the_plan_says(marketplace: Path, stage: int) -> None:
    growth, bound = run_group(_growth, str(marketplace), stage, world_size=1, timeout_s=300)
    assert 0.2 * bound < growth < bound, f"{growth >> 20:,} MiB of {bound >> 20:,}"
