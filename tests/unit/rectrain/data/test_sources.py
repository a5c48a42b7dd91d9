from __future__ import annotations

import pickle
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from rectrain.data.config import PrepareConfig
from rectrain.data.fields import SET_ASIDE
from rectrain.data.sources import SOURCES, find_source
from rectrain.data.sources.chorus import convert_judgments
from rectrain.data.sources.online_retail import convert_order_lines
from rectrain.data.sources.source import find_files, fingerprint, read_table
from rectrain.data.tables import SEARCH_RANKING
from rectrain.errors import ConfigError, DataError, RectrainError, StorageError

START = datetime(2011, 1, 1, 10)


def order_lines(
    *lines: tuple[float | None, int | None, str, int | None, float],
) -> pa.Table:
    """Lines of (day, customer, product, quantity, price)."""
    days, customers, products, quantities, prices = zip(*lines, strict=True)
    times = [None if day is None else START + timedelta(days=day) for day in days]
    return pa.table(
        {
            "Description": pa.array(products),
            "Quantity": pa.array(quantities, pa.int32()),
            "InvoiceDate": pa.array(times, pa.timestamp("ns")),
            "UnitPrice": pa.array(prices, pa.float64()),
            "CustomerID": pa.array(customers, pa.float64()),
            "Country": pa.array(["France"] * len(lines)),
        }
    )


LINES = order_lines(
    (0, 1, "MUG ", 6, 2.5),  # 0: returned on day 30, which counts
    (0, 2, "MUG ", 6, 2.5),  # 1: another customer's return doesn't count
    (1, 1, "PEN", 1, 1.0),  # 2: returned on day 31.5, too late
    (30, 1, "MUG ", -1, 2.5),  # 3: a return
    (30, 1, "MUG ", 2, 2.5),  # 4: bought at the moment of the return: not after it
    (31.5, 1, "PEN", -1, 1.0),  # 5
    (40, None, "MUG ", 1, 2.5),  # 6: no customer
    (41, 1, "TAPE", 1, 0.0),  # 7: no price
    (60, 1, "PEN", 3, 1.0),  # 8: 31 days before the last day, known
    (61, 1, "PEN", 3, 1.0),  # 9: not known
    (91, 2, "PEN", 1, 1.0),  # 10
)


def test_returns_are_labelled_by_customer_product_and_delay() -> None:
    risk = convert_order_lines(LINES)["risk"]
    assert risk.num_rows == LINES.num_rows
    aside = dict(enumerate(risk[SET_ASIDE].to_pylist()))
    unknown = "outcome not yet known at the end of the log"
    returned = "a returned or cancelled line"
    assert {n: reason for n, reason in aside.items() if reason} == {
        3: returned, 5: returned, 6: "no customer", 7: "no price: not a sale", 9: unknown,
        10: unknown,
    }  # fmt: skip
    kept = risk.filter(pc.is_null(risk[SET_ASIDE]))
    assert dict(zip(kept["row_id"].to_pylist(), kept["label"].to_pylist(), strict=True)) == {
        "line-0": 1, "line-1": 0, "line-2": 0, "line-4": 0, "line-8": 0,
    }  # fmt: skip


def test_a_line_without_a_time_or_a_quantity_is_no_return_and_spoils_no_other() -> None:
    lines = order_lines(
        (0, 1, "MUG", 6, 2.5), (5, 1, "MUG", None, 2.5), (None, 1, "MUG", -1, 2.5),
        (60, 1, "MUG", 1, 2.5),
    )  # fmt: skip
    risk = convert_order_lines(lines)["risk"]
    incomplete = "no time or no quantity"
    unknown = "outcome not yet known at the end of the log"
    assert risk[SET_ASIDE].to_pylist() == [None, incomplete, incomplete, unknown]
    assert risk["label"].to_pylist()[0] == 0
    assert risk["num_past_returns"].to_pylist()[3] == 0


def test_a_log_without_lines_is_refused() -> None:
    with pytest.raises(DataError, match="without a line"):
        convert_order_lines(LINES.slice(0, 0))


