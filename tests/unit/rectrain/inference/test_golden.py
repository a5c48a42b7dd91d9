"""Golden requests: made up, answered at publication, and any deviation is seen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from packaged_toy import toy_parts

import rectrain
from rectrain.errors import PackageError
from rectrain.inference.golden import (
    GOLDEN,
    Case,
    Deviation,
    made_up,
    publish_golden,
    read_golden,
)
from rectrain.inference.packaged import PackagedModel
from rectrain.package import Card, Package, open_package, update_package, write_package

CARD = Card(source="0" * 64, made=["a test"])
TASKS = ("recommendation", "search_ranking", "ad_ctr", "risk")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    folder = tmp_path_factory.mktemp("golden")
    written = write_package(folder / "package", toy_parts(folder, tasks=TASKS), card=CARD)
    return publish_golden(written)


@pytest.fixture
def model(package: Package) -> PackagedModel:
    return rectrain.load(package.path)


def test_a_package_brings_requests_of_every_task_and_their_answers(package):
    golden = read_golden(open_package(package.path))
    assert golden is not None
    assert [case.task for case in golden.cases] == list(TASKS)
    assert all(len(case.scores["torch"]) == len(case.rows) for case in golden.cases)
    assert golden.has("torch") and not golden.has("openvino-int8")


def test_the_model_that_was_published_passes(package, model):
    golden = read_golden(package)
    golden.check(model, tolerance=1e-6)
    for published, now in zip(golden.cases, golden.own(model).cases, strict=True):
        assert now.scores["torch"] == pytest.approx(published.scores["torch"], abs=1e-6)


def test_publishing_twice_changes_nothing(package):
    assert publish_golden(package) is package


def test_the_same_model_gets_the_same_requests(model):
    assert made_up(model) == made_up(model)


def test_texts_are_as_short_and_as_long_as_the_model_reads(model):
    case = next(case for case in made_up(model).cases if case.task == "search_ranking")
    sizes = [len(row["query"].split()) for row in case.rows]
    assert sizes[0] == 1 and sizes[-1] >= 12


def case(**scores: tuple[float, ...]) -> Case:
    return Case("risk", ({}, {}), {name.replace("_", "-"): both for name, both in scores.items()})


def test_a_graph_may_be_off_on_another_machine_by_four_times_its_distance_from_float32():
    int8 = case(torch=(0.5, 20.0), onnx_int8=(0.51, 20.1))
    assert int8.allowed("torch", tolerance=1e-4) == pytest.approx(2e-3)
    assert int8.allowed("onnx-int8", tolerance=1e-4) == pytest.approx(20.1e-4 + 0.4)
    assert case(torch=(0.5, 0.2)).allowed("torch", tolerance=1e-4) == pytest.approx(1e-4)


def test_what_a_process_answered_itself_it_must_answer_ever_after(package, model):
    golden = read_golden(package)
    far = [
        replace(one, scores={name: tuple(s + 5 for s in both) for name, both in one.scores.items()})
        for one in golden.cases
    ]
    own = replace(golden, cases=tuple(far)).own(model)
    own.check(model, tolerance=1e-9)
    assert [list(one.scores) for one in own.cases] == [["torch"]] * len(TASKS)


def test_backends_that_are_missing_are_added_and_others_kept(package):
    golden = read_golden(package)
    known = {"openvino-int8": (1.0,) * 6}
    cases = tuple(replace(one, scores=known) for one in golden.cases)
    half = update_package(package, {GOLDEN: replace(golden, cases=cases).to_json()})
    try:
        filled = read_golden(publish_golden(half))
        assert filled.backends == ("openvino-int8", "torch")
        assert filled.cases[0].scores["torch"] == golden.cases[0].scores["torch"]
        assert read_golden(publish_golden(half, anew=True)) == golden
    finally:
        update_package(open_package(package.path), {GOLDEN: golden.to_json()})


@pytest.mark.parametrize("part", ["encoder.embeddings", "tasks.risk"])
def test_a_weight_that_changed_is_seen(package, model, part):
    golden = read_golden(package)
    with torch.no_grad():
        for name, value in model.predictor.model.named_parameters():
            if name.startswith(part):
                value.mul_(1.5)
    with pytest.raises(Deviation, match="scores that differ"):
        golden.check(model, tolerance=1e-4)


def test_vectors_that_are_kept_do_not_hide_a_broken_encoder(package, model):
    golden = read_golden(package)
    rows = [dict(row) for row in golden.cases[1].rows]
    model.predict("search_ranking", rows)  # their vectors are kept now
    with torch.no_grad():
        model.predictor.model.encoder.embeddings.word_embeddings.weight.zero_()
    with pytest.raises(Deviation):
        golden.check(model, tolerance=1e-4)


def test_what_is_no_number_is_a_deviation(package, model):
    with torch.no_grad():
        model.predictor.model.encoder.embeddings.word_embeddings.weight.fill_(float("nan"))
    with pytest.raises(Deviation, match="inf"):
        read_golden(package).check(model, tolerance=1e-4)


def altered(**changes: Any) -> bytes:
    """A golden file of the toy package with its first case changed."""
    first = {"task": "risk", "rows": [{"item_text": "a"}], "scores": {"torch": [0.5]}, **changes}
    return json.dumps({"format": 1, "model": "MODEL", "cases": [first]}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b"no json",
        b'{"format": 2, "model": "x", "cases": []}',
        b'{"format": 1, "model": "MODEL", "cases": []}',
        altered(task="weather"),
        altered(scores={}),
        altered(scores={"torch": [0.5, 0.5]}),
        altered(rows=[{}] * 1000),
        altered(scores={"torch": ["NaN"]}),
        altered(rows=[{"item_text": "a" * 1_000_000}]),
    ],
    ids=lambda data: data[:90].decode(),
)
def test_an_altered_file_is_refused(tmp_path: Path, data):
    written = write_package(tmp_path / "package", toy_parts(tmp_path), card=CARD)
    data = data.replace(b"MODEL", written.version.encode())
    with pytest.raises(PackageError, match=r"golden\.json.*--refresh-golden"):
        read_golden(update_package(written, {GOLDEN: data}))


@pytest.mark.parametrize(
    "row", [{"item_text": 5}, {}, {"item_text": "a", "price": [1]}, {"item_text": "a", "price": -1}]
)
def test_rows_that_the_model_can_not_read_are_refused(tmp_path: Path, row):
    written = write_package(tmp_path / "package", toy_parts(tmp_path), card=CARD)
    data = altered(rows=[row]).replace(b"MODEL", written.version.encode())
    golden = read_golden(update_package(written, {GOLDEN: data}))
    with pytest.raises(PackageError, match=r"golden\.json.*as it was published") as refused:
        golden.check(rectrain.load(written.path), tolerance=1e-4)
    assert not isinstance(refused.value, Deviation)


def test_answers_of_another_model_are_refused(package, tmp_path: Path):
    other = write_package(tmp_path / "package", toy_parts(tmp_path, seed=5), card=CARD)
    with pytest.raises(PackageError, match="answers of model"):
        read_golden(update_package(other, {GOLDEN: (package.path / GOLDEN).read_bytes()}))
