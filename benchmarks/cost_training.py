"""C1/training: device-seconds of short runs of several sizes, and what follows for a longer one.

The product's own model (`rectrain.cost.run_time`) is fitted to what the runs recorded of
themselves, and predicts runs of other sizes, which are then compared with their records. Money is
device-seconds at the price of one vCPU of the prices' first CPU instance, so both are off by the
same share.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.one_process import in_processes, train_run
from benchmarks.table import Figure
from benchmarks.train import simulated
from rectrain.cost.prices import load_prices
from rectrain.cost.run_time import RecordedRun, fit_time, recorded_run
from rectrain.train.config import RunConfig

__all__ = ["FULL", "QUICK", "Size", "Sizes", "device_second", "measure_training"]


class Size(NamedTuple):
    """encoder: a preset; tokens: of a micro-batch; steps."""

    encoder: str
    tokens: int
    steps: int


class Sizes(NamedTuple):
    """fitted, held_out: runs; rounds: each is run so often; data: of this size."""

    fitted: tuple[Size, ...]
    held_out: tuple[Size, ...]
    rounds: int
    data: str


FULL = Sizes(
    fitted=(
        Size("tiny", 1024, 10), Size("tiny", 1024, 50), Size("tiny", 4096, 15),
        Size("small", 512, 6), Size("small", 512, 24), Size("small", 1536, 8),
    ),
    held_out=(Size("small", 1024, 24), Size("tiny", 2048, 60)),
    rounds=5, data="tiny",
)  # fmt: skip
QUICK = Sizes(
    fitted=(Size("tiny", 512, 4), Size("tiny", 1024, 4), Size("tiny", 512, 12)),
    held_out=(Size("tiny", 1024, 8),), rounds=1, data="tiny",
)  # fmt: skip


def measure_training(folder: Path, sizes: Sizes) -> list[Figure]:
    """Trains, in rounds, and compares.

    Args:
        folder: of the runs; what is there is trained anew.
        sizes: which.
    """
    data = simulated(sizes.data)
    ratios: dict[Size, list[float]] = {size: [] for size in sizes.held_out}
    seconds: dict[Size, list[float]] = {size: [] for size in sizes.held_out}
    for _ in range(sizes.rounds):
        time = fit_time([_trained(folder, data, size) for size in sizes.fitted])
        for size in sizes.held_out:
            run = _trained(folder, data, size)
            ratios[size].append(time.seconds(run.size) / run.device_seconds)
            seconds[size].append(run.device_seconds)
    return [one for size in ratios for one in _figures(size, ratios[size], seconds[size])]


def device_second() -> tuple[float, str]:
    """What a device-second costs, on a vCPU of the prices' first CPU instance; the currency."""
    prices = load_prices()
    instance = next(one for one in prices.instances.values() if one.device == "cpu")
    return prices.device_second(instance, prices.currency), prices.currency


def _figures(size: Size, ratios: list[float], seconds: list[float]) -> list[Figure]:
    name = f"{size.encoder}, {size.tokens} tokens, {size.steps} steps"
    money, currency = device_second()
    measured = median(seconds)
    return [
        Figure.of_rounds(
            f"C1/training/{size.encoder}", ratios, unit=f"x device-seconds of {name}",
            peer=f"measured ({measured:.1f} s)",
        ),
        Figure.of_rounds(
            f"C1/training/{size.encoder}/money",
            [1000 * money * ratio * one for ratio, one in zip(ratios, seconds, strict=True)],
            unit=f"{currency} predicted of 1,000 such runs",
            peer=f"measured ({1000 * money * measured:.3f})",
        ),
    ]  # fmt: skip


def _trained(folder: Path, data: tuple[str, ...], size: Size) -> RecordedRun:
    """A run, trained now."""
    config = RunConfig.model_validate(
        {
            "name": f"{size.encoder}-{size.tokens}-{size.steps}",
            "output": str(folder.resolve()),
            "data": {
                "paths": [str(Path(path).resolve()) for path in data],
                "tokens_per_micro_batch": size.tokens,
            },
            "model": {"encoder": size.encoder},
            "train": {
                "num_workers": 1, "zero_stage": 0, "num_steps": size.steps,
                "checkpoint_interval": size.steps, "evaluate_rows": 8, "log_interval": 1000,
            },
        }
    )  # fmt: skip
    run = Path(config.output) / config.name
    shutil.rmtree(run, ignore_errors=True)
    in_processes(train_run, [config], processes=1)
    return recorded_run(str(run))
