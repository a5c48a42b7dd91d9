"""Where each checked row goes: split, list, history, catalogue; pure functions of the keys.

Legend: n rows of a task, K items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rectrain.data.assemble import Spec
from rectrain.data.config import SplitConfig
from rectrain.data.shards import SPLITS
from rectrain.data.split import (
    TEST,
    TRAIN,
    VALIDATION,
    Codes,
    codes_of,
    list_ids,
    split_by_group,
    split_by_time,
    split_purchases,
)
from rectrain.errors import ConfigError, DataError

__all__ = [
    "Catalogue", "TaskSplit", "build_catalogue", "choose_split", "key_columns", "lay_out",
    "purchase_log", "refuse_unread", "settle_split", "split_task",
]  # fmt: skip

_SPLIT_GROUP = "split_group"  # a field's name


class TaskSplit(NamedTuple):
    """code: int8 [n], see split.py; part: int8 [n], the split of the event itself;
    history, bought: list<int32> [n] of item numbers, None but for a purchase log."""

    code: Codes
    part: Codes
    history: pa.ListArray | None
    bought: pa.ListArray | None


@dataclass(frozen=True)
class Catalogue:
    """The items of a purchase log.

    Args:
        ids: string [K], in order of first appearance.
        number: int32 [n], each row's item.
        row: int64 [K], the row that describes the item: its latest in train, else its first.
        log_q: float32 [K], log of the item's share of the train rows (at least one row's).
    """

    ids: pa.Array
    number: npt.NDArray[np.int32]
    row: npt.NDArray[np.int64]
    log_q: npt.NDArray[np.float32]


def key_columns(spec: Spec) -> list[str]:
    """Names of the columns that splitting reads."""
    names = {*spec.fields.names("group", "timestamp", "id", "split")}
    return [name for name in spec.fields.names() if name in names]


def settle_split(config: SplitConfig, *, defaults: Mapping[str, Any]) -> SplitConfig:
    """The source's settings of a task's split under those that the user gave."""
    given = {name: getattr(config, name) for name in config.model_fields_set}
    return SplitConfig(**{**defaults, **given})


def refuse_unread(given: SplitConfig, *, ways: Mapping[str, tuple[str, SplitConfig]]) -> None:
    """Refuses settings of the user's that no task's split reads.

    Args:
        given: the user's; those that equal the default don't count.
        ways: task -> how its rows are split, see `choose_split`, and by which settings.

    Raises:
        ConfigError: the first of them.
    """
    read = {"by"}.union(*(_read_settings(*way) for way in ways.values()))
    for name in sorted(given.model_fields_set - read):
        value = getattr(given, name)
        if value != SplitConfig.model_fields[name].default:
            how = ", ".join(f"{task} is split by {_in_words(*way)}" for task, way in ways.items())
            raise ConfigError(
                what=f"split.{name}", got=value, rule=f"has no effect: {how}", fix="leave it out"
            )


def _in_words(by: str, config: SplitConfig) -> str:
    return f"{by} into folds" if by == "group" and config.fold is not None else by


def _read_settings(by: str, config: SplitConfig) -> set[str]:
    if by == "group":
        parts = {"test_share"} if config.fold is None else {"fold", "num_folds"}
        return {"validation_share", *parts}
    if by == "time":
        return {"validation_share", "test_share", "validation_start", "test_start", "gap_days"}
    return {"validation_share"} if by == "rows" else set()


def choose_split(spec: Spec, keys: pa.Table, *, config: SplitConfig) -> tuple[str, str]:
    """How a task's rows are split, "baskets", "rows", "time" or "group", and why, in words.

    Args:
        spec: the task.
        keys: its key columns, n rows.
    """
    time = spec.fields.name_of("timestamp")
    if spec.has_catalogue:
        return "baskets", "the last ones of each user are held out"
    if config.by != "auto":
        return config.by, "as split.by says"
    own = spec.fields.name_of("split")
    if own in keys.column_names and config.fold is None and keys[own].null_count < keys.num_rows:
        return "rows", "every row says its own"
    if time is None:
        return "group", "rows have no timestamp"
    if keys[time].null_count:
        return "group", f"{keys[time].null_count:,} of {keys.num_rows:,} rows have no timestamp"
    return "time", "every row has a timestamp"


def split_task(
    spec: Spec, keys: pa.Table, *, config: SplitConfig, seed: int, max_history: int
) -> TaskSplit:
    """Split the rows of one task.

    Args:
        spec: the task.
        keys: its key columns, n rows.

    Raises:
        DataError: a split by time over rows without a timestamp, or by group without a group, or
            some rows that say their split and some that don't.
    """
    group, time = spec.fields.name_of("group"), spec.fields.name_of("timestamp")
    if spec.has_catalogue:
        assert group and time
        baskets, _ = codes_of(_baskets(keys, group, time))
        users, items = codes_of(keys[group])[0], codes_of(keys["item_id"])[0]
        return TaskSplit(
            *split_purchases(users, items, baskets, _micro(keys[time]), max_history=max_history)
        )
    by, _ = choose_split(spec, keys, config=config)
    if by == "rows":
        code = _split_by_rows(spec, keys, config=config, seed=seed)
        return TaskSplit(code, code, None, None)
    if by == "time" and (time is None or keys[time].null_count):
        raise DataError(
            what=f"split of {spec.fields.task} by time", got="rows without a timestamp",
            rule="every row needs one", fix="give timestamps, or --split.by group",
        )  # fmt: skip
    if by == "time":
        assert time
        lists = _lists(spec, keys)
        code = split_by_time(_micro(keys[time]), config=config, groups=lists)
    elif group is not None:
        code = split_by_group(_together(keys, group), config=config, seed=seed)
    else:
        raise DataError(
            what=f"split of {spec.fields.task} by group", got="a task without a group",
            rule="a split by group needs one", fix="give timestamps, and --split.by time",
        )  # fmt: skip
    return TaskSplit(code, code, None, None)


def _split_by_rows(spec: Spec, keys: pa.Table, *, config: SplitConfig, seed: int) -> Codes:
    """As each row says; without any validation row, whole groups of train become validation."""
    own, group = spec.fields.name_of("split"), spec.fields.name_of("group")
    assert own
    if keys[own].null_count:
        raise DataError(
            what=f"column {own} of {spec.fields.task}",
            got=f"nothing in {keys[own].null_count:,} of {keys.num_rows:,} rows",
            rule="either every row says its split, or none does",
            fix="fill the column, or split anew by --split.by time or group",
        )  # fmt: skip
    code = np.asarray(pc.index_in(keys[own], pa.array(SPLITS)), dtype=np.int8)
    if group is not None and not np.any(code == VALIDATION):
        train = np.flatnonzero(code == TRAIN)
        anew = config.model_copy(update={"test_share": 0.0, "fold": None})
        groups = _together(keys, group).take(pa.array(train))
        code[train] = split_by_group(groups, config=anew, seed=seed)
    return code


def build_catalogue(keys: pa.Table, split: TaskSplit) -> Catalogue:
    """The items of a purchase log, held-out ones too; see `Catalogue`."""
    number, ids = codes_of(keys["item_id"])
    train = np.flatnonzero(split.code == TRAIN)
    row = np.full(len(ids), -1, dtype=np.int64)
    times = _micro(keys["timestamp"])
    latest = train[np.argsort(times[train], kind="stable")]
    row[number[latest]] = latest  # the last assignment of an item stays
    known = np.flatnonzero(split.part != TEST)[::-1]
    for rows in (known, np.arange(len(number))[::-1]):  # an item without a training row
        missing = rows[row[number[rows]] < 0]
        row[number[missing]] = missing
    counts = np.bincount(number[train], minlength=len(ids))
    log_q = np.log(np.maximum(counts, 1) / max(len(train), 1)).astype(np.float32)
    return Catalogue(pa.array(ids, pa.string()), number, row, log_q)


def purchase_log(keys: pa.Table, *, group: str, split: TaskSplit, catalogue: Catalogue) -> pa.Table:
    """What each user bought before test: group, item_id string, item int32, part int8."""
    rows = np.flatnonzero(split.part != TEST)
    return pa.table(
        {
            "group": keys[group].take(pa.array(rows)),
            "item_id": keys["item_id"].take(pa.array(rows)),
            "item": pa.array(catalogue.number[rows]),
            "part": pa.array(split.part[rows]),
        }
    )


def lay_out(
    spec: Spec,
    keys: pa.Table,
    split: TaskSplit,
    *,
    catalogue: Catalogue | None,
    max_list_size: int,
    seed: int,
    copies: int = 0,
) -> dict[str, pa.Table]:
    """The rows of each split in their order on disk; copies of train follow all of its own rows.

    Args:
        copies: altered copies of each train row.

    Returns:
        split -> row int64, copy int32 (0: the row itself), list_id int32, log_q float32, and
        history and bought list<int32> (item numbers; null without a catalogue; `bought` on a
        user's first row alone).
    """
    layout = {}
    group = spec.fields.name_of("group")
    for number, name in enumerate(SPLITS):
        rows = np.flatnonzero(split.code == number)
        lists = np.arange(len(rows), dtype=np.int32)
        if spec.has_lists and group:
            groups = codes_of(keys[group].take(pa.array(rows)))[0]
            lists = list_ids(groups, max_size=max_list_size, seed=seed)
            order = np.argsort(lists, kind="stable")
            rows, lists = rows[order], lists[order]
        elif catalogue is not None and group and name != "train":
            groups = codes_of(keys[group].take(pa.array(rows)))[0]
            rows = rows[np.argsort(groups, kind="stable")]  # evaluation reads user by user
        layout[name] = _plan(rows, lists, split=split, catalogue=catalogue)
        if catalogue is not None and name != "train" and group:
            layout[name] = _bought_once(layout[name], keys[group].take(layout[name]["row"]))
    layout["train"] = _with_copies(layout["train"], copies)
    return layout


def _with_copies(plan: pa.Table, copies: int) -> pa.Table:
    """The plan, then each copy of it with lists of its own."""
    lists = plan["list_id"].to_numpy()
    num_lists = int(lists.max(initial=-1)) + 1
    number, own = (plan.column_names.index(name) for name in ("copy", "list_id"))
    parts = [plan]
    for copy in range(1, copies + 1):
        part = plan.set_column(number, "copy", pa.array(np.full(len(lists), copy, np.int32)))
        parts.append(part.set_column(own, "list_id", pa.array(lists + np.int32(copy * num_lists))))
    return pa.concat_tables(parts)


def _plan(
    rows: npt.NDArray[np.int64],
    lists: npt.NDArray[np.int32],
    *,
    split: TaskSplit,
    catalogue: Catalogue | None,
) -> pa.Table:
    taken = pa.array(rows)
    nothing = pa.nulls(len(rows), pa.list_(pa.int32()))
    log_q = np.zeros(len(rows), dtype=np.float32)
    if catalogue is not None:
        log_q = catalogue.log_q[catalogue.number[rows]]
    return pa.table(
        {
            "row": taken,
            "copy": pa.array(np.zeros(len(rows), dtype=np.int32)),
            "list_id": pa.array(lists),
            "log_q": pa.array(log_q),
            "history": nothing if split.history is None else split.history.take(taken),
            "bought": nothing if split.bought is None else split.bought.take(taken),
        }
    )


def _bought_once(plan: pa.Table, users: pa.ChunkedArray) -> pa.Table:
    """Keep `bought` on the first of a user's neighbouring rows: it is long, and always the same."""
    number = codes_of(users)[0]
    first = np.concatenate([[True], number[1:] != number[:-1]])[: len(number)]
    place = plan.column_names.index("bought")
    bought = plan["bought"].combine_chunks()
    kept = bought.take(pa.array(np.arange(len(number)), mask=~first))
    return plan.set_column(place, "bought", kept)


def _lists(spec: Spec, keys: pa.Table) -> npt.NDArray[np.int64] | None:
    group = spec.fields.name_of("group")
    if not spec.has_lists or group is None:
        return None
    return codes_of(_together(keys, group))[0].astype(np.int64)


def _together(keys: pa.Table, group: str) -> pa.ChunkedArray:
    """What a split keeps whole: a row's group, or several of them where the rows say so."""
    if _SPLIT_GROUP not in keys.column_names:
        return keys[group]
    return pc.coalesce(keys[_SPLIT_GROUP], keys[group])


def _baskets(keys: pa.Table, group: str, time: str) -> pa.ChunkedArray:
    """The basket of each row: its user with its session, or with its time without one."""
    moment = keys[time].cast(pa.int64()).cast(pa.string())
    session = pc.coalesce(keys["session_id"], moment) if "session_id" in keys.column_names else (
        moment
    )  # fmt: skip
    return pc.binary_join_element_wise(keys[group], session, "\x00")


def _micro(times: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    return np.asarray(times.cast(pa.int64()), dtype=np.int64)
