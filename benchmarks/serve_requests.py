"""Requests of /v1/rank with texts of wanted lengths, made of a marketplace's words."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.load import Request
from benchmarks.serve_models import MAX_LENGTH
from benchmarks.serve_scorer import TASK
from rectrain.data.shards import Prepared

__all__ = ["PATH", "Workload", "draw", "titles"]

PATH = "/v1/rank"
_SPECIAL = 2  # [CLS] and [SEP], which count as tokens
_MEDIAN, _SPREAD = 24, 0.8
_QUERY_TOKENS = 5

Read = Callable[[Sequence[str]], Sequence[Sequence[int]]]


@dataclass(frozen=True)
class Workload:
    """Requests, and what is in them.

    Attributes:
        rows: of each request, its candidates as the model's `predict` takes them.
        requests: the same as they are sent.
        tokens: of each request, real tokens of its different texts, [CLS] and [SEP] included.
    """

    rows: list[list[dict[str, str]]]
    requests: list[Request]
    tokens: list[int]

    @property
    def mean_tokens(self) -> float:
        """Tokens of a request."""
        return float(np.mean(self.tokens))


def titles(data: Prepared) -> list[str]:
    """The different item texts of the ranking task's training rows."""
    rows = data.shards(TASK, "train").table(columns=["item_text"])
    return list(dict.fromkeys(rows["item_text"].combine_chunks().flatten().to_pylist()))


def draw(
    known: Sequence[str],
    read: Read,
    *,
    num_requests: int,
    num_candidates: int,
    ragged: bool,
    seed: int,
) -> Workload:
    """Requests whose candidates have 24 tokens each, or log-normally many: median 24, 4 to 256.

    Args:
        known: titles, whose words make the texts.
        read: texts to token ids, as the model reads them.
        num_requests, num_candidates: how many; all texts of a request differ.
        ragged: lengths as above.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    words = _words(known, read)
    rows: list[list[dict[str, str]]] = []
    for _ in range(num_requests):
        query = next(_texts(words, [_QUERY_TOKENS], rng))
        lengths = np.full(num_candidates, _MEDIAN)
        if ragged:
            drawn = rng.lognormal(np.log(_MEDIAN), _SPREAD, num_candidates)
            lengths = np.clip(drawn.round(), 4, MAX_LENGTH).astype(np.int64)
        texts = _texts(words, lengths.tolist(), rng)
        rows.append(
            [
                {"query_id": "-", "query": query, "item_id": str(n), "item_text": text}
                for n, text in enumerate(texts)
            ]
        )
    return Workload(rows, [_request(one) for one in rows], [_tokens(one, read) for one in rows])


def _words(known: Sequence[str], read: Read) -> tuple[list[str], np.ndarray]:
    """Different words, and of how many pieces each is."""
    words = sorted({word for title in known for word in title.split()})
    return words, np.array([len(ids) - _SPECIAL for ids in read(words)])


def _texts(
    words: tuple[list[str], np.ndarray], lengths: Sequence[int], rng: np.random.Generator
) -> Iterator[str]:
    """Texts of just these lengths, [CLS] and [SEP] included."""
    known, sizes = words
    short = np.flatnonzero(sizes == 1)
    for length in lengths:
        left, text = length - _SPECIAL, []
        while left > 0:
            word = int(rng.integers(len(known)))
            if sizes[word] > left:  # what is left is filled with words of one piece
                word = int(rng.choice(short))
            text.append(known[word])
            left -= int(sizes[word])
        yield " ".join(text)


def _request(rows: Sequence[dict[str, str]]) -> Request:
    candidates = [{name: row[name] for name in ("item_id", "item_text")} for row in rows]
    body = {"query": rows[0]["query"], "candidates": candidates}
    return Request(PATH, json.dumps(body).encode())


def _tokens(rows: Sequence[dict[str, str]], read: Read) -> int:
    texts = {rows[0]["query"], *(row["item_text"] for row in rows)}
    return sum(map(len, read(sorted(texts))))
