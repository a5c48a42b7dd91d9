from __future__ import annotations

from math import log, sqrt

import numpy as np
import pyarrow as pa
import pytest

from rectrain.inference.baselines import (
    ROW_BASELINES,
    bm25,
    features,
    item_knn,
    popularity,
    score_rows,
)
from rectrain.metrics import Examples, metric


def purchases(*pairs: tuple[str, str]) -> pa.Table:
    users, items = zip(*pairs, strict=True)
    return pa.table({"group": list(users), "item_id": list(items)})


LOG = purchases(("u", "a"), ("u", "b"), ("u", "a"), ("v", "a"), ("v", "b"), ("w", "a"), ("w", "c"))
ITEMS = ["a", "b", "c", "d"]


def test_popularity_counts_users_not_purchases() -> None:
    scores = popularity(LOG, items=ITEMS)([["a"], []])
    np.testing.assert_array_equal(scores, [[3, 2, 1, 0]] * 2)


def test_item_knn_is_the_shrunk_cosine_of_who_bought_both() -> None:
    scores = item_knn(LOG, items=ITEMS)([["a"], ["b", "c"], ["unknown"]])
    ab, ac = 2 / (sqrt(3 * 2) + 10), 1 / (sqrt(3 * 1) + 10)
    np.testing.assert_allclose(scores, [[0, ab, ac, 0], [ab + ac, 0, 0, 0], [0, 0, 0, 0]])


def test_bm25_by_hand() -> None:
    collection = ["red shoe", "Red, red hat!", "blue shoe for rain"]  # lengths 2, 3, 4
    scores = bm25(["RED hat", "rain rain", "green"], [*collection[1:], "x"], collection=collection)
    idf = {"red": log(1 + 1.5 / 2.5), "hat": log(1 + 2.5 / 1.5), "rain": log(1 + 2.5 / 1.5)}
    red = idf["red"] * 2 * 2.2 / (2 + 1.2)  # its text has the mean length: b cancels
    hat = idf["hat"] * 1 * 2.2 / (1 + 1.2)
    rain = idf["rain"] * 1 * 2.2 / (1 + 1.2 * (0.25 + 0.75 * 4 / 3))
    np.testing.assert_allclose(scores, [red + hat, rain, 0])


def rows(count: int, *, seed: int, grades: bool = False, categories: int = 300) -> pa.Table:
    """Rows whose label needs a word of the text and a number: neither alone tells it."""
    rng = np.random.default_rng(seed)
    good, high = rng.random(count) < 0.5, rng.random(count)
    code = rng.integers(0, categories, count).astype(np.int32)
    worth = good + 2 * high + 0.3 * rng.standard_normal(count)
    label = (worth > 1.5) * (2.0 if grades else 1.0)
    texts = pa.array(
        [[f"{'fine' if g else 'poor'} thing {c}"] for g, c in zip(good, code % 7, strict=True)]
    )
    return pa.table(
        {
            "query_text": pa.array([["a fine one"]] * count),
            "item_text": texts,
            "numeric": pa.FixedSizeListArray.from_arrays(pa.array(high, pa.float32()), 1),
            "categorical": pa.FixedSizeListArray.from_arrays(pa.array(code), 1),
            "label": label,
            "weight": np.ones(count),
            "list_id": np.arange(count, dtype=np.int32) // 4,
        }
    )


def auc(name: str, train: pa.Table, test: pa.Table) -> float:
    label = (test["label"].to_numpy() > 0) * 1.0
    return metric("auc")(Examples(label=label, score=score_rows(name, train, test)))


@pytest.mark.parametrize("grades", [False, True])
def test_both_beats_the_texts_alone_and_the_features_alone(grades: bool) -> None:
    train, test = rows(1500, seed=0, grades=grades), rows(1000, seed=1, grades=grades)
    alone = [auc(name, train, test) for name in ("gbdt", "bm25" if grades else "tfidf")]
    assert min(alone) > 0.65
    assert auc("both", train, test) > max(alone) + 0.05


def test_scores_never_depend_on_test_labels() -> None:
    train, test = rows(300, seed=0), rows(100, seed=1)
    blind = test.drop_columns(["label", "weight"])
    for name in ROW_BASELINES:
        np.testing.assert_array_equal(
            score_rows(name, train, test), score_rows(name, train, blind), err_msg=name
        )


def test_row_weights_move_the_fit() -> None:
    train, test = rows(300, seed=0), rows(50, seed=1)
    weight = np.where(train["label"].to_numpy() > 0, 20.0, 1.0)
    heavy = train.set_column(train.column_names.index("weight"), "weight", pa.array(weight))
    for name in ("gbdt", "tfidf"):
        assert score_rows(name, heavy, test).mean() > score_rows(name, train, test).mean() + 0.1


def test_more_categories_than_trees_hold_are_folded_into_other() -> None:
    values, is_category = features(rows(2000, seed=0, categories=1000))
    assert is_category == [False, True]
    assert values[:, 1].max() < 255
    assert (values[:, 1] == 1).mean() > 0.5


@pytest.mark.parametrize("name", ["gbdt", "tfidf", "both"])
def test_one_class_only_gives_its_rate(name: str) -> None:
    train = rows(60, seed=0)
    train = train.set_column(4, "label", pa.array(np.zeros(60)))
    np.testing.assert_array_equal(score_rows(name, train, rows(5, seed=1)), np.zeros(5))


def pairs(seed: int, *, count: int = 200) -> pa.Table:
    """Pairs of texts of which the one with "wow" wins mostly, in either order; a third row ties."""
    rng = np.random.default_rng(seed)
    table = rows(3 * count, seed=seed)
    texts, labels = [], []
    for _ in range(count):
        won = rng.permutation([1.0, 0.0, 0.0])
        wow = won if rng.random() < 0.8 else 1 - won
        texts += [[f"{'wow' if w else 'meh'} thing {rng.integers(5)}"] for w in wow]
        labels += won.tolist()
    table = table.set_column(1, "item_text", pa.array(texts))
    table = table.set_column(4, "label", pa.array(labels))
    lists = pa.array(np.repeat(np.arange(count), 3), pa.int32())
    return table.set_column(6, "list_id", lists)


def test_the_difference_of_words_tells_which_row_of_a_list_is_better() -> None:
    train, test = pairs(0), pairs(1)
    scores = score_rows("tfidf_difference", train, test)
    wow = np.array(["wow" in text for (text,) in test["item_text"].to_pylist()])
    assert scores[wow].min() > scores[~wow].max()


def test_the_difference_of_words_is_zero_without_a_pair_to_learn_from() -> None:
    train = pairs(0, count=20)
    alone = train.set_column(6, "list_id", pa.array(np.arange(60), pa.int32()))
    np.testing.assert_array_equal(score_rows("tfidf_difference", alone, train), np.zeros(60))


def test_fractional_grades_are_no_classes() -> None:
    train = rows(200, seed=0)
    graded = train.set_column(4, "label", pa.array(train["label"].to_numpy() * 0.1375))
    assert score_rows("gbdt", graded, rows(5, seed=1)).max() < 0.2
