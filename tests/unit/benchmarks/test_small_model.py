"""The benchmark of the small model, from what was made to its figures and picture."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import small_model
from benchmarks.small_runs import RIVALS, STEPS
from benchmarks.table import Figure, paired_ratio
from rectrain.compress.measure import Measured
from rectrain.compress.pipeline import LARGE, SMALL
from rectrain.metrics import Examples

# Of each system the noise on the labels; the large model knows nothing of risk.
NOISE = {LARGE: 0.5, "cut": 3.0, "distilled": 0.8, "heads": 0.6, "trimmed": 0.6, SMALL: 0.6,
         "first_layers": 4.0, "scratch": 4.0}  # fmt: skip


def rows(task: str, noise: float) -> Examples:
    draw = np.random.default_rng(3)
    label = draw.integers(0, 2, 400)
    if task == "risk":
        return Examples(label=label, score=-label + 0.0)
    score = label + noise * draw.normal(size=400)
    return Examples(label=label, score=score, group=np.arange(400) // 4)


class StubStudy:
    """Scores and sizes in the place of runs."""

    def __init__(self, pipeline: Any) -> None:
        config = SimpleNamespace(split="test", threads=1)
        data = dict.fromkeys(("search_ranking", "ad_ctr", "risk"))
        self.pipeline = SimpleNamespace(data=data, config=config)

    def make(self) -> list[Measured]:
        return [
            Measured(
                name,
                {},
                num_parameters=10,
                num_bytes=size,
                latency={},
                tokens_per_s=speed,
                backend="onnx-int8" if name == SMALL else "torch",
            )
            for name, size, speed in zip(
                (*STEPS, *RIVALS), (400, 100, 100, 100, 80, 20, 200, 100), range(1, 9), strict=True
            )
        ]

    def scores(self, task: str, *, backend: str) -> dict[str, Examples]:
        assert backend == "onnx-int8"
        return {name: rows(task, noise) for name, noise in NOISE.items()}


def speeds(study: StubStudy, *, backend: str, rounds: int, num_texts: int) -> list[Figure]:
    ours, peer = [24.0, 26.0], [2.0, 2.0]
    return [paired_ratio("I3/speed", ours=ours, peer=peer, unit=backend, peer_name="large")]


@pytest.fixture
def _stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_model, "SmallStudy", StubStudy)
    monkeypatch.setattr(small_model, "compare_speed", speeds)
    monkeypatch.setattr(small_model, "open_pipeline", lambda config: config)
    monkeypatch.setattr(small_model, "_OUTPUT", tmp_path)


@pytest.mark.usefixtures("_stubs")
def test_what_was_made_becomes_figures_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert small_model.main(["--only=demo", "--teacher=runs/large"]) == 0
    found = {f["id"]: f for f in json.loads((tmp_path / "small_model.json").read_text())}
    assert found["I3/speed"]["value"] == 12.5
    assert found["I3/bytes"]["value"] == pytest.approx(20 / 400)
    assert found["I3/curve/small/bytes"]["value"] == pytest.approx(20 / 400)
    assert found["I3/curve/small/speed"]["value"] == 6.0
    for task in ("search_ranking", "ad_ctr"):
        lift = found[f"I3/lift/{task}"]
        assert found[f"I3/curve/cut/{task}"]["value"] < lift["low"] < lift["value"] < 1.0
        for rival in RIVALS:
            assert found[f"I3/rival/{rival}/{task}"]["value"] < lift["value"]
            assert found[f"I3/ahead/{rival}/{task}"]["low"] > 0
    assert not [name for name in found if name.endswith("/risk")]
    assert "risk: no lift to share" in capsys.readouterr().out
    assert (tmp_path / "small_model.png").stat().st_size > 10_000


@pytest.mark.usefixtures("_stubs")
def test_the_real_data_is_another_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(small_model, "_SHARED", tmp_path / "nowhere")
    assert small_model.main(["--only=real"]) == 0
    assert "skipped: real" in capsys.readouterr().err

    class StubTeacher:
        def __init__(self, folder: Path, **_: Any) -> None:
            self.folder = folder

        def joint(self, name: str, tasks: Any, *, sources: Any) -> Path:
            return self.folder / name

    monkeypatch.setattr(small_model, "_SHARED", tmp_path)
    monkeypatch.setattr(small_model, "Study", StubTeacher)
    assert small_model.main(["--only=real", "--quick"]) == 0
    assert (tmp_path / "small_model-quick-real.json").exists()
