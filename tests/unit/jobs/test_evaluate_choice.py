"""What jobs.evaluate says of the checkpoint that it takes of a run."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.evaluate import _choice


@pytest.mark.parametrize(
    ("score", "stopping", "said"),
    [
        (0.75, 3, ", the best of validation: risk 0.7500"),
        (None, 3, ", the newest: none is validated yet"),
        (0.75, None, ""),
    ],
)
def test_a_run_with_early_stopping_says_which_checkpoint_it_is(
    score: float | None, stopping: int | None, said: str
) -> None:
    train: dict[str, Any] = {"early_stopping": stopping, "watch": "risk"}
    meta = {"config": {"train": train}, "score": score}
    assert _choice("runs/demo", meta) == said
    assert _choice("runs/demo/checkpoints/step-00000003", meta) == ""
