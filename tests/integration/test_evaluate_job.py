"""jobs.evaluate on a whole checkpoint: its files, its table, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from jobs import evaluate
from jobs.cli import exit_status
from rectrain.data.shards import Prepared
from rectrain.inference.predictor import Predictor
from rectrain.report.evaluation import write_summary

TASKS = {"recommendation", "search_ranking", "ad_ctr", "risk"}


@pytest.fixture(scope="module")
def evaluation(untrained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("evaluation")
    arguments = [f"--checkpoint={untrained_run}", f"--output={output}", "--num-resamples=50"]
    assert exit_status(evaluate.main, arguments) == 0
    return output


def test_every_task_stands_beside_baselines_and_the_best_possible(evaluation: Path) -> None:
    found = json.loads((evaluation / "evaluation.json").read_text())
    assert set(found["tasks"]) == TASKS
    for result in found["tasks"].values():
        metric = result["metrics"][result["primary"]]
        assert metric["low"] <= metric["value"] <= metric["high"]
        assert metric["baselines"] and set(metric["differences"]) == set(metric["baselines"])
        values = [entry["value"] for entry in metric["baselines"].values()]
        assert metric["best_possible"] > max(*values, metric["value"])
    markdown = (evaluation / "evaluation.md").read_text()
    assert "| risk | auc |" in markdown and "coverage@10" in markdown


def test_the_reported_auc_is_scikit_learns_of_the_predictors_scores(
    evaluation: Path, untrained_run: Path, marketplace: Path
) -> None:
    from sklearn.metrics import roc_auc_score

    rows = Prepared.open(str(marketplace)).shards("risk", "test").table()
    scores = Predictor.from_checkpoint(str(untrained_run)).score("risk", rows)
    found = json.loads((evaluation / "evaluation.json").read_text())
    expected = roc_auc_score(rows["label"].to_numpy(), scores)
    assert found["tasks"]["risk"]["metrics"]["auc"]["value"] == pytest.approx(expected)


def test_recommended_places_equal_a_plain_ranking_of_the_catalogue(
    evaluation: Path, untrained_run: Path, marketplace: Path
) -> None:
    prepared = Prepared.open(str(marketplace))
    rows = prepared.shards("recommendation", "test").table()
    items = prepared.items("recommendation").table()
    predictor = Predictor.from_checkpoint(str(untrained_run))
    scores = predictor.embed("recommendation", rows)[0] @ (
        predictor.embed("recommendation", items)[1].T
    )
    ids = items["item_id"].to_pylist()
    wanted: dict[str, set[str]] = {}
    top: dict[str, list[str]] = {}
    for row, user in enumerate(rows["group"].to_pylist()):
        wanted.setdefault(user, set()).add(rows["item_id"][row].as_py())
        if user in top:
            continue
        had = set(rows["exclude"][row].as_py())  # on a user's first row
        order = [ids[column] for column in np.argsort(-scores[row], kind="stable")]
        top[user] = [item for item in order if item not in had][:10]
    gains = []
    for user, items_wanted in wanted.items():
        gain = sum(
            1 / math.log2(place + 2) for place, i in enumerate(top[user]) if i in items_wanted
        )
        gains.append(gain / sum(1 / math.log2(p + 2) for p in range(min(10, len(items_wanted)))))
    found = json.loads((evaluation / "evaluation.json").read_text())
    metric = found["tasks"]["recommendation"]["metrics"]["ndcg@10"]
    assert metric["value"] == pytest.approx(np.mean(gains), abs=1e-6)


def test_the_summary_has_its_form(evaluation: Path) -> None:
    path = write_summary(evaluation, wall_s=12.5, peak_rss_bytes=7)
    summary = json.loads(path.read_text())
    assert set(summary) == {"tasks", "wall_s", "peak_rss_bytes", "checkpoint", "config"}
    assert set(summary["tasks"]) == TASKS
    for task in summary["tasks"].values():
        assert set(task) == {"metric", "value", "low", "high", "baseline", "best_possible"}
        assert None not in task.values()


def test_data_of_another_tokenizer_is_refused(
    untrained_run: Path, marketplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(marketplace, tmp_path / "data")
    manifest = tmp_path / "data" / "manifest.json"
    changed = json.loads(manifest.read_text())
    changed["tokenizer"]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(changed))
    arguments = [f"--checkpoint={untrained_run}", f"--data={tmp_path / 'data'}", "--dry-run"]
    assert exit_status(evaluate.main, arguments) == 2
    assert "tokenizer of" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(untrained_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = [f"--checkpoint={untrained_run}", f"--output={output}", "--dry-run"]
    assert exit_status(evaluate.main, arguments) == 0
    assert not output.exists()
