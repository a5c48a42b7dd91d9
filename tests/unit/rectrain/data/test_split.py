from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rectrain.data.config import SplitConfig
from rectrain.data.split import (
    BOUGHT,
    FIRST,
    GAP,
    HELD_OUT,
    REPEATED,
    TEST,
    TRAIN,
    VALIDATION,
    bar_held_out,
    hash_ids,
    list_ids,
    split_by_group,
    split_by_time,
    split_purchases,
)
from rectrain.errors import ConfigError

DAY = 86_400_000_000


def strings(values: list[str]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, pa.string())])


def int32(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def test_a_group_goes_to_one_split_and_to_the_same_one_in_every_task() -> None:
    groups = [f"user-{n % 500}" for n in range(3000)]
    config = SplitConfig(validation_share=0.1, test_share=0.2)
    code = split_by_group(strings(groups), config=config, seed=3)
    other = split_by_group(strings(groups[::-1][:700]), config=config, seed=3)
    where = dict(zip(groups, code.tolist(), strict=True))
    assert [where[g] for g in groups] == code.tolist()
    assert [where[g] for g in groups[::-1][:700]] == other.tolist()
    share = np.bincount(list(where.values()), minlength=3) / len(where)
    np.testing.assert_allclose(share, [0.7, 0.1, 0.2], atol=0.06)
    assert not np.array_equal(code, split_by_group(strings(groups), config=config, seed=4))


def test_folds_part_the_groups_and_validation_is_never_test() -> None:
    groups = strings([f"q{n}" for n in range(66)])
    codes = [split_by_group(groups, config=SplitConfig(fold=fold), seed=0) for fold in range(5)]
    tests = np.array([code == TEST for code in codes])
    assert (tests.sum(axis=0) == 1).all()
    assert sorted(tests.sum(axis=1).tolist()) == [13, 13, 13, 13, 14]
    assert [int((code == VALIDATION).sum()) for code in codes] == [7] * 5


def test_a_split_by_time_leaves_the_gap_out() -> None:
    times = np.arange(100) * DAY
    config = SplitConfig(
        validation_start=datetime(1970, 2, 10, tzinfo=UTC), test_start=datetime(1970, 3, 12),
        gap_days=5,
    )  # fmt: skip
    code = split_by_time(times, config=config)
    expected = [TRAIN] * 35 + [GAP] * 5 + [VALIDATION] * 25 + [GAP] * 5 + [TEST] * 30
    assert code.tolist() == expected


def test_shares_of_time_and_no_validation() -> None:
    times = np.random.default_rng(0).permutation(1000) * DAY
    code = split_by_time(times, config=SplitConfig(validation_share=0.1, test_share=0.2))
    assert np.bincount(code).tolist() == [700, 100, 200]
    assert times[code == TRAIN].max() < times[code == VALIDATION].min()
    assert times[code == VALIDATION].max() < times[code == TEST].min()
    code = split_by_time(times, config=SplitConfig(validation_share=0, test_share=0.2))
    assert np.bincount(code).tolist() == [800, 0, 200]


def test_a_list_stays_whole_in_a_split_by_time() -> None:
    times = np.array([0, 9, 1, 2, 3, 4, 5, 6, 7, 8]) * DAY
    groups = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    config = SplitConfig(validation_share=0, test_share=0.1)
    assert split_by_time(times, config=config, groups=groups).tolist() == [TEST] * 2 + [TRAIN] * 8


def test_purchases_by_hand() -> None:
    # user 0: baskets A (items 0 1 0), B (1 2), C (0 3), D (4 2): D is test and C validation
    items = int32([0, 1, 0, 1, 2, 0, 3, 4, 2, 5, 5])
    baskets = int32([0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 5])
    users = int32([0] * 9 + [1, 1])
    times = baskets.astype(np.int64) * DAY
    found = split_purchases(users, items, baskets, times, max_history=3)
    assert found.code.tolist() == [
        FIRST, FIRST, REPEATED, BOUGHT, TRAIN, BOUGHT, VALIDATION, TEST, BOUGHT, FIRST, BOUGHT,
    ]  # fmt: skip
    assert found.part.tolist() == [0, 0, 0, 0, 0, 1, 1, 2, 2, 0, 0]
    history = found.history.to_pylist()
    assert history[4] == [1, 0]  # A's items by their latest purchase
    assert history[6] == [0, 1, 2]
    assert history[7] == [2, 0, 3]  # the last three
    assert found.bought.to_pylist()[7] == [1, 2, 0, 3] and found.bought.to_pylist()[4] is None


@settings(max_examples=60)
@given(st.lists(st.tuples(*[st.integers(0, n) for n in (3, 6, 5)]), min_size=1, max_size=60))
def test_purchases_never_see_their_own_future(log: list[tuple[int, int, int]]) -> None:
    users, items, times = (np.array(column) for column in zip(*log, strict=True))
    _, baskets = np.unique(users * 100 + times, return_inverse=True)
    found = split_purchases(
        users.astype(np.int32), items.astype(np.int32), baskets.astype(np.int32),
        times.astype(np.int64), max_history=4,
    )  # fmt: skip
    for row, (user, item, time) in enumerate(log):
        own = {t for u, _, t in log if u == user}
        rank = sorted(own).index(time)
        part = {len(own) - 1: TEST, len(own) - 2: VALIDATION}.get(rank, TRAIN)
        assert found.part[row] == (part if len(own) >= 3 else TRAIN)
        before = {i for u, i, t in log if u == user and t < time}
        if found.code[row] in (TRAIN, VALIDATION, TEST):
            assert found.code[row] == found.part[row] and item not in before
            history = found.history[row].as_py()
            assert set(history) <= before and len(history) == min(4, len(before))
            if found.code[row] != TRAIN:
                assert set(found.bought[row].as_py()) == before


def test_what_one_task_holds_out_no_other_trains_on() -> None:
    codes = {
        "a": np.array([TRAIN, TEST, BOUGHT], np.int8), "b": np.array([TRAIN] * 4, np.int8),
        "c": np.array([TEST, TRAIN], np.int8),
    }  # fmt: skip
    ids = {"a": strings(["1", "2", "3"]), "b": strings(["1", "2", "3", "4"]),
           "c": strings(["4", "1"])}  # fmt: skip
    parts = {"a": np.array([TRAIN, TEST, VALIDATION], np.int8)}
    found = bar_held_out(codes, ids, parts=parts, holdouts=None)
    assert found["b"].tolist() == [TRAIN, HELD_OUT, HELD_OUT, HELD_OUT]
    assert found["a"].tolist() == codes["a"].tolist() and found["c"].tolist() == [TEST, TRAIN]
    only_a = bar_held_out(codes, ids, parts=parts, holdouts=("a",))
    assert only_a["b"].tolist() == [TRAIN, HELD_OUT, HELD_OUT, TRAIN]


@given(st.lists(st.integers(0, 4), max_size=60), st.integers(1, 7))
def test_lists_hold_one_group_and_are_even(groups: list[int], size: int) -> None:
    numbers = int32(np.unique(groups, return_inverse=True)[1].tolist() if groups else [])
    lists = list_ids(numbers, max_size=size, seed=1)
    for number in set(lists.tolist()):
        assert len(set(numbers[lists == number].tolist())) == 1
    for group in set(numbers.tolist()):
        sizes = np.unique(lists[numbers == group], return_counts=True)[1]
        assert sizes.max() <= size and sizes.max() - sizes.min() <= 1


def test_hashes_are_stable_and_not_negative() -> None:
    assert hash_ids(["mug", ""]).tolist() == [7919547556698364928, 8238016292129134938]
    assert (hash_ids([str(n) for n in range(1000)]) >= 0).all()


@pytest.mark.parametrize(
    "values",
    [
        {"test_share": 0.6, "validation_share": 0.4},
        {"fold": 5},
        {"validation_start": "2024-02-01", "test_start": "2024-01-01"},
    ],
)
def test_split_settings_that_contradict_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        SplitConfig(**values)  # type: ignore[arg-type]
