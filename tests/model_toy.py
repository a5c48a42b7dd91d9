"""Fixtures: small random micro-batches and models; a conftest imports those it offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from rectrain.data.batch import (
    MicroBatch,
    Negatives,
    PackedTexts,
    build_micro_batch,
    empty_table,
)
from rectrain.data.encoding import FeatureEncoder
from rectrain.model.config import ModelConfig
from rectrain.model.encoder import load_encoder
from rectrain.model.multitask import MultiTaskModel
from rectrain.model.spec import TaskSpec
from rectrain.tasks import TASKS

_VOCAB_SIZE = 50
_FEATURES = FeatureEncoder(
    numeric={"price": (0.0, 1.0, 2.0, 10.0), "rating": (0.0, 5.0)},
    categorical={"category": ("a", "b")},
    vectors={"image": 3},
)


def _text(rng: np.random.Generator) -> list[int]:
    return rng.integers(0, _VOCAB_SIZE, rng.integers(2, 9)).tolist()


def _table(spec: TaskSpec, rows: int, *, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    numeric = rng.normal(1, 2, (rows, 2)).astype(np.float32)
    numeric[rng.random((rows, 2)) < 0.3] = np.nan
    image = rng.normal(size=(rows, 3)).astype(np.float32)
    image[rng.random(rows) < 0.3] = np.nan
    lists = spec.has_lists
    values: dict[str, Any] = {
        "query": [
            [_text(rng) for _ in range(rng.integers(0, 4))] if spec.query else []
            for _ in range(rows)
        ],
        "item": [[_text(rng)] for _ in range(rows)],
        "numeric": numeric.tolist(),
        "categorical": rng.integers(0, 4, (rows, 1)).tolist(),
        "label": rng.integers(0, 2, rows).astype(float),
        "weight": rng.uniform(0.5, 2, rows),
        "log_q": rng.uniform(-5, -1, rows),
        "item_key": rng.integers(0, 6, rows),
        "group_key": rng.integers(0, 6, rows),
        "list_id": np.arange(rows) // 3 if lists else np.arange(rows),
        "vector_image": image.tolist(),
    }
    schema = empty_table(num_numeric=2, num_categorical=1, vector_sizes={"image": 3}).schema
    return pa.table({field.name: pa.array(values[field.name], field.type) for field in schema})


@pytest.fixture
def make_batch() -> Callable[..., MicroBatch]:
    """make_batch({task: rows}, seed=, counts=, specs=, part=, num_negatives=): a random one.

    `part` keeps a slice of each task's rows; recommendation gets the negatives, if it has rows.
    """

    def make(
        rows: Mapping[str, int],
        *,
        seed: int = 0,
        counts: Mapping[str, float] | None = None,
        specs: Mapping[str, TaskSpec] = TASKS,
        part: slice = slice(None),
        num_negatives: int = 0,
    ) -> MicroBatch:
        tables = {}
        for place, (task, num) in enumerate(rows.items()):
            kept = np.arange(num)[part]
            tables[task] = _table(specs[task], num, seed=seed + place).take(kept)
        drawn = _table(TASKS["recommendation"], num_negatives, seed=seed + 99)
        return build_micro_batch(
            tables,
            counts=counts or {task: max(1, num) for task, num in rows.items()},
            negatives={"recommendation": Negatives(drawn, 30)}
            if num_negatives and rows.get("recommendation")
            else None,
        )

    return make


@pytest.fixture
def make_model() -> Callable[..., MultiTaskModel]:
    """make_model(specs=, encoder=, sharing=, balancer=, …): a tiny model without dropout."""

    def make(
        *,
        specs: Mapping[str, TaskSpec] = TASKS,
        sharing: str = "shared_bottom",
        seed: int = 0,
        **options: Any,
    ) -> MultiTaskModel:
        config = ModelConfig.model_validate({"encoder": "tiny", "dropout": 0, "sharing": sharing})
        return MultiTaskModel(
            load_encoder("tiny", vocab_size=_VOCAB_SIZE, dropout=0.0, seed=seed),
            tasks=specs,
            features=dict.fromkeys(specs, _FEATURES),
            config=config,
            seed=seed,
            **options,
        )

    return make


@pytest.fixture
def features() -> FeatureEncoder:
    """How the features of every random row are encoded."""
    return _FEATURES


@pytest.fixture
def make_texts() -> Callable[..., PackedTexts]:
    """make_texts(lengths, vocab_size): random packed texts of these ascending lengths."""

    def make(lengths: list[int], vocab_size: int = _VOCAB_SIZE) -> PackedTexts:
        generator = torch.Generator().manual_seed(len(lengths))
        ids = torch.randint(1, vocab_size, (sum(lengths),), generator=generator)
        return PackedTexts(ids, torch.tensor(lengths, dtype=torch.int64))

    return make
