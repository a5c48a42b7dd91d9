"""Converters of published data sets: their forms, their splits, and what they refuse."""

from __future__ import annotations

from collections import Counter
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from sklearn.model_selection import train_test_split

from jobs.prepare import task_specs
from rectrain.data.config import PrepareConfig, SplitConfig
from rectrain.data.fields import SET_ASIDE
from rectrain.data.layout import key_columns, split_task
from rectrain.data.sources import SOURCES
from rectrain.data.sources.source import numbers, read_table
from rectrain.data.sources.upworthy import HELD_OUT_HEADLINE, convert_pairs
from rectrain.errors import ConfigError, DataError, RectrainError
from rectrain.tasks import TASKS


def read(source: str, *files: Path, **settings: Any) -> list[dict[str, pa.Table]]:
    config = PrepareConfig(
        source=source, output="x", input=tuple(str(file) for file in files), **settings
    )
    return [part() for part in SOURCES[source].parts(config)]


def checked(source: str, task: str, table: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """Good rows, and how many were rejected for which reason."""
    specs = task_specs(PrepareConfig(source=source, output="x"))
    good, rejects = specs[task].fields.check(table)
    bad = rejects.filter(pc.invert(rejects[SET_ASIDE]))
    return good, Counter(bad["reason"].to_pylist())


def test_text_that_is_no_number_is_not_finite_and_spoils_no_other() -> None:
    column = pa.chunked_array([[" 1.5", "-2", ".5", "3e2", "many", "", None, "1,5"]])
    values = numbers(column).to_pylist()
    assert values[:4] == [1.5, -2.0, 0.5, 300.0]
    assert np.isnan(values[4]) and values[5] is None and values[6] is None and np.isnan(values[7])
    assert numbers(pa.chunked_array([[1, None]])).to_pylist() == [1.0, None]


# ── upworthy ─────────────────────────────────────────────────────────────────────────────────────

FIRST, SECOND = (f"Headline {k} has more clicks than Headline {3 - k}." for k in (1, 2))


def pairs(*rows: tuple[str, str, str, str]) -> pa.Table:
    names = ("label", "headline_1", "headline_2", "split")
    return pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


def test_a_pair_is_two_neighbours_of_which_one_won() -> None:
    table = pairs((FIRST, "a", "b", "train"), (SECOND, "c\n", "d", "val"), ("?", "e", "f", "train"))
    rows = convert_pairs(table, config=SplitConfig())
    assert rows["test_id"].to_pylist() == [f"pair-{n}" for n in (0, 0, 1, 1, 2, 2)]
    assert rows["item_text"].to_pylist() == ["a", "b", "c", "d", "e", "f"]
    assert rows["label"].to_pylist() == [True, False, False, True, None, None]
    assert rows["split"].to_pylist() == ["train", "train", "test", "test", "train", "train"]
    good, reasons = checked("upworthy", "ad_headline", rows)
    assert good.num_rows == 4 and reasons == {"label: missing": 2}


def split_of_chains(table: pa.Table, **settings: Any) -> dict[int, set[int]]:
    """Of headlines h0-h1 and h1-h2, h3-h4 and h4-h5, …: each chain's split codes."""
    config = SplitConfig(validation_share=0.3, **settings)
    rows, _ = checked("upworthy", "ad_headline", convert_pairs(table, config=config))
    keys = rows.select(key_columns(TASKS["ad_headline"]))
    split = split_task(TASKS["ad_headline"], keys, config=config, seed=0, max_history=1)
    found: dict[int, set[int]] = {}
    for text, code in zip(rows["item_text"].to_pylist(), split.code.tolist(), strict=True):
        if text != "new":
            found.setdefault(int(text[1:]) // 3, set()).add(code)
    return found


CHAINS = pairs(
    *((FIRST, f"h{n}", f"h{n + 1}", "train") for n in range(300) if n % 3 != 2),
    (FIRST, "h0", "new", "val"),
)


def test_pairs_that_share_headlines_never_meet_the_published_val() -> None:
    rows = convert_pairs(CHAINS, config=SplitConfig()).to_pylist()
    assert [row[SET_ASIDE] for row in rows[:4]] == [HELD_OUT_HEADLINE] * 4  # h0-h1 and h1-h2
    assert all(row[SET_ASIDE] is None for row in rows[4:])
    codes = split_of_chains(CHAINS)
    assert codes.pop(0) == {2} and set.union(*codes.values()) == {0, 1}


@pytest.mark.parametrize("settings", [{}, {"fold": 0}, {"by": "group"}])
def test_pairs_that_share_headlines_stay_together_however_they_are_split(
    settings: dict[str, Any],
) -> None:
    codes = split_of_chains(CHAINS if settings else CHAINS.drop_columns(["split"]), **settings)
    assert len(codes) == 100 and {len(found) for found in codes.values()} == {1}
    assert {min(found) for found in codes.values()} == {0, 1, 2}


def test_headlines_are_read_from_cells_with_commas(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(f'label,headline_1,headline_2\n{FIRST},"a, b",c\n')
    (tables,) = read("upworthy", path)
    assert tables["ad_headline"]["item_text"].to_pylist() == ["a, b", "c"]


def test_the_shared_pairs_give_the_protocols_counts(shared_data: Path) -> None:
    (tables,) = read("upworthy", shared_data / "ad_ctr" / "upworthy_headline_pairs.csv")
    rows = tables["ad_headline"]
    counts = Counter(rows["split"].to_pylist())
    assert counts == {"test": 2 * 468, "train": 2 * 1410}
    assert rows[SET_ASIDE].drop_null().to_pylist() == [HELD_OUT_HEADLINE] * 2


# ── dark_patterns ────────────────────────────────────────────────────────────────────────────────


def test_page_texts_keep_their_page_and_never_their_pattern(tmp_path: Path) -> None:
    path = tmp_path / "dataset.tsv"
    path.write_text(
        "page_id\ttext\tlabel\tPattern Category\n"
        '7\tOnly 3 left, "hurry"\t1\tScarcity\n7\tWrite a review\t0\tNot Dark Pattern\n'
        "8\tOdd label\ttwo\tUrgency\n8\t\t1\tUrgency\n"
    )
    (tables,) = read("dark_patterns", path)
    good, reasons = checked("dark_patterns", "risk_text", tables["risk_text"])
    assert good.select(["page_id", "item_text", "label"]).to_pylist() == [
        {"page_id": "7", "item_text": 'Only 3 left, "hurry"', "label": 1.0},
        {"page_id": "7", "item_text": "Write a review", "label": 0.0},
    ]
    assert reasons == {"label: not a finite number": 1, "item_text: missing": 1}
    assert not any("attern" in name for name in tables["risk_text"].column_names)


# ── bank_marketing ───────────────────────────────────────────────────────────────────────────────

BANK_FULL = (
    '"age";"job";"marital";"education";"default";"balance";"housing";"loan";"contact";"day";'
    '"month";"duration";"campaign";"pdays";"previous";"poutcome";"y"\n'
)
ADDITIONAL = (
    '"age";"job";"marital";"education";"default";"housing";"loan";"contact";"month";"day_of_week";'
    '"duration";"campaign";"pdays";"previous";"poutcome";"emp.var.rate";"cons.price.idx";'
    '"cons.conf.idx";"euribor3m";"nr.employed";"y"\n'
)


def test_both_published_forms_of_bank_marketing_are_read(tmp_path: Path) -> None:
    full, additional = tmp_path / "bank-full.csv", tmp_path / "bank-additional-full.csv"
    line = '58;"management";"married";"tertiary";"no";2143;"yes";"no";"unknown";5;"may";261;1;-1;0;'
    full.write_text(BANK_FULL + "".join(f'{line}"unknown";"{y}"\n' for y in ("no", "yes") * 10))
    (tables,) = read("bank_marketing", full)
    rows = tables["ad_ctr"]
    assert Counter(rows["split"].to_pylist()) == {"train": 16, "test": 4}
    good, reasons = checked("bank_marketing", "ad_ctr", rows)
    first = good.slice(0, 1).to_pylist()[0]
    assert not reasons and "duration" not in first
    assert (first["age"], first["job"], first["balance"], first["label"]) == (
        58.0, "management", 2143.0, 0.0,
    )  # fmt: skip
    assert first["pdays"] is None and first["emp_var_rate"] is None
    line = '56;"housemaid";"married";"basic.4y";"no";"no";"no";"telephone";"may";"mon";261;1;%s;0;'
    tail = '"nonexistent";1.1;93.994;-36.4;4.857;5191;"%s"\n'
    additional.write_text(
        ADDITIONAL
        + "".join(line % days + tail % y for days, y in ((999, "no"), (3, "yes")) * 10)
        + line % "soon" + tail % "maybe"
    )  # fmt: skip
    (tables,) = read("bank_marketing", additional)
    good, reasons = checked("bank_marketing", "ad_ctr", tables["ad_ctr"])
    first = good.slice(0, 2).to_pylist()
    assert [row["pdays"] for row in first] == [None, 3.0]
    assert (first[0]["euribor3m"], first[0]["day_of_week"]) == (4.857, "mon")
    assert reasons.total() == 1 and good.num_rows == 20


def test_the_shared_contacts_are_split_as_scikit_learn_splits_them(shared_data: Path) -> None:
    path = shared_data / "ad_ctr" / "bank_marketing.csv"
    (tables,) = read("bank_marketing", path)
    rows = tables["ad_ctr"]
    label = read_table(str(path))["deposit"].to_numpy() == "yes"
    _, test = train_test_split(np.arange(45_211), test_size=0.2, stratify=label, random_state=0)
    assert rows["row_id"].filter(pc.equal(rows["split"], "test")).to_pylist() == [
        f"contact-{row}" for row in np.sort(test)
    ]
    assert "duration" not in rows.column_names


# ── criteo ───────────────────────────────────────────────────────────────────────────────────────


def impression(label: str, *, first_count: str = "1", first_category: str = "05db9164") -> str:
    return "\t".join([label, first_count, *["5"] * 12, first_category, *["1e205321"] * 25]) + "\n"


def test_criteo_lines_are_read_whole_however_the_file_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    lines = [impression(str(n % 2), first_count="" if n % 3 else str(n - 5)) for n in range(40)]
    path.write_text("".join(lines).rstrip("\n"))  # the last line may lack its end
    for rows_at_once in (1, 2, 100):
        parts = [part["ad_ctr"] for part in read("criteo", path, shard_rows=rows_at_once) if part]
        table = pa.concat_tables(parts)
        assert len(parts) == {1: 10, 2: 5, 100: 1}[rows_at_once]
        assert table["label"].to_pylist() == [n % 2 for n in range(40)]
        assert table["I1"].to_pylist() == [None if n % 3 else n - 5 for n in range(40)]
        assert len(set(table["row_id"].to_pylist())) == 40
    # hexadecimal digits that look like a number stay what they are
    assert set(table["C2"].to_pylist()) == {"1e205321"}
    good, reasons = checked("criteo", "ad_ctr", table)
    assert good.num_rows == 40 and not reasons


def test_criteo_rows_of_files_of_one_name_are_different_users(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.txt").write_text(impression("1") * 3)
    table = pa.concat_tables(part["ad_ctr"] for part in read("criteo", tmp_path))
    for column in ("row_id", "user_id"):
        assert len(set(table[column].to_pylist())) == 6


def test_a_bad_criteo_row_is_rejected_and_a_bad_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text(impression("1") + impression("2") + impression("0", first_count="many"))
    (tables,) = read("criteo", path)
    good, reasons = checked("criteo", "ad_ctr", tables["ad_ctr"])
    assert good.num_rows == 1
    assert reasons == {
        "label: out of range, must be 0 or 1": 1, "I1: not a finite number": 1,
    }  # fmt: skip


# ── esci ─────────────────────────────────────────────────────────────────────────────────────────


def esci_files(folder: Path) -> tuple[Path, Path]:
    examples, products = folder / "examples.parquet", folder / "products.parquet"
    rows = [  # query, product, locale, label, small_version, split
        (1, "A", "us", "E", 1, "train"), (1, "B", "us", "S", 1, "train"),
        (2, "A", "us", "C", 1, "test"), (2, "C", "us", "I", 1, "test"),
        (3, "A", "es", "E", 1, "train"), (4, "B", "us", "E", 0, "train"),
        (1, "Z", "us", "E", 1, "train"), (1, "A", "us", "X", 1, "train"),
    ]  # fmt: skip
    query, product, locale, label, small, split = map(list, zip(*rows, strict=True))
    table = pa.table(
        {
            "example_id": range(len(rows)), "query": [f"q {q}" for q in query], "query_id": query,
            "product_id": product, "product_locale": locale, "esci_label": label,
            "small_version": small, "large_version": [1] * len(rows), "split": split,
        }
    )  # fmt: skip
    pq.write_table(table, examples, row_group_size=3)
    catalogue = {
        "product_id": ["B", "A", "A", "C"], "product_locale": ["us", "es", "us", "us"],
        "product_title": ["Lamp", "Taza", "Mug", None], "product_description": ["<b>"] * 4,
        "product_bullet_point": [None, "x", "dishwasher safe", "only this"],
        "product_brand": ["", "Marca", "Acme", None], "product_color": [None, None, "red", None],
    }  # fmt: skip
    pq.write_table(pa.table(catalogue), products)
    return examples, products


def test_esci_examples_meet_their_products_in_the_published_gains(tmp_path: Path) -> None:
    tables = read("esci", *esci_files(tmp_path))
    assert [table["search_ranking"].num_rows for table in tables] == [3, 3, 2]
    rows = pa.concat_tables([table["search_ranking"] for table in tables])
    assert rows[SET_ASIDE].to_pylist() == [
        *[None] * 4, "product of another locale", "not of the reduced set of the ranking task",
        "product not in the catalogue", None,
    ]  # fmt: skip
    assert rows["item_text"].to_pylist()[:4] == [
        "Mug. Acme. red. dishwasher safe", "Lamp", "Mug. Acme. red. dishwasher safe", "only this",
    ]  # fmt: skip
    label = rows["label"].to_pylist()
    assert [2**grade - 1 for grade in label[:4]] == pytest.approx([1, 0.1, 0.01, 0])
    assert label[1] == pytest.approx(log2(1.1)) and label[7] is None
    good, reasons = checked("esci", "search_ranking", rows)
    assert good["query_id"].to_pylist() == ["1", "1", "2", "2"]
    assert good["split"].to_pylist() == ["train", "train", "test", "test"]
    assert good["brand"].to_pylist() == ["Acme", None, "Acme", None]
    assert reasons == {"label: missing": 1}


def test_esci_keeps_other_locales_and_columns_on_request(tmp_path: Path) -> None:
    files = esci_files(tmp_path)
    tables = read("esci", *files, locales=("es",), item_text=("product_title",))
    rows = pa.concat_tables([table["search_ranking"] for table in tables])
    kept = rows.filter(pc.is_null(rows[SET_ASIDE]))
    assert kept.select(["item_id", "item_text"]).to_pylist() == [
        {"item_id": "A/es", "item_text": "Taza"}
    ]


# ── mistakes ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("source", "content"),
    [
        ("upworthy", "label,headline_1\nx,y\n"),
        ("upworthy", "label,headline_1,headline_2\n"),
        ("upworthy", "label,headline_1,headline_2\na,b\n"),
        ("dark_patterns", "page_id\ttext\n1\tx\n"),
        ("bank_marketing", "age;job\n1;x\n"),
        ("bank_marketing", BANK_FULL + '1;"a";"b";"c";"no";1;;;;5;"may";1;1;1;0;"x";"no"\n'),
        ("criteo", "1\t2\t3\n"),
        ("criteo", ""),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_line_of_error(tmp_path: Path, source: str, content: str) -> None:
    ending = {"dark_patterns": "tsv", "criteo": "txt"}.get(source, "csv")
    path = tmp_path / f"file.{ending}"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        read(source, path)
    assert "\n" not in str(caught.value)


def test_esci_needs_one_file_of_each_kind(tmp_path: Path) -> None:
    examples, products = esci_files(tmp_path)
    (tmp_path / "text.parquet").write_text("no parquet")
    wrong: list[tuple[Path, ...]] = [
        (examples,), (products,), (examples, products, products), (tmp_path / "text.parquet",),
    ]  # fmt: skip
    for files in wrong:
        with pytest.raises(DataError) as caught:
            read("esci", *files)
        assert "\n" not in str(caught.value)
    with pytest.raises(RectrainError):
        read("esci", examples, products, item_text=("no_such_column",))


@pytest.mark.parametrize(
    "source", ["upworthy", "bank_marketing", "criteo", "esci", "dark_patterns"]
)
def test_a_source_without_its_files_says_what_it_needs(source: str) -> None:
    with pytest.raises(ConfigError, match="--input"):
        read(source)
