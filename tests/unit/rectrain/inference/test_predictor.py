"""The predictor against the model's own forward, and rows checked and encoded as in training."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import BertTokenizerFast

from rectrain.data.batch import build_micro_batch, fill_columns
from rectrain.data.encoding import FeatureEncoder
from rectrain.data.loader import empty_tables
from rectrain.errors import DataError, EncoderError, ResourceError
from rectrain.inference.predictor import Predictor, check_tokenizer, pick_device
from rectrain.inference.rows import RowEncoder, TextLimits
from rectrain.model.config import ModelConfig
from rectrain.model.encoder import load_encoder
from rectrain.model.multitask import MultiTaskModel
from rectrain.tasks import TASKS

WORDS = ["red", "blue", "green", "steel", "cotton", "mug", "shirt", "lamp", "chair", "cable"]
FEATURES = {
    "recommendation": FeatureEncoder(numeric={"price": (0.0, 5.0, 9.0)}),
    "risk": FeatureEncoder(
        numeric={"price": (0.0, 1.0, 50.0), "clicks": (0.0, 1.0)},
        categorical={"country": ("DE", "FR")},
        vectors={"image": 2},
    ),
}


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    path = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    tokenizer = BertTokenizerFast(vocab=str(path))
    model = MultiTaskModel(
        load_encoder("tiny", vocab_size=len(tokenizer)),
        tasks={name: TASKS[name] for name in FEATURES},
        features=FEATURES,
        config=ModelConfig(encoder="tiny"),
    )
    with torch.no_grad():  # heads start at zero in part; every weight must count here
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    rows = RowEncoder(FEATURES, tokenizer, {name: TextLimits(8, 3) for name in FEATURES})
    return Predictor(model, features=FEATURES, rows=rows)


def orders(count: int, *, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "user_id": [f"u{row % 7}" for row in range(count)],
            "item_text": [" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(count)],
            "price": rng.uniform(0, 50, count),
            "clicks": rng.uniform(0, 1, count),
            "country": rng.choice(["DE", "FR", "IT"], count),
            "image": pa.array(list(rng.normal(size=(count, 2)).astype(np.float32))),
        }
    )


def test_scores_equal_the_models_own_forward_of_all_rows_at_once(predictor: Predictor) -> None:
    rows = predictor.encode("risk", orders(60)).prepared
    tables = empty_tables(FEATURES)
    tables["risk"] = fill_columns(rows, like=tables["risk"])
    batch = build_micro_batch(tables, counts={"recommendation": 0, "risk": 60})
    with torch.no_grad():
        expected = predictor.model(batch, mode="score")["risk"].sigmoid().numpy()
    scores = predictor.score("risk", rows)
    assert scores == pytest.approx(expected, abs=1e-6)
    assert np.ptp(scores) > 1e-3


def test_confident_probabilities_stay_apart(predictor: Predictor) -> None:
    rows = predictor.encode("risk", orders(60)).prepared
    usual = predictor.score("risk", rows)
    last = predictor.model.tasks["risk"].head.logit.deep[-1]  # type: ignore[union-attr, index]
    with torch.no_grad():
        last.bias.add_(20.0)
        sure = predictor.score("risk", rows)
        last.bias.sub_(20.0)
    assert sure.min() > 0.999 and sure.max() < 1
    assert len(np.unique(sure)) == len(np.unique(usual))


def test_a_score_does_not_depend_on_the_rows_beside_it(predictor: Predictor) -> None:
    rows = predictor.encode("risk", orders(60)).prepared
    order = np.random.default_rng(1).permutation(60)
    together = predictor.score("risk", rows.take(pa.array(order)))
    alone = [predictor.score("risk", rows.slice(int(row), 1))[0] for row in order]
    assert together == pytest.approx(alone, abs=1e-6)


def test_bad_rows_are_set_aside_with_their_number_and_reason(predictor: Predictor) -> None:
    table = orders(6)
    price = table["price"].to_pylist()
    price[1] = -3.0
    image = table["image"].to_pylist()
    image[4] = [1.0, 2.0, 3.0]
    table = table.set_column(2, "price", pa.array(price))
    table = table.set_column(5, "image", pa.array(image, pa.list_(pa.float32())))
    encoded = predictor.encode("risk", table, first=100)
    assert encoded.number.to_pylist() == [100, 102, 103, 105]
    assert encoded.rejects["row"].to_pylist() == [101, 104]
    assert encoded.rejects["reason"].to_pylist() == [
        "price: out of range, must be 0 or more",
        "image: must have size 2",
    ]
    good = predictor.encode("risk", table.take(pa.array([0, 2, 3, 5])))
    assert encoded.prepared["item"].equals(good.prepared["item"])


def test_a_users_vector_reads_the_last_texts_of_the_history_alone(predictor: Predictor) -> None:
    users = pa.table(
        {
            "user_id": [1, 2, 3],
            "history": [["red mug", "lamp", "chair", "cable"], ["lamp", "chair", "cable"], None],
        }
    )
    encoded = predictor.encode("recommendation", users)
    queries, _ = predictor.embed("recommendation", encoded.prepared)
    assert queries.shape == (3, 129)
    assert queries[0] == pytest.approx(queries[1], abs=1e-6)
    assert np.abs(queries[0] - queries[2]).max() > 1e-3


def test_mistakes_are_named(predictor: Predictor) -> None:
    rows = predictor.encode("risk", orders(2)).prepared
    with pytest.raises(DataError, match=r"search_ranking.*trained on recommendation, risk"):
        predictor.score("search_ranking", rows)
    with pytest.raises(DataError, match="column item_text of risk"):
        predictor.encode("risk", orders(2).drop_columns(["item_text"]))
    with pytest.raises(EncoderError, match="tokenizer of data/x"):
        check_tokenizer("a" * 64, {"tokenizer_sha256": "b" * 64}, where="data/x")


def test_a_gpu_that_is_not_there_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (pick_device("auto"), pick_device("cpu")) == ("cpu", "cpu")
    with pytest.raises(ResourceError, match="no GPU"):
        pick_device("cuda")
