"""Small prepared data of texts alone, written without Ray: what pre-training reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import BertTokenizerFast

from rectrain.data.shards import FORMAT, MANIFEST, file_entry, write_shard
from rectrain.data.tokenize import load_tokenizer, tokenize, tokenizer_hash

WORDS = ("red", "blue", "mug", "lamp", "chair", "shirt", "steel", "cotton")
ENDINGS = ("##s", "##ish", "##like")
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *ENDINGS)
MAX_LENGTH = 16


def write_tokenizer(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def random_texts(number: int, *, seed: int) -> list[str]:
    """Texts of 1 to 9 words, each word with 0 to 2 endings."""
    rng = np.random.default_rng(seed)

    def word() -> str:
        endings = rng.choice(ENDINGS, rng.integers(0, 3))
        return rng.choice(WORDS) + "".join(ending.removeprefix("##") for ending in endings)

    return [" ".join(word() for _ in range(rng.integers(1, 10))) for _ in range(number)]


def write_texts(
    root: Path,
    *,
    train: list[str],
    validation: list[str] = (),  # type: ignore[assignment]
    catalogue: list[str] = (),  # type: ignore[assignment]
    task: str = "recommendation",
    max_length: int = MAX_LENGTH,
    num_copies: int = 0,
) -> Path:
    """Prepared data of one task, whose rows are one text each, and its catalogue.

    The last `num_copies` texts of train are altered copies.
    """
    tokenizer = load_tokenizer(str(write_tokenizer(root / "tokenizer")))
    entries: dict[str, Any] = {}
    for name, texts in (
        ("train", train), ("validation", validation), ("test", []), ("items", catalogue),
    ):  # fmt: skip
        path = root / task / f"{name}-00000.arrow"
        path.parent.mkdir(exist_ok=True)
        ids = tokenize(list(texts), tokenizer=tokenizer, max_length=max_length)
        table = pa.table(
            {
                "item": pa.ListArray.from_arrays(pa.array(range(len(ids) + 1), pa.int32()), ids),
                "num_tokens": pa.array([len(text) for text in ids.to_pylist()], pa.int32()),
            }
        )
        if name != "items":
            none: list[Any] = [[]] * len(ids)
            table = table.append_column("query", pa.array(none, pa.list_(pa.list_(pa.int32()))))
        write_shard(path, table)
        entries[name] = file_entry(path, root=root)
    counts = {"train": len(train), "validation": len(validation), "test": 0}
    splits: dict[str, Any] = {
        name: {"rows": rows, "tokens": 0, "files": [entries[name]]} for name, rows in counts.items()
    }
    splits["train"]["augmented"] = {"rows": num_copies}
    parts = {task: {"splits": splits, "items": entries["items"]}}
    write_manifest(root, parts, vocab_size=len(VOCABULARY), max_length=max_length)
    return root


def write_manifest(root: Path, tasks: dict[str, Any], *, vocab_size: int, max_length: int) -> None:
    """The manifest of tasks whose shards and whose tokenizer are there."""
    manifest = {
        "format": FORMAT,
        "tasks": tasks,
        "tokenizer": {
            "sha256": tokenizer_hash(load_tokenizer(str(root / "tokenizer"))),
            "vocab_size": vocab_size, "max_length": max_length,
        },
        "seed": 0,
        "source": "parquet",
        "config": {"max_length": max_length, "max_history": 8},
    }  # fmt: skip
    (root / MANIFEST).write_text(json.dumps(manifest))
