"""The plan: every unit once an epoch, no empty slot, a pure function of seed and step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rectrain.data.plan import Plan, TaskUnits, micro_batches_of_rank
from rectrain.errors import DataError

TASK_UNITS = st.lists(
    st.tuples(st.integers(1, 5), st.integers(0, 300)), min_size=1, max_size=60
)  # (rows, tokens) of each unit


def units(pairs: list[tuple[int, int]]) -> TaskUnits:
    rows, tokens = zip(*pairs, strict=True)
    return TaskUnits(
        unit_tokens=np.array(tokens, dtype=np.int32),
        unit_rows=np.concatenate([[0], np.cumsum(rows)]).astype(np.int32),
    )


def plan(tasks: dict[str, TaskUnits], **changes: Any) -> Plan:
    settings_ = {
        "seed": 3,
        "tokens_per_micro_batch": 200,
        "temperature": 2.0,
        "num_micro_batches": 3,
    }
    return Plan(tasks, **(settings_ | changes))


def run_slots(a_plan: Plan, task: str, first: int, last: int) -> list[list[int]]:
    """Slots number first … last - 1 of a run."""
    num = a_plan.num_micro_batches
    return [
        a_plan.slot(g // num, task=task, micro_batch=g % num).tolist() for g in range(first, last)
    ]


@settings(max_examples=150)
@given(TASK_UNITS, TASK_UNITS, st.integers(1, 4), st.integers(1, 2000), st.integers(0, 2**31))
def test_each_epoch_holds_every_row_once_in_slots_that_are_never_empty(
    first: list[tuple[int, int]],
    second: list[tuple[int, int]],
    num_micro_batches: int,
    tokens_per_micro_batch: int,
    seed: int,
) -> None:
    tasks = {"a": units(first), "b": units(second)}
    made = plan(
        tasks,
        num_micro_batches=num_micro_batches,
        tokens_per_micro_batch=tokens_per_micro_batch,
        seed=seed,
    )
    for task, task_units in tasks.items():
        slots = made.num_slots(task)
        for epoch in range(3):
            rows = run_slots(made, task, epoch * slots, (epoch + 1) * slots)
            assert all(rows)
            assert sorted(row for slot in rows for row in slot) == list(
                range(task_units.unit_rows[-1])
            )


@settings(max_examples=150)
@given(TASK_UNITS, TASK_UNITS, st.integers(1, 2000))
def test_a_slot_stays_within_its_share_of_the_budget_and_one_unit(
    first: list[tuple[int, int]], second: list[tuple[int, int]], budget: int
) -> None:
    tasks = {"a": units(first), "b": units(second)}
    made = plan(tasks, tokens_per_micro_batch=budget)
    for task, task_units in tasks.items():
        tokens = np.maximum(task_units.unit_tokens, 1)
        starts = task_units.unit_rows[:-1].tolist()
        for rows in run_slots(made, task, 0, made.num_slots(task)):
            in_slot = [tokens[starts.index(row)] for row in rows if row in starts]
            bound = made.shares[task] * budget + tokens.max()
            assert sum(in_slot) < bound or len(in_slot) == 1


@settings(max_examples=100)
@given(TASK_UNITS, TASK_UNITS, st.integers(1, 2000))
def test_no_micro_batch_holds_more_than_it_says(
    first: list[tuple[int, int]], second: list[tuple[int, int]], budget: int
) -> None:
    tasks = {"a": units(first), "b": units(second)}
    made = plan(tasks, tokens_per_micro_batch=budget, num_micro_batches=1)
    tokens = {task: np.repeat(u.unit_tokens, np.diff(u.unit_rows)) for task, u in tasks.items()}
    rows = {
        task: np.repeat(np.diff(u.unit_rows), np.diff(u.unit_rows)) for task, u in tasks.items()
    }
    for step in range(12):
        held = 0.0
        for task in tasks:
            slot = made.slot(step, task=task, micro_batch=0)
            held += float((tokens[task][slot] / rows[task][slot]).sum())
        assert held <= made.most_tokens() + 1e-6


@settings(max_examples=50)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=20), st.integers(0, 25))
def test_drawn_negatives_count_among_the_tokens_of_a_micro_batch(
    item_tokens: list[int], num_negatives: int
) -> None:
    made = plan({"a": units([(1, 5)] * 9)}, num_negatives=num_negatives)
    tokens = np.array(item_tokens, dtype=np.int32)
    with_items = made.most_tokens(item_tokens={"a": tokens})
    for step in range(12):
        drawn = made.negatives(step, task="a", micro_batch=0, num_items=tokens.size)
        assert made.most_tokens() + tokens[drawn].sum() <= with_items
    if num_negatives >= tokens.size:  # all are drawn: the bound is reached
        assert with_items == made.most_tokens() + tokens.sum()


@settings(max_examples=50)
@given(TASK_UNITS, st.integers(1, 2000))
def test_the_most_rows_are_those_of_the_first_epochs_largest_slot(
    pairs: list[tuple[int, int]], budget: int
) -> None:
    made = plan({"a": units(pairs)}, tokens_per_micro_batch=budget)
    slots = run_slots(made, "a", 0, made.num_slots("a"))
    assert made.most_rows("a") == max(map(len, slots))


def test_equal_units_fill_slots_evenly() -> None:
    made = plan({"a": units([(1, 10)] * 100)}, tokens_per_micro_batch=50, num_micro_batches=1)
    assert made.num_slots("a") == 20
    assert [len(rows) for rows in run_slots(made, "a", 0, 20)] == [5] * 20


def test_a_unit_of_many_slots_leaves_none_empty() -> None:
    # total / B = 25.75: the long unit alone would span four slots.
    pairs = [(1, 100), (1, 1), (1, 1), (1, 1)]
    for seed in range(10):
        made = plan({"a": units(pairs)}, tokens_per_micro_batch=20, seed=seed)
        assert made.num_slots("a") == 4
        assert [len(rows) for rows in run_slots(made, "a", 0, 4)] == [1, 1, 1, 1]


def test_rows_of_a_list_stay_together_and_in_order() -> None:
    list_id = np.repeat(np.arange(7, dtype=np.int32), [3, 1, 4, 1, 5, 9, 2])
    task_units = TaskUnits.from_columns(num_tokens=np.full(25, 4, np.int32), list_id=list_id)
    assert task_units.unit_tokens.tolist() == [12, 4, 16, 4, 20, 36, 8]
    made = plan({"a": task_units}, tokens_per_micro_batch=20)
    for rows in run_slots(made, "a", 0, made.num_slots("a")):
        for number in np.unique(list_id[rows]):
            assert [row for row in rows if list_id[row] == number] == np.flatnonzero(
                list_id == number
            ).tolist()


def test_a_step_does_not_depend_on_what_was_asked_before() -> None:
    tasks = {"a": units([(2, 30)] * 40), "b": units([(1, 11)] * 90)}
    forward, backward = plan(tasks), plan(tasks)
    asked = [
        (step, task, number) for step in range(60) for task in ("a", "b") for number in range(3)
    ]
    expected = {
        key: forward.slot(key[0], task=key[1], micro_batch=key[2]).tolist() for key in asked
    }
    for key in reversed(asked):
        assert backward.slot(key[0], task=key[1], micro_batch=key[2]).tolist() == expected[key]
    far = forward.slot(10**12, task="a", micro_batch=1)
    assert far.tolist() == plan(tasks).slot(10**12, task="a", micro_batch=1).tolist()


def test_epochs_seeds_and_tasks_shuffle_differently() -> None:
    tasks = {"a": units([(1, 10)] * 50), "b": units([(1, 10)] * 50)}
    made = plan(tasks, num_micro_batches=1)
    slots = made.num_slots("a")
    epochs = [run_slots(made, "a", epoch * slots, (epoch + 1) * slots) for epoch in range(3)]
    other_seed = run_slots(plan(tasks, num_micro_batches=1, seed=4), "a", 0, slots)
    other_task = run_slots(made, "b", 0, slots)
    shuffles = [*epochs, other_seed, other_task]
    assert len({str(shuffle) for shuffle in shuffles}) == 5


def test_negatives_are_uniform_without_repeats_and_a_function_of_their_numbers() -> None:
    tasks = {"a": units([(1, 5)] * 40), "b": units([(1, 5)] * 40)}
    settings_ = {"num_negatives": 6, "num_micro_batches": 2}
    drawn = {
        (step, number): plan(tasks, **settings_)
        .negatives(step, task="a", micro_batch=number, num_items=30)
        .tolist()
        for step in range(300)
        for number in range(2)
    }
    for items in drawn.values():
        assert len(set(items)) == 6 and items == sorted(items)
    counts = np.bincount(np.concatenate(list(drawn.values())), minlength=30)
    assert counts.size == 30 and abs(counts - 120).max() < 5 * (600 * 0.2 * 0.8) ** 0.5

    def again(task: str = "a", **changes: int) -> list[int]:
        a_plan = plan(tasks, **(settings_ | changes))
        return a_plan.negatives(4, task=task, micro_batch=1, num_items=30).tolist()

    assert again() == drawn[4, 1] == again(tokens_per_micro_batch=999)
    others = [drawn[4, 0], drawn[5, 1], again("b"), again(seed=1)]
    assert drawn[4, 1] not in others
    assert again(num_negatives=31) == list(range(30)) and again(num_negatives=0) == []


def test_count_is_the_units_of_the_whole_step() -> None:
    tasks = {"lists": units([(3, 40)] * 17), "rows": units([(1, 7)] * 101)}
    made = plan(tasks)
    for step in range(30):
        for task, rows_of_a_unit in (("lists", 3), ("rows", 1)):
            rows = sum(len(slot) for slot in run_slots(made, task, step * 3, step * 3 + 3))
            assert made.count(step, task=task) * rows_of_a_unit == rows


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("num_micro_batches", [1, 2, 4, 6])
def test_ranks_share_a_step_out_alike_for_every_world_size(
    world_size: int, num_micro_batches: int
) -> None:
    parts = [
        micro_batches_of_rank(rank=rank, world_size=world_size, num_micro_batches=num_micro_batches)
        for rank in range(world_size)
    ]
    assert len({len(part) for part in parts}) == 1  # collectives match
    taken = [number for part in parts for number in part if number is not None]
    assert sorted(taken) == list(range(num_micro_batches))


def test_temperature_sets_the_shares() -> None:
    tasks = {"big": units([(1, 10)] * 400), "small": units([(1, 10)] * 100)}
    assert plan(tasks, temperature=1.0).shares == pytest.approx({"big": 0.8, "small": 0.2})
    assert plan(tasks, temperature=2.0).shares == pytest.approx({"big": 2 / 3, "small": 1 / 3})
    assert plan(tasks, temperature=1e9).shares == pytest.approx({"big": 0.5, "small": 0.5})


def test_mixing_weights_multiply_the_shares() -> None:
    tasks = {"big": units([(1, 10)] * 400), "small": units([(1, 10)] * 100)}
    made = plan(tasks, temperature=1.0, mixing_weights={"small": 12.0})
    assert made.shares == pytest.approx({"big": 0.25, "small": 0.75})
    assert made.resized(50).shares == made.shares


def test_slots_hold_the_shares_in_tokens() -> None:
    tasks = {"big": units([(1, 5)] * 4000), "small": units([(1, 20)] * 1000)}
    made = plan(tasks, tokens_per_micro_batch=600)
    # shares 2/3 and 1/3 of 600 tokens, in rows of 5 and 20 tokens
    assert made.num_slots("big") == 4000 * 5 / 400
    assert made.num_slots("small") == 1000 * 20 / 200
    assert made.tokens_per_step() == pytest.approx(3 * 600)
    assert made.steps_per_epoch("big") == 17  # 50 slots, 3 a step


def test_a_task_without_rows_is_refused() -> None:
    empty = TaskUnits.from_columns(num_tokens=np.empty(0, np.int32), list_id=np.empty(0, np.int32))
    with pytest.raises(DataError, match="training rows of b"):
        plan({"a": units([(1, 1)]), "b": empty})


def test_many_units_stay_small() -> None:
    size = 2_000_000
    big = TaskUnits.from_columns(
        num_tokens=np.full(size, 20, np.int32), list_id=np.arange(size, dtype=np.int32)
    )
    assert big.unit_tokens.nbytes + big.unit_rows.nbytes < 9 * size
    made = plan({"a": big}, tokens_per_micro_batch=2000, num_micro_batches=4)
    for step in (0, made.steps_per_epoch("a") + 1, 2 * made.steps_per_epoch("a") + 1):
        made.slot(step, task="a", micro_batch=0)
    held = [epoch.order.nbytes + epoch.starts.nbytes for epoch in made._epochs["a"].values()]
    assert len(held) == 2 and sum(held) < 9 * size
