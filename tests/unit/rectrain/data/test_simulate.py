from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pytest

from rectrain.data.simulate import (
    SIZES,
    Size,
    num_chunks,
    purchase_propensity,
    simulate,
    vocabulary,
)
from rectrain.data.tables import AD_CTR, RECOMMENDATION, RISK, SEARCH_RANKING
from rectrain.errors import DataError

TABLES = {table.task: table for table in (RECOMMENDATION, SEARCH_RANKING, AD_CTR, RISK)}
SIZE = Size(num_users=600, num_items=300, num_queries=250)


@pytest.fixture(scope="module")
def tables() -> dict[str, pa.Table]:
    return simulate(SIZE, seed=3)


def test_the_chunks_in_any_order_are_the_whole(tables: dict[str, pa.Table]) -> None:
    parts = {chunk: simulate(SIZE, seed=3, chunk=chunk) for chunk in (2, 0, 1)}
    assert num_chunks(SIZE) == len(parts)
    for task, table in tables.items():
        assert pa.concat_tables([parts[chunk][task] for chunk in sorted(parts)]).equals(table)
        assert len(set(table["row_id"].to_pylist())) == table.num_rows


def test_another_seed_is_another_shop(tables: dict[str, pa.Table]) -> None:
    other = simulate(SIZE, seed=4, chunk=0)
    for task, table in tables.items():
        assert other[task]["item_text"].to_pylist()[:20] != table["item_text"].to_pylist()[:20]


@pytest.mark.parametrize("task", sorted(TABLES))
def test_every_row_keeps_the_rules_of_its_task(task: str, tables: dict[str, pa.Table]) -> None:
    good, rejects = TABLES[task].check(tables[task])
    assert rejects.num_rows == 0
    assert good.num_rows == tables[task].num_rows > 0
    for name in ("price", "rating"):
        if name in tables[task].column_names:
            assert 0 < tables[task][name].null_count < 0.1 * good.num_rows


@pytest.mark.parametrize("task", ["ad_ctr", "risk", "search_ranking"])
def test_labels_are_draws_from_the_kept_truth(task: str, tables: dict[str, pa.Table]) -> None:
    truth = tables[task]["p_true"].to_numpy()
    outcome = tables[task]["label"].to_numpy()
    if task == "search_ranking":
        outcome = (2**outcome - 1) / 7
    for rows in np.array_split(np.argsort(truth), 5):
        error = outcome[rows].std() / np.sqrt(len(rows)) + 1e-9
        assert abs(outcome[rows].mean() - truth[rows].mean()) < 4 * error


def test_purchases_follow_the_propensity(tables: dict[str, pa.Table]) -> None:
    log = tables["recommendation"]
    users = [f"u{number:07d}" for number in (599, 0, 250)]
    items, truth = purchase_propensity(users, SIZE, seed=3)
    assert truth.shape == (3, SIZE.num_items)
    np.testing.assert_allclose(truth.sum(axis=1), 1, rtol=1e-5)
    place = {name: column for column, name in enumerate(items)}
    rows = log.select(["user_id", "item_id", "p_true"]).to_pylist()
    for row in rows:
        if row["user_id"] in users:
            expected = truth[users.index(row["user_id"]), place[row["item_id"]]]
            assert row["p_true"] == pytest.approx(expected, rel=1e-5)
    # A user buys the likelier half of the catalogue nearly always.
    everyone = sorted({row["user_id"] for row in rows})
    all_truth = purchase_propensity(everyone, SIZE, seed=3)[1]
    half = dict(zip(everyone, np.median(all_truth, axis=1), strict=True))
    assert np.mean([row["p_true"] > half[row["user_id"]] for row in rows]) > 0.9


def test_a_basket_is_one_user_at_one_time_who_buys_no_thing_twice_of_an_interest(
    tables: dict[str, pa.Table],
) -> None:
    frame = tables["recommendation"].select(["session_id", "user_id", "timestamp", "item_id"])
    baskets: dict[str, list[tuple[str, object, str]]] = {}
    for row in frame.to_pylist():
        key = row["session_id"]
        baskets.setdefault(key, []).append((row["user_id"], row["timestamp"], row["item_id"]))
    assert len(baskets) > 500
    for lines in baskets.values():
        assert len({(user, time) for user, time, _ in lines}) == 1
        assert len({item for *_, item in lines}) == len(lines)


def test_queries_paraphrase(tables: dict[str, pa.Table]) -> None:
    pairs = tables["search_ranking"].select(["query", "item_text", "label"]).to_pylist()
    shared = [
        len(set(p["query"].split()) & set(p["item_text"].lower().split())) / len(p["query"].split())
        for p in pairs
        if p["label"] == 3
    ]
    assert len(shared) > 50
    assert 0 < np.mean(shared) < 0.35  # even of the best products' texts


def test_texts_are_short_and_readable(tables: dict[str, pa.Table]) -> None:
    for table in tables.values():
        for name in ("item_text", "query", "context"):
            if name in table.column_names:
                for text in set(table[name].to_pylist()):
                    assert re.fullmatch(r"[A-Za-z'-]+( [A-Za-z'-]+)*", text)
                    assert 1 <= len(text.split()) <= 20


def test_no_word_means_two_things() -> None:
    meaning: dict[str, object] = {}
    lists = (
        tuple(kind.words for kind in vocabulary.TYPES), vocabulary.STYLES, vocabulary.MATERIALS,
        vocabulary.COLOURS, vocabulary.SIZES, vocabulary.COPIES, vocabulary.PRICE_WORDS,
        vocabulary.CATEGORIES,
    )  # fmt: skip
    for number, phrases in enumerate(lists):
        for phrase in phrases:
            for word in {*phrase.catalogue, *phrase.shopper} - {"", "-"}:
                assert meaning.setdefault(word.lower(), (number, phrase)) == (number, phrase), word


def test_what_sells_on_is_balanced_in_every_category() -> None:
    for category in range(len(vocabulary.CATEGORIES)):
        kinds = [kind for kind in vocabulary.TYPES if kind.category == category]
        assert len(kinds) == 6
        assert sum(kind.words.effect for kind in kinds) == 0


@pytest.mark.parametrize("name", ["num_users", "num_items", "purchases"])
def test_an_empty_marketplace_is_refused(name: str) -> None:
    with pytest.raises(DataError, match=f"simulated.{name}: got 0; "):
        Size(**{name: 0})  # type: ignore[arg-type]


def test_the_presets_grow() -> None:
    assert SIZES["tiny"].num_users < SIZES["demo"].num_users < SIZES["large"].num_users
    demo = simulate(SIZES["tiny"], seed=0)
    assert {task: table.num_rows > 300 for task, table in demo.items()} == dict.fromkeys(demo, True)
