"""The item index: every item of a catalogue as a vector, and exact search of the best for a query.

    items/<task>.safetensors
        vectors       float32 [I, D + 1], of a two-tower head: the inner product is the score
        ids           uint8, all ids in UTF-8, end to end
        id_offsets    int64 [I + 1], where each id begins
        metadata      format, task, model (the version of the package whose vectors these are),
                      catalogue (SHA-256 of the prepared items), engine (what ran the encoder)

Shapes: U queries, I items, C candidates of a query, k length of a list, D hidden size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

from rectrain.errors import ConfigError, DataError, PackageError
from rectrain.inference.predictor import Predictor
from rectrain.metrics import catalogue_top

__all__ = ["Best", "ItemIndex", "Scorer", "diversify", "first_items", "leave_out"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Scorer = Callable[[slice], NDArray[np.floating[Any]]]
"""From a block of users to their scores of all items, float [block, I]."""

_FORMAT = "1"
_BLOCK_SCORES = 1 << 24  # scores held at a time: 64 MiB
_MIN_CANDIDATES, _CANDIDATES_A_PLACE = 100, 10  # that a diverse list of k is chosen from


class Best(NamedTuple):
    """items: int64 [U, k], the first items of each list (-1: none); scores: float32 [U, k] (NaN:
    none)."""

    items: Ints
    scores: Floats


class ItemIndex:
    """All items of a catalogue as vectors.

    Args:
        ids: of the I items, each once.
        vectors: float32 [I, D + 1].
        task: the two-tower task.
        model: version of the package that the vectors come from; empty where it is none.
        catalogue: SHA-256 of the prepared items.
        engine: what ran the encoder: the name of a backend.
    """

    def __init__(
        self,
        ids: Sequence[str],
        vectors: Floats,
        *,
        task: str,
        model: str = "",
        catalogue: str = "",
        engine: str = "torch",
    ) -> None:
        assert vectors.shape[0] == len(ids), "one vector an item"
        self.ids = list(ids)
        self.vectors = vectors
        self.task = task
        self.model = model
        self.catalogue = catalogue
        self.engine = engine

    @classmethod
    def build(
        cls,
        predictor: Predictor,
        task: str,
        items: pa.Table,
        *,
        model: str = "",
        catalogue: str = "",
    ) -> ItemIndex:
        """The vectors of a catalogue.

        Args:
            predictor: the model.
            task: a two-tower task of it.
            items: prepared columns of each item (`Prepared.items`), `log_q` among them.
            model, catalogue: see above.

        Raises:
            DataError: an id stands twice.
        """
        ids = items.column("item_id").to_pylist()
        for item, count in Counter(ids).most_common(1):
            if count > 1:
                raise DataError(
                    what=f"catalogue of {task}", got=f"item {item} {count} times",
                    rule="an id names one item", fix="prepare the data again",
                )  # fmt: skip
        vectors = predictor.embed(task, items)[1]
        facts = {"model": model, "catalogue": catalogue, "engine": predictor.engine}
        return cls(ids, vectors, task=task, **facts)

    # --- as a file ---------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """The file of the module's docstring."""
        encoded = [item.encode() for item in self.ids]
        offsets = np.concatenate([[0], np.cumsum([len(one) for one in encoded])]).astype(np.int64)
        tensors: dict[str, NDArray[Any]] = {
            "vectors": np.ascontiguousarray(self.vectors),
            "ids": np.frombuffer(b"".join(encoded), dtype=np.uint8),
            "id_offsets": offsets,
        }
        facts = {
            "task": self.task,
            "model": self.model,
            "catalogue": self.catalogue,
            "engine": self.engine,
        }
        data: bytes = to_safetensors(tensors, metadata={"format": _FORMAT, **facts})
        return data

    @staticmethod
    def read_facts(path: Path, *, task: str, model: str) -> dict[str, str]:
        """The metadata of an index, without its vectors.

        Args:
            path: its file.
            task: which it must be of.
            model: version of the package that its vectors must come from.

        Raises:
            PackageError: no index, a newer one, or one of another task or model.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                facts: dict[str, str] = file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise _refused(path, error, rule="must be safetensors") from error
        for key, expected in (("format", _FORMAT), ("task", task), ("model", model)):
            if facts.get(key) != expected:
                raise _refused(
                    path, f"{key} {facts.get(key)}", rule=f"must be of {key} {expected[:64]}"
                )
        return facts

    @classmethod
    def open(cls, path: Path, *, task: str, model: str) -> ItemIndex:
        """The index in a file; arguments and errors as of `read_facts`."""
        facts = cls.read_facts(path, task=task, model=model)
        try:
            with safe_open(path, framework="numpy") as file:
                vectors, ids, offsets = (
                    file.get_tensor(name) for name in ("vectors", "ids", "id_offsets")
                )
            buffers = [None, pa.py_buffer(offsets), pa.py_buffer(ids)]
            names = pa.Array.from_buffers(pa.large_string(), len(offsets) - 1, buffers)
            names.validate(full=True)  # offsets inside the bytes, and UTF-8
        except (SafetensorError, OSError, pa.ArrowException, ValueError) as error:
            raise _refused(path, error, rule="must hold vectors and ids") from error
        if vectors.dtype != np.float32 or vectors.ndim != 2 or len(vectors) != len(names):
            raise _refused(
                path, f"{vectors.dtype} {vectors.shape}", rule=f"must be float32 [{len(names)}, D]"
            )
        known = {key: facts[key] for key in ("catalogue", "engine") if key in facts}
        return cls(names.to_pylist(), vectors, task=task, model=model, **known)

    # --- search ------------------------------------------------------------------------------

    @cached_property
    def place(self) -> dict[str, int]:
        """id -> its row."""
        return {item: row for row, item in enumerate(self.ids)}

    def scorer(self, queries: Floats) -> Scorer:
        """Scores of all items for blocks of queries float32 [U, D + 1]."""
        items = torch.from_numpy(self.vectors).T
        given = torch.from_numpy(np.ascontiguousarray(queries))
        return lambda block: (given[block] @ items).numpy()

    def search(
        self,
        queries: Floats,
        *,
        k: int,
        exclude: Sequence[Collection[str]] | None = None,
        out_of_stock: Collection[str] | NDArray[np.bool_] = (),
        diversity: float = 0.0,
    ) -> Best:
        """The best items of each query, exactly: every item is scored.

        Args:
            queries: float32 [U, D + 1].
            k: length of the lists, at least 1, and at most I; a list is shorter where items run
                out.
            exclude: for each query, ids that it must not get (already bought); ids that the index
                lacks are passed over here and below.
            out_of_stock: ids that no query gets, or bool [I], true for such items.
            diversity: 0 to 1, see `diversify`; 0 is the plain order of the scores.

        Raises:
            ConfigError: k, diversity or a mask out of its range.
        """
        _check(k, diversity)
        assert exclude is None or len(exclude) == len(queries), "one collection a query"
        hidden = self._hidden(out_of_stock)
        num_items = len(self.ids)
        k = min(k, num_items)
        taken = min(max(_MIN_CANDIDATES, _CANDIDATES_A_PLACE * k), num_items) if diversity else k
        held = max(num_items, taken * self.vectors.shape[1] if diversity else 0, 1)
        size, scorer = max(_BLOCK_SCORES // held, 1), self.scorer(queries)
        lists = [Best(np.empty((0, k), np.int64), np.empty((0, k), np.float32))]
        for start in range(0, len(queries), size):
            scores = scorer(slice(start, start + size))
            scores[:, hidden] = -np.inf
            if exclude is not None:
                leave_out(scores, exclude[start : start + size], place=self.place)
            best = first_items(scores, k=taken)
            if diversity:
                best = diversify(best, self.vectors[:, :-1], k=k, diversity=diversity)
            lists.append(best)
        return Best(*(np.concatenate(column) for column in zip(*lists, strict=True)))

    def _hidden(self, out_of_stock: Collection[str] | NDArray[np.bool_]) -> Ints:
        """Rows of the items that no query gets."""
        if not isinstance(out_of_stock, np.ndarray):
            _check_ids(out_of_stock)
            rows = [self.place[item] for item in out_of_stock if item in self.place]
            return np.array(rows, dtype=np.int64)
        if (out_of_stock.dtype, out_of_stock.shape) != (np.dtype(bool), (len(self.ids),)):
            raise ConfigError(
                what="out_of_stock", got=f"{out_of_stock.dtype} {list(out_of_stock.shape)}",
                rule=f"must be ids, or bool [{len(self.ids)}]", fix="correct it",
            )  # fmt: skip
        return np.flatnonzero(out_of_stock)


def _check(k: int, diversity: float) -> None:
    is_whole = isinstance(k, int | np.integer) and not isinstance(k, bool)
    is_share = isinstance(diversity, int | float | np.number) and 0 <= diversity <= 1
    for what, got, is_right, rule in (
        ("k", k, is_whole and k >= 1, "a whole number of at least 1"),
        ("diversity", diversity, is_share, "0 (by score alone) to 1"),
    ):
        if not is_right:
            raise ConfigError(what=what, got=got, rule=f"must be {rule}", fix="correct it")


def _check_ids(given: Collection[str]) -> None:
    """Refuses what would else hide no item: a single id, whose letters are none, or numbers."""
    is_many = isinstance(given, Collection) and not isinstance(given, str | bytes)
    for one in given if is_many else [given]:
        if not (is_many and isinstance(one, str)):
            raise ConfigError(
                what="out_of_stock", got=f"{type(one).__name__} {one!r}",
                rule="must be a list of ids, which are strings, or a numpy array of bools",
                fix="give a list of strings",
            )  # fmt: skip


def first_items(scores: NDArray[np.floating[Any]], *, k: int) -> Best:
    """The first k items of each user with their scores; see `catalogue_top`.

    Args:
        scores: float [U, I]; -inf for an item that must not be recommended.
        k: length of the lists.
    """
    top = catalogue_top(scores, k=k)
    best = np.where(top >= 0, np.take_along_axis(scores, top, axis=1), np.nan)
    return Best(top, best.astype(np.float32))


def leave_out(
    scores: NDArray[np.floating[Any]],
    excluded: Sequence[Collection[str]],
    *,
    place: Mapping[str, int],
) -> None:
    """Sets the scores of items that each user must not get to -inf, in place.

    Args:
        scores: float [U, I].
        excluded: U collections of ids; unknown ones are passed over.
        place: id -> column.
    """
    for row, ids in enumerate(excluded):
        scores[row, [place[item] for item in ids if item in place]] = -np.inf


def diversify(candidates: Best, vectors: Floats, *, k: int, diversity: float) -> Best:
    """Chooses lists whose items are relevant and unlike one another: maximal marginal relevance.

    The next item of a list is argmax over candidates i of λ · r(i) - (1 - λ) · max over the
    chosen j of cos(i, j) (Carbonell & Goldstein 1998, §2), λ = 1 - diversity. r is the score,
    scaled so that a list's candidates range from 0 to 1. The first item is the most relevant one;
    of equals the one of the higher score comes first.

    Args:
        candidates: int64 and float32 [U, C], best first; -1 and NaN where there are fewer.
        vectors: float32 [I, D], whose cosine is how alike two items are.
        k: length of the lists.
        diversity: 0 to 1.

    Returns:
        The lists in the order of choice, with the items' own scores.
    """
    items, scores = candidates
    relevance = _unit_range(scores)
    chosen_from = vectors[np.maximum(items, 0)].astype(np.float32)
    norm = np.linalg.norm(chosen_from, axis=2, keepdims=True)
    unit = chosen_from / np.where(norm > 0, norm, 1)
    users = np.arange(len(items))
    left, nearest = items >= 0, np.zeros(items.shape, dtype=np.float32)
    lists = Best(
        np.full((len(items), k), -1, dtype=np.int64),
        np.full((len(items), k), np.nan, dtype=np.float32),
    )
    for place in range(min(k, items.shape[1])):
        value = np.where(left, (1 - diversity) * relevance - diversity * nearest, -np.inf)
        best = value.argmax(axis=1)
        there = left[users, best]
        lists.items[there, place] = items[users, best][there]
        lists.scores[there, place] = scores[users, best][there]
        left[users, best] = False
        likeness = np.einsum("ucd,ud->uc", unit, unit[users, best])
        nearest = np.maximum(nearest, likeness) if place else likeness
    return lists


def _unit_range(scores: Floats) -> Floats:
    """Each user's scores scaled to 0..1; 0 for what is not there, and where all are equal."""
    there = np.isfinite(scores)
    low = np.where(there, scores, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    high = np.where(there, scores, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    width = np.where(high > low, high - low, 1)
    return np.where(there, (scores - low) / width, 0).astype(np.float32)


def _refused(path: Path, got: object, *, rule: str) -> PackageError:
    return PackageError(
        what=f"item index {path}",
        got=got,
        rule=rule,
        fix="build it again: python -m jobs.publish --refresh-index --output PACKAGE --data DATA",
    )
