"""What trainings take, and on which machines their hours are paid."""

from __future__ import annotations

from typing import Any

import pytest

from rectrain.cost.measure import Past
from rectrain.cost.prices import Prices, load_prices
from rectrain.cost.traffic import Traffic
from rectrain.cost.trained import trainings
from rectrain.train.usage import Usage

FACTORS = {"full": 1.0, "lora": 0.5, "adalora": 0.6}


def past(name: str, **changes: Any) -> Past:
    """A run of an hour on one device."""
    values = {
        "work": "train", "label": name, "device": "gpu", "chip": "NVIDIA L4", "num_devices": 1,
        "rank": 0, "world_size": 1, "start": "2026-01-01T00:00:00.000+00:00",
        "end": "2026-01-01T01:00:00.000+00:00", "seconds": 3600.0, "peak_memory_bytes": 1,
        "finished": True,
    }  # fmt: skip
    return Past(f"/runs/{name}", "train", (Usage(**{**values, **changes}),))


@pytest.fixture
def prices(tmp_path) -> Prices:
    """The shipped ones, and a large GPU."""
    price = "{amount: 4, unit: hour, currency: USD, date: 2026-01-01, source: a}"
    path = tmp_path / "own.yaml"
    path.write_text(
        "instances: {big: {provider: a, region: b, device: gpu, chip: A100, num_devices: 1,"
        f" chips: [NVIDIA A100-SXM4-80GB], memory_gib: 90, device_memory_gib: 80,"
        f" on_demand: {price}}}}}"
    )
    return load_prices(str(path))


def test_each_models_gpu_hours_are_paid_on_its_own_chips(prices):
    large = [past("pre"), past("run", chip="NVIDIA A100-SXM4-80GB")]
    training, told = trainings(
        {"large": large, "small": [past("small")]}, Traffic(), prices, factors=FACTORS, source="a"
    )
    names = {part: {one.name for one in found} for part, found in training.gpu_servers.items()}
    assert names == {
        "large": {"big"}, "before large": {"aws-g6-xlarge"}, "small": {"aws-g6-xlarge"},
        "before small": set(),
    }  # fmt: skip
    assert (training.large, training.before) == (1.0, {"large": 1.0, "small": 0.0})
    assert not [line for line in told if "No instance" in line]


def test_a_chip_that_the_prices_lack_is_told_with_what_it_is_taken_for(prices):
    runs = [past("run", chip="NVIDIA H100"), past("more", device="cpu", chip="AMD EPYC")]
    training, told = trainings({"large": runs}, Traffic(), prices, factors=FACTORS, source="a")
    # As what was spent: the first of its kind.
    assert {one.name for one in training.gpu_servers["before large"]} == {"aws-g4dn-xlarge"}
    unknown = [line for line in told if line.startswith("No instance of the prices has ")]
    assert len(unknown) == 2 and "NVIDIA H100: " in unknown[0] and "AMD EPYC: " in unknown[1]
    assert "priced on aws-g4dn-xlarge, as if each of its devices were 1 of that" in unknown[0]
