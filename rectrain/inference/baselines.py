"""Simple models that a trained model must beat, fitted on the same prepared rows.

Two families. `catalogue_scorer` scores the whole catalogue for users by what they bought
(recommendation). `score_rows` scores rows by their texts, their features, or both (every other
task). Each learns from the train split alone; `TaskSpec.baselines` says which run for a task.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rectrain.data.encoding import OTHER

__all__ = [
    "CATALOGUE_BASELINES",
    "ROW_BASELINES",
    "CatalogueScorer",
    "bm25",
    "catalogue_scorer",
    "features",
    "item_knn",
    "popularity",
    "rank_catalogue",
    "score_rows",
    "texts",
]

Floats = npt.NDArray[np.floating[Any]]
CatalogueScorer = Callable[[Sequence[Sequence[str]]], Floats]
"""From the items that each user bought to the user's scores of all items, [users, items]."""

_SHRINKAGE = 10.0
_BM25_K1, _BM25_B = 1.2, 0.75
_MAX_CATEGORIES = 255  # of scikit-learn's histogram trees


def catalogue_scorer(name: str, train: pa.Table, *, items: Sequence[str]) -> CatalogueScorer:
    """From what users bought to their scores of every item; fitted once, asked by blocks of users.

    Args:
        name: one of `CATALOGUE_BASELINES`.
        train: columns group (the user) and item_id, one row a purchase.
        items: ids of the catalogue.
    """
    return CATALOGUE_BASELINES[name](train, items=items)


def rank_catalogue(
    name: str, train: pa.Table, *, items: Sequence[str], bought: Sequence[Sequence[str]]
) -> Floats:
    """Scores of every item for every user, float64 [users, items]; higher is better.

    Args:
        name, train, items: see `catalogue_scorer`.
        bought: for each user to rank for, the ids they bought before; ids that are not in the
            catalogue are passed over. Bought items are scored too: exclude them when ranking.
    """
    return catalogue_scorer(name, train, items=items)(bought)


def score_rows(
    name: str, train: pa.Table, test: pa.Table, *, collection: Sequence[str] = ()
) -> Floats:
    """Scores of the test rows, float64 [n]; for 0/1 labels of learnt baselines: probabilities.

    Args:
        name: one of `ROW_BASELINES`.
        train, test: columns query_text, item_text (list<string>), numeric, categorical
            (fixed-size lists), and in train label and weight, and list_id (int32, equal for
            neighbours of one list) for tfidf_difference.
        collection: the item texts that BM25's statistics are of; the items of both tables where
            it is empty.
    """
    return ROW_BASELINES[name](train, test, collection=collection)


def popularity(train: pa.Table, *, items: Sequence[str]) -> CatalogueScorer:
    """The number of users who bought the item, the same for every user."""
    counts = np.asarray(_purchases(train, items).sum(axis=0), dtype=np.float64).reshape(1, -1)
    return lambda bought: np.tile(counts, (len(bought), 1))


def item_knn(train: pa.Table, *, items: Sequence[str]) -> CatalogueScorer:
    """Σ over a user's items j of the similarity of i and j: the cosine of who bought them.

    sim(i, j) = n_ij / (sqrt(n_i · n_j) + 10), with n_ij the users who bought both; an item is no
    neighbour of itself.
    """
    from scipy import sparse  # type: ignore[import-untyped]

    users = _purchases(train, items)
    together = (users.T @ users).tocoo()
    count = np.asarray(users.sum(axis=0)).reshape(-1)
    cosine = together.data / (np.sqrt(count[together.row] * count[together.col]) + _SHRINKAGE)
    cosine[together.row == together.col] = 0.0
    shape = (len(items), len(items))
    similarity = sparse.csr_matrix((cosine, (together.row, together.col)), shape=shape)

    def score(bought: Sequence[Sequence[str]]) -> Floats:
        rows = np.repeat(np.arange(len(bought)), [len(ids) for ids in bought])
        profile = _matrix(rows, [item for ids in bought for item in ids], len(bought), items)
        return np.asarray((profile @ similarity).todense())

    return score


def _purchases(train: pa.Table, items: Sequence[str]) -> Any:
    """Who bought what, 0/1, sparse [users, items]."""
    users, rows = np.unique(np.array(train.column("group").to_pylist()), return_inverse=True)
    return _matrix(rows.reshape(-1), train.column("item_id").to_pylist(), len(users), items)


def _matrix(
    rows: npt.NDArray[np.int64], ids: Sequence[str], num_rows: int, items: Sequence[str]
) -> Any:
    from scipy import sparse

    place = {item: column for column, item in enumerate(items)}
    columns = np.array([place.get(item, -1) for item in ids], dtype=np.int64)
    known = columns >= 0
    matrix = sparse.csr_matrix(
        (np.ones(int(known.sum())), (rows[known], columns[known])), shape=(num_rows, len(items))
    )
    matrix.data[:] = 1.0  # repeated purchases were summed
    return matrix


