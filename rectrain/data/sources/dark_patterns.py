"""ec-darkpattern: texts of shop pages, deceptive or not -> risk_text.

Published as dataset.tsv: page_id, text, label, Pattern Category. The category says the label, so
it is no feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pyarrow as pa

from rectrain.data.config import PrepareConfig
from rectrain.data.sources.source import (
    Part,
    Source,
    find_all,
    numbers,
    read_one,
    require_columns,
)

__all__ = ["SOURCE", "convert_texts"]


def convert_texts(texts: pa.Table) -> pa.Table:
    """Rows of risk_text, one a text; label 1: deceptive.

    Args:
        texts: page_id, text, label.
    """
    require_columns(texts, ("page_id", "text", "label"), what="ec-darkpattern")
    return pa.table(
        {
            "page_id": texts["page_id"].cast(pa.string()),
            "item_text": texts["text"].cast(pa.string()),
            "label": numbers(texts["label"]),
            "row_id": pa.array([f"text-{row}" for row in range(texts.num_rows)]),
        }
    )


def _read(files: Sequence[str]) -> dict[str, pa.Table]:
    return {"risk_text": convert_texts(read_one(files, what="ec-darkpattern"))}


def _parts(config: PrepareConfig) -> Sequence[Part]:
    return [partial(_read, find_all(config, suffixes=(".tsv", ".csv"), example="dataset.tsv"))]


SOURCE = Source(_parts, splits={"risk_text": {"by": "group", "fold": 0}})
