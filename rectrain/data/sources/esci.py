"""Amazon's Shopping Queries (ESCI): graded products of queries -> search_ranking.

Read as published: shopping_queries_dataset_examples.parquet (query_id, query, product_id,
product_locale, esci_label, small_version, split) and shopping_queries_dataset_products.parquet
(product_id, product_locale, product_title, product_description, product_bullet_point,
product_brand, product_color).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import log2
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rectrain.data.config import PrepareConfig
from rectrain.data.fields import SET_ASIDE, check_schema
from rectrain.data.sources.source import (
    Part,
    Source,
    find_all,
    join_texts,
    open_file,
    require_columns,
)
from rectrain.errors import DataError

__all__ = ["GAINS", "SOURCE", "convert_examples"]

GAINS = {"E": 1.0, "S": 0.1, "C": 0.01, "I": 0.0}
"""Gains of exact, substitute, complement and irrelevant products (Reddy et al. 2022, "Shopping
Queries Dataset: A Large-Scale ESCI Benchmark for Improving Product Search", the ranking task)."""

NOT_OF_THE_RANKING_TASK = "not of the reduced set of the ranking task"
OTHER_LOCALE = "product of another locale"
UNKNOWN_PRODUCT = "product not in the catalogue"
_EXAMPLES = ("query_id", "query", "product_id", "product_locale", "esci_label")
_ITEM_TEXT = ("product_title", "product_brand", "product_color", "product_bullet_point")
_ROWS_AT_ONCE = 65_536


def convert_examples(
    examples: pa.Table, products: pa.Table, *, item_text: Sequence[str], locales: Sequence[str]
) -> pa.Table:
    """Join examples with their products.

    The label is log2(1 + gain), so that nDCG's and the loss's gain 2^label − 1 is the published
    one.

    Args:
        examples: as published.
        products: as published; only those of the examples are needed.
        item_text: product columns joined into the item's text.
        locales: those that are kept.

    Returns:
        Rows of search_ranking; those of other locales, of the larger set of the classification
        tasks, and of unknown products are set aside.
    """
    keys = [_key(table["product_id"], table["product_locale"]) for table in (examples, products)]
    place = pc.index_in(keys[0], keys[1].combine_chunks())
    found = products.take(place)
    gains = pa.array([log2(1 + gain) for gain in GAINS.values()])
    graded = pc.index_in(examples["esci_label"].cast(pa.string()), pa.array(list(GAINS)))
    columns: dict[str, Any] = {
        "query_id": examples["query_id"].cast(pa.string()),
        "query": examples["query"],
        "item_id": keys[0],
        "item_text": join_texts(found, item_text),
        "brand": found["product_brand"],
        "label": gains.take(graded.combine_chunks()),
        "row_id": pc.binary_join_element_wise(examples["query_id"].cast(pa.string()), keys[0], "/"),
        SET_ASIDE: pc.coalesce(
            _unused(examples, locales), pc.if_else(pc.is_null(place), UNKNOWN_PRODUCT, None)
        ),
    }
    if "split" in examples.column_names:
        columns["split"] = examples["split"]
    return pa.table(columns)


def _key(ids: pa.ChunkedArray, locales: pa.ChunkedArray) -> pa.ChunkedArray:
    """The same product_id may be another product in another locale."""
    return pc.binary_join_element_wise(ids.cast(pa.string()), locales.cast(pa.string()), "/")


def _unused(examples: pa.Table, locales: Sequence[str]) -> pa.ChunkedArray:
    """Why an example isn't used, without a look at its product; null where it is."""
    kept = pc.is_in(examples["product_locale"].cast(pa.string()), pa.array(list(locales)))
    reason = pc.if_else(kept, pa.scalar(None, pa.string()), OTHER_LOCALE)
    if "small_version" in examples.column_names:
        small = pc.equal(examples["small_version"].cast(pa.int64()), 1)
        reason = pc.coalesce(reason, pc.if_else(small, None, NOT_OF_THE_RANKING_TASK))
    return reason


def _read(
    examples_file: str, row_group: int, products_file: str,
    item_text: tuple[str, ...], locales: tuple[str, ...],
) -> dict[str, pa.Table]:  # fmt: skip
    with open_file(examples_file) as stream:
        examples = _parquet(stream, examples_file).read_row_group(row_group)
    used = examples.filter(pc.is_null(_unused(examples, locales)))
    with open_file(products_file) as stream:
        products = _products(_parquet(stream, products_file), used, item_text=item_text)
    rows = convert_examples(examples, products, item_text=item_text, locales=locales)
    return {"search_ranking": rows}


def _products(reader: pq.ParquetFile, used: pa.Table, *, item_text: tuple[str, ...]) -> pa.Table:
    """The products of some examples, read block by block: the whole catalogue is large."""
    columns = list(dict.fromkeys(("product_id", "product_locale", "product_brand", *item_text)))
    wanted = pc.unique(_key(used["product_id"], used["product_locale"]))
    blocks = [reader.schema_arrow.empty_table().select(columns)]
    for batch in reader.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns):
        block = pa.Table.from_batches([batch])
        kept = pc.is_in(_key(block["product_id"], block["product_locale"]), wanted)
        blocks.append(block.filter(kept))
    return pa.concat_tables(blocks)


def _parquet(stream: pa.NativeFile, file: str) -> pq.ParquetFile:
    try:
        reader = pq.ParquetFile(stream)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            what=f"file {file}", got=error, rule="must be a readable Parquet file",
            fix="give the published files",
        ) from error  # fmt: skip
    check_schema(reader.schema_arrow, what=file)
    return reader


def _parts(config: PrepareConfig) -> Sequence[Part]:
    """A part a row group of the examples, each with the products that it needs."""
    example = "shopping_queries_dataset_examples.parquet,shopping_queries_dataset_products.parquet"
    files = find_all(config, suffixes=(".parquet",), example=example)
    item_text = config.item_text or _ITEM_TEXT
    found: dict[str, list[tuple[str, int]]] = {"examples": [], "products": []}
    for file in files:
        with open_file(file) as stream:
            reader = _parquet(stream, file)
            schema, groups = reader.schema_arrow.empty_table(), reader.num_row_groups
        kind = "examples" if "esci_label" in schema.column_names else "products"
        wanted = _EXAMPLES if kind == "examples" else ("product_id", "product_locale",
                                                       "product_brand", *item_text)  # fmt: skip
        require_columns(schema, wanted, what=f"ESCI {kind}")
        found[kind].append((file, groups))
    for kind, some in found.items():
        if len(some) != 1:
            raise DataError(
                what=f"ESCI {kind} among the inputs", got=f"{len(some)} of {len(files)} files",
                rule="one file has the esci_label (examples), one has none (products)",
                fix=f"--input {example}",
            )  # fmt: skip
    (examples, groups), (products, _) = found["examples"][0], found["products"][0]
    return [partial(_read, examples, n, products, item_text, config.locales) for n in range(groups)]


SOURCE = Source(_parts)
