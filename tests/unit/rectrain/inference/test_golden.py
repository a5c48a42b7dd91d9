"""Golden requests: made up, answered at publication, and any deviation is seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from packaged_toy import toy_parts

import rectrain
from rectrain.errors import PackageError
from rectrain.inference.golden import GOLDEN, Deviation, made_up, publish_golden, read_golden
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
    read_golden(package).check(model, tolerance=1e-6)


def test_publishing_twice_changes_nothing(package):
    assert publish_golden(package) is package


def test_the_same_model_gets_the_same_requests(model):
    assert made_up(model) == made_up(model)


def test_texts_are_as_short_and_as_long_as_the_model_reads(model):
    case = next(case for case in made_up(model).cases if case.task == "search_ranking")
    sizes = [len(row["query"].split()) for row in case.rows]
    assert sizes[0] == 1 and sizes[-1] >= 12


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


@pytest.mark.parametrize(
    "data", [b"{}", b"no json", b'{"format": 2, "model": "x", "cases": []}'], ids=str
)
def test_an_altered_file_is_refused(tmp_path: Path, data):
    written = write_package(tmp_path / "package", toy_parts(tmp_path), card=CARD)
    with pytest.raises(PackageError, match=r"golden\.json"):
        read_golden(update_package(written, {GOLDEN: data}))


def test_answers_of_another_model_are_refused(package, tmp_path: Path):
    other = write_package(tmp_path / "package", toy_parts(tmp_path, seed=5), card=CARD)
    with pytest.raises(PackageError, match="answers of model"):
        read_golden(update_package(other, {GOLDEN: (package.path / GOLDEN).read_bytes()}))
