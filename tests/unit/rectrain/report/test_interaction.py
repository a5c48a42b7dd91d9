"""Cosines of tasks' gradients, and joint runs beside single ones, by hand-computed values."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rectrain.errors import ConfigError
from rectrain.report.interaction import GradientSums, compare_runs, markdown, write_interactions


def _sums() -> GradientSums:
    """Two micro-batches of three tasks, the last of them without a gradient."""
    sums = GradientSums(["a", "b", "c"], weights=[1.0, 2.0, 1.0])
    sums.add(torch.tensor([[3.0, 4.0], [4.0, -3.0], [0.0, 0.0]]))  # right angle
    sums.add(torch.tensor([[0.0, 2.0], [0.0, -6.0], [0.0, 0.0]]))  # opposite
    return sums


def test_cosines_equal_hand_computed_ones() -> None:
    report = _sums().report()
    # Sums (3, 6) and (4, -9): 12 - 54 over √45 · √97.
    assert report.cosines[0][1] == pytest.approx(-42 / math.sqrt(45 * 97))
    assert report.cosines[0][0] == pytest.approx(1.0) and report.cosines[0][2] is None
    assert report.means[1][0] == pytest.approx(-0.5)
    # The spread of 0 and -1 is √½; half an interval is 1.96 · √½ / √2.
    assert report.margins[1][0] == pytest.approx(0.98)
    assert report.conflicts[1][0] == 0.5 and report.conflicts[0][2] is None
    assert report.norms == pytest.approx([math.sqrt(45) / 2, math.sqrt(97), 0.0])


def test_one_micro_batch_has_no_interval() -> None:
    sums = GradientSums(["a", "b"], weights=[1.0, 1.0])
    sums.add(torch.eye(2))
    assert sums.report().margins == [[None, None], [None, None]]


def _evaluation(task_values: dict[str, tuple[float, float, float]], **changes: Any) -> dict:
    facts = {
        "num_rows": 9,
        "num_groups": 3,
        "higher": True,
        "split": "test",
        "rows": "aa",
    } | changes
    return {
        "split": facts["split"],
        "rows_sha256": dict.fromkeys(task_values, facts["rows"]),
        "step": len(task_values),
        "tasks": {
            task: {
                "primary": "auc",
                "num_rows": facts["num_rows"],
                "num_groups": facts["num_groups"],
                "metrics": {
                    "auc": {
                        "value": value,
                        "low": low,
                        "high": high,
                        "higher_is_better": facts["higher"],
                    }
                },
            }
            for task, (value, low, high) in task_values.items()
        },
    }


JOINT = {"a": (0.70, 0.67, 0.74), "b": (0.6, 0.5, 0.7)}
ALONE = {"a": (0.60, 0.57, 0.64)}


def test_a_gain_and_its_interval() -> None:
    (gain,) = compare_runs(_evaluation(JOINT), {"alone": _evaluation(ALONE)})
    assert (gain.task, gain.metric, gain.steps, gain.verdict) == ("a", "auc", (1, 2), "gains")
    assert gain.difference == pytest.approx((0.1, 0.05, 0.15))  # 3-4-5 triangles of the sides


def test_lower_is_better_turns_the_difference() -> None:
    joint, alone = (_evaluation(values, higher=False) for values in (JOINT, ALONE))
    (gain,) = compare_runs(joint, {"alone": alone})
    assert gain.difference == pytest.approx((-0.1, -0.15, -0.05)) and gain.verdict == "loses"


def test_gains_stand_in_the_joint_runs_order_and_may_be_unclear() -> None:
    singles = {"two": _evaluation({"b": (0.58, 0.5, 0.7)}), "one": _evaluation(ALONE)}
    gains = compare_runs(_evaluation(JOINT), singles)
    assert [(gain.task, gain.verdict) for gain in gains] == [("a", "gains"), ("b", "unclear")]


@pytest.mark.parametrize(
    ("singles", "message"),
    [
        ({"x": _evaluation({"d": (0.5, 0.4, 0.6)})}, "got task d"),
        ({"x": _evaluation(ALONE), "y": _evaluation(ALONE)}, "second time"),
        ({"x": _evaluation(ALONE, num_rows=8)}, "same split, rows"),
        ({"x": _evaluation(ALONE, split="validation")}, "same split, rows"),
        ({"x": _evaluation(ALONE, rows="bb")}, "same split, rows"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(singles: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compare_runs(_evaluation(JOINT), singles)


def test_files(tmp_path: Path) -> None:
    gains = compare_runs(_evaluation(JOINT), {"alone": _evaluation(ALONE)})
    write_interactions(_sums().report(), gains, tmp_path / "run", checkpoint="c")
    found = json.loads((tmp_path / "run" / "interactions.json").read_text())
    assert found["gains"][0]["difference"]["value"] == pytest.approx(0.1)
    assert found["gradients"]["cosines"][2] == [None, None, None]
    text = (tmp_path / "run" / "interactions.md").read_text()
    assert markdown(_sums().report(), gains) in text
    assert "| a, b | -0.636 | -0.500 ± 0.980 | 50% |" in text
    assert "| 0.1000 [0.0500, 0.1500] | gains |" in text
    picture = (tmp_path / "run" / "interactions.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
