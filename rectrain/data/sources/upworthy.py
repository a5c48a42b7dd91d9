"""Upworthy Research Archive: which headline of one A/B test drew more clicks -> ad_headline.

Pairs: columns label, headline_1, headline_2 and, optionally, split (train or val), as published
with the archive's headline pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rectrain.data.config import PrepareConfig, SplitConfig
from rectrain.data.fields import SET_ASIDE
from rectrain.data.sources.source import Part, Source, find_all, read_one, require_columns
from rectrain.data.split import codes_of

__all__ = ["SOURCE", "convert_pairs"]

HELD_OUT_HEADLINE = "its headline, or one beside it, is in the published val"
_WINNERS = {
    "Headline 1 has more clicks than Headline 2.": 0,
    "Headline 2 has more clicks than Headline 1.": 1,
}


def convert_pairs(pairs: pa.Table, *, config: SplitConfig) -> pa.Table:
    """Turn each pair into the two rows of a test, label 1 for the headline of more clicks.

    Pairs that share a headline, directly or over other pairs, stay together, however they are
    split. The published val is test, and pairs of train that hang together with it are set aside,
    unless the file has no `split`, or the settings split anew.

    Args:
        pairs: label, headline_1, headline_2, and split where the file has it.
        config: whether the published split holds.

    Returns:
        Rows of ad_headline, those of one pair as neighbours. A label that is none of the two
        published sentences is missing.
    """
    require_columns(pairs, ("label", "headline_1", "headline_2"), what="headline pairs")
    n = pairs.num_rows
    headlines = [pc.utf8_trim_whitespace(pairs[f"headline_{k}"].cast(pa.string())) for k in (1, 2)]
    names = pa.array([f"pair-{row}" for row in range(n)])
    winner = pairs["label"].cast(pa.string()).combine_chunks().to_pylist()
    won = [None if label not in _WINNERS else k == _WINNERS[label]
           for label in winner for k in (0, 1)]  # fmt: skip
    cluster = _clusters(headlines)
    split, reason = _splits(pairs, cluster, config=config)
    twice = pa.array(np.repeat(np.arange(n), 2))
    ids = [f"pair-{row}-{k}" for row in range(n) for k in (1, 2)]
    both = pa.chunked_array([pa.concat_arrays([c.combine_chunks() for c in headlines])])
    order = np.arange(2 * n).reshape(2, n).T.reshape(-1)
    return pa.table(
        {
            "test_id": names.take(twice),
            "item_text": both.take(pa.array(order)),
            "item_id": pa.array(ids),
            "label": pa.array(won, pa.bool_()),
            "row_id": pa.array(ids),
            "split": split.take(twice),
            "split_group": pa.array(cluster).cast(pa.string()).take(twice),
            SET_ASIDE: reason.take(twice),
        }
    )


def _clusters(headlines: Sequence[pa.ChunkedArray]) -> npt.NDArray[np.int32]:
    """int32 [n]: pairs that are connected by shared headlines have one number."""
    from scipy.sparse import coo_matrix  # type: ignore[import-untyped]
    from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

    n = len(headlines[0])
    both = pa.chunked_array([chunk for column in headlines for chunk in column.chunks])
    number, names = codes_of(pc.fill_null(both, ""))
    edges = coo_matrix((np.ones(n), (number[:n], number[n:])), shape=(len(names), len(names)))
    component: npt.NDArray[np.int32] = connected_components(edges, directed=False)[1]
    return component[number[:n]]


def _splits(
    pairs: pa.Table, cluster: npt.NDArray[np.int32], *, config: SplitConfig
) -> tuple[pa.Array, pa.Array]:
    """Each pair's split (null: not settled) and why it is set aside (null: it is not).

    A word that is neither train nor val stays as it is: the field's rule rejects it.
    """
    n = pairs.num_rows
    if "split" not in pairs.column_names or config.by != "auto" or config.fold is not None:
        return pa.nulls(n, pa.string()), pa.nulls(n, pa.string())
    published = np.array(pairs["split"].cast(pa.string()).to_pylist(), dtype=object)
    test, train = published == "val", published == "train"
    linked = train & np.isin(cluster, cluster[test])
    split = np.where(test, "test", published)
    reason = pc.if_else(pa.array(linked), HELD_OUT_HEADLINE, pa.scalar(None, pa.string()))
    return pa.array(split, pa.string()), reason


def _read(files: Sequence[str], config: PrepareConfig) -> dict[str, pa.Table]:
    pairs = read_one(files, what="headline pairs")
    return {"ad_headline": convert_pairs(pairs, config=config.split)}


def _parts(config: PrepareConfig) -> Sequence[Part]:
    """One part: pairs are connected over the whole file."""
    files = find_all(config, suffixes=(".csv",), example="upworthy_headline_pairs.csv")
    return [partial(_read, files, config)]


SOURCE = Source(_parts)
