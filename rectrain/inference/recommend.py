"""Ranking a whole catalogue for each user: item vectors once, then inner products by blocks.

Shapes: U users, I items of the catalogue, n wanted items, k length of a list, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rectrain.inference.predictor import Predictor
from rectrain.metrics import catalogue_ranks, catalogue_top

__all__ = ["Catalogue", "Ranking", "Scorer", "Shoppers"]

Ints = NDArray[np.int64]
Scorer = Callable[[slice], NDArray[np.floating[Any]]]
"""From a block of users to their scores of all items, float [block, I]."""

_BLOCK_USERS = 512


class Catalogue:
    """All items as vectors.

    Args:
        predictor: the model.
        task: a two-tower task of it.
        items: prepared columns of each item (`Prepared.items`), `log_q` among them.
    """

    def __init__(self, predictor: Predictor, task: str, items: pa.Table) -> None:
        self._predictor = predictor
        self._task = task
        self.vectors = predictor.embed(task, items)[1]

    def scorer(self, users: pa.Table) -> Scorer:
        """Scores of all items for each user.

        Args:
            users: prepared columns, one row a user; only the query side is read.
        """
        queries = self._predictor.embed(self._task, users)[0]
        return lambda block: queries[block] @ self.vectors.T


class Ranking(NamedTuple):
    """ranks: int64 [n], the wanted items' places; lists: int64 [U, k], the first items (-1: none);
    scores: float32 [U, k], their scores (NaN: none)."""

    ranks: Ints
    lists: Ints
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class Shoppers:
    """Users with what they have, and what they want: wanted_item[j] is wanted by wanted_user[j].

    Args:
        rows: prepared columns, one row a user.
        bought: ids of the items that must not be recommended to each user.
        item_ids: ids of the catalogue's I items.
        wanted_user: int64 [n], 0..U-1.
        wanted_item: int64 [n], 0..I-1.
    """

    rows: pa.Table
    bought: Sequence[Sequence[str]]
    item_ids: Sequence[str]
    wanted_user: Ints
    wanted_item: Ints

    @classmethod
    def of(cls, purchases: pa.Table, item_ids: Sequence[str]) -> Shoppers:
        """The users of held-out purchases: one row a user, and the items they then bought.

        Args:
            purchases: a held-out split of prepared rows; a user's first row holds `exclude`.
            item_ids: ids of the catalogue, which holds every purchased item.
        """
        users = np.array(purchases.column("group").to_pylist())
        _, first, user = np.unique(users, return_index=True, return_inverse=True)
        rows = purchases.take(pa.array(first))
        place = {item: column for column, item in enumerate(item_ids)}
        wanted = [place[item] for item in purchases.column("item_id").to_pylist()]
        bought = [ids or [] for ids in rows.column("exclude").to_pylist()]
        return cls(rows, bought, item_ids, user.reshape(-1), np.array(wanted, dtype=np.int64))

    def rank(self, scorer: Scorer, *, k: int) -> Ranking:
        """Ranks the catalogue for every user, bought items left out.

        Args:
            scorer: of blocks of users.
            k: length of the lists.
        """
        place = {item: column for column, item in enumerate(self.item_ids)}
        ranks = np.empty(len(self.wanted_user), dtype=np.int64)
        lists, best = [], []
        for start in range(0, len(self.bought), _BLOCK_USERS):
            block = slice(start, start + _BLOCK_USERS)
            scores = np.array(scorer(block))  # a copy: the next line writes
            for row, ids in enumerate(self.bought[block]):
                scores[row, [place[item] for item in ids if item in place]] = -np.inf
            here = (self.wanted_user >= start) & (self.wanted_user < start + _BLOCK_USERS)
            ranks[here] = catalogue_ranks(
                scores, rows=self.wanted_user[here] - start, columns=self.wanted_item[here]
            )
            top = catalogue_top(scores, k=k)
            lists.append(top)
            best.append(np.where(top >= 0, np.take_along_axis(scores, top, axis=1), np.nan))
        return Ranking(ranks, np.concatenate(lists), np.concatenate(best).astype(np.float32))
