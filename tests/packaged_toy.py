"""A small model of three tasks in memory, rows for it, and a catalogue prepared for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from prepared_toy import write_encoder
from pretrain_toy import VOCABULARY, random_texts, write_tokenizer

from rectrain.data.assemble import TextLimits, item_columns
from rectrain.data.encoding import FeatureEncoder
from rectrain.data.shards import Prepared, file_entry, write_shard
from rectrain.data.tokenize import load_tokenizer, reader
from rectrain.model.config import ModelConfig
from rectrain.model.encoder import load_encoder
from rectrain.model.multitask import MultiTaskModel
from rectrain.package import ModelParts
from rectrain.tasks import TASKS

MAX_LENGTH = 12
FEATURES = {
    "recommendation": FeatureEncoder(numeric={"price": (0.0, 5.0, 9.0)}),
    "search_ranking": FeatureEncoder(),
    "ad_ctr": FeatureEncoder(numeric={"position": (0.0, 1.0, 9.0)}),
    "risk": FeatureEncoder(
        numeric={"price": (0.0, 1.0, 50.0)},
        categorical={"country": ("DE", "FR")},
        vectors={"image": 2},
    ),
}


def toy_parts(
    folder: Path,
    *,
    seed: int = 0,
    tasks: tuple[str, ...] = ("recommendation", "search_ranking", "risk"),
) -> ModelParts:
    """A model whose weights all count: none is zero, as some of fresh heads are.

    Its encoder and tokenizer are written into `folder` first.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = write_encoder(folder / f"bert-{seed}", num_positions=MAX_LENGTH)
    tokenizer = load_tokenizer(str(write_tokenizer(folder / f"tokenizer-{seed}")))
    features = {task: FEATURES[task] for task in tasks}
    config = ModelConfig(encoder=str(encoder), head_width=8, feature_width=4)
    model = MultiTaskModel(
        load_encoder(str(encoder), vocab_size=len(VOCABULARY), max_length=MAX_LENGTH),
        tasks={task: TASKS[task] for task in tasks},
        features=features,
        config=config,
    )
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random) * 0.05)
    limits = {task: TextLimits(MAX_LENGTH, 3) for task in tasks}
    return ModelParts(model.eval(), features, limits, config, tokenizer)


def orders(count: int, *, seed: int = 0) -> pa.Table:
    """Rows of risk."""
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "user_id": [f"u{row % 7}" for row in range(count)],
            "item_text": random_texts(count, seed=seed),
            "price": rng.uniform(0, 50, count),
            "country": rng.choice(["DE", "FR", "IT"], count),
            "image": pa.array(list(rng.normal(size=(count, 2)).astype(np.float32))),
        }
    )


def searches(count: int, *, seed: int = 0) -> pa.Table:
    """Rows of search_ranking."""
    return pa.table(
        {
            "query_id": [f"q{row // 4}" for row in range(count)],
            "query": random_texts(count, seed=seed + 1),
            "item_id": [f"i{row}" for row in range(count)],
            "item_text": random_texts(count, seed=seed + 2),
        }
    )


def write_catalogue(root: Path, parts: ModelParts, *, num_items: int, seed: int = 0) -> Prepared:
    """Prepared data of recommendation with a catalogue and no rows."""
    rng = np.random.default_rng(seed)
    rows = pa.table(
        {
            "item_id": [f"i{number}" for number in range(num_items)],
            "item_text": random_texts(num_items, seed=seed),
            "price": rng.uniform(0, 9, num_items),
        }
    )
    items = item_columns(
        rows,
        spec=TASKS["recommendation"],
        features=FEATURES["recommendation"],
        read=reader(parts.tokenizer, max_length=MAX_LENGTH),
        log_q=rng.normal(-3, 1, num_items).astype(np.float32),
    )
    path = root / "recommendation" / "items.arrow"
    path.parent.mkdir(parents=True)
    write_shard(path, items)
    features = FEATURES["recommendation"].to_json()
    facts = {"features": features, "splits": {}, "items": file_entry(path, root=root)}
    return Prepared(root, {"tasks": {"recommendation": facts}})
