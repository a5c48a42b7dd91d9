"""Judging a ranking of a whole catalogue: where the items stand that users came to want.

Shapes: U users, I items of the catalogue, n wanted items, k length of a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rectrain.inference.index import Best, Scorer, first_items, leave_out
from rectrain.metrics import catalogue_ranks

__all__ = ["Ranking", "Shoppers"]

Ints = NDArray[np.int64]

_BLOCK_USERS = 512


class Ranking(NamedTuple):
    """ranks: int64 [n], the wanted items' places; best: the first k items of each of U users."""

    ranks: Ints
    best: Best


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
        lists = []
        for start in range(0, len(self.bought), _BLOCK_USERS):
            block = slice(start, start + _BLOCK_USERS)
            scores = np.array(scorer(block))  # a copy: the next line writes
            leave_out(scores, self.bought[block], place=place)
            here = (self.wanted_user >= start) & (self.wanted_user < start + _BLOCK_USERS)
            ranks[here] = catalogue_ranks(
                scores, rows=self.wanted_user[here] - start, columns=self.wanted_item[here]
            )
            lists.append(first_items(scores, k=k))
        return Ranking(ranks, Best(*(np.concatenate(one) for one in zip(*lists, strict=True))))
