"""Public data prepared by its source: the protocol's splits, and its baseline in an evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from untrained import write_run

from jobs import prepare
from rectrain.data.shards import Prepared
from rectrain.inference.evaluate import evaluate
from rectrain.inference.predictor import Predictor


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.parametrize(
    ("source", "file", "task", "rows", "name", "metric", "published"),
    [
        ("upworthy", "ad_ctr/upworthy_headline_pairs.csv", "ad_headline", (2818, 936),
         "tfidf_difference", "pairwise_accuracy", 0.603),
        ("bank_marketing", "ad_ctr/bank_marketing.csv", "ad_ctr", (36_168, 9_043),
         "gbdt", "auc", 0.801),
        ("dark_patterns", "risk/dark_patterns.tsv", "risk_text", None,
         "tfidf_c10", "auc", 0.986),
    ],
)  # fmt: skip
def test_the_published_baseline_stands_in_the_same_evaluation(
    shared_data: Path, tmp_path: Path, source: str, file: str, task: str,
    rows: tuple[int, int] | None, name: str, metric: str, published: float,
) -> None:  # fmt: skip
    output = tmp_path / "prepared"
    argv = ["--source", source, "--input", str(shared_data / file), "--output", str(output)]
    assert prepare.main([*argv, "--split.validation_share", "0"]) == 0
    splits = Prepared.open(str(output)).splits(task)
    if rows is not None:
        assert (splits["train"]["rows"], splits["test"]["rows"]) == rows
    assert splits["validation"]["rows"] == 0
    predictor = Predictor.from_checkpoint(str(write_run(tmp_path / "run", output)))
    found = evaluate(predictor, [str(output)], num_resamples=20)[task].metrics[metric]
    assert found.baselines[name].value == pytest.approx(published, abs=0.008)
    assert found.model.value < found.baselines[name].value


def test_pages_are_dealt_into_five_folds(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "risk" / "dark_patterns.tsv"
    tested: list[str] = []
    for fold in (0, 1):
        output = tmp_path / str(fold)
        argv = ["--source=dark_patterns", f"--input={path}", f"--output={output}"]
        prepare.main([*argv, f"--split.fold={fold}"])
        made = Prepared.open(str(output))
        parts = [
            set(made.shards("risk_text", split).column("group").to_pylist())
            for split in ("train", "validation", "test")
        ]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 1248
        assert len(parts[2]) in (249, 250)
        tested += parts[2]
    assert len(tested) == len(set(tested))
