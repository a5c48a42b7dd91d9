"""C1/training: device-seconds of short runs of several sizes, fitted; a held-out run, predicted.

    seconds = a + b · training FLOPs + c · steps + d · steps · trained parameters

by non-negative least squares on relative residuals: starting, the products of the closed form
(`rectrain.cost.flops`), what a step takes besides, the optimizer. Device-seconds are those that the
runs record of themselves; money is device-seconds at the price of one vCPU of the prices' first
CPU instance, so both are off by the same share.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from benchmarks.one_process import in_processes, train_run
from benchmarks.table import Figure
from benchmarks.train import simulated
from rectrain.cost.flops import run_flops
from rectrain.cost.measure import history
from rectrain.cost.prices import load_prices
from rectrain.train.build import new_model, open_data
from rectrain.train.config import RunConfig
from rectrain.train.run_plan import plan_run

__all__ = ["FULL", "QUICK", "Size", "measure_training", "relative_fit"]

Floats = NDArray[np.float64]


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
        Size("tiny", 1024, 60), Size("tiny", 4096, 60), Size("tiny", 2048, 160),
        Size("small", 1024, 20), Size("small", 2048, 20), Size("small", 1024, 60),
    ),
    held_out=(Size("small", 1536, 100), Size("tiny", 3072, 120)),
    rounds=3, data="tiny",
)  # fmt: skip
QUICK = Sizes(
    fitted=(Size("tiny", 512, 4), Size("tiny", 1024, 4), Size("tiny", 512, 12)),
    held_out=(Size("tiny", 1024, 8),), rounds=1, data="tiny",
)  # fmt: skip


def measure_training(folder: Path, sizes: Sizes) -> list[Figure]:
    """Trains what is not there, in rounds, and compares.

    Args:
        folder: of the runs.
        sizes: which.
    """
    data = simulated(sizes.data)
    every = (*sizes.fitted, *sizes.held_out)
    seconds = np.array(
        [[_seconds(folder, data, size, number) for size in every] for number in range(sizes.rounds)]
    )
    known = np.array([_terms(folder, data, size) for size in every])
    count = len(sizes.fitted)
    ratios = []
    for measured in seconds:
        found = relative_fit(known[:count], measured[:count])
        ratios.append((known[count:] @ found) / measured[count:])
    return [
        figure
        for place, size in enumerate(sizes.held_out)
        for figure in _figures(
            size, [float(one[place]) for one in ratios], seconds[:, count + place]
        )
    ]


def relative_fit(known: Floats, measured: Floats) -> Floats:
    """float64 [terms], at least 0, with the least squares of (predicted - measured) / measured.

    Args:
        known: float64 [runs, terms].
        measured: float64 [runs], above 0.
    """
    size = np.maximum(known.max(axis=0), 1e-300)
    found, _ = nnls(known / size / measured[:, None], np.ones(len(measured)))
    return np.asarray(found / size)


def _figures(size: Size, ratios: list[float], seconds: Floats) -> list[Figure]:
    name = f"{size.encoder}, {size.tokens} tokens, {size.steps} steps"
    measured = float(np.median(seconds))
    prices = load_prices()
    instance = next(one for one in prices.instances.values() if one.device == "cpu")
    second = float(instance.on_demand.value) / instance.num_devices / 3600
    return [
        Figure.of_rounds(
            f"C1/training/{size.encoder}", ratios, unit=f"x device-seconds of {name}",
            peer=f"measured ({measured:.1f} s)",
        ),
        Figure.of_rounds(
            f"C1/training/{size.encoder}/money",
            [ratio * float(s) * second for ratio, s in zip(ratios, seconds, strict=True)],
            unit=f"{instance.on_demand.currency} predicted of {name}",
            peer=f"measured ({measured * second:.6f})",
        ),
    ]  # fmt: skip


def _config(folder: Path, data: tuple[str, ...], size: Size, number: int) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": f"{size.encoder}-{size.tokens}-{size.steps}-{number}",
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


def _seconds(folder: Path, data: tuple[str, ...], size: Size, number: int) -> float:
    """Device-seconds of a run, trained now."""
    config = _config(folder, data, size, number)
    run = Path(config.output) / config.name
    shutil.rmtree(run, ignore_errors=True)
    in_processes(train_run, [config], processes=1)
    return sum(past.device_seconds for past in history(str(run)))


def _terms(folder: Path, data: tuple[str, ...], size: Size) -> list[float]:
    """What the model of the module's docstring knows of a run before it runs."""
    config = _config(folder, data, size, 0)
    prepared = open_data(config)
    model = new_model(config, prepared)
    flops = run_flops(prepared, model=model, run=plan_run(config, prepared))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return [1.0, float(flops.total), float(size.steps), float(size.steps * trained)]
