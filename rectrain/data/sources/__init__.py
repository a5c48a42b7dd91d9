"""Where rows come from: one converter a public format, and any Parquet in the fields."""

from __future__ import annotations

from collections.abc import Mapping

from rectrain.data.sources import (
    bank_marketing,
    chorus,
    criteo,
    dark_patterns,
    esci,
    online_retail,
    parquet,
    simulated,
    upworthy,
)
from rectrain.data.sources.source import Part, Source
from rectrain.errors import DataError

__all__ = ["SOURCES", "Part", "Source", "find_source"]

SOURCES: Mapping[str, Source] = {
    "simulated": simulated.SOURCE,
    "online_retail": online_retail.SOURCE,
    "chorus": chorus.SOURCE,
    "esci": esci.SOURCE,
    "upworthy": upworthy.SOURCE,
    "bank_marketing": bank_marketing.SOURCE,
    "criteo": criteo.SOURCE,
    "dark_patterns": dark_patterns.SOURCE,
    "parquet": parquet.SOURCE,
}


def find_source(name: str) -> Source:
    """The source of a name.

    Raises:
        DataError: there is none of this name.
    """
    if name not in SOURCES:
        raise DataError(
            what="source", got=name, rule=f"must be one of {', '.join(SOURCES)}",
            fix="use parquet for rows that are in a task's fields already",
        )  # fmt: skip
    return SOURCES[name]
