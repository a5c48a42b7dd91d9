from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rectrain.data.encoding import FeatureEncoder
from rectrain.data.shards import FORMAT, Prepared, Shards, file_entry, write_shard
from rectrain.errors import DataError


def make_prepared(root: Path, *, sizes: tuple[int, ...] = (3, 4)) -> Path:
    (root / "risk").mkdir(parents=True)
    files, start = [], 0
    for number, size in enumerate(sizes):
        path = root / "risk" / f"train-{number:05d}.arrow"
        n = pa.array(range(start, start + size))
        texts = pa.array([[[i] * (i % 3)] for i in range(start, start + size)],
                         pa.list_(pa.list_(pa.int32())))  # fmt: skip
        write_shard(path, pa.table({"n": n, "item": texts}))
        files.append({**file_entry(path, root=root), "rows": size})
        start += size
    splits = {s: {"rows": 0, "groups": 0, "tokens": 0, "files": []} for s in ("validation", "test")}
    splits["train"] = {"rows": start, "groups": 0, "tokens": 0, "files": files}
    manifest = {
        "format": FORMAT, "seed": 0, "source": "parquet", "config": {},
        "tasks": {"risk": {"splits": splits, "features": FeatureEncoder().to_json()}},
        "tokenizer": {"sha256": "x", "vocab_size": 10, "max_length": 8},
    }  # fmt: skip
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root


def test_take_gives_rows_in_the_order_asked_across_shards(tmp_path: Path) -> None:
    shards = Prepared.open(str(make_prepared(tmp_path)), verify=True).shards("risk", "train")
    rows = np.array([6, 0, 3, 3, 2])
    found = shards.take(rows)
    assert found["n"].to_pylist() == rows.tolist()
    assert found["item"].to_pylist() == [[[i] * (i % 3)] for i in rows.tolist()]
    assert shards.take(rows[:0], columns=["n"]).num_rows == 0
    assert shards.num_rows == 7 and shards.column("n").to_pylist() == list(range(7))


def test_shards_travel_to_another_process_by_their_paths(tmp_path: Path) -> None:
    shards = Prepared.open(str(make_prepared(tmp_path, sizes=(2000,)))).shards("risk", "train")
    data = pickle.dumps(shards)
    assert len(data) < 1000
    copy: Shards = pickle.loads(data)
    assert copy.table().equals(shards.table())


def test_the_sha256_of_a_split_is_that_of_its_rows_and_catalogue(tmp_path: Path) -> None:
    def opened(name: str, **sizes: Any) -> Prepared:
        return Prepared.open(str(make_prepared(tmp_path / name, **sizes)))

    one, same, other = opened("a"), opened("b"), opened("c", sizes=(3, 5))
    assert one.rows_sha256("risk", "train") == same.rows_sha256("risk", "train")
    assert one.rows_sha256("risk", "train") != other.rows_sha256("risk", "train")
    assert one.rows_sha256("risk", "test") == other.rows_sha256("risk", "test")  # no row
    other.manifest["tasks"]["risk"]["items"] = {"sha256": "aa"}
    assert one.rows_sha256("risk", "test") != other.rows_sha256("risk", "test")


def test_an_empty_split_has_no_rows(tmp_path: Path) -> None:
    prepared = Prepared.open(str(make_prepared(tmp_path)))
    assert prepared.shards("risk", "test").num_rows == 0
    assert prepared.tasks == ("risk",) and prepared.features("risk") == FeatureEncoder()


def _truncate(root: Path) -> None:
    path = root / "risk" / "train-00001.arrow"
    path.write_bytes(path.read_bytes()[:-1])


def _flip(root: Path) -> None:
    path = root / "risk" / "train-00001.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def _edit(root: Path, **changes: Any) -> None:
    path = root / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda root: (root / "manifest.json").unlink(), "without manifest.json"),
        (lambda root: (root / "manifest.json").write_text("{"), "readable JSON"),
        (lambda root: _edit(root, format=1), f"got 1; this version reads format {FORMAT}"),
        (lambda root: _edit(root, tasks=None), "must be complete"),
        (lambda root: (root / "risk" / "train-00000.arrow").unlink(), "no such file"),
        (_truncate, "bytes instead of"),
        (_flip, "another SHA-256"),
    ],
)
def test_what_is_no_prepared_directory_is_a_one_line_error(
    tmp_path: Path, harm: Any, words: str
) -> None:
    harm(make_prepared(tmp_path))
    with pytest.raises(DataError, match=words) as caught:
        Prepared.open(str(tmp_path), verify=True)
    assert "\n" not in str(caught.value)


def test_unknown_tasks_splits_and_catalogues_are_named(tmp_path: Path) -> None:
    prepared = Prepared.open(str(make_prepared(tmp_path)))
    for call in (lambda: prepared.shards("ads", "train"), lambda: prepared.shards("risk", "dev"),
                 lambda: prepared.items("risk")):  # fmt: skip
        with pytest.raises(DataError):
            call()


def test_a_directory_that_is_not_there_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name in ("none", "file"):
        with pytest.raises(DataError, match="prepared data"):
            Prepared.open(str(tmp_path / name))


def test_a_foreign_arrow_type_in_a_shard_is_refused(tmp_path: Path) -> None:
    root = make_prepared(tmp_path, sizes=(1,))
    path = root / "risk" / "train-00000.arrow"
    write_shard(path, pa.table({"n": pa.array([{"a": 1}])}))
    with pytest.raises(DataError, match="only plain numbers"):
        Shards(root, [{"path": "risk/train-00000.arrow"}])
