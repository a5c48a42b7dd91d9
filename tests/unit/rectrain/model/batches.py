"""Small random micro-batches for the model's tests."""

from __future__ import annotations

import pyarrow as pa
import numpy as np

from rectrain.data.batch import MicroBatch, build_micro_batch, empty_table
from rectrain.data.encoding import FeatureEncoder
from rectrain.tasks import TASKS

VOCAB = 50

FEATURES = {
    name: FeatureEncoder(
        numeric={"price": (0.0, 1.0, 2.0, 10.0), "rating": (0.0, 5.0)},
        categorical={"category": ("a", "b")},
        vectors={"image": 3},
    )
    for name in TASKS
}


def texts(rng, count, low=2, high=9):
    return [rng.integers(0, VOCAB, rng.integers(low, high)).tolist() for _ in range(count)]


def make_table(task, rows, *, seed=0, specs=TASKS):
    rng = np.random.default_rng(seed)
    spec = specs[task]
    query = [texts(rng, rng.integers(0, 4)) if spec.query else [] for _ in range(rows)]
    numeric = rng.normal(1, 2, (rows, 2)).astype(np.float32)
    numeric[rng.random((rows, 2)) < 0.3] = np.nan
    image = rng.normal(size=(rows, 3)).astype(np.float32)
    image[rng.random(rows) < 0.3] = np.nan
    base = empty_table(num_numeric=2, num_categorical=1, vector_sizes={"image": 3})
    values = {
        "query": query,
        "item": [texts(rng, 1) for _ in range(rows)],
        "numeric": numeric.tolist(),
        "categorical": rng.integers(0, 4, (rows, 1)).tolist(),
        "label": rng.integers(0, 2, rows).astype(float),
        "weight": rng.uniform(0.5, 2, rows),
        "log_q": rng.uniform(-5, -1, rows),
        "item_key": rng.integers(0, 6, rows),
        "list_id": np.arange(rows) // 3 if spec.loss == "listwise_softmax" else np.arange(rows),
        "vector_image": image.tolist(),
    }
    return pa.table({f.name: pa.array(values[f.name], f.type) for f in base.schema})


def make_batch(rows, *, seed=0, counts=None, specs=TASKS) -> MicroBatch:
    tables = {
        t: make_table(t, n, seed=seed + i, specs=specs) for i, (t, n) in enumerate(rows.items())
    }
    return build_micro_batch(tables, counts=counts or {t: max(1, n) for t, n in rows.items()})
