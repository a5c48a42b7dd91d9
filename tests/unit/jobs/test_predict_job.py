"""What a scoring actor refuses before it scores."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.predict import _Job, _Scorer
from rectrain.errors import CheckpointError
from rectrain.inference.parts import Part
from rectrain.inference.predictor import Predictor


@dataclass
class FakeCheckpoint:
    model_sha256: str


@dataclass
class FakePredictor:
    checkpoint: FakeCheckpoint


def test_an_actor_refuses_another_model_than_the_job_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"user_id": ["a"]}), tmp_path / "rows")
    newer = FakePredictor(FakeCheckpoint("newer"))
    monkeypatch.setattr(Predictor, "from_checkpoint", lambda *given, **more: newer)
    job = _Job(
        checkpoint="s3://bucket/run/checkpoints/step-00000002", sha256="older", task="risk",
        output=str(tmp_path / "scores"), columns=("user_id",), ids=(), catalogue=(), k=1,
        device="cpu",
    )  # fmt: skip
    part = Part("part-00000-00000", str(tmp_path / "rows"), 0, 1, 0)
    answer = _Scorer(job)({"part": [pickle.dumps(part)]})
    mistake = pickle.loads(answer["mistake"][0])
    assert isinstance(mistake, CheckpointError)
    assert "step-00000002: got other weights than when the job began" in str(mistake)
    assert not (tmp_path / "scores").exists()
