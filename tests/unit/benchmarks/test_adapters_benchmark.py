"""The benchmark of adapters: which settings it compares, and its figures."""

from __future__ import annotations

import pytest

from benchmarks.adapters import _VARIANTS, _figures
from benchmarks.loop import Measurement, Run, run_config


def test_variants_differ_in_their_adapters_alone() -> None:
    made = {
        variant: run_config(Run(variant, ("data",), "out", "tiny", 512, 0, 1, 3)).train
        for variant in _VARIANTS
    }
    assert {variant: train.adapter for variant, train in made.items()} == {
        "full": "none", "lora": "lora", "adalora": "adalora"
    }  # fmt: skip
    for train in made.values():
        assert train.model_copy(update={"adapter": "none"}) == made["full"]


def test_figures_are_over_those_of_full_training() -> None:
    found = {
        "full": [Measurement(100.0, 400 << 20, 0, 800 << 20)] * 3,
        "lora": [Measurement(150.0, 100 << 20, 0, 600 << 20)] * 3,
        "adalora": [Measurement(120.0, 120 << 20, 0, 640 << 20)] * 3,
    }
    values = {figure.id: figure.value for figure in _figures(found)}  # type: ignore[arg-type]
    assert values == pytest.approx(
        {
            "adapters/lora/state": 0.25, "adapters/lora/peak": 0.75, "adapters/lora/speed": 1.5,
            "adapters/adalora/state": 0.3, "adapters/adalora/peak": 0.8,
            "adapters/adalora/speed": 1.2,
        }
    )  # fmt: skip
