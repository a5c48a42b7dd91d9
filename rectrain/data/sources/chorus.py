"""Chorus for e-commerce search: human judgments over Icecat products -> search_ranking.

Judgments: columns query, product_id (or docid), rating, as published. Products: a table with
product_id, title, short_description, supplier, price_cents, attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from rectrain.data.config import PrepareConfig
from rectrain.data.fields import SET_ASIDE
from rectrain.data.sources.source import (
    Part,
    Source,
    find_all,
    join_texts,
    read_table,
    require_columns,
)
from rectrain.errors import DataError

__all__ = ["SOURCE", "convert_judgments"]

SAME_GRADES = "all products of the query have the same grade"
UNKNOWN_PRODUCT = "product not in the catalogue"
_ITEM_TEXT = ("title", "short_description", "attributes")


def convert_judgments(
    judgments: pa.Table, products: pa.Table, *, item_text: Sequence[str]
) -> pa.Table:
    """Join judgments with their products.

    Args:
        judgments: query, product_id or docid, rating (a grade, 0 or more).
        products: product_id and the columns named in `item_text`; supplier and price_cents
            become brand and price where they are there.
        item_text: product columns joined by ". " into the item's text.

    Returns:
        Rows of search_ranking; those of queries whose grades are all equal, and of products
        that are not in the catalogue, are set aside.
    """
    id_name = "product_id" if "product_id" in judgments.column_names else "docid"
    require_columns(judgments, ("query", id_name, "rating"), what="judgments")
    require_columns(products, ("product_id", *item_text), what="products")
    ids = judgments[id_name].cast(pa.string())
    place = pc.index_in(ids, products["product_id"].cast(pa.string()).combine_chunks())
    found = products.take(place)
    columns = {
        "query_id": judgments["query"],
        "query": judgments["query"],
        "item_id": ids,
        "item_text": join_texts(found, item_text),
        "label": judgments["rating"],
        "row_id": pc.binary_join_element_wise(judgments["query"].cast(pa.string()), ids, "/"),
    }
    if "supplier" in products.column_names:
        columns["brand"] = found["supplier"]
    if "price_cents" in products.column_names:
        columns["price"] = pc.divide(found["price_cents"].cast(pa.float64()), 100.0)
    columns[SET_ASIDE] = pc.if_else(
        pc.is_null(place), UNKNOWN_PRODUCT, pc.if_else(_differ(judgments), None, SAME_GRADES)
    )
    return pa.table(columns)


def _differ(judgments: pa.Table) -> pa.Array:
    """bool a row: whether the grades of its query differ."""
    spread = judgments.group_by("query").aggregate([("rating", "min"), ("rating", "max")])
    several = spread.filter(pc.not_equal(spread["rating_min"], spread["rating_max"]))["query"]
    return pc.is_in(judgments["query"], value_set=several.combine_chunks())


def _read(files: Sequence[str], item_text: tuple[str, ...]) -> dict[str, pa.Table]:
    judgments: list[pa.Table] = []
    products: list[pa.Table] = []
    for file in files:
        table = read_table(file)
        (judgments if "rating" in table.column_names else products).append(table)
    for name, tables in (("judgments", judgments), ("products", products)):
        if len(tables) != 1:
            raise DataError(
                what=f"{name} among the inputs", got=f"{len(tables)} of {len(files)} files",
                rule="one file has a rating column (judgments), one has none (products)",
                fix="--input judgments.csv,products.parquet",
            )  # fmt: skip
    rows = convert_judgments(judgments[0], products[0], item_text=item_text)
    return {"search_ranking": rows}


def _parts(config: PrepareConfig) -> Sequence[Part]:
    example = "judgments.csv,products.parquet"
    files = find_all(config, suffixes=(".csv", ".tsv", ".parquet"), example=example)
    return [partial(_read, files, config.item_text or _ITEM_TEXT)]


SOURCE = Source(_parts, splits={"search_ranking": {"by": "group", "fold": 0}})
