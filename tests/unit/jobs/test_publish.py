"""jobs.publish: a run becomes a package, and its mistakes are one line."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from prepared_toy import PRICE, write_prepared
from untrained import write_run

import rectrain
from jobs.cli import exit_status
from jobs.publish import main
from rectrain.inference.predictor import Predictor
from rectrain.package import open_package
from rectrain.train.build import load_model

ROWS = [
    {"user_id": "a", "item_text": "red mug", "price": 3.0},
    {"user_id": "b", "item_text": "lamp"},
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained run of risk, which has no catalogue."""
    folder = tmp_path_factory.mktemp("run")
    data = write_prepared(folder / "data", tasks={"risk": PRICE})
    return write_run(folder / "run", data)


def evaluation(path: Path, *, of: Path | None = None) -> Path:
    """Figures of a run's model, or of another one of the same step."""
    auc = {"value": 0.75, "low": None, "high": None}
    sha256 = "0" * 64 if of is None else load_model(str(of)).checkpoint.model_sha256
    found = {"step": 1, "split": "test", "tasks": {"risk": {"metrics": {"auc": auc}}}}
    path.write_text(json.dumps({**found, "model_sha256": sha256}))
    return path


def test_a_packaged_run_scores_as_its_checkpoint(run: Path, tmp_path: Path) -> None:
    figures = evaluation(tmp_path / "evaluation.json", of=run)
    output = tmp_path / "deep" / "package"
    assert main([f"--checkpoint={run}", f"--output={output}", f"--evaluation={figures}"]) == 0
    model = rectrain.load(output)
    predictor = Predictor.from_checkpoint(str(run))
    rows = pa.Table.from_pylist(ROWS)
    expected = predictor.score("risk", predictor.encode("risk", rows).prepared)
    assert model.predict("risk", ROWS) == pytest.approx(expected, abs=1e-6)
    assert "| risk | auc | 0.7500 |" in (output / "README.md").read_text()
    assert "A BERT trained jointly on risk for 1 steps" in (output / "README.md").read_text()


def test_a_dry_run_checks_and_writes_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "package"
    assert main([f"--checkpoint={run}", f"--output={output}", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "publish: risk of " in said and "not measured" in said
    assert not output.exists()


def test_an_evaluation_of_another_model_is_not_taken(run: Path, tmp_path: Path) -> None:
    figures = evaluation(run / "evaluation.json")  # what the run's folder may still hold
    output = tmp_path / "package"
    assert main([f"--checkpoint={run}", f"--output={output}"]) == 0
    figures.unlink()
    assert "| risk | auc | not measured |" in (output / "README.md").read_text()


def test_mistakes_are_one_line_and_status_2(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "package"
    main([f"--checkpoint={run}", f"--output={package}"])
    version = open_package(package).version
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    other = evaluation(tmp_path / "other.json")
    empty = tmp_path / "empty.json"
    empty.write_text("[]")
    checkpoint = f"--checkpoint={run}"
    for argv, said in (
        ([f"--output={package}"], "--checkpoint: got nothing"),
        ([checkpoint], "--output"),
        ([checkpoint, f"--output={package}"], "--overwrite"),
        ([checkpoint, f"--output={tmp_path}/mine", "--overwrite"], "only packages are replaced"),
        ([checkpoint, "--output=s3://bucket/package"], "a folder of this machine"),
        ([f"--checkpoint={tmp_path}/none", f"--output={tmp_path}/a"], "train first"),
        ([f"--checkpoint={package}", f"--output={tmp_path}/a"], "which is a package"),
        ([checkpoint, f"--output={tmp_path}/a", "--no-index", "--data=x"], "with --no-index"),
        ([checkpoint, f"--output={tmp_path}/a", f"--evaluation={other}"], "of another model"),
        ([checkpoint, f"--output={tmp_path}/a", f"--evaluation={empty}"], "an evaluation.json of"),
        (["--refresh-index", f"--output={package}"], "--data: got nothing"),
        (["--refresh-index", f"--output={package}", "--data=x", checkpoint], "leave one of them"),
        (["--refresh-index", f"--output={package}", "--data=x"], "none of them ranks a catalogue"),
        (["--refresh-index", f"--output={tmp_path}/mine", "--data=x"], "no manifest.json"),
    ):
        assert exit_status(main, argv) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert exit_status(main, [checkpoint, f"--output={package}", "--overwrite"]) == 0
    assert open_package(package).version == version
