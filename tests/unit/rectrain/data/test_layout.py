"""Which way a task's rows are split, what the user is told of it, and the order on disk."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from rectrain.data.config import SplitConfig
from rectrain.data.layout import (
    TaskSplit,
    choose_split,
    key_columns,
    lay_out,
    refuse_unread,
    split_task,
)
from rectrain.errors import ConfigError, DataError
from rectrain.tasks import TASKS


def keys(times: list[int | None]) -> pa.Table:
    spec = TASKS["risk"]
    columns = {name: pa.array(["a"] * len(times)) for name in key_columns(spec)}
    columns["split"] = pa.nulls(len(times), pa.string())
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


def own_splits(words: list[str | None], groups: list[str]) -> pa.Table:
    table = keys([1] * len(words)).drop_columns(["split", "user_id"])
    return table.append_column("split", pa.array(words)).append_column("user_id", pa.array(groups))


def codes(table: pa.Table, **settings: object) -> list[int]:
    config = SplitConfig.model_validate(settings)
    return split_task(TASKS["risk"], table, config=config, seed=0, max_history=1).code.tolist()


def test_rows_that_say_their_split_are_split_as_they_say() -> None:
    table = own_splits(["test", "train", "validation", "train"], ["u", "u", "v", "w"])
    assert codes(table) == [2, 0, 1, 0]
    assert choose_split(TASKS["risk"], table, config=SplitConfig())[0] == "rows"
    assert choose_split(TASKS["risk"], table, config=SplitConfig(by="group"))[0] == "group"
    assert choose_split(TASKS["risk"], table, config=SplitConfig(fold=1))[0] == "time"


def test_without_a_validation_row_whole_groups_of_train_become_validation() -> None:
    groups = [f"u{n // 2}" for n in range(400)]
    table = own_splits(["train"] * 300 + ["test"] * 100, groups)
    code = np.array(codes(table, validation_share=0.2))
    assert (code[300:] == 2).all() and set(code[:300]) == {0, 1}
    assert (code[:300:2] == code[1:300:2]).all()
    assert 40 < (code == 1).sum() < 80
    assert set(codes(table, validation_share=0)) == {0, 2}


def test_some_rows_with_a_split_and_some_without_are_refused() -> None:
    with pytest.raises(DataError, match="nothing in 1 of 2 rows"):
        codes(own_splits(["train", None], ["u", "v"]))


@pytest.mark.parametrize(
    ("way", "settings", "refused"),
    [
        ("rows", {"test_share": 0.2}, "test_share"),
        ("rows", {"validation_share": 0.2}, None),
        ("time", {"fold": 1}, "fold"),
        ("time", {"gap_days": 3}, None),
        ("group", {"gap_days": 3}, "gap_days"),
        ("group", {"fold": 1, "test_share": 0.2}, "test_share"),
        ("group", {"num_folds": 7}, "num_folds"),
        ("group", {"test_share": 0.2}, None),
        ("baskets", {"validation_share": 0.2}, "validation_share"),
        ("rows", {"test_share": 0.1}, None),  # the default: a dumped configuration has it
    ],
)
def test_settings_that_no_split_reads_are_refused(
    way: str, settings: dict[str, object], refused: str | None
) -> None:
    config = SplitConfig.model_validate(settings)
    ways = {"risk": (way, config)}
    if refused is None:
        refuse_unread(config, ways=ways)
        return
    with pytest.raises(ConfigError, match=f"split.{refused}: .*risk is split by {way}"):
        refuse_unread(config, ways=ways)


def test_a_setting_that_one_of_several_tasks_reads_is_taken() -> None:
    config = SplitConfig(gap_days=3)
    group, time = ("group", config), ("time", config)
    with pytest.raises(ConfigError, match=r"split\.gap_days"):
        refuse_unread(config, ways={"ad_ctr": group, "risk": group})
    refuse_unread(config, ways={"ad_ctr": group, "risk": time})  # raises nothing


def test_copies_follow_all_rows_of_train_in_lists_of_their_own() -> None:
    spec = TASKS["ad_headline"]
    columns = {name: pa.array(["a"] * 5) for name in key_columns(spec)}
    table = pa.table(columns | {"test_id": ["x", "y", "x", "y", "z"]})
    code = np.array([0, 0, 0, 0, 2], dtype=np.int8)
    layout = lay_out(
        spec, table, TaskSplit(code, code, None, None), catalogue=None, max_list_size=8, seed=0,
        copies=2,
    )  # fmt: skip
    train = layout["train"].to_pydict()
    assert train["row"] == [0, 2, 1, 3] * 3
    assert train["copy"] == [0] * 4 + [1] * 4 + [2] * 4
    assert train["list_id"] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert layout["test"].to_pydict()["copy"] == [0]
