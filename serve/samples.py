"""What the shop's page shows where nobody brings products: rows of the simulated marketplace.

They are inputs alone; every score that the page shows comes from the served models.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from rectrain.data.simulate import SIZES, Size, simulate
from rectrain.data.simulate.catalogue import make_catalogue
from rectrain.data.simulate.vocabulary import BRANDS, COPIES

__all__ = ["samples", "size_of"]

_SEED = 0  # of `jobs.demo`
_FALLBACK = "demo"
_QUERIES, _QUERY_WORDS = 5, 4
_SHOPPERS, _HISTORY = 4, 6
_RISKS = (0.05, 0.5, 0.9, 0.99)  # quantiles of the true risk that the sample orders stand at
_UNASKED = ("user_id", "item_id", "label", "timestamp", "row_id")


def size_of(item_ids: Collection[str]) -> str | None:
    """Which simulated marketplace a catalogue is of: a name of `SIZES`, or None.

    Args:
        item_ids: of a package's item index. An index has the items that were bought, so it may
            lack some of the marketplace's; one with fewer than half of them is another's.
    """
    for name, size in sorted(SIZES.items(), key=lambda one: one[1].num_items):
        if 2 * len(item_ids) < size.num_items:
            return None
        if set(item_ids) <= set(make_catalogue(size.num_items, seed=_SEED).item_id.to_pylist()):
            return name
    return None


def samples(catalogues: Mapping[str, Collection[str]], *, max_candidates: int) -> bytes:
    """Products, queries, shoppers, slogans and orders to ask about, as JSON.

    Args:
        catalogues: name of a pair of models -> item ids of its index.
        max_candidates: of a request.

    Returns:
        {"products": {field: [value of each product]}, "slogans": [text],
        "searches": [{"query": text, "item_ids": [its list], "gains": [the simulation's]}],
        "shoppers": [{"user_id", "country", "history": [text, newest last], "exclude": [id]}],
        "orders": [{field of risk: value, "p_true": the simulation's probability}],
        "named": [pairs whose catalogue is these products], "max_candidates": number}
    """
    sizes = {name: size_of(ids) for name, ids in catalogues.items()}
    shown = next((size for size in sizes.values() if size), _FALLBACK)
    named = [name for name, size in sizes.items() if size == shown]
    facts = {"named": named, "max_candidates": max_candidates}
    return json.dumps({**_rows(shown), **facts}, allow_nan=False).encode()


def _rows(name: str) -> dict[str, Any]:
    size = SIZES[name]
    rows = simulate(size, seed=_SEED, chunk=0)
    return {
        "products": _products(size),
        "searches": _searches(rows["search_ranking"]),
        "slogans": [text for phrase in COPIES for text in phrase.catalogue],
        "shoppers": _shoppers(rows["recommendation"], rows["risk"]),
        "orders": _orders(rows["risk"]),
    }


def _products(size: Size) -> dict[str, list[Any]]:
    catalogue = make_catalogue(size.num_items, seed=_SEED)
    brands = pa.array([phrase.catalogue[0] for phrase in BRANDS])
    return {
        "item_id": catalogue.item_id.to_pylist(),
        "item_text": catalogue.text.to_pylist(),
        "price": catalogue.price.tolist(),
        "category": catalogue.category.to_pylist(),
        "brand": brands.take(pa.array(catalogue.brand)).to_pylist(),
        "rating": catalogue.rating.tolist(),
    }


def _searches(rows: pa.Table) -> list[dict[str, Any]]:
    """The first queries that are short enough for a button, with their lists."""
    lists: dict[str, list[dict[str, Any]]] = {}
    for row in rows.to_pylist():
        lists.setdefault(row["query"], []).append(row)
    short = [query for query in lists if len(query.split()) <= _QUERY_WORDS]
    return [
        {
            "query": query,
            "item_ids": [row["item_id"] for row in lists[query]],
            "gains": [row["p_true"] for row in lists[query]],
        }
        for query in short[:_QUERIES]
    ]


def _shoppers(purchases: pa.Table, orders: pa.Table) -> list[dict[str, Any]]:
    """The first users with a few purchases, newest last."""
    country = dict(zip(orders["user_id"].to_pylist(), orders["country"].to_pylist(), strict=True))
    baskets: dict[str, list[dict[str, Any]]] = {}
    for row in purchases.sort_by("timestamp").to_pylist():
        baskets.setdefault(row["user_id"], []).append(row)
    regular = [user for user in sorted(baskets) if len(baskets[user]) >= _HISTORY]
    return [
        {
            "user_id": user,
            "country": country.get(user),
            "history": [row["item_text"] for row in baskets[user][-_HISTORY:]],
            "exclude": sorted({row["item_id"] for row in baskets[user]}),
        }
        for user in [one for one in regular if one in country][:_SHOPPERS]
    ]


def _orders(orders: pa.Table) -> list[dict[str, Any]]:
    """Orders from hardly risky to very, by the simulation's own probability."""
    ranked = orders.sort_by("p_true").to_pylist()
    chosen = [ranked[place] for place in np.multiply(_RISKS, len(ranked) - 1).astype(int)]
    return [{name: row[name] for name in row if name not in _UNASKED} for row in chosen]