def texts(table: pa.Table, *sides: str) -> list[str]:
    """The texts of the sides ("query_text", "item_text") of each row, joined by a space."""
    columns = [table.column(side).to_pylist() for side in sides]
    return [
        " ".join(text for side in row for text in side or ()) for row in zip(*columns, strict=True)
    ]


def features(table: pa.Table) -> tuple[Floats, list[bool]]:
    """The rows' features, float64 [n, Fn + Fc], and which of them are categories."""
    parts, is_category = [], []
    for name in ("numeric", "categorical"):
        column = table.column(name).combine_chunks()
        width = column.type.list_size
        values = column.flatten().to_numpy(zero_copy_only=False)
        values = values.reshape(table.num_rows, width).astype(np.float64)
        if name == "categorical":  # the trees hold no more; the rarest become OTHER
            values = np.where(values < _MAX_CATEGORIES, values, OTHER)
        parts.append(values)
        is_category += [name == "categorical"] * width
    return np.concatenate(parts, axis=1), is_category


def bm25(queries: Sequence[str], documents: Sequence[str], *, collection: Sequence[str]) -> Floats:
    """BM25 of each query with the document beside it, float64 [n].

    Σ over the query's different words w: idf(w) · f(k1 + 1) / (f + k1(1 - b + b · len / mean len)),
    idf = ln(1 + (N - n_w + 0.5) / (n_w + 0.5)), k1 = 1.2, b = 0.75 (Robertson & Zaragoza, 2009,
    with the idf that is never negative). Words are lower-cased runs of [a-z0-9].

    Args:
        queries, documents: texts, of equal number.
        collection: the texts that N, n_w and the mean length are counted over.
    """
    held: Counter[str] = Counter()
    total = 0
    for text in collection:
        found = _words(text)
        total += len(found)
        held.update(set(found))
    mean_length = max(total / max(len(collection), 1), 1e-9)
    inside = {text: Counter(_words(text)) for text in set(documents)}
    scores = np.zeros(len(queries))
    for row, (query, document) in enumerate(zip(queries, documents, strict=True)):
        counts = inside[document]
        share = _BM25_B * counts.total() / mean_length
        for word in set(_words(query)):
            if f := counts[word]:
                idf = np.log1p((len(collection) - held[word] + 0.5) / (held[word] + 0.5))
                scores[row] += idf * f * (_BM25_K1 + 1) / (f + _BM25_K1 * (1 - _BM25_B + share))
    return scores


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _bm25_rows(train: pa.Table, test: pa.Table, *, collection: Sequence[str]) -> Floats:
    items = texts(test, "item_text")
    known = collection or sorted({*texts(train, "item_text"), *items})
    return bm25(texts(test, "query_text"), items, collection=known)


def _gbdt_rows(train: pa.Table, test: pa.Table, *, collection: Sequence[str]) -> Floats:
    del collection
    x_train, is_category = features(train)
    return _predict(_gbdt(is_category, graded=_graded(train)), x_train, train, features(test)[0])


def _tfidf_rows(
    train: pa.Table,
    test: pa.Table,
    *,
    collection: Sequence[str],
    min_df: int = 5,
    regularization: float = 1.0,
) -> Floats:
    del collection
    x_train, x_test = _tfidf(train, test, min_df=min_df)
    learner = _linear(graded=_graded(train), regularization=regularization)
    return _predict(learner, x_train, train, x_test)


def _tfidf_difference_rows(train: pa.Table, test: pa.Table, *, collection: Sequence[str]) -> Floats:
    """A logistic regression of which of two rows of a list is better on the difference of their
    TF-IDF vectors, without intercept; a row's score is its own vector's part, log odds."""
    from scipy import sparse
    from sklearn.linear_model import LogisticRegression

    del collection
    x_train, x_test = _tfidf(train, test, min_df=2)
    better, worse = _ordered_pairs(_labels(train), train.column("list_id").to_numpy())
    if not len(better) or not x_train.shape[1]:
        return np.zeros(test.num_rows)
    difference = x_train[better] - x_train[worse]
    weight = train.column("weight").to_numpy().astype(np.float64)
    # Each pair both ways round, so each with half its rows' mean weight.
    both = sparse.vstack([difference, -difference], format="csr")
    label = np.repeat([1, 0], len(better))
    weights = np.tile((weight[better] + weight[worse]) / 4, 2)
    learner = LogisticRegression(max_iter=1000, fit_intercept=False)
    learner.fit(both, label, sample_weight=weights)
    return np.asarray(learner.decision_function(x_test), dtype=np.float64)


