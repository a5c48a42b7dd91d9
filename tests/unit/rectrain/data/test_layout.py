"""Which way a task's rows are split, and what the user is told of it."""

from __future__ import annotations

import pyarrow as pa
import pytest

from rectrain.data.config import SplitConfig
from rectrain.data.layout import choose_split, key_columns
from rectrain.tasks import TASKS


def keys(times: list[int | None]) -> pa.Table:
    spec = TASKS["risk"]
    columns = {name: pa.array(["a"] * len(times)) for name in key_columns(spec)}
    return pa.table(columns | {"timestamp": pa.array(times, pa.timestamp("us"))})


@pytest.mark.parametrize(
    ("by", "times", "expected"),
    [
        ("auto", [1, 2, 3], ("time", "every row has a timestamp")),
        ("auto", [1, None, 3], ("group", "1 of 3 rows have no timestamp")),
        ("group", [1, 2, 3], ("group", "as split.by says")),
    ],
)
def test_the_chosen_split_and_its_reason(
    by: str, times: list[int | None], expected: tuple[str, str]
) -> None:
    assert choose_split(TASKS["risk"], keys(times), config=SplitConfig(by=by)) == expected
