"""Places in a catalogue, comparison of systems, the report, and parts of files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rectrain.data.encoding import FeatureEncoder
from rectrain.errors import DataError
from rectrain.inference.compare import MODEL, MetricResult, compare
from rectrain.inference.evaluate import TaskResult, _diversity
from rectrain.inference.parts import Sink, open_inputs, plan_parts, read_part
from rectrain.inference.recommend import Shoppers
from rectrain.metrics import Examples, Interval, paired_difference
from rectrain.report.evaluation import evaluation_json, table


def test_wanted_items_are_ranked_among_those_not_bought() -> None:
    purchases = pa.table(
        {
            "group": ["b", "a", "b"],
            "item_id": ["i2", "i0", "i3"],
            "exclude": pa.array([["i0", "gone"], None, ["i0", "gone"]], pa.list_(pa.string())),
        }
    )
    shoppers = Shoppers.of(purchases, ["i0", "i1", "i2", "i3"])
    scores = np.array([[4.0, 3, 2, 1], [9, 5, 6, 7]])  # of a, then b

    ranking = shoppers.rank(scores.__getitem__, k=4)

    assert ranking.ranks.tolist() == [2, 1, 1]
    assert ranking.best.items.tolist() == [[0, 1, 2, 3], [3, 2, 1, -1]]
    assert ranking.best.scores[1, :3].tolist() == [7, 6, 5] and np.isnan(ranking.best.scores[1, 3])
    assert scores[1, 0] == 9, "the scorer's own array is left alone"


def test_systems_are_compared_on_the_same_resamples() -> None:
    rng = np.random.default_rng(0)
    label, group = rng.integers(0, 2, 300).astype(float), rng.integers(0, 60, 300)
    score = {name: label * gain + rng.normal(size=300) for name, gain in ((MODEL, 1), ("x", 0.3))}
    systems = {k: Examples(label=label, score=v, group=group) for k, v in score.items()}
    result = compare(systems, ["auc", "gauc"], num_resamples=200, seed=4)["auc"]
    expected = paired_difference("auc", systems[MODEL], systems["x"], num_resamples=200, seed=4)
    assert result.differences["x"] == pytest.approx(expected)
    assert result.best_baseline == "x" and result.best_possible is None


def test_items_that_differ_are_diverse_however_popular_they_are() -> None:
    vectors = np.concatenate([np.eye(10), np.full((10, 1), -9.0)], axis=1).astype(np.float32)
    found = _diversity(
        {MODEL: np.arange(10)[None]}, FeatureEncoder(), pa.table({"x": [0]}), vectors
    )
    assert found["vector_diversity@10"].model.value == pytest.approx(1.0)


def test_the_best_baseline_follows_the_metrics_direction() -> None:
    values = {"a": Interval(0.2, 0.1, 0.3), "b": Interval(0.4, 0.3, 0.5)}
    nan = Interval(float("nan"), float("nan"), float("nan"))

    def best(higher: bool | None) -> str | None:
        return MetricResult("m", nan, {**values, "c": nan}, {}, None, higher).best_baseline

    assert (best(True), best(False), best(None)) == ("b", "a", None)


def test_the_report_writes_unknown_values_as_null_and_dash() -> None:
    nan = float("nan")
    metric = MetricResult("auc", Interval(0.75, nan, nan), {}, {}, None, True)
    results = {"risk": TaskResult("risk", "auc", 10, 5, 1, {"auc": metric})}
    assert table(results).splitlines()[2] == "| risk | auc | - | 0.7500 | - | - |"
    found = json.loads(json.dumps(evaluation_json(results, split="test"), allow_nan=False))
    assert found["split"] == "test"
    assert found["tasks"]["risk"]["metrics"]["auc"]["low"] is None
    assert found["tasks"]["risk"]["num_groups"] == 5


def test_parts_cover_every_row_once_whatever_the_row_groups(tmp_path: Path) -> None:
    for name, rows in (("a", 25), ("b", 7)):
        numbers = pa.table({"x": np.arange(rows), "y": np.zeros(rows)})
        pq.write_table(numbers, tmp_path / f"{name}.parquet", row_group_size=4)
    files = [file for file, _ in open_inputs([str(tmp_path)])]
    parts = plan_parts(files, rows_per_part=10)
    assert [part.rows for part in parts] == [10, 10, 5, 7]
    read = [read_part(part, columns=["x", "absent"]) for part in parts]
    assert read[0].column_names == ["x"]
    places = [part.before + x for part, rows in zip(parts, read, strict=True)
              for x in rows["x"].to_pylist()]  # fmt: skip
    assert places == list(range(32))


def test_output_of_another_job_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "in.parquet")
    files = [file for file, _ in open_inputs([str(tmp_path / "in.parquet")])]
    sink = Sink(str(tmp_path / "out"))
    sink.claim({"checkpoint": "a"}, files)
    Sink(str(tmp_path / "out")).claim({"checkpoint": "a"}, files)
    with pytest.raises(DataError, match="differs: checkpoint"):
        sink.claim({"checkpoint": "b"}, files)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(DataError, match="no manifest"):
        Sink(str(tmp_path / "mine")).claim({"checkpoint": "a"}, files)
    sink.clear()
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="only scores are ever removed"):
        Sink(str(tmp_path / "mine")).clear()
    assert (tmp_path / "mine" / "thesis.txt").exists()
    (tmp_path / "empty").mkdir()  # what a kill may leave
    Sink(str(tmp_path / "empty")).claim({"checkpoint": "a"}, files)


def test_inputs_without_a_row_or_that_are_no_parquet_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": pa.array([], pa.int64())}), tmp_path / "empty.parquet")
    with pytest.raises(DataError, match="no rows"):
        open_inputs([str(tmp_path / "empty.parquet")])
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(DataError, match="readable Parquet"):
        open_inputs([str(tmp_path / "text.parquet")])