def _ordered_pairs(
    label: Floats, list_id: npt.NDArray[np.integer[Any]]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The better and the worse row of every pair of one list whose labels differ."""
    starts = np.flatnonzero(np.diff(list_id, prepend=list_id[:1] - 1))
    pairs = [
        (start + np.argwhere(own[:, None] > own[None, :]))
        for start, own in zip(starts, np.split(label, starts[1:]), strict=True)
    ]
    found = np.concatenate(pairs) if pairs else np.empty((0, 2), dtype=np.int64)
    return found[:, 0], found[:, 1]


def _both_rows(train: pa.Table, test: pa.Table, *, collection: Sequence[str]) -> Floats:
    """0/1 labels: a logistic regression of TF-IDF and the trees' log odds, which come from folds
    that didn't see the row. Grades: the trees with BM25 as one more feature."""
    if _graded(train):
        return _gbdt_with_bm25(train, test, collection=collection)
    if not features(train)[1] or np.bincount(_labels(train).astype(int), minlength=2).min() < 3:
        return _tfidf_rows(train, test, collection=collection)
    from scipy import sparse
    from sklearn.model_selection import cross_val_predict

    x_train, is_category = features(train)
    label = _labels(train)
    trees = _gbdt(is_category, graded=False)
    unseen = cross_val_predict(trees, x_train, label, cv=3, method="predict_proba")[:, 1]
    fitted = _predict(trees, x_train, train, features(test)[0])
    words_train, words_test = _tfidf(train, test)
    joined_train = sparse.hstack([words_train, _log_odds(unseen)], format="csr")
    joined_test = sparse.hstack([words_test, _log_odds(fitted)], format="csr")
    return _predict(_linear(graded=False), joined_train, train, joined_test)


def _gbdt_with_bm25(train: pa.Table, test: pa.Table, *, collection: Sequence[str]) -> Floats:
    known = collection or sorted({*texts(train, "item_text"), *texts(test, "item_text")})
    x_train, is_category = features(train)
    both = [
        np.column_stack([x, _bm25_rows(train, rows, collection=known)])
        for x, rows in ((x_train, train), (features(test)[0], test))
    ]
    return _predict(_gbdt([*is_category, False], graded=True), both[0], train, both[1])


def _labels(table: pa.Table) -> Floats:
    label: Floats = table.column("label").to_numpy().astype(np.float64)
    return label


def _graded(train: pa.Table) -> bool:
    return bool(np.any(~np.isin(_labels(train), (0.0, 1.0))))


def _log_odds(probability: Floats) -> Floats:
    clipped = np.clip(probability, 1e-6, 1 - 1e-6)
    column: Floats = np.log(clipped / (1 - clipped)).reshape(-1, 1)
    return column


def _gbdt(is_category: Sequence[bool], *, graded: bool) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    kind = HistGradientBoostingRegressor if graded else HistGradientBoostingClassifier
    return kind(
        learning_rate=0.05,
        max_iter=200,
        l2_regularization=1.0,
        categorical_features=np.array(is_category, dtype=bool),
        random_state=0,
    )


def _linear(*, graded: bool, regularization: float = 1.0) -> Any:
    """`regularization` is scikit-learn's C: a larger one regularises less."""
    from sklearn.linear_model import LogisticRegression, Ridge

    return Ridge() if graded else LogisticRegression(C=regularization, max_iter=1000)


def _tfidf(train: pa.Table, test: pa.Table, *, min_df: int = 5) -> tuple[Any, Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    # The rows a word must stand in would be all of a very small table: it gets fewer.
    vectors = TfidfVectorizer(ngram_range=(1, 2), min_df=max(1, min(min_df, train.num_rows // 20)))
    return (
        vectors.fit_transform(texts(train, "query_text", "item_text")),
        vectors.transform(texts(test, "query_text", "item_text")),
    )


def _predict(learner: Any, x_train: Any, train: pa.Table, x_test: Any) -> Floats:
    """Fits on the train rows with their weights; probabilities of a classifier, else values."""
    label, weight = _labels(train), train.column("weight").to_numpy().astype(np.float64)
    if not x_train.shape[1] or label.min() == label.max():  # nothing to learn from
        return np.full(x_test.shape[0], label.mean())
    learner.fit(x_train, label, sample_weight=weight)
    if hasattr(learner, "predict_proba"):
        return np.asarray(learner.predict_proba(x_test)[:, 1], dtype=np.float64)
    return np.asarray(learner.predict(x_test), dtype=np.float64)


CATALOGUE_BASELINES: Mapping[str, Callable[..., CatalogueScorer]] = {
    "popularity": popularity,
    "item_knn": item_knn,
}
ROW_BASELINES: Mapping[str, Callable[..., Floats]] = {
    "bm25": _bm25_rows,
    "gbdt": _gbdt_rows,
    "tfidf": _tfidf_rows,
    "tfidf_c10": partial(_tfidf_rows, min_df=1, regularization=10.0),
    "tfidf_difference": _tfidf_difference_rows,
    "both": _both_rows,
}
