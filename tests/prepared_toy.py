"""Small prepared data of several tasks, written without Ray."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pretrain_toy import VOCABULARY, write_manifest
from transformers import BertConfig, BertModel, BertTokenizerFast

from rectrain.data.batch import empty_table
from rectrain.data.encoding import FeatureEncoder
from rectrain.data.shards import file_entry, write_shard

PRICE = FeatureEncoder({"price": (0.0, 1.0, 2.0)}, {}, {})
NUM_ROWS = 12


def write_prepared(
    root: Path,
    *,
    tasks: Mapping[str, FeatureEncoder],
    more_words: tuple[str, ...] = (),
    max_length: int = 8,
    num_rows: int = NUM_ROWS,
) -> Path:
    """Prepared data of `num_rows` training rows a task, of texts of 3 to `max_length` tokens."""
    words = (*VOCABULARY, *more_words)
    (root / "tokenizer").mkdir(parents=True)
    (root / "tokenizer" / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(root / "tokenizer" / "vocab.txt")).save_pretrained(
        root / "tokenizer"
    )
    parts = {
        task: _write_task(root, task, encoder, max_length=max_length, num_rows=num_rows)
        for task, encoder in tasks.items()
    }
    write_manifest(root, parts, vocab_size=len(words), max_length=max_length)
    return root


def _write_task(
    root: Path, task: str, encoder: FeatureEncoder, *, max_length: int, num_rows: int
) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    rows = range(num_rows)

    def texts() -> list[list[list[int]]]:
        sizes = rng.integers(1, max_length - 1, num_rows)
        return [[[2, *rng.integers(5, len(VOCABULARY), size).tolist(), 3]] for size in sizes]

    query = [[] for _ in rows] if task == "risk" else texts()
    item = texts()
    values: dict[str, Any] = {
        "query": query,
        "item": item,
        "numeric": rng.normal(1, 1, (num_rows, len(encoder.numeric))).tolist(),
        "categorical": rng.integers(0, 2, (num_rows, len(encoder.categorical))).tolist(),
        "label": rng.integers(0, 2, num_rows).astype(float),
        "weight": np.ones(num_rows),
        "list_id": [row // 3 if task == "search_ranking" else row for row in rows],
    }
    like = empty_table(
        num_numeric=len(encoder.numeric), num_categorical=len(encoder.categorical), vector_sizes={}
    )
    columns = {
        field.name: pa.array(values.get(field.name, np.zeros(num_rows)), field.type)
        for field in like.schema
    }
    sizes = [sum(map(len, q)) + sum(map(len, i)) for q, i in zip(query, item, strict=True)]
    columns["num_tokens"] = pa.array(sizes, pa.int32())
    path = root / task / "train-00000.arrow"
    path.parent.mkdir()
    write_shard(path, pa.table(columns))
    splits: dict[str, Any] = {
        name: {"rows": 0, "groups": 0, "tokens": 0, "files": []} for name in ("validation", "test")
    }
    splits["train"] = {
        "rows": num_rows, "tokens": sum(sizes), "files": [file_entry(path, root=root)]
    }  # fmt: skip
    return {"fields_version": 1, "features": encoder.to_json(), "splits": splits}


def write_encoder(
    folder: Path, *, num_positions: int = 8, vocab_size: int = len(VOCABULARY)
) -> Path:
    """A BERT of one narrow layer."""
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=num_positions,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder
