"""Speed of the small encoder beside the large one: same texts, engine, precision and threads."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

from benchmarks.small_runs import SmallStudy
from benchmarks.table import Figure, paired_ratio
from rectrain.compress.pipeline import LARGE, SMALL
from rectrain.compress.quantize import pack
from rectrain.compress.samples import held_out_texts
from rectrain.data.batch import PackedTexts
from rectrain.data.tokenize import reader
from rectrain.inference.backends import open_torch
from rectrain.inference.text_encoder import TextEncoder
from rectrain.model.vocabulary import FallbackTokenizer

__all__ = ["compare_speed"]

_UNIT = "real tokens/s"
_TORCH = "torch"


class _Side(NamedTuple):
    """An encoder, and the texts in its tokens."""

    encoder: TextEncoder
    texts: PackedTexts


def compare_speed(study: SmallStudy, *, backend: str, rounds: int, num_texts: int) -> list[Figure]:
    """The small encoder's tokens/s over the large one's, both in the same backend.

    In a round both encode all texts, one after the other; every other round begins with the other.

    Args:
        study: with the small model.
        backend: the one that `I3/speed` is about; the package's others come after it, and torch.
        rounds: measurements of each.
        num_texts: of each side of each task, at most: different texts of the test split.
    """
    threads = study.pipeline.config.threads
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        small, large = _texts(study, num_texts=num_texts)
        num_tokens = int(large.lengths.sum())  # of the same texts, so the same for both
        figures = []
        for name in dict.fromkeys((backend, *study.small_graphs, _TORCH)):
            pair = [_Side(_small(study, name), small), _Side(_large(study, name), large)]
            seconds = _seconds(pair, rounds=rounds)
            ours, peer = ([num_tokens / s for s in side] for side in seconds)
            figures.append(
                paired_ratio(
                    "I3/speed" if name == backend else f"I3/speed/{name}",
                    ours=ours,
                    peer=peer,
                    unit=f"{_UNIT} in {name} on {threads} thread{'s' if threads > 1 else ''}",
                    peer_name="the large model likewise",
                )
            )
        return figures
    finally:
        torch.set_num_threads(before)


def _texts(study: SmallStudy, *, num_texts: int) -> tuple[PackedTexts, PackedTexts]:
    """Different texts of the test split, sorted, in the small and in the large model's tokens."""
    pipeline, parts = study.pipeline, study.parts(SMALL)
    texts = held_out_texts(pipeline.data, split=pipeline.config.split, num_texts=num_texts)
    length = max(limit.max_length for limit in parts.limits.values())
    full = parts.full_tokenizer
    assert full is not None, "the small model's vocabulary is trimmed"
    small = FallbackTokenizer(full, parts.tokenizer).tokenize(texts, max_length=length)[0]
    large = reader(full, max_length=length)(texts)
    return pack(small.to_pylist()), pack(large.to_pylist())


def _small(study: SmallStudy, backend: str) -> TextEncoder:
    if backend == _TORCH:
        return open_torch(study.parts(SMALL).model.encoder)
    return study.small_graph(backend)


def _large(study: SmallStudy, backend: str) -> TextEncoder:
    if backend == _TORCH:
        return open_torch(study.parts(LARGE).model.encoder)
    return study.large_graph(backend)


def _seconds(pair: list[_Side], *, rounds: int) -> list[list[float]]:
    """Seconds of each round of each side."""
    found: list[list[float]] = [[], []]
    for encoder, texts in pair:  # the first sight of a shape costs engines
        encoder.encode(texts)
    for number in range(rounds):
        for place in (0, 1) if number % 2 == 0 else (1, 0):
            encoder, texts = pair[place]
            start = time.perf_counter()
            encoder.encode(texts)
            found[place].append(time.perf_counter() - start)
    return found
