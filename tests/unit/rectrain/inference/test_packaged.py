"""A loaded package: rows in, scores and recommendations out, and every mistake in one line."""

from __future__ import annotations

import copy
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from packaged_toy import orders, searches, toy_parts, write_catalogue

import rectrain
from rectrain.data.batch import PackedTexts
from rectrain.data.shards import Prepared
from rectrain.errors import ConfigError, DataError, EncoderError, PackageError
from rectrain.inference import engine
from rectrain.inference.backends import Choice
from rectrain.inference.packaged import PackagedModel, publish_index
from rectrain.inference.predictor import Predictor
from rectrain.inference.rows import RowEncoder
from rectrain.model.encoder import encode
from rectrain.model.vocabulary import trim
from rectrain.package import Card, ModelParts, open_package, update_package, write_package
from rectrain.tasks import TASKS

CARD = Card(source="c" * 64, made=["Trained."])
USERS = [
    {"user_id": 1, "history": ["red mug", "blue lamp"], "exclude": ["i1", "i2", "gone"]},
    {"user_id": 2, "history": ["steel chair"]},
    {"user_id": 3},
]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> ModelParts:
    return toy_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory, parts: ModelParts) -> Prepared:
    return write_catalogue(tmp_path_factory.mktemp("catalogue"), parts, num_items=40)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, parts: ModelParts, catalogue: Prepared) -> Path:
    output = tmp_path_factory.mktemp("published") / "package"
    package = write_package(output, parts, card=CARD)
    return publish_index(package, {"recommendation": catalogue}).path


@pytest.fixture(scope="module")
def model(path: Path) -> PackagedModel:
    return rectrain.load(path)


@pytest.mark.parametrize(("task", "rows"), [("risk", orders(50)), ("search_ranking", searches(50))])
def test_predictions_are_the_models_scores_in_the_rows_order(
    model: PackagedModel, parts: ModelParts, task: str, rows: pa.Table
) -> None:
    plain = Predictor.of(parts)
    expected = plain.score(task, plain.encode(task, rows).prepared)
    assert model.predict(task, rows) == pytest.approx(expected, abs=1e-6)
    assert model.predict(task, rows.to_pylist()) == pytest.approx(expected, abs=1e-6)
    order = np.random.default_rng(0).permutation(50)
    shuffled = model.predict(task, rows.take(pa.array(order)))
    assert shuffled == pytest.approx(expected[order], abs=1e-6)
    assert np.ptp(expected) > 1e-4


def test_rows_may_have_other_keys_and_lack_what_is_optional(model: PackagedModel) -> None:
    full = {"user_id": "u", "item_text": "red mug", "price": 3, "label": 1, "mine": object}
    rows = [{"item_text": "red mug", "user_id": "u"}, full]
    both = model.predict("risk", rows)
    assert both[0] != both[1]
    assert both[0] == pytest.approx(model.predict("risk", rows[:1])[0], abs=1e-6)
    table = orders(3)
    numbered = table.append_column("input_row", pa.array([7, 7, 7]))  # as jobs.predict writes
    assert model.predict("risk", numbered).tolist() == model.predict("risk", table).tolist()
    assert model.predict("risk", []).shape == (0,)


def test_bad_rows_are_one_error_with_the_first_of_them(model: PackagedModel) -> None:
    rows = orders(9).to_pylist()
    rows[4]["price"], rows[7]["item_text"] = -1.0, None
    with pytest.raises(DataError, match=r"row 4 of risk: got price: out of range.*; 2 of 9 rows"):
        model.predict("risk", rows)
    rows = orders(9).to_pylist()
    rows[3]["price"], rows[5]["price"] = "cheap", ["1"]
    with pytest.raises(DataError, match=r"row 3 of risk: got price: got string.*; 2 of 9 rows"):
        model.predict("risk", rows)
    rows = orders(9).to_pylist()
    rows[2]["user_id"], rows[6]["user_id"] = 12, 13
    with pytest.raises(DataError, match=r"row 2 .* user_id: a str before.*; 2 of 9 rows"):
        model.predict("risk", rows)
    rows = orders(9).to_pylist()
    rows[3]["user_id"] = object()
    with pytest.raises(DataError, match="row 3 of risk: got user_id: got object"):
        model.predict("risk", rows)


