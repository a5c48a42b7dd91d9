"""Criteo display advertising: clicks on anonymous features -> ad_ctr.

Read as published: text without a header, 40 columns separated by tabs: label, the counts I1 to
I13, the hashed categories C1 to C26; an empty cell is a missing value.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import PurePath
from typing import Any

import pyarrow as pa
import pyarrow.csv

from rectrain.data.config import PrepareConfig
from rectrain.data.sources.source import Part, Source, find_all, numbers, open_file
from rectrain.errors import DataError

__all__ = ["SOURCE", "convert_impressions"]

_COUNTS = tuple(f"I{n}" for n in range(1, 14))
_CATEGORIES = tuple(f"C{n}" for n in range(1, 27))
_COLUMNS = ("label", *_COUNTS, *_CATEGORIES)
_AD = "display advertisement"
_BYTES_PER_ROW = 256  # about: what decides how large a part is


def convert_impressions(impressions: pa.Table, *, name: str) -> pa.Table:
    """Rows of ad_ctr, one an impression, with I1 to I13 and C1 to C26 as features.

    Neither the user nor the ad is published: each impression is its own user, and the text is the
    same in all rows.

    Args:
        impressions: the 40 columns as strings.
        name: of the part; the rows' ids begin with it.
    """
    n = impressions.num_rows
    ids = pa.array([f"{name}-{row}" for row in range(n)], pa.string())
    columns: dict[str, Any] = {
        "user_id": ids,
        "item_id": pa.array([_AD] * n, pa.string()),
        "item_text": pa.array([_AD] * n, pa.string()),
        "label": numbers(impressions["label"]),
        "row_id": ids,
    }
    columns |= {column: numbers(impressions[column]) for column in _COUNTS}
    columns |= {column: impressions[column] for column in _CATEGORIES}
    return pa.table(columns)


def _read(file: str, place: int, start: int, end: int) -> dict[str, pa.Table]:
    """The lines that begin in the bytes start:end of a file; its place among all names them."""
    with open_file(file) as stream:
        data = _lines(stream, start, end)
    if not data:
        return {}
    name = f"{place}-{PurePath(file).stem}-{start}"
    return {"ad_ctr": convert_impressions(_parse(data, file=file), name=name)}


def _lines(stream: pa.NativeFile, start: int, end: int) -> bytes:
    """Whole lines: a line belongs to the part in which it begins."""
    first = max(start - 1, 0)  # with the byte before: is it a line's end?
    stream.seek(first)
    data = stream.read(end - first)
    if start:
        cut = data.find(b"\n") + 1
        if not cut:
            return b""  # inside one line, which is another part's
        data = data[cut:]
    if not data:
        return b""
    while not data.endswith(b"\n") and (more := stream.read(_BYTES_PER_ROW)):
        place = more.find(b"\n") + 1
        data += more[:place] if place else more
    return bytes(data)


def _parse(data: bytes, *, file: str) -> pa.Table:
    try:
        return pyarrow.csv.read_csv(
            pa.py_buffer(data),
            read_options=pyarrow.csv.ReadOptions(column_names=_COLUMNS),
            parse_options=pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(_COLUMNS, pa.string()),
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
    except pa.ArrowInvalid as error:
        raise DataError(
            what=f"file {file}", got=error,
            rule=f"must be plain text of {len(_COLUMNS)} columns separated by tabs, no header",
            fix="unpack it, and give it as published",
        ) from error  # fmt: skip


def _parts(config: PrepareConfig) -> Sequence[Part]:
    """A part about four shards of a file, cut at lines."""
    size = 4 * config.shard_rows * _BYTES_PER_ROW
    parts: list[Part] = []
    files = find_all(config, suffixes=(".txt", ".tsv"), example="train.txt")
    for place, file in enumerate(files):
        with open_file(file) as stream:
            total = stream.size()
        starts = range(0, total, size)
        parts += [partial(_read, file, place, start, start + size) for start in starts]
    if not parts:
        raise DataError(
            what="Criteo files", got="no row", rule="at least one is needed",
            fix="give a file with rows",
        )  # fmt: skip
    return parts


SOURCE = Source(
    _parts,
    splits={"ad_ctr": {"by": "group"}},
    features={
        "ad_ctr": {
            **{name: {"kind": "numeric"} for name in _COUNTS},
            **{name: {"kind": "categorical"} for name in _CATEGORIES},
        }
    },
)
