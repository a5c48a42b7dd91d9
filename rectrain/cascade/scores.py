"""Held-out prepared rows, scored by both packages.

Shapes: n rows, U users, I items of a catalogue.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rectrain.cascade.fit import DEPTH, ListScores, RowScores
from rectrain.cascade.heldout import ALL, HeldOutLists, head_ranks
from rectrain.data.shards import Prepared
from rectrain.errors import DataError
from rectrain.inference.index import ItemIndex, Scorer, first_items, leave_out
from rectrain.inference.predictor import Predictor, check_features
from rectrain.inference.recommend import Shoppers
from rectrain.metrics import catalogue_ranks, graded_groups, group_codes, rank_within_groups

__all__ = ["check_pair", "score_held_out"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_HEADS = (3, 5, 8, 20, 50)  # that a list's head may have, beside the whole list
_BLOCK_USERS = 512


def check_pair(small: Predictor, large: Predictor, prepared: Prepared, *, task: str) -> None:
    """Refuses data whose features either model was not trained on.

    Raises:
        DataError: see above, or a model without the task.
    """
    for predictor in (small, large):
        predictor.spec(task)
        check_features(predictor, prepared, task=task)


def score_held_out(
    small: Predictor, large: Predictor, prepared: Prepared, *, task: str, split: str
) -> RowScores | ListScores:
    """What both models say of a task's split; each reads the texts with its own tokenizer.

    Args:
        small, large: the models.
        prepared: data of the task.
        task: one of both models.
        split: "validation" or "test".

    Raises:
        DataError: the split has no rows, or of lists none whose labels differ.
    """
    rows = prepared.shards(task, split).table()
    spec = small.spec(task)
    if not rows.num_rows:
        raise _nothing(prepared, task, split, got="no rows")
    if spec.has_catalogue:
        return _catalogue(small, large, prepared, rows, task=task)
    first, second = (one.score(task, one.tokenised(task, rows)) for one in (small, large))
    labels, weights = (
        rows.column(name).to_numpy().astype(np.float64) for name in ("label", "weight")
    )
    groups = group_codes(rows.column("group").to_pylist())
    if not spec.has_lists:
        return RowScores(first, second, labels, weights, groups)
    kept = graded_groups(labels, groups)
    if not kept.any():
        raise _nothing(prepared, task, split, got="no list whose labels differ")
    order = np.flatnonzero(kept)[np.argsort(groups[kept], kind="stable")]
    lists = np.unique(groups[order], return_inverse=True)[1].reshape(-1).astype(np.int64)
    return _lists(first[order], second[order], labels[order], weights[order], lists)


def _lists(
    small: Floats, large: Floats, labels: Floats, weights: Floats, lists: Ints
) -> ListScores:
    places, sizes = rank_within_groups(small, lists), np.bincount(lists)
    heads = [head for head in _HEADS if head < sizes.max()]
    ranks = {head: head_ranks(places, large, lists, head=head) for head in (ALL, *heads)}
    judged = HeldOutLists(labels, weights, lists, places, ranks, sizes)
    return ListScores(small, large, np.exp2(labels) - 1, lists, judged)


# --- a whole catalogue for each user -----------------------------------------------------------


def _catalogue(
    small: Predictor, large: Predictor, prepared: Prepared, rows: pa.Table, *, task: str
) -> ListScores:
    """Small's best items of each user are the candidates; the wanted items' places are judged."""
    items = prepared.items(task).table()
    shoppers = Shoppers.of(rows, items.column("item_id").to_pylist())
    scorers = [_scorer(one, task, items, shoppers.rows) for one in (small, large)]
    place = {item: column for column, item in enumerate(shoppers.item_ids)}
    blocks = []
    for start in range(0, len(shoppers.bought), _BLOCK_USERS):
        block = slice(start, start + _BLOCK_USERS)
        scores = [np.array(scorer(block)) for scorer in scorers]
        for one in scores:
            leave_out(one, shoppers.bought[block], place=place)
        blocks.append(_block(*scores, shoppers=shoppers, start=start))
    columns = [np.concatenate(one) for one in zip(*blocks, strict=True)]
    scored, lists, gains, user, place_small, place_large = columns[0], *columns[1:6]
    heads = [head for head in _HEADS if head < len(shoppers.item_ids)]
    ranks = {ALL: place_large, **dict(zip(heads, columns[6].T, strict=True))}
    judged = HeldOutLists(
        labels=np.ones(len(user)),
        weights=np.ones(len(user)),
        lists=user,
        small=place_small,
        large=ranks,
        sizes=np.full(len(shoppers.bought), len(shoppers.item_ids)),
    )
    return ListScores(scored[:, 0], scored[:, 1], gains, lists, judged)


def _scorer(predictor: Predictor, task: str, items: pa.Table, users: pa.Table) -> Scorer:
    index = ItemIndex.build(predictor, task, predictor.tokenised(task, items))
    return index.scorer(predictor.embed(task, predictor.tokenised(task, users))[0])


def _block(
    small: NDArray[np.float32], large: NDArray[np.float32], *, shoppers: Shoppers, start: int
) -> tuple[NDArray[np.generic], ...]:
    """Of a block of users: scores [m, 2], lists [m] and gains [m] of the candidates; then user [w],
    both models' places [w] of the wanted items, and their places [w, heads] behind each head."""
    size = len(small)
    top = first_items(small, k=min(DEPTH, small.shape[1])).items
    here = (shoppers.wanted_user >= start) & (shoppers.wanted_user < start + size)
    user, item = shoppers.wanted_user[here] - start, shoppers.wanted_item[here]
    wanted = np.zeros(small.shape, dtype=bool)
    wanted[user, item] = True
    line, column = np.nonzero(top >= 0)
    chosen = top[line, column]
    scored = np.stack([small[line, chosen], large[line, chosen]], axis=1).astype(np.float64)
    places = [catalogue_ranks(one, rows=user, columns=item) for one in (small, large)]
    heads = [head for head in _HEADS if head < small.shape[1]]
    behind = [
        _behind_head(places[0], large, top[:, :head], user=user, item=item, head=head)
        for head in heads
    ]
    gains = wanted[line, chosen].astype(np.float64)
    ranks = np.stack(behind, axis=1) if heads else np.empty((len(user), 0), dtype=np.int64)
    return scored, line + start, gains, user + start, *places, ranks


def _behind_head(
    small: Ints, large: NDArray[np.float32], top: Ints, *, user: Ints, item: Ints, head: int
) -> Ints:
    """Places of wanted items where large orders the items `top` [U, head] of small's lists."""
    own = large[user, item][:, None]
    best = np.where(top >= 0, np.take_along_axis(large, np.maximum(top, 0), axis=1), -np.inf)
    ahead = 1 + (best[user] > own).sum(axis=1)
    return np.where(small <= head, ahead, small).astype(np.int64)


def _nothing(prepared: Prepared, task: str, split: str, *, got: str) -> DataError:
    return DataError(
        what=f"{split} split of {task} in {prepared.root}",
        got=got,
        rule="a policy is fitted on held-out rows",
        fix="prepare more data, or leave the task out (--tasks)",
    )