def test_other_mistakes_are_named(model: PackagedModel, path: Path) -> None:
    with pytest.raises(DataError, match=r"ad_ctr.*trained on recommendation, search_ranking, risk"):
        model.predict("ad_ctr", [])
    with pytest.raises(DataError, match="call recommend"):
        model.predict("recommendation", USERS)
    with pytest.raises(DataError, match="column item_text of risk: got only user_id; this column"):
        model.predict("risk", [{"user_id": "a"}])
    with pytest.raises(DataError, match="none of its fields in prize"):
        model.predict("risk", [{"prize": 3}])
    good = orders(1).to_pylist()[0]
    for name, rows in {
        "str": ["red mug"], "NoneType": [good, None], "generator": (row for row in [good]),
        "dict": good, "int": 3, "RecordBatch": pa.RecordBatch.from_pylist([good]),
    }.items():  # fmt: skip
        with pytest.raises(DataError, match=f"risk: got {name}; must be a list of dictionaries"):
            model.predict("risk", rows)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="backend: got tensorflow; this package has torch on cpu"):
        rectrain.load(path, backend="tensorflow")
    cores = os.cpu_count() or 1
    for threads in (0, cores + 1, 1.5, "1", True):
        with pytest.raises(ConfigError, match=f"threads: got .*; must be .* 1 to {cores}, the cor"):
            rectrain.load(path, threads=threads)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="device: got tpu; must be one of cpu, cuda, auto"):
        rectrain.load(path, device="tpu")
    with pytest.raises(DataError, match=r"ad_ctr.*trained on recommendation, search_ranking, risk"):
        model.recommend(USERS, task="ad_ctr")
    with pytest.raises(DataError, match=r"task risk: got recommend; .*call predict"):
        model.recommend(USERS, task="risk")


def test_recommendations_are_the_best_items_that_are_allowed(
    model: PackagedModel, parts: ModelParts, catalogue: Prepared
) -> None:
    plain = Predictor.of(parts)
    items = catalogue.items("recommendation").table()
    table = pa.table({key: [user.get(key) for user in USERS] for key in USERS[0]})
    users = plain.encode("recommendation", table).prepared
    scores = plain.embed("recommendation", users)[0] @ plain.embed("recommendation", items)[1].T
    ids = items["item_id"].to_pylist()
    for row, user in enumerate(USERS):
        allowed = [n for n, item in enumerate(ids) if item not in user.get("exclude", ())]
        allowed = [n for n in allowed if ids[n] != "i7"]
        best = sorted(allowed, key=lambda n: -scores[row, n])[:5]
        found = model.recommend(USERS, k=5, out_of_stock=["i7"])[row]
        assert [one.item_id for one in found] == [ids[n] for n in best]
        assert [one.score for one in found] == pytest.approx(scores[row, best].tolist(), abs=1e-5)
    diverse = model.recommend(USERS, k=5, diversity=0.9)
    assert [len({one.item_id for one in row}) for row in diverse] == [5, 5, 5]
    assert model.recommend([]) == []


def test_items_are_tokenised_by_the_packages_own_tokenizer(
    tmp_path: Path, path: Path, parts: ModelParts
) -> None:
    """Prepared with other token ids, as before a vocabulary was trimmed."""
    same = write_catalogue(tmp_path / "same", parts, num_items=40)
    items = same.items("recommendation").table()
    other = items.set_column(
        items.column_names.index("item"), "item", pa.array([[[2, 3]]] * 40, items["item"].type)
    )
    index = rectrain.load(path).index("recommendation")
    predictor = Predictor.of(parts)
    tokens = predictor.tokenised("recommendation", other)
    assert tokens["item"].to_pylist() == items["item"].to_pylist()
    assert tokens["num_tokens"].to_pylist() == items["num_tokens"].to_pylist()
    assert predictor.embed("recommendation", tokens)[1] == pytest.approx(index.vectors, abs=1e-6)
    assert index.engine == predictor.engine == "torch"


def test_an_index_is_built_anew_only_for_another_catalogue(
    tmp_path: Path, path: Path, parts: ModelParts, catalogue: Prepared
) -> None:
    package = open_package(path)
    assert publish_index(package, {"recommendation": catalogue}) is package
    copy = write_package(tmp_path / "package", parts, card=CARD)
    first = publish_index(copy, {"recommendation": catalogue})
    newer = write_catalogue(tmp_path / "newer", parts, num_items=7, seed=5)
    second = publish_index(first, {"recommendation": newer})
    assert second.version == first.version == package.version
    with pytest.raises(PackageError, match=r"items/recommendation.safetensors altered.*try again"):
        update_package(first, {"curve.png": b"late"})  # made of what is no longer there
    assert open_package(copy.path).files == second.files
    assert len(rectrain.load(second.path).index("recommendation").ids) == 7


def test_an_index_of_another_model_is_refused(tmp_path: Path, path: Path) -> None:
    other = write_package(tmp_path / "other", toy_parts(tmp_path, seed=1), card=CARD)
    with pytest.raises(PackageError, match="no item index of recommendation"):
        rectrain.load(other.path).recommend(USERS)
    foreign = (path / "items" / "recommendation.safetensors").read_bytes()
    update_package(other, {"items/recommendation.safetensors": foreign})
    with pytest.raises(PackageError, match=rf"got model .*; must be of model {other.version}"):
        rectrain.load(other.path)


def test_a_model_without_a_catalogue_says_so(tmp_path: Path) -> None:
    package = write_package(tmp_path / "package", toy_parts(tmp_path, tasks=("risk",)), card=CARD)
    with pytest.raises(DataError, match="tasks with a catalogue are none"):
        rectrain.load(package.path).recommend(USERS)


