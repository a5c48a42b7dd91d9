"""A package holds a whole model, and no other, altered or foreign folder is taken for one."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packaged_toy import orders, searches, toy_parts
from transformers import AutoModel, AutoTokenizer

from rectrain.data.batch import PackedTexts
from rectrain.errors import PackageError, StorageError
from rectrain.inference.predictor import Predictor
from rectrain.metrics import Interval
from rectrain.model.encoder import encode
from rectrain.package import (
    Card,
    ModelParts,
    num_head_bytes,
    open_package,
    update_package,
    write_package,
)
from rectrain.package.folder import _sealed, entry, version_of
from rectrain.train.storage import Store

CARD = Card(source="c" * 64, made=["Trained jointly.", "Cut to one layer."], base_model="minilm")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> ModelParts:
    return toy_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, parts: ModelParts) -> Path:
    graphs = tmp_path_factory.mktemp("graphs")
    (graphs / "openvino-int8.xml").write_text("<net/>")
    (graphs / "openvino-int8.bin").write_bytes(b"\x00\x01")
    output = tmp_path_factory.mktemp("published") / "package"
    return write_package(output, parts, card=CARD, graphs=graphs.iterdir()).path


@pytest.fixture
def package(published: Path, tmp_path: Path) -> Path:
    """A copy to alter."""
    return Path(shutil.copytree(published, tmp_path / "package"))


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def seal(package: Path, **changes: Any) -> None:
    """Changes the manifest as somebody would who knows how it is made."""
    manifest = json.loads((package / "manifest.json").read_bytes())
    del manifest["sha256"]
    (package / "manifest.json").write_bytes(_sealed({**manifest, **changes}))


def test_heads_in_int8_are_small_near_and_read_back(parts: ModelParts, tmp_path: Path) -> None:
    small = parts.with_int8_heads()
    read = write_package(tmp_path / "package", small, card=CARD).read()
    assert read.int8_heads and not parts.int8_heads
    assert num_head_bytes(small) < num_head_bytes(parts) / 2  # tiny rows: scales count
    exact, rounded = (each.model.state_dict() for each in (parts, small))
    for name, tensor in read.model.state_dict().items():
        torch.testing.assert_close(tensor, rounded[name], rtol=1e-6, atol=0)
        if tensor.ndim > 1 and not name.startswith("encoder."):
            step = exact[name].abs().flatten(1).amax(1).clamp_min(1e-12) / 127
            gap = (tensor - exact[name]).abs().flatten(1).amax(1)
            assert (gap <= 0.5001 * step).all()
        else:
            assert torch.equal(tensor, exact[name])


def test_a_model_read_back_scores_as_the_one_written(published: Path, parts: ModelParts) -> None:
    opened = open_package(published)
    assert opened.tasks == ("recommendation", "search_ranking", "risk")
    assert list(opened.graphs) == ["openvino-int8"] and opened.indexes == {}
    before, after = Predictor.of(parts), Predictor.of(opened.read())
    for task, rows in (("risk", orders(40)), ("search_ranking", searches(40))):
        expected = before.score(task, before.encode(task, rows).prepared)
        assert np.array_equal(after.score(task, after.encode(task, rows).prepared), expected)
        assert np.ptp(expected) > 1e-4
        assert after.fields(task) == before.fields(task)


def test_transformers_reads_the_encoder(published: Path, parts: ModelParts) -> None:
    tokens = AutoTokenizer.from_pretrained(published / "encoder")("red mugs", return_tensors="pt")
    with torch.no_grad():
        found = AutoModel.from_pretrained(published / "encoder")(**tokens).last_hidden_state.mean(1)
        ids = tokens["input_ids"][0]
        own = encode(parts.model.encoder, PackedTexts(ids, torch.tensor([len(ids)])))
    assert torch.allclose(found, own, atol=1e-6)


def test_an_altered_file_is_refused_by_name(package: Path) -> None:
    listed = [path for path in files(package) if path.name != "manifest.json"]
    assert len(listed) > 8
    for path in listed:
        data, name = path.read_bytes(), str(path.relative_to(package))
        for place in (0, len(data) // 2, len(data) - 1):
            flipped = bytearray(data)
            flipped[place] ^= 1
            path.write_bytes(flipped)
            with pytest.raises(PackageError, match="altered") as error:
                open_package(package)
            assert f"got {name} altered" in str(error.value)
        for cut in (data[:-1], data + b"\n", b""):
            path.write_bytes(cut)
            with pytest.raises(PackageError, match=f"{len(cut):,} bytes; {len(data):,} were"):
                open_package(package)
        path.unlink()
        with pytest.raises(PackageError, match=f"missing: {name}"):
            open_package(package)
        path.write_bytes(data)
    open_package(package)


def test_no_byte_of_the_manifest_may_change(package: Path) -> None:
    path = package / "manifest.json"
    data = path.read_bytes()
    for place in range(0, len(data), 3):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(PackageError):
            open_package(package)
    for cut in (data[: len(data) // 2], data[:-1], data + b" ", b""):
        path.write_bytes(cut)
        with pytest.raises(PackageError):
            open_package(package)


@pytest.mark.parametrize("name", ["more.txt", ".hidden", "encoder/pytorch_model.bin", "x/y.json"])
def test_an_added_file_is_refused(package: Path, name: str) -> None:
    (package / name).parent.mkdir(exist_ok=True)
    (package / name).write_bytes(pickle.dumps({}))
    with pytest.raises(PackageError, match=f"unexpected: {name}"):
        open_package(package)


def test_a_linked_folder_is_refused(package: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (package / "linked").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PackageError, match="unexpected: linked"):
        open_package(package)


def test_a_file_that_runs_code_is_refused_even_when_the_manifest_has_it(package: Path) -> None:
    data = pickle.dumps({})
    (package / "encoder" / "pytorch_model.bin").write_bytes(data)
    listed = json.loads((package / "manifest.json").read_bytes())["files"]
    seal(package, files={**listed, "encoder/pytorch_model.bin": entry(data)})
    with pytest.raises(
        PackageError, match=r"foreign: encoder/pytorch_model\.bin; only safetensors"
    ):
        open_package(package)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"files": None}, "manifest.json without a right files"),
        (
            {"files": {"tasks.json": {"bytes": -1, "sha256": "0" * 64}}},
            "a right files.tasks.json.b",
        ),
        ({"tasks": "risk"}, "manifest.json without a right tasks"),
        ({"version": "0" * 64}, "another version"),
        ({"files": {"../mine.json": entry(b"")}}, r"missing: \.\./mine\.json"),
        ({"files": {"encoder/adapter_config.json": entry(b"")}}, "missing: encoder/adapter_config"),
    ],
)
def test_a_manifest_that_was_made_up_is_one_line(
    package: Path, changes: dict[str, Any], said: str
) -> None:
    seal(package, **changes)
    with pytest.raises(PackageError, match=said):
        open_package(package)


def test_a_manifest_too_deep_to_read_is_one_line(package: Path) -> None:
    (package / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(PackageError, match=r"altered manifest\.json; must be JSON"):
        open_package(package)


@pytest.mark.parametrize("name", ["encoder/adapter_config.json", "picture.svg", "graphs/x.py"])
def test_only_known_files_are_packaged(package: Path, name: str) -> None:
    """transformers would read the first, and a browser run what stands in the second."""
    (package / name).write_bytes(b"{}")
    listed = json.loads((package / "manifest.json").read_bytes())["files"]
    seal(package, files={**listed, name: entry(b"{}")})
    with pytest.raises(PackageError, match=f"foreign: {name}"):
        open_package(package)


def test_folders_that_are_no_packages_are_named(tmp_path: Path, package: Path) -> None:
    def refusal(path: Path) -> str:
        with pytest.raises(PackageError) as error:
            open_package(path)
        return str(error.value)

    (tmp_path / "empty").mkdir()
    assert "no such folder" in refusal(tmp_path / "absent")
    assert "got no manifest.json" in refusal(tmp_path / "empty")
    (tmp_path / "empty" / "manifest.json").write_text('{"format": 1, "files": {}}')  # a checkpoint
    assert "got another manifest.json" in refusal(tmp_path / "empty")
    seal(package, format=2, written_by="9.1")
    assert "got format 2; this version reads format 1; fix: use rectrain 9.1" in refusal(package)


def test_tasks_of_another_version_are_one_line(package: Path) -> None:
    described = json.loads((package / "tasks.json").read_bytes())
    described["tasks"]["risk"]["spec"]["head"] = "from the future"
    data = json.dumps(described).encode()
    (package / "tasks.json").write_bytes(data)
    listed = json.loads((package / "manifest.json").read_bytes())["files"]
    listed["tasks.json"] = entry(data)
    seal(package, files=listed, version=version_of(listed), written_by="9.1")
    opened = open_package(package)
    with pytest.raises(PackageError, match=r"head against sides.*fix: use rectrain 9\.1"):
        opened.read()


def test_only_packages_are_replaced_and_on_demand(
    package: Path, tmp_path: Path, parts: ModelParts
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(PackageError, match="something else that is there"):
        write_package(tmp_path / "mine", parts, card=CARD, overwrite=True)
    with pytest.raises(PackageError, match="--overwrite"):
        write_package(package, parts, card=CARD)
    other = toy_parts(tmp_path / "other", seed=1)
    before = open_package(package).version
    assert write_package(package, other, card=CARD, overwrite=True).version != before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "other", "package"]


@pytest.mark.parametrize("broken", ["write", "sync", "rename"])
def test_a_write_that_fails_leaves_the_old_package(
    package: Path, tmp_path: Path, parts: ModelParts, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    before = open_package(package)
    calls = []
    inner = getattr(Store, broken)

    def fail_at_the_second(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return inner(*given)

    with monkeypatch.context() as patch:
        patch.setattr(Store, broken, fail_at_the_second)
        with pytest.raises(StorageError, match="No space left"):
            write_package(package, parts, card=CARD, overwrite=True)
    assert open_package(package).manifest == before.manifest
    assert [path.name for path in tmp_path.iterdir()] == ["package"]


def test_a_draft_of_a_killed_process_goes_with_the_next_write(
    package: Path, tmp_path: Path, parts: ModelParts
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    living = os.getppid()
    names = [f".package.draft-{socket.gethostname()}-{process}" for process in (ended.pid, living)]
    for name in (*names, ".package.draft-elsewhere-1"):  # another machine's is not known to be left
        (tmp_path / name / "encoder").mkdir(parents=True)
    write_package(package, parts, card=CARD, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {
        "package",
        names[1],
        ".package.draft-elsewhere-1",
    }


def test_an_update_keeps_the_version_and_the_other_files(package: Path) -> None:
    before = open_package(package)
    after = update_package(before, {"curve.png": b"\x89PNG"})
    assert after.version == before.version
    assert after.files == {**before.files, "curve.png": entry(b"\x89PNG")}
    assert update_package(after, {"curve.png": b"\x89PNG"}) is after
    with pytest.raises(AssertionError, match="changes no weights"):
        update_package(after, {"heads.safetensors": b""})


def test_the_same_model_has_the_same_version(tmp_path: Path, published: Path) -> None:
    again = write_package(tmp_path / "again", toy_parts(tmp_path), card=CARD)
    assert again.version == open_package(published).version


def test_no_file_tells_of_the_machine_that_wrote_it(tmp_path: Path) -> None:
    package = write_package(tmp_path / "package", toy_parts(tmp_path), card=CARD)
    for path in files(package.path):
        assert str(tmp_path).encode() not in path.read_bytes(), path


def test_the_card_says_how_good_the_model_is_and_how_it_was_made(
    tmp_path: Path, parts: ModelParts
) -> None:
    card = Card(
        source="c" * 64,
        made=["Trained jointly.", "Cut to one layer."],
        metrics={"risk": {"auc": Interval(0.8, 0.75, 0.85), "ece": 0.01}},
        measured="On the test split.",
    )
    picture = {"curve.png": b"\x89PNG"}
    package = write_package(tmp_path / "package", parts, card=card, pictures=picture)
    text = (package.path / "README.md").read_text()
    for line in (
        "1. Trained jointly.",
        "2. Cut to one layer.",
        "| risk | auc | 0.8000 [0.7500, 0.8500] |",
        "| risk | ece | 0.0100 |",
        "| search_ranking | ndcg@10 | not measured |",
        "On the test split.",
        "![curve](curve.png)",
        'model.predict("risk", rows)',
        "model.recommend(rows, k=10)",
    ):
        assert line in text.splitlines(), line
    assert package.manifest["made"] == card.made and package.version[:12] in text
