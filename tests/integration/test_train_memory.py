"""A worker really stays below what the plan says its memory must hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pretrain_toy import random_texts, write_texts
from train_toy import run_group

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5)


def _peak_bytes() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
    assert found
    return int(found[1]) << 10


def _train(rank: int, data: str, checkpointing: bool) -> tuple[int, int, int]:
    """Resident memory before a run, its peak in three steps, and the bound of what came."""
    from rectrain.data.loader import Loader
    from rectrain.train.build import new_model, open_data
    from rectrain.train.config import PretrainConfig
    from rectrain.train.memory import worker_bytes
    from rectrain.train.process import set_up_process
    from rectrain.train.run_plan import plan_run
    from rectrain.train.step import build_engine, train_step

    config = PretrainConfig.model_validate(
        {
            "data": {"paths": [data], "tokens_per_micro_batch": 12_000},
            "model": {"encoder": "small"},
            "train": {"activation_checkpointing": checkpointing},
        }
    )
    set_up_process(num_threads=1)
    corpus = open_data(config)
    run = plan_run(config, corpus)
    CLEAR.write_text(RESET_PEAK)
    before = _peak_bytes()
    model = new_model(config, corpus)
    bound = worker_bytes(config, corpus, model=model, plan=run.plan, num_workers=1)
    engine = build_engine(model, train=config.train, hidden_size=256, num_accumulations=1)
    with Loader(run.shards, plan=run.plan, num_steps=3) as loader:
        for step, batches in loader:
            assert batches[0].num_tokens == batches[0].texts.input_ids.shape[0]  # no text twice
            train_step(
                engine, batches, step=step, seed=0, learning_rate_share=1.0, tasks=list(corpus)
            )
    return before, _peak_bytes(), sum(bound.values())


@pytest.mark.skipif(not CLEAR.exists(), reason="the peak can only be reset on Linux")
@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_resident_memory_stays_below_what_the_plan_says(
    tmp_path: Path, checkpointing: bool
) -> None:
    from rectrain.train.memory import PROCESS_BYTES

    data = write_texts(tmp_path / "data", train=random_texts(2500, seed=1))
    before, peak, bound = run_group(_train, str(data), checkpointing, world_size=1, timeout_s=300)
    found = f"{before >> 20:,} to {peak >> 20:,} MiB, by the plan {bound >> 20:,} more"
    assert peak < bound + PROCESS_BYTES, found
    assert peak - before > 0.7 * bound, found  # or it would say little
