"""What a frozen encoder's vectors take, and that the plan refuses more than a worker may hold."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from prepared_toy import PRICE, write_encoder, write_prepared

from rectrain.errors import ConfigError
from rectrain.model.encoder import encode
from rectrain.model.multitask import MultiTaskModel
from rectrain.train.build import new_model, open_data
from rectrain.train.config import RunConfig
from rectrain.train.frozen import cached_texts, keep_vectors
from rectrain.train.preflight import describe

HIDDEN = 16


def config(root: Path, **train: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "data": {"paths": [str(root / "data")], "tokens_per_micro_batch": 64},
            "model": {"encoder": str(root / "bert"), "dropout": 0},
            "train": {"freeze": "encoder", "num_steps": 2, **train},
        }
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_encoder(tmp_path / "bert")
    write_prepared(tmp_path / "data", tasks={"search_ranking": PRICE, "risk": PRICE}, num_rows=900)
    return tmp_path


@pytest.mark.usefixtures("one_process")
def test_vectors_and_keys_are_counted_as_they_are_held(root: Path) -> None:
    own = config(root)
    data = open_data(own)
    model = new_model(own, data)
    assert isinstance(model, MultiTaskModel)
    counted = cached_texts(own, data, widths=[HIDDEN])
    keep_vectors(model, own, data, device=torch.device("cpu"))

    known = model._known
    assert known is not None
    keys = sum(map(sys.getsizeof, known._place)) + sum(map(sys.getsizeof, known._place.values()))
    held = known._vectors.nbytes + keys + sys.getsizeof(known._place)
    assert held <= counted.num_bytes <= 1.4 * held
    assert known._vectors.equal(encode(model.encoder, counted.texts))


def test_the_plan_refuses_more_than_a_worker_may_hold(root: Path) -> None:
    counted = cached_texts(config(root), open_data(config(root)), widths=[HIDDEN])
    vectors = 4 * HIDDEN * len(counted.texts.lengths)
    assert describe(config(root, frozen_cache_gib=(counted.num_bytes + 1) / 2**30))
    for num_bytes in (vectors, counted.num_bytes - 1):  # the keys need memory too
        with pytest.raises(ConfigError, match="different texts") as caught:
            describe(config(root, frozen_cache_gib=num_bytes / 2**30))
        assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("one_process")
def test_kept_vectors_are_those_of_the_same_encoder_and_texts_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = config(root, vector_cache=str(root / "vectors"))
    data = open_data(own)

    def vectors(*, change: float = 0.0) -> torch.Tensor:
        model = new_model(own, data)
        assert isinstance(model, MultiTaskModel)
        with torch.no_grad():
            model.encoder.embeddings.word_embeddings.weight.add_(change)
        keep_vectors(model, own, data, device=torch.device("cpu"))
        assert model._known is not None
        return model._known._vectors

    made = vectors()
    (kept,) = (root / "vectors").iterdir()
    assert not vectors(change=0.5).equal(made)
    assert len(list((root / "vectors").iterdir())) == 2
    monkeypatch.setattr("rectrain.train.frozen._encode_all", None)  # not called again
    assert vectors().equal(made) and kept.exists()
