"""Leak-free splits: pure functions from keys to the split of each row.

A code per row (int8): 0 train, 1 validation, 2 test; from 3 on the row is in no split, and
`REASONS` says why. Legend: n rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rectrain.data.config import SplitConfig

__all__ = [
    "GAP", "HELD_OUT", "REASONS", "TEST", "TRAIN", "VALIDATION", "Purchases", "bar_held_out",
    "codes_of", "hash_ids", "list_ids", "split_by_group", "split_by_time", "split_purchases",
]  # fmt: skip

TRAIN, VALIDATION, TEST = 0, 1, 2
GAP, HELD_OUT, FIRST, BOUGHT, REPEATED = 3, 4, 5, 6, 7
REASONS = {
    GAP: "outcome not yet known at the split's cut",
    HELD_OUT: "held out in another task",
    FIRST: "no earlier purchase",
    BOUGHT: "bought before",
    REPEATED: "repeated in its basket",
}
_DAY_US = 86_400_000_000

Codes = npt.NDArray[np.int8]
Ints = npt.NDArray[np.int64]


class Purchases(NamedTuple):
    """A purchase log split by baskets.

    code: int8 [n]; part: int8 [n], the split of the row's basket whatever its code;
    history: list<int32> [n], items bought before the basket, distinct, newest last;
    bought: list<int32> [n], all of them, for validation and test rows (else null).
    """

    code: Codes
    part: Codes
    history: pa.ListArray
    bought: pa.ListArray


def codes_of(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int32], list[str]]:
    """Number each distinct value by its first appearance: (int32 [n], values)."""
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return encoded.indices.to_numpy().astype(np.int32), encoded.dictionary.to_pylist()


def hash_ids(ids: Collection[str], *, seed: int | None = None) -> npt.NDArray[np.int64]:
    """A stable 63-bit hash of each string, int64 [len(ids)], 0 or more."""
    key = b"" if seed is None else str(seed).encode()
    digests = (hashlib.blake2b(i.encode(), digest_size=8, key=key).digest() for i in ids)
    raw = np.frombuffer(b"".join(digests), dtype=">u8")
    return (raw >> np.uint64(1)).astype(np.int64)


def split_by_group(groups: pa.ChunkedArray, *, config: SplitConfig, seed: int) -> Codes:
    """Whole groups go to one split, by a seeded hash: the same group in every task.

    Args:
        groups: string [n].
        config: the shares; with `fold`, groups are dealt into `num_folds` parts of equal size,
            part `fold` is test and validation takes its share of the others.
        seed: of the hash.
    """
    number, names = codes_of(groups)
    key = hash_ids(names, seed=seed)
    place = key / 2.0**63
    code = np.zeros(len(names), dtype=np.int8)
    code[place < config.validation_share + config.test_share] = VALIDATION
    code[place < config.test_share] = TEST
    if config.fold is not None:
        rank = np.argsort(np.argsort(key, kind="stable"), kind="stable")
        code = np.zeros(len(names), dtype=np.int8)
        test = rank % config.num_folds == config.fold
        rest = np.flatnonzero(~test)
        num_validation = round(len(names) * config.validation_share)
        # the next ranks in a circle, so that validation differs from fold to fold as well
        circle = np.argsort((rank[rest] - config.fold - 1) % config.num_folds, kind="stable")
        code[rest[circle[:num_validation]]] = VALIDATION
        code[test] = TEST
    return code[number]


def split_by_time(times: Ints, *, config: SplitConfig, groups: Ints | None = None) -> Codes:
    """Later rows are test, the ones before validation; rows in the gap before a cut are in none.

    Args:
        times: int64 [n], microseconds since 1970, UTC.
        config: explicit cuts, or shares of the rows; `gap_days` a label takes to be known.
        groups: int64 [n]; rows of a group stay together, at the group's latest time.
    """
    if groups is not None and len(groups):
        latest = np.full(int(groups.max()) + 1, np.iinfo(np.int64).min)
        np.maximum.at(latest, groups, times)
        times = latest[groups]
    last = np.iinfo(np.int64).max
    ordered = np.sort(times)

    def cut(start: datetime | None, share: float) -> int:
        if start is not None:
            return _microseconds(start)
        position = len(ordered) - round(share * len(ordered))
        return int(ordered[position]) if position < len(ordered) else last

    gap = round(config.gap_days * _DAY_US)
    test = cut(config.test_start, config.test_share)
    if config.validation_start is None:
        # the share of what is left before test and its gap
        ordered = ordered[ordered < test - gap]
        left = max(1e-9, 1 - config.test_share)
        share = min(1.0, config.validation_share / left)
        validation = min(cut(None, share), test) if config.validation_share else test
    else:
        validation = _microseconds(config.validation_start)
    code = np.zeros(len(times), dtype=np.int8)
    code[times >= validation - gap] = GAP
    code[times >= validation] = VALIDATION
    code[times >= test - gap] = GAP
    code[times >= test] = TEST
    return code


def split_purchases(
    users: npt.NDArray[np.int32],
    items: npt.NDArray[np.int32],
    baskets: npt.NDArray[np.int32],
    times: Ints,
    *,
    max_history: int,
) -> Purchases:
    """Hold out the last basket of each user with three or more (test), and the one before.

    A target of test or validation is an item the user never bought before; a training row is
    the first purchase of an item by a user who has bought something before.

    Args:
        users, items, baskets: numbers, [n]; a basket is one (user, basket) pair.
        times: int64 [n]; a basket's time is its earliest row's.
        max_history: items kept of a history.
    """
    order, starts, ends = _baskets_in_order(users, baskets, times)
    code, part = np.zeros(len(users), dtype=np.int8), np.zeros(len(users), dtype=np.int8)
    history = _Lists(len(users), nullable=False)
    bought = _Lists(len(users), nullable=True)
    seen: dict[int, None] = {}  # distinct items in order of their latest purchase
    owner = users[order]
    counts = np.bincount(owner[starts], minlength=1) if len(starts) else np.zeros(1, np.int64)
    number, user = 0, -1
    for start, end in zip(starts, ends, strict=True):
        if owner[start] != user:
            user, number, seen = int(owner[start]), 0, {}
        rows = order[start:end]
        split = _basket_split(number, int(counts[user]))
        past = list(islice(reversed(seen), max_history))[::-1]
        everything = np.fromiter(seen, np.int32, len(seen)) if split != TRAIN else None
        part[rows] = split
        inside: set[int] = set()
        for row in rows:
            item = int(items[row])
            if item in inside:
                code[row] = REPEATED
            elif not seen:
                code[row] = FIRST
            elif item in seen:
                code[row] = BOUGHT
            else:
                code[row] = split
                history.set(row, past)
                if everything is not None:
                    bought.set(row, everything)
            inside.add(item)
        for row in rows:
            item = int(items[row])
            seen.pop(item, None)
            seen[item] = None
        number += 1
    return Purchases(code, part, history.array(), bought.array())


def bar_held_out(
    codes: Mapping[str, Codes],
    row_ids: Mapping[str, pa.ChunkedArray],
    *,
    parts: Mapping[str, Codes],
    holdouts: Collection[str] | None,
) -> dict[str, Codes]:
    """Take rows out of train that are validation or test in another task.

    Args:
        codes: task -> int8 [n].
        row_ids: task -> string [n]; equal ids are the same event. A task that has none takes
            no part.
        parts: task -> int8 [n], the split of the event itself where it differs from the row's
            code (a purchase of a held-out basket that is no target is held out all the same).
        holdouts: tasks whose held-out rows are barred from the others; None for all.
    """
    result = {task: code.copy() for task, code in codes.items()}
    for task, code in codes.items():
        if task not in row_ids or (holdouts is not None and task not in holdouts):
            continue
        held = np.isin(parts.get(task, code), (VALIDATION, TEST))
        ids = row_ids[task].filter(pa.array(held)).combine_chunks()
        for other in row_ids:
            if other != task and len(ids):
                barred = np.asarray(pc.is_in(row_ids[other], value_set=ids))
                result[other][barred & (codes[other] == TRAIN)] = HELD_OUT
    return result


def list_ids(groups: npt.NDArray[np.int32], *, max_size: int, seed: int) -> npt.NDArray[np.int32]:
    """Number lists of at most max_size rows of one group, of equal sizes, dealt at random.

    Returns:
        int32 [n], ids ascending with the group's number.
    """
    n = len(groups)
    shuffled = np.random.default_rng(seed).permutation(n)
    order = shuffled[np.argsort(groups[shuffled], kind="stable")]
    sizes = np.bincount(groups, minlength=1)
    starts = np.cumsum(sizes) - sizes
    within = np.arange(n) - starts[groups[order]]
    num_lists = -(-sizes // max_size)
    first = np.cumsum(num_lists) - num_lists
    result = np.empty(n, dtype=np.int32)
    result[order] = first[groups[order]] + within % np.maximum(num_lists, 1)[groups[order]]
    return result


def _baskets_in_order(
    users: npt.NDArray[np.int32], baskets: npt.NDArray[np.int32], times: Ints
) -> tuple[Ints, Ints, Ints]:
    """Rows by user, basket time and number; where each basket starts and ends in that order."""
    begun = np.full(int(baskets.max(initial=-1)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(begun, baskets, times)
    order = np.lexsort((np.arange(len(users)), times, baskets, begun[baskets], users))
    if not len(order):
        return order, order, order
    u, b = users[order], baskets[order]
    new = np.flatnonzero((u[1:] != u[:-1]) | (b[1:] != b[:-1])) + 1
    starts = np.concatenate([[0], new])
    return order, starts, np.concatenate([new, [len(order)]])


def _basket_split(number: int, count: int) -> int:
    if count < 3:
        return TRAIN
    return {count - 1: TEST, count - 2: VALIDATION}.get(number, TRAIN)


def _microseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1_000_000)


class _Lists:
    """Lists set row by row, as one Arrow array at the end; a list given twice is shared."""

    def __init__(self, n: int, *, nullable: bool) -> None:
        self._values: list[Any] = [None if nullable else ()] * n

    def set(self, row: int, values: Any) -> None:
        self._values[row] = values

    def array(self) -> pa.ListArray:
        """list<int32> [n]."""
        lengths = np.array([0 if v is None else len(v) for v in self._values], dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        full = [np.asarray(v, dtype=np.int32) for v in self._values if v is not None and len(v)]
        flat = np.concatenate(full) if full else np.empty(0, dtype=np.int32)
        missing = np.array([v is None for v in self._values], dtype=bool)
        return pa.ListArray.from_arrays(
            pa.array(offsets), pa.array(flat), mask=pa.array(missing) if missing.any() else None
        )