def test_a_lines_past_holds_nothing_of_its_own_moment() -> None:
    risk = convert_order_lines(LINES)["risk"].to_pylist()
    past = ("account_age_days", "num_past_orders", "num_past_returns")
    assert tuple(risk[0][name] for name in past) == (0, 0, 0)
    assert tuple(risk[4][name] for name in past) == (30, 2, 0)
    assert tuple(risk[8][name] for name in past) == (60, 4, 2)
    assert (risk[0]["amount"], risk[0]["hour"], risk[0]["weekday"]) == (15.0, 10, 5)  # a Saturday


def test_purchases_share_their_ids_with_risk() -> None:
    tables = convert_order_lines(LINES)
    assert tables["recommendation"]["row_id"].equals(tables["risk"]["row_id"])
    first = tables["recommendation"].slice(0, 1).to_pylist()[0]
    assert (first["user_id"], first["item_id"], first["item_text"]) == ("1", "MUG ", "MUG")


def test_the_published_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "Online Retail.csv"
    path.write_bytes(
        b"InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
        b'536365,85123A,"MUG, \xa3 SIGN",6,12/1/2010 8:26,2.55,17850,United Kingdom\n'
        b"C536379,85123A,MUG,-1,12/13/2010 9:41,2.55,17850,United Kingdom\n"
        b"581587,22138,BAKING SET,3,12/9/2011 12:50,4.95,,France\n"
    )
    config = PrepareConfig(source="online_retail", output="x", input=(str(path),))
    tables = SOURCES["online_retail"].parts(config)[0]()
    first = tables["risk"].slice(0, 1).to_pylist()[0]
    assert first["item_id"] == "85123A" and first["item_text"] == "MUG, £ SIGN"
    assert first["timestamp"] == datetime(2010, 12, 1, 8, 26)
    assert first["user_id"] == "17850" and first["label"] == 1 and first[SET_ASIDE] is None
    assert tables["risk"][SET_ASIDE].to_pylist()[1:] == [
        "a returned or cancelled line", "no customer",
    ]  # fmt: skip


def test_the_shared_slice_gives_the_protocols_counts(shared_data: Path) -> None:
    lines = read_table(str(shared_data / "recommendation" / "online_retail.parquet"))
    risk = convert_order_lines(lines)["risk"]
    kept = risk.filter(pc.is_null(risk[SET_ASIDE]))
    assert kept.num_rows == 235_110
    assert pc.sum(kept["label"]).as_py() / kept.num_rows == pytest.approx(0.018, abs=5e-4)


def test_judgments_meet_their_products() -> None:
    judgments = pa.table(
        {
            "query": ["tv", "tv", "pen", "pen", "tv"],
            "product_id": [1, 2, 1, 2, 9],
            "rating": [0, 3, 1, 1, 2],
        }
    )
    products = pa.table(
        {
            "product_id": ["2", "1"], "title": ["Big TV", "Pen"], "more": ["Big TV", None],
            "supplier": ["A", "B"], "price_cents": [19999, 150],
        }
    )  # fmt: skip
    rows = convert_judgments(judgments, products, item_text=("title", "more")).to_pylist()
    assert [row[SET_ASIDE] for row in rows] == [
        None, None, *["all products of the query have the same grade"] * 2,
        "product not in the catalogue",
    ]  # fmt: skip
    assert (rows[1]["item_text"], rows[1]["price"], rows[1]["brand"]) == ("Big TV", 199.99, "A")


def test_chorus_has_sixty_six_queries_with_different_grades(shared_data: Path) -> None:
    config = PrepareConfig(
        source="chorus", output="x", input=(str(shared_data / "search_ranking"),)
    )
    rows = SOURCES["chorus"].parts(config)[0]()["search_ranking"]
    kept = rows.filter(pc.is_null(rows[SET_ASIDE]))
    assert (rows.num_rows, kept.num_rows) == (2382, 1877)
    assert pc.count_distinct(kept["query"]).as_py() == 66
    good, rejects = SEARCH_RANKING.check(kept)
    assert good.num_rows == 1877 and rejects.num_rows == 0


def parquet_parts(*inputs: str, **settings: Any) -> list[Any]:
    config = PrepareConfig(source="parquet", output="x", input=inputs, **settings)
    return list(SOURCES["parquet"].parts(config))


