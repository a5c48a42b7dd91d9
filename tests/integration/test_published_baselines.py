"""The baselines give the known figures on the real public data, each protocol written out here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.model_selection import GroupKFold, train_test_split

from rectrain.inference.baselines import bm25, rank_catalogue, score_rows
from rectrain.metrics import Examples, metric


@pytest.fixture(scope="module")
def retail(shared_data: Path) -> pd.DataFrame:
    lines = pd.read_parquet(shared_data / "recommendation" / "online_retail.parquet")
    return lines[lines.CustomerID.notna() & lines.Description.notna()]


def top10(scores: np.ndarray, targets: list[set[int]], bought: list[list[int]]) -> list[float]:
    """Mean HR@10, recall@10 and nDCG@10, bought items left out."""
    discount = 1 / np.log2(np.arange(2, 12))
    facts = []
    for row, wanted, had in zip(scores, targets, bought, strict=True):
        row[had] = -np.inf
        hits = np.isin(np.argsort(-row, kind="stable")[:10], list(wanted))
        ideal = discount[: min(10, len(wanted))].sum()
        facts.append((hits.any(), hits.sum() / len(wanted), discount[hits].sum() / ideal))
    return [float(value) for value in np.mean(np.array(facts, dtype=float), axis=0)]


def test_popularity_and_item_knn_on_online_retail(retail: pd.DataFrame) -> None:
    bought = retail[retail.Quantity > 0]
    baskets = bought.groupby("CustomerID").InvoiceDate
    many = baskets.transform("nunique") >= 3
    last = many & (bought.InvoiceDate == baskets.transform("max"))
    train, test = bought[~last], bought[last]
    items = sorted(set(bought.Description))
    place = {name: number for number, name in enumerate(items)}
    had = train[many[train.index]].groupby("CustomerID").Description.agg(lambda s: sorted(set(s)))
    targets = {
        user: {place[name] for name in set(names) - set(had[user])}
        for user, names in test.groupby("CustomerID").Description
    }
    users = [user for user, wanted in targets.items() if wanted]
    assert len(users) == 1230
    table = pa.table({"group": train.CustomerID.astype(str), "item_id": train.Description})
    lists = [had[user] for user in users]
    places = [[place[name] for name in names] for names in lists]
    wanted = [targets[user] for user in users]
    for name, published in (
        ("popularity", [0.198, 0.018, 0.026]),
        ("item_knn", [0.261, 0.046, 0.058]),
    ):
        scores = rank_catalogue(name, table, items=items, bought=lists)
        assert top10(scores, wanted, places) == pytest.approx(published, abs=0.001)


def test_bm25_on_chorus(shared_data: Path) -> None:
    folder = shared_data / "search_ranking"
    products = pd.read_parquet(folder / "products.parquet").fillna("")
    texts = products.title + " " + products.short_description + " " + products.attributes
    by_id = dict(zip(products.product_id.astype(str), texts, strict=True))
    judged = pd.read_csv(folder / "judgments.csv")
    judged = judged[judged.groupby("query").rating.transform("nunique") > 1]
    assert judged["query"].nunique() == 66
    documents = [by_id[str(number)] for number in judged.product_id]
    scores = bm25(list(judged["query"]), documents, collection=list(texts))
    values = []
    for _, rows in judged.assign(score=scores).groupby("query"):
        gain = 2.0 ** rows.rating.to_numpy() - 1
        order = np.argsort(-rows.score.to_numpy(), kind="stable")
        discount = 1 / np.log2(np.arange(2, 2 + min(10, len(gain))))
        ideal = np.sort(gain)[::-1][: len(discount)]
        values.append(gain[order][: len(discount)] @ discount / (ideal @ discount))
    assert np.mean(values) == pytest.approx(0.797, abs=0.001)


def returns(retail: pd.DataFrame) -> pd.DataFrame:
    """Order lines with a known outcome and whether they came back within 30 days."""
    sent = retail[(retail.Quantity > 0) & (retail.InvoiceDate < "2011-11-09")]
    back = retail[retail.Quantity < 0].assign(returned=lambda frame: frame.InvoiceDate)
    joined = pd.merge_asof(
        sent.sort_values("InvoiceDate"),
        back[["CustomerID", "Description", "InvoiceDate", "returned"]].sort_values("InvoiceDate"),
        on="InvoiceDate", by=["CustomerID", "Description"], direction="forward",
        allow_exact_matches=False,
    )  # fmt: skip
    within = (joined.returned - joined.InvoiceDate) <= pd.Timedelta(days=30)
    return joined.assign(label=within.astype(float))


def as_rows(lines: pd.DataFrame) -> pa.Table:
    total = (lines.Quantity * lines.UnitPrice).clip(lower=0.001)
    numbers: list[Any] = [
        np.log(lines.Quantity), np.log(lines.UnitPrice.clip(lower=0.001)), np.log(total),
        lines.InvoiceDate.dt.hour, lines.InvoiceDate.dt.day_of_week,
    ]  # fmt: skip
    numeric = np.column_stack(numbers).astype(np.float32)
    local = (lines.Country == "United Kingdom").to_numpy().astype(np.int32)
    return pa.table(
        {
            "query_text": pa.array([[]] * len(lines), pa.list_(pa.string())),
            "item_text": [[text] for text in lines.Description],
            "numeric": pa.FixedSizeListArray.from_arrays(pa.array(numeric.reshape(-1)), 5),
            "categorical": pa.FixedSizeListArray.from_arrays(pa.array(local), 1),
            "label": lines.label.to_numpy(),
            "weight": np.ones(len(lines)),
        }
    )


def test_trees_words_and_both_on_returns(retail: pd.DataFrame) -> None:
    lines = returns(retail)
    train = as_rows(lines[lines.InvoiceDate < "2011-08-02"])
    test = as_rows(lines[lines.InvoiceDate >= "2011-09-01"])
    for name, published in (("gbdt", 0.699), ("tfidf", 0.685), ("both", 0.745)):
        scores = score_rows(name, train, test)
        found = metric("auc")(Examples(label=test["label"].to_numpy(), score=scores))
        assert found == pytest.approx(published, abs=0.01), name


def labelled(texts: list[str], label: np.ndarray, **columns: Any) -> pa.Table:
    """Rows of one text each, without features unless they are given."""
    nothing = {
        "numeric": pa.array([[]] * len(texts), pa.list_(pa.float32(), 0)),
        "categorical": pa.array([[]] * len(texts), pa.list_(pa.int32(), 0)),
    }
    return pa.table(
        {
            "query_text": pa.array([[]] * len(texts), pa.list_(pa.string())),
            "item_text": [[text] for text in texts],
            **nothing,
            "label": label.astype(np.float64),
            "weight": np.ones(len(texts)),
            **columns,
        }
    )


def test_differences_of_words_on_upworthy(shared_data: Path) -> None:
    pairs = pd.read_csv(shared_data / "ad_ctr" / "upworthy_headline_pairs.csv")
    tables = {}
    for split, rows in pairs.groupby("split"):
        first = rows.label.str.startswith("Headline 1").to_numpy()
        texts = rows[["headline_1", "headline_2"]].to_numpy().reshape(-1).tolist()
        label = np.column_stack([first, ~first]).reshape(-1)
        lists = pa.array(np.repeat(np.arange(len(rows)), 2), pa.int32())
        tables[split] = labelled(texts, label, list_id=lists)
    test = tables["val"]
    assert test.num_rows == 2 * 468
    scores = score_rows("tfidf_difference", tables["train"], test)
    examples = Examples(
        label=test["label"].to_numpy(), score=scores, group=test["list_id"].to_numpy()
    )
    # Two pairs have equal scores, which count half here.
    assert metric("pairwise_accuracy")(examples) == pytest.approx(0.603, abs=0.003)


def test_trees_on_bank_marketing(shared_data: Path) -> None:
    contacts = pd.read_csv(shared_data / "ad_ctr" / "bank_marketing.csv").drop(columns="duration")
    label = (contacts.pop("deposit") == "yes").to_numpy()
    numeric = contacts.select_dtypes("number").to_numpy(np.float32)
    words = contacts.select_dtypes(exclude="number").apply(lambda column: column.factorize()[0])
    categorical = words.to_numpy(np.int32)
    columns = {
        "numeric": pa.FixedSizeListArray.from_arrays(pa.array(numeric.reshape(-1)), 6),
        "categorical": pa.FixedSizeListArray.from_arrays(pa.array(categorical.reshape(-1)), 9),
    }
    rows = labelled(["term deposit"] * len(label), label, **columns)
    train, test = train_test_split(
        np.arange(len(label)), test_size=0.2, stratify=label, random_state=0
    )
    scores = score_rows("gbdt", rows.take(train), rows.take(test))
    examples = Examples(label=label[test], score=scores)
    for name, published in (("auc", 0.801), ("pr_auc", 0.460), ("log_loss", 0.282)):
        assert metric(name)(examples) == pytest.approx(published, abs=0.005), name


def test_words_on_dark_patterns(shared_data: Path) -> None:
    texts = pd.read_csv(shared_data / "risk" / "dark_patterns.tsv", sep="\t")
    rows = labelled(texts.text.tolist(), texts.label.to_numpy())
    scores = np.full(len(texts), np.nan)
    for train, test in GroupKFold(5).split(texts, groups=texts.page_id):
        scores[test] = score_rows("tfidf_c10", rows.take(train), rows.take(test))
    examples = Examples(label=texts.label.to_numpy(), score=scores)
    assert metric("auc")(examples) == pytest.approx(0.986, abs=0.001)
    assert metric("accuracy")(examples) == pytest.approx(0.951, abs=0.001)