def test_texts_that_the_trimmed_vocabulary_lacks_are_counted(
    tmp_path: Path, parts: ModelParts
) -> None:
    """A trimmed package scores kept texts as before, and says how many fall back."""
    keep = np.array([n for piece, n in parts.tokenizer.get_vocab().items() if piece != "lamp"])
    trimmed = trim(parts.tokenizer, parts.model.encoder, keep)
    model = copy.deepcopy(parts.model)
    model.encoder = trimmed.bert
    small = replace(parts, model=model, tokenizer=trimmed.tokenizer, full_tokenizer=parts.tokenizer)
    loaded = rectrain.load(write_package(tmp_path / "package", small, card=CARD).path)
    assert np.isnan(loaded.fallback_share)
    kept = [{"user_id": "u", "item_text": text} for text in ("red mug", "blue chair", "shirt")]
    whole = Predictor.of(parts)
    table = pa.Table.from_pylist(kept)
    expected = whole.score("risk", whole.encode("risk", table).prepared)
    assert loaded.predict("risk", kept) == pytest.approx(expected, abs=1e-6)
    assert loaded.fallback_share == 0
    loaded.predict("risk", [{"user_id": "u", "item_text": "blue lamp"}])
    assert loaded.fallback_share == 0.25


def test_texts_are_counted_by_all_threads(parts: ModelParts) -> None:
    """A server reads requests in threads; a text that one of them loses is a wrong share."""
    keep = np.array([n for piece, n in parts.tokenizer.get_vocab().items() if piece != "lamp"])
    trimmed = trim(parts.tokenizer, parts.model.encoder, keep)
    rows = RowEncoder(parts.features, trimmed.tokenizer, parts.limits, parts.tokenizer)
    table = pa.table({"user_id": ["a", "b"], "item_text": ["red mug", "blue lamp"]})

    def read() -> None:
        for _ in range(200):
            rows.encode(TASKS["risk"], table)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert rows.num_read == (8 * 200 * 2, 8 * 200)
    assert rows.fallback_share == 0.5


class Counting:
    """The model's own encoder as a backend that counts texts; `scale` makes another of it."""

    name = "counting"

    def __init__(self, parts: ModelParts, *, width: int = 16, scale: float = 1.0) -> None:
        self.width = width
        self._bert, self._scale = parts.model.encoder, scale
        self.num_texts = 0

    def encode(self, texts: PackedTexts) -> torch.Tensor:
        self.num_texts += len(texts.lengths)
        return encode(self._bert, texts) * self._scale


def test_a_backend_gives_the_vectors_and_the_cache_asks_it_once(parts: ModelParts) -> None:
    rows = Predictor.of(parts).encode("risk", orders(30)).prepared
    expected = Predictor.of(parts).score("risk", rows)
    encoder = Counting(parts)
    predictor = Predictor.of(parts, encoder=encoder, cached_texts=100)
    for _ in range(2):
        assert predictor.score("risk", rows) == pytest.approx(expected, abs=1e-6)
    assert encoder.num_texts == len(set(orders(30)["item_text"].to_pylist()))
    other = Predictor.of(parts, encoder=Counting(parts, scale=-1.0)).score("risk", rows)
    assert np.abs(other - expected).max() > 1e-3
    with pytest.raises(EncoderError, match=r"counting: got vectors of size 4; .* size 16"):
        Predictor.of(parts, encoder=Counting(parts, width=4))


def test_the_fastest_of_the_packages_engines_runs(
    tmp_path: Path, parts: ModelParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = tmp_path / "graphs"
    graphs.mkdir()
    for name in ("openvino.xml", "openvino.bin", "onnx-int8.onnx"):
        (graphs / name).touch()
    opened: list[tuple[str, int]] = []
    threads = torch.get_num_threads()

    def open_graph(graph: Path, *, threads: int) -> Counting:
        opened.append((graph.name, threads))
        encoder = Counting(parts)
        encoder.name = graph.stem
        return encoder

    fastest = Choice("onnx-int8", {"onnx-int8": 3.0, "torch": 2.0, "openvino": 1.0}, {})
    monkeypatch.setattr(engine, "open_openvino", open_graph)
    monkeypatch.setattr(engine, "open_onnx", open_graph)
    monkeypatch.setattr(engine, "choose", lambda candidates, texts: fastest)
    package = write_package(tmp_path / "package", parts, card=CARD, graphs=graphs.iterdir())

    chosen = rectrain.load(package.path)
    assert (chosen.engine.encoder.name, chosen.engine.choice) == ("onnx-int8", fastest)
    named = rectrain.load(package.path, backend="openvino", threads=1)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(threads)
    assert (named.engine.encoder.name, named.engine.choice) == ("openvino", None)
    assert opened == [("onnx-int8.onnx", threads), ("openvino.xml", 1)]
    assert rectrain.load(package.path, backend="torch").engine.encoder.name == "torch"
    with pytest.raises(ConfigError, match="this package has torch, onnx-int8, openvino on cpu"):
        rectrain.load(package.path, backend="onnx")
    expected = rectrain.load(package.path, backend="torch").predict("risk", orders(9))
    assert named.predict("risk", orders(9)) == pytest.approx(expected, abs=1e-6)
