"""Texts of wanted lengths made of a marketplace's words, and a metric that int8 may lose on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.inference_peers import Setup
from benchmarks.table import Figure
from rectrain.compress.quantize import pack
from rectrain.data.shards import Prepared
from rectrain.data.tokenize import load_tokenizer, reader
from rectrain.inference.backends import open_onnx, open_openvino, open_torch
from rectrain.inference.text_encoder import TextEncoder
from rectrain.metrics import Examples, compute
from rectrain.model.encoder import load_encoder

__all__ = ["KINDS", "MAX_LENGTH", "draw_texts", "metric_drop", "titles"]

MAX_LENGTH = 256
_Draw = Callable[[np.random.Generator], float]
#: Kind -> tokens of a text, [CLS] and [SEP] included, before it is cut to 4 … MAX_LENGTH.
KINDS: dict[str, _Draw] = {
    "short": lambda rng: rng.lognormal(np.log(8), 0.4),
    "mixed": lambda rng: rng.lognormal(np.log(24), 0.8),
    "long": lambda rng: rng.uniform(128, MAX_LENGTH),
}
_TASK, _METRIC = "search_ranking", "ndcg@10"
_GRAPHS: dict[str, tuple[Callable[..., TextEncoder], str]] = {
    "openvino-int8": (open_openvino, ".xml"),
    "onnx-int8": (open_onnx, ".onnx"),
}


def titles(data: str) -> list[str]:
    """The different item texts of the ranking task's training rows."""
    rows = Prepared.open(data).shards(_TASK, "train").table(columns=["item_text"])
    return list(dict.fromkeys(rows["item_text"].combine_chunks().flatten().to_pylist()))


def draw_texts(
    known: Sequence[str], kind: str, *, tokenizer: Any, num_tokens: int, seed: int
) -> tuple[list[str], list[list[int]]]:
    """Texts of the kind's lengths in any order, about `num_tokens` tokens together.

    A text is titles one after the other, cut at a word where it is long enough.

    Returns:
        The texts, and the token ids of each.
    """
    rng = np.random.default_rng(seed)
    read = reader(tokenizer, max_length=MAX_LENGTH)
    words = {word for title in known for word in title.split()}
    sizes = dict(zip(words, (len(ids) - 2 for ids in read(list(words)).to_pylist()), strict=True))
    texts: list[str] = []
    left = num_tokens
    while left > 0:
        wanted = int(np.clip(KINDS[kind](rng), 4, MAX_LENGTH)) - 2
        left -= wanted + 2
        text: list[str] = []
        while wanted > 0:
            for word in known[rng.integers(len(known))].split():
                if wanted > 0:
                    text.append(word)
                    wanted -= sizes[word]
        texts.append(" ".join(text))
    return texts, read(texts).to_pylist()


def metric_drop(setup: Setup, data: str) -> list[Figure]:
    """I1/drop: what int8 loses of a ranking by the cosine of query and item, as a share of fp32's.

    On the test rows of the data's ranking task, with the encoder as it is, untrained for the task.
    """
    rows = Prepared.open(data).shards(_TASK, "test").table()
    sides = {side: [texts[0] for texts in rows[side].to_pylist()] for side in ("query", "item")}
    different = sorted({tuple(text) for texts in sides.values() for text in texts}, key=len)
    place = {text: number for number, text in enumerate(different)}
    index = {
        side: torch.tensor([place[tuple(text)] for text in texts]) for side, texts in sides.items()
    }
    label, group = rows["label"].to_numpy(), np.array(rows["group"].to_pylist())

    def quality(encoder: TextEncoder) -> float:
        vectors = torch.nn.functional.normalize(encoder.encode(pack(different)), dim=1)
        score = (vectors[index["query"]] * vectors[index["item"]]).sum(1).double().numpy()
        return compute([_METRIC], Examples(label=label, score=score, group=group))[_METRIC]

    vocab_size = len(load_tokenizer(setup.encoder))
    exact = quality(open_torch(load_encoder(setup.encoder, vocab_size=vocab_size, dropout=0.0)))
    figures = []
    for name, (open_one, suffix) in _GRAPHS.items():
        found = quality(open_one(Path(setup.graphs) / f"{name}{suffix}", threads=setup.threads))
        drop = 1 - found / exact
        figures.append(
            Figure(
                id=f"I1/drop/{name}", value=drop, unit=f"of {_METRIC} on {_TASK} ({found:.4f})",
                peer=f"torch fp32 ({exact:.4f})", low=drop, high=drop, n=1,
            )
        )  # fmt: skip
    return figures