def test_parquet_is_read_by_row_groups_from_files_directories_and_globs(tmp_path: Path) -> None:
    table = pa.table({"n": range(100)})
    for name in ("a", "b"):
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=10)
    pq.write_table(table.slice(0, 0), tmp_path / "c.parquet")  # as Spark writes empty tasks
    (tmp_path / "_SUCCESS").write_text("")
    for location in (str(tmp_path), str(tmp_path / "*.parquet"), tmp_path.as_uri()):
        parts = parquet_parts(location, task="risk", shard_rows=10)
        tables = [pickle.loads(pickle.dumps(part))()["risk"] for part in parts]
        assert [t.num_rows for t in tables] == [40, 40, 20] * 2
        assert pa.concat_tables(tables)["n"].to_pylist() == [*range(100)] * 2
    assert len(parquet_parts(f"ad_ctr={tmp_path}/a.parquet", f"risk={tmp_path}/b.parquet")) == 2


def mistakes(folder: Path) -> dict[str, Any]:
    pq.write_table(pa.table({"n": [1]}).slice(0, 0), folder / "empty.parquet")
    (folder / "text.parquet").write_text("no parquet")
    (folder / "short.csv").write_text("a,b\n1,2\n")
    (folder / "none").mkdir()
    uuid = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16], pa.binary(16)))
    pq.write_table(pa.table({"u": uuid}), folder / "extension.parquet")
    at = str(folder)
    return {
        "no input": ("parquet", ()),
        "no task": ("parquet", (f"{at}/empty.parquet",)),
        "an empty file": ("parquet", (f"risk={at}/empty.parquet",)),
        "no Parquet": ("parquet", (f"risk={at}/text.parquet",)),
        "an extension type": ("parquet", (f"risk={at}/extension.parquet",)),
        "no such file": ("parquet", (f"risk={at}/other.parquet",)),
        "an empty directory": ("parquet", (f"risk={at}/none",)),
        "a glob without a file": ("parquet", (f"risk={at}/x*.parquet",)),
        "an unknown scheme": ("parquet", ("risk=nowhere://bucket/x.parquet",)),
        "another file": ("online_retail", (f"{at}/short.csv",)),
        "no products": ("chorus", (f"{at}/short.csv",)),
        "no order lines": ("online_retail", ()),
    }


@pytest.mark.parametrize("case", [
    "no input", "no task", "an empty file", "no Parquet", "an extension type", "no such file",
    "an empty directory", "a glob without a file", "an unknown scheme", "another file",
    "no products", "no order lines",
])  # fmt: skip
def test_mistakes_in_inputs_are_one_line(tmp_path: Path, case: str) -> None:
    source, inputs = mistakes(tmp_path)[case]
    config = PrepareConfig(source=source, output="x", input=inputs)
    with pytest.raises(RectrainError) as caught:
        [part() for part in SOURCES[source].parts(config)]
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, (ConfigError, DataError, StorageError))


def test_the_simulated_source_has_a_part_a_chunk_and_checks_its_counts() -> None:
    def parts(**simulated: float) -> Any:
        config = PrepareConfig(source="simulated", output="x", size="tiny", simulated=simulated)
        return SOURCES["simulated"].parts(config)

    assert len(parts()) == 1 and len(parts(num_users=600)) == 3
    assert set(parts()[0]()) == {"recommendation", "search_ranking", "ad_ctr", "risk"}
    for wrong in ({"users": 5}, {"num_users": 0}):
        with pytest.raises(RectrainError):
            parts(**wrong)


def test_an_unknown_source_is_named() -> None:
    with pytest.raises(DataError, match="online_retail"):
        find_source("csv")


def test_a_changed_input_has_another_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": [1]}), path)
    before = fingerprint([f"risk={path}"])
    assert before == fingerprint([f"risk={path}"]) and before[0]["path"] == str(path)
    pq.write_table(pa.table({"n": [1, 2]}), path)
    assert fingerprint([f"risk={path}"]) != before
    assert find_files(str(path), suffixes=(".csv",)) == [str(path)]
