from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectrain.data.fields import Field, FieldTable
from rectrain.data.own_features import extend_tables, read_own_features
from rectrain.data.tables import AD_CTR, RECOMMENDATION, RISK
from rectrain.errors import DataError
from rectrain.tasks import TASKS

NOON = datetime(2024, 5, 1, 12)
TABLES = {name: spec.fields for name, spec in TASKS.items()}


def risk_rows(**columns: Any) -> pa.Table:
    rows = {"user_id": ["u", "v"], "item_text": ["a mug", "a pen"], "label": [0, 1]}
    return pa.table({**rows, **columns})


def reasons(table: FieldTable, rows: pa.Table) -> dict[str, str]:
    _, rejects = table.check(rows)
    return dict(zip(rejects["row_id"].to_pylist(), rejects["reason"].to_pylist(), strict=True))


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        ("user_id", [None, "v"], "user_id: missing"),
        ("item_text", ["  ", "a pen"], "item_text: missing"),
        ("label", [2, 1], "label: out of range, must be 0 or 1"),
        ("label", [0.5, 1], "label: out of range, must be 0 or 1"),
        ("price", [-0.01, 1.0], "price: out of range, must be 0 or more"),
        ("hour", [24, 23], "hour: out of range, must be 0 to 23"),
        ("price", [float("nan"), 1.0], "price: not a finite number"),
        ("weight", [float("inf"), 1.0], "weight: not a finite number"),
    ],
)
def test_a_bad_row_is_rejected_with_its_reason(column: str, values: Any, reason: str) -> None:
    assert reasons(RISK, risk_rows(**{column: values})) == {"risk-0-0": reason}


@pytest.mark.parametrize(
    ("images", "bad"),
    [
        ([[1.0, 2.0], [1.0]], ["risk-0-1"]),
        ([[1.0, 2.0], [1.0, float("nan")]], ["risk-0-1"]),
        ([[1.0, 2.0], [1.0, None]], ["risk-0-1"]),
        ([None, []], ["risk-0-1"]),
        ([None, [1.0]], []),
    ],
)
def test_vectors_have_one_size_and_finite_numbers(images: Any, bad: list[str]) -> None:
    assert list(reasons(RISK, risk_rows(image=images))) == bad


def test_a_list_of_texts_holds_no_missing_one() -> None:
    rows = pa.table(
        {
            "user_id": ["a", "b", "c"], "item_id": ["1"] * 3, "item_text": ["x"] * 3,
            "label": [0, 1, 0], "history": [["p", None], [], None],
        }
    )  # fmt: skip
    assert reasons(AD_CTR, rows) == {"ad_ctr-0-0": "history: holds a missing text"}


def test_the_first_broken_field_gives_the_reason() -> None:
    found = reasons(RISK, risk_rows(user_id=[None, "v"], label=[7, 1]))
    assert found == {"risk-0-0": "user_id: missing"}


def test_good_rows_get_the_schema_and_defaults() -> None:
    good, rejects = RISK.check(risk_rows(user_id=[7, 8], weight=[None, 2.0]), part=3)
    assert good.schema.equals(RISK.arrow_schema()) and rejects.num_rows == 0
    assert good["user_id"].to_pylist() == ["7", "8"]
    assert good["weight"].to_pylist() == [1.0, 2.0]
    assert good["row_id"].to_pylist() == ["risk-3-0", "risk-3-1"]
    assert good["price"].null_count == 2


def test_rows_that_are_set_aside_are_not_checked_and_are_marked() -> None:
    rows = risk_rows(user_id=[None, None], set_aside=["a return", None])
    good, rejects = RISK.check(rows)
    assert good.num_rows == 0
    assert rejects.select(["reason", "set_aside"]).to_pylist() == [
        {"reason": "a return", "set_aside": True},
        {"reason": "user_id: missing", "set_aside": False},
    ]


