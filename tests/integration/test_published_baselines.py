"""The baselines give the known figures on the real public data, each protocol written out here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

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
