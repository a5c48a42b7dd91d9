"""Metrics of ranked lists, and the ranking itself.

Shapes: n rows, G groups, U users, I items of the catalogue, k length of a list.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rectrain.metrics.examples import Examples, Floats, Ints, Statistic, ratio, starts

__all__ = [
    "catalogue_coverage",
    "catalogue_ranks",
    "catalogue_top",
    "graded_groups",
    "hit_rate",
    "intra_list_dissimilarity",
    "mrr",
    "ndcg",
    "pairwise_accuracy",
    "precision_at",
    "rank_within_groups",
    "recall_at",
]

_TIE_SEED = 0


def rank_within_groups(score: Floats, group: Ints) -> Ints:
    """The place of each row in its group's list, from 1, best score first.

    Rows of equal score stand in an order that is drawn once from a fixed seed: it depends neither
    on the labels nor on whether relevant rows come first in the file, so a model that scores all
    rows alike earns what a random order earns, not everything or nothing.

    Args:
        score: float [n].
        group: int64 [n].

    Returns:
        int64 [n].
    """
    draw = np.random.default_rng(_TIE_SEED).permutation(len(score))
    order = np.lexsort((draw, -score, group))
    first = starts(group[order])
    lengths = np.diff([*first, len(order)])
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(first, lengths) + 1
    return rank


def _ranks(examples: Examples) -> Ints:
    if examples.rank is not None:
        return np.asarray(examples.rank, dtype=np.int64)
    return rank_within_groups(examples.score, examples.groups)


def _group_mean(values: Floats, examples: Examples) -> Statistic:
    """Mean of a value per group (NaN: left out); a group weighs the mean weight of its rows."""
    groups, size = examples.groups, examples.num_groups
    known = ~np.isnan(values)
    rows = np.bincount(groups, minlength=size)

    def statistic(weight: Floats) -> float:
        of_group = np.bincount(groups, weights=weight, minlength=size)[known] / rows[known]
        return ratio(float(of_group @ values[known]), float(of_group.sum()))

    return statistic


def _over_groups(values: Floats, examples: Examples) -> Floats:
    sums = np.bincount(examples.groups, weights=values, minlength=examples.num_groups)
    return sums.astype(np.float64)


def ndcg(k: int) -> Callable[[Examples], Statistic]:
    """DCG@k / ideal DCG@k, gain 2^grade - 1, discount log2(rank + 1) (Järvelin & Kekäläinen 2002,
    gain of Burges 2005); groups without a relevant row are left out."""

    def prepare(examples: Examples) -> Statistic:
        gain = np.exp2(examples.label) - 1

        def dcg(rank: Ints) -> Floats:
            return _over_groups(np.where(rank <= k, gain / np.log2(rank + 1.0), 0.0), examples)

        ideal = dcg(rank_within_groups(examples.label, examples.groups))
        actual = dcg(_ranks(examples))
        return _group_mean(
            np.where(ideal > 0, actual / np.where(ideal > 0, ideal, 1), np.nan), examples
        )

    return prepare


def _list_metric(
    of_group: Callable[[Floats, Floats, Floats], Floats],
) -> Callable[[int], Callable[[Examples], Statistic]]:
    """From (best relevant rank, relevant rows in the first k, relevant rows) to a metric @k."""

    def at(k: int) -> Callable[[Examples], Statistic]:
        def prepare(examples: Examples) -> Statistic:
            rank, relevant = _ranks(examples), examples.label > 0
            best = np.full(examples.num_groups, np.inf)
            np.minimum.at(best, examples.groups[relevant], rank[relevant].astype(np.float64))
            found = _over_groups((relevant & (rank <= k)).astype(np.float64), examples)
            total = _over_groups(relevant.astype(np.float64), examples)
            with np.errstate(invalid="ignore"):
                values = of_group(best, found, total)
            return _group_mean(np.where(total > 0, values, np.nan), examples)

        return prepare

    return at


hit_rate = _list_metric(lambda best, found, total: (found > 0).astype(np.float64))
recall_at = _list_metric(lambda best, found, total: found / total)
mrr = _list_metric(lambda best, found, total: 1.0 / best)


def precision_at(k: int) -> Callable[[Examples], Statistic]:
    return _list_metric(lambda best, found, total: found / k)(k)


def pairwise_accuracy(examples: Examples) -> Statistic:
    """Share of a group's pairs of different labels that the scores order as the labels do (a tie
    of scores counts half), averaged over groups; groups without such a pair are left out.

    It builds all pairs inside groups: for lists, not for groups of many thousand rows.
    """
    order = np.argsort(examples.groups, kind="stable")
    group, label, score = (a[order] for a in (examples.groups, examples.label, examples.score))
    first = starts(group)
    size = np.diff([*first, len(order)])
    partners = np.repeat(size, size)  # of each row, itself among them
    i = np.repeat(np.arange(len(order)), partners)
    j = np.repeat(first, size)[i] + np.arange(len(i)) - (np.cumsum(partners) - partners)[i]
    better = label[i] > label[j]
    i, j = i[better], j[better]
    right = (score[i] > score[j]) + 0.5 * (score[i] == score[j])
    total = np.bincount(group[i], minlength=examples.num_groups)
    found = np.bincount(group[i], weights=right, minlength=examples.num_groups)
    return _group_mean(np.where(total > 0, found / np.maximum(total, 1), np.nan), examples)


def graded_groups(label: Floats, group: Ints) -> NDArray[np.bool_]:
    """Which rows belong to a group whose labels differ: only those can be ranked well or badly.

    Args:
        label: float [n].
        group: int64 [n].

    Returns:
        bool [n].
    """
    codes = np.unique(group, return_inverse=True)[1].reshape(-1)
    low, high = np.full(len(codes), np.inf), np.full(len(codes), -np.inf)
    np.minimum.at(low, codes, label)
    np.maximum.at(high, codes, label)
    differs: NDArray[np.bool_] = (low != high)[codes]
    return differs


def catalogue_ranks(scores: NDArray[np.floating[Any]], *, rows: Ints, columns: Ints) -> Ints:
    """The place of given items in the ranking of a whole catalogue, from 1.

    Args:
        scores: float [U, I]; -inf for an item that must not be recommended (already bought).
        rows: int64 [n], the user of each wanted place.
        columns: int64 [n], its item.

    Returns:
        int64 [n]: 1 + items scored higher + items of equal score that come earlier in a random
        order of the catalogue drawn from a fixed seed (see `rank_within_groups`).
    """
    draw = _tie_order(scores.shape[1])
    ranks = np.empty(len(rows), dtype=np.int64)
    for index, (row, column) in enumerate(zip(rows, columns, strict=True)):
        line, own = scores[row], scores[row, column]
        ahead = np.count_nonzero(line > own)
        ties = np.flatnonzero(line == own)
        ranks[index] = 1 + ahead + np.count_nonzero(draw[ties] < draw[column])
    return ranks


def catalogue_top(scores: NDArray[np.floating[Any]], *, k: int) -> Ints:
    """The first k items of each user's ranking, ties as in `catalogue_ranks`.

    Args:
        scores: float [U, I]; -inf for an item that must not be recommended.
        k: length of the lists.

    Returns:
        int64 [U, k], columns of `scores`, best first; -1 where a user has no further item.
    """
    draw = _tie_order(scores.shape[1])
    lists = np.full((len(scores), k), -1, dtype=np.int64)
    last = max(scores.shape[1] - k, 0)
    for row, line in enumerate(scores):
        lowest = np.partition(line, last)[last]
        chosen = np.flatnonzero((line >= lowest) & (line > -np.inf))
        chosen = chosen[np.lexsort((draw[chosen], -line[chosen]))][:k]
        lists[row, : len(chosen)] = chosen
    return lists


@lru_cache(maxsize=8)
def _tie_order(num_items: int) -> Ints:
    """Places in the random order in which items of equal score stand; drawn once a catalogue."""
    draw = np.random.default_rng(_TIE_SEED).permutation(num_items)
    draw.flags.writeable = False
    return draw


def catalogue_coverage(lists: Ints, *, num_items: int) -> float:
    """Share of the catalogue that stands in at least one list.

    Args:
        lists: int64 [U, k], items' numbers; -1 for an empty place.
        num_items: I.

    Returns:
        0..1.
    """
    return ratio(float(len(np.unique(lists[lists >= 0]))), float(num_items))


def intra_list_dissimilarity(
    lists: Ints, *, vectors: NDArray[np.float32] | None = None, categories: Ints | None = None
) -> Floats:
    """How different the items of one list are: the mean over its pairs of 1 - cosine of the item
    vectors, or of whether the categories differ (Ziegler et al. 2005, §3.3).

    Args:
        lists: int64 [U, k], items' numbers, k >= 2.
        vectors: float32 [I, D]; or
        categories: int64 [I].

    Returns:
        float64 [U]; 0..2 for vectors, 0..1 for categories; NaN for a list with an empty place.
    """
    size = lists.shape[1]
    if vectors is not None:
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit = (vectors / np.where(norms > 0, norms, 1)).astype(np.float64)
        # Σ over ordered pairs of cosines = |Σ of unit vectors|² - Σ of their own squares.
        same = np.array([(unit[row].sum(0) ** 2).sum() - (unit[row] ** 2).sum() for row in lists])
    else:
        assert categories is not None, "give vectors or categories"
        chosen = categories[lists]
        same = (chosen[:, :, None] == chosen[:, None, :]).sum((1, 2)).astype(np.float64) - size
    full = (lists >= 0).all(axis=1)
    return np.where(full, 1.0 - same / (size * (size - 1)), np.nan)