@pytest.mark.parametrize(
    "times",
    [
        pa.array([NOON] * 2, pa.timestamp("ns")),
        pa.array([NOON] * 2, pa.timestamp("s")),
        pa.array([NOON.replace(tzinfo=UTC).astimezone(timezone(timedelta(hours=3)))] * 2,
                 pa.timestamp("ms", tz="+03:00")),
    ],
)  # fmt: skip
def test_times_of_every_unit_and_zone_become_utc_microseconds(times: pa.Array) -> None:
    good, _ = RISK.check(risk_rows(timestamp=times))
    assert good["timestamp"].to_pylist() == [NOON, NOON]


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("label", ["yes", "no"], "column label of risk"),
        ("item_text", [1, 2], "column item_text of risk"),
        ("timestamp", ["2024-01-01", "2024-01-02"], "column timestamp of risk"),
        ("user_id", [1.0, 2.0], "column user_id of risk"),
        ("image", [1.0, 2.0], "column image of risk"),
        ("price", pa.array([{"a": 1}, {"a": 2}]), "column price"),
    ],
)
def test_a_wrong_type_is_refused_at_once(column: str, values: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        RISK.check(risk_rows(**{column: values}))


def test_an_extension_type_is_refused() -> None:
    uuid = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16] * 2, pa.binary(16)))
    with pytest.raises(DataError, match="only plain numbers"):
        RISK.check(risk_rows(own=uuid))


def test_a_missing_required_column_and_an_empty_table_are_refused() -> None:
    with pytest.raises(DataError, match=r"column label of risk.*add label"):
        RISK.check(risk_rows().drop_columns(["label"]))
    with pytest.raises(DataError, match="empty table"):
        RISK.check(risk_rows().slice(0, 0))
    twice = risk_rows().append_column("label", risk_rows()["label"])
    with pytest.raises(DataError, match="column label of risk: got 2 columns of this name"):
        RISK.check(twice)


@given(st.lists(st.one_of(st.none(), st.floats()), min_size=1, max_size=20))
def test_every_row_is_either_good_or_rejected(prices: list[float | None]) -> None:
    n = len(prices)
    rows = pa.table({
        "user_id": ["u"] * n, "item_text": ["t"] * n, "label": [0] * n,
        "price": pa.array(prices, pa.float64()),
    })  # fmt: skip
    good, rejects = RISK.check(rows)
    expected = [p is None or (np.isfinite(p) and p >= 0) for p in prices]
    assert good.num_rows == sum(expected) and rejects.num_rows == n - sum(expected)


def test_own_features_extend_a_table(tmp_path: Any) -> None:
    path = tmp_path / "features.yaml"
    path.write_text("risk:\n  speed: {kind: numeric, low: 0}\n  graph: {kind: vector, size: 3}\n")
    table = extend_tables(TABLES, read_own_features(str(path)))["risk"]
    assert table["speed"] == Field("speed", "numeric", low=0)
    rows = risk_rows(speed=[-1, 2], graph=[None, [1.0, 2.0]])
    assert reasons(table, rows) == {
        "risk-0-0": "speed: out of range, must be 0 or more", "risk-0-1": "graph: must have size 3",
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "risk: {price: {kind: numeric}}",
        "risk: {new: {kind: text}}",
        "risk: {new: {kind: numeric, lowest: 1}}",
        "risk: {new: {kind: numeric, low: much}}",
        "nothing: {new: {kind: numeric}}",
        "- risk",
        "risk: [",
    ],
)
def test_wrong_own_features_are_one_line_errors(tmp_path: Any, text: str) -> None:
    path = tmp_path / "features.yaml"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        extend_tables(TABLES, read_own_features(str(path)))
    assert "\n" not in str(caught.value)


def test_the_docs_hold_the_tables_as_they_are() -> None:
    docs = (Path(__file__).parents[4] / "docs" / "data.md").read_text()
    for table in TABLES.values():
        assert f"### {table.task}, version {table.version}\n\n" in docs
        assert table.markdown() in docs


def test_markdown_states_each_fields_rule() -> None:
    lines = RECOMMENDATION.markdown().splitlines()
    assert lines[2] == "| user_id | group | yes |  | the user |"
    assert next(line for line in lines if line.startswith("| rating")).split("|")[4] == " 0 to 5 "


def test_a_split_is_one_of_three_words_or_nothing() -> None:
    rows = risk_rows(split=["test", "val"])
    assert reasons(RISK, rows) == {"risk-0-1": "split: must be one of train, validation, test"}
    good, rejects = RISK.check(risk_rows(split=[None, "train"]))
    assert good["split"].to_pylist() == [None, "train"] and rejects.num_rows == 0
