"""What the parts of the simulation share: random streams, types and columns of text."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["Floats", "Ints", "choose_words", "gumbel", "ids", "join", "sigmoid", "stream"]

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.integer[Any]]

_STREAMS = ("catalogue", "users", "purchases", "queries", "ads", "orders")


def stream(name: str, *, seed: int, chunk: int = 0) -> np.random.Generator:
    """The random numbers of one part of one chunk, independent of every other part."""
    return np.random.default_rng([seed, _STREAMS.index(name), chunk])


def ids(prefix: str, numbers: Ints) -> pa.Array:
    """Strings such as "u0000012", in the order of `numbers`."""
    return pa.array(np.char.mod(f"{prefix}%07d", numbers))


def choose_words(
    rng: np.random.Generator, choices: list[tuple[str, ...]], values: Ints
) -> npt.NDArray[np.object_]:
    """One of the words of each value, evenly, as an object array of str like `values`."""
    width = max(len(words) for words in choices)
    table = np.empty((len(choices), width), dtype=object)
    counts = np.array([len(words) for words in choices])
    for row, words in enumerate(choices):
        table[row, : len(words)] = words
    picks = np.floor(rng.random(len(values)) * counts[values]).astype(np.int64)
    chosen: npt.NDArray[np.object_] = table[values, picks]
    return chosen


def join(*parts: npt.NDArray[np.object_]) -> pa.Array:
    """Joins words by one space, row by row; empty words leave no second space."""
    arrays = [pa.array(part, pa.string()) for part in parts]
    joined = pc.binary_join_element_wise(*arrays, " ")
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(joined, " +", " "))


def gumbel(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Standard Gumbel noise, float32; the largest of logits + noise is a draw of softmax."""
    noise: Floats = -np.log(rng.standard_exponential(shape, dtype=np.float32))
    return noise


def sigmoid(logits: Floats) -> Floats:
    """1 / (1 + exp(-logits)), elementwise."""
    result: Floats = 1.0 / (1.0 + np.exp(-logits))
    return result
