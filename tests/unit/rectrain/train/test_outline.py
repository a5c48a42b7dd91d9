"""What the plan of a run warns of."""

from __future__ import annotations

from rectrain.train.outline import repetitions


def test_a_task_that_repeats_very_often_is_told_with_the_fix() -> None:
    assert repetitions({"recommendation": 3.0, "risk": 312.4, "ad_ctr": 50.0}) == [
        "warning: many epochs: risk 312; lower data.temperature (1: by rows), or give fewer "
        "train.num_steps"
    ]
    assert repetitions({"recommendation": 3.0, "risk": 50.0}) == []


def test_one_task_alone_has_no_share_to_change() -> None:
    assert repetitions({"risk": 60.0}) == [
        "warning: many epochs: risk 60; give fewer train.num_steps"
    ]
