"""Which rows each micro-batch of each step holds: a pure function of the seed and the step.

Every micro-batch holds one slot of every task, so every step trains every task. Task i gets the
share p_i ∝ n_i^(1/temperature) of a micro-batch's tokens (n_i rows; temperature sampling as in
Arivazhagan et al. 2019, section 4.2, made exact instead of drawn). Its units (rows, or lists that
must stay together) are shuffled anew each epoch and cut into B_i slots of near-equal tokens:

    B_i = clamp(ceil(tokens_i / (p_i × tokens_per_micro_batch)), 1, num_units_i)

Slot g of a run is slot g mod B_i of epoch g div B_i. Nothing depends on the number of workers or
on what was asked before, so a run's position is one integer, the step.

A slot's negatives (`Plan.negatives`) are a pure function of the same numbers.

With t_i = tokens_i / B_i ≤ p_i × tokens_per_micro_batch (or one unit), a slot holds fewer than
t_i + (its longest unit) tokens, and at least one unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from rectrain.data.batch import list_boundaries
from rectrain.errors import DataError

__all__ = ["Plan", "TaskUnits", "micro_batches_of_rank"]

Integers = npt.NDArray[np.integer[Any]]

_NUM_CACHED_EPOCHS = 2


@dataclass(frozen=True)
class TaskUnits:
    """What a task's slots are made of: rows, or lists of neighbouring rows.

    Attributes:
        unit_tokens: int32 [n], real tokens of each unit.
        unit_rows: int32 or int64 [n + 1]; unit u is the rows unit_rows[u]:unit_rows[u + 1].
        unit_examples: int [n], what each unit counts in a step's count; None where it is 1.
    """

    unit_tokens: Integers
    unit_rows: Integers
    unit_examples: Integers | None = None

    @classmethod
    def from_columns(
        cls, *, num_tokens: Integers, list_id: Integers, num_examples: Integers | None = None
    ) -> TaskUnits:
        """Units of a split.

        Args:
            num_tokens: int32 [rows], real tokens of each row.
            list_id: int32 [rows]; neighbours with one list_id are one unit.
            num_examples: int32 [rows], examples of each row; None where a unit is one example.
        """
        bounds = list_boundaries(list_id)
        if num_tokens.size < np.iinfo(np.int32).max:
            bounds = bounds.astype(np.int32)  # half the memory at 10^8 rows
        if bounds.size == 1:
            return cls(unit_tokens=np.empty(0, dtype=np.int32), unit_rows=bounds)
        tokens = np.add.reduceat(num_tokens, bounds[:-1], dtype=np.int32)
        examples = None
        if num_examples is not None:
            examples = np.add.reduceat(num_examples, bounds[:-1], dtype=np.int32)
        return cls(unit_tokens=tokens, unit_rows=bounds, unit_examples=examples)


@dataclass(frozen=True)
class _Epoch:
    """A task's units in shuffled order; slot b has those from starts[b] to starts[b + 1]."""

    order: Integers
    starts: Integers


class Plan:
    """The slots of every step of a run.

    Args:
        tasks: task -> its training units, in the run's task order.
        seed: shuffles units, 0 or more; the same seed gives the same plan on any number of workers.
        tokens_per_micro_batch: real tokens that a micro-batch should hold, at least 1.
        temperature: of the task mixing, > 0; 1 is proportional to rows, large is uniform.
        mixing_weights: task -> what its share is multiplied by, > 0; 1 for those not named.
        num_micro_batches: M, micro-batches of one step, at least 1.
        num_negatives: items drawn for each slot of a task with a catalogue, 0 or more.

    Raises:
        DataError: no task, or a task without rows.
    """

    def __init__(
        self,
        tasks: Mapping[str, TaskUnits],
        *,
        seed: int,
        tokens_per_micro_batch: int,
        temperature: float,
        num_micro_batches: int,
        mixing_weights: Mapping[str, float] | None = None,
        num_negatives: int = 0,
    ) -> None:
        assert seed >= 0 and tokens_per_micro_batch >= 1 and num_negatives >= 0
        assert temperature > 0 and num_micro_batches >= 1
        _check_tasks(tasks)
        self.tasks = tuple(tasks)
        self.num_micro_batches = num_micro_batches
        self._seed = seed
        self._num_negatives = num_negatives
        self._units = dict(tasks)
        self._temperature = temperature
        self._weights = {task: (mixing_weights or {}).get(task, 1.0) for task in tasks}
        self.shares = _shares(tasks, temperature, weights=self._weights)
        self._num_slots = {
            task: _num_slots(units, budget=self.shares[task] * tokens_per_micro_batch)
            for task, units in tasks.items()
        }
        self._epochs: dict[str, dict[int, _Epoch]] = {task: {} for task in tasks}

    def resized(self, tokens_per_micro_batch: int) -> Plan:
        """The plan of the same units with larger or smaller micro-batches."""
        return Plan(
            self._units,
            seed=self._seed,
            tokens_per_micro_batch=tokens_per_micro_batch,
            temperature=self._temperature,
            mixing_weights=self._weights,
            num_micro_batches=self.num_micro_batches,
            num_negatives=self._num_negatives,
        )

    def slot(self, step: int, *, task: str, micro_batch: int) -> Integers:
        """Rows of a task in one micro-batch of a step, ascending; never empty.

        Args:
            step: 0 or more.
            task: one of `tasks`.
            micro_batch: 0 ≤ micro_batch < num_micro_batches.
        """
        assert 0 <= micro_batch < self.num_micro_batches and step >= 0
        epoch, first, last = self._bounds(step * self.num_micro_batches + micro_batch, task)
        units = np.sort(epoch.order[first:last])
        starts, ends = self._units[task].unit_rows[units], self._units[task].unit_rows[units + 1]
        sizes = ends - starts
        return np.repeat(starts - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())

    def negatives(self, step: int, *, task: str, micro_batch: int, num_items: int) -> Integers:
        """Items drawn as negatives of a slot, uniformly and without repeats.

        Args:
            step: 0 or more.
            task: one of `tasks`.
            micro_batch: 0 ≤ micro_batch < num_micro_batches.
            num_items: C, size of the task's catalogue.

        Returns:
            int64 [N], row numbers of the catalogue, ascending; N = min(num_negatives, C).
        """
        assert 0 <= micro_batch < self.num_micro_batches and step >= 0
        # Another name than the task's, or an epoch's shuffle would see the same random numbers.
        entropy = (self._seed, crc32(f"negatives of {task}".encode()), step, micro_batch)
        drawn = np.random.default_rng(entropy).choice(
            num_items, size=min(self._num_negatives, num_items), replace=False, shuffle=False
        )
        return np.sort(drawn)

    def count(self, step: int, *, task: str) -> int:
        """Examples of a task in all micro-batches of a step: units, or what these count."""
        examples = self._units[task].unit_examples
        total = 0
        for micro_batch in range(self.num_micro_batches):
            epoch, first, last = self._bounds(step * self.num_micro_batches + micro_batch, task)
            units = epoch.order[first:last]
            total += len(units) if examples is None else int(examples[units].sum(dtype=np.int64))
        return total

    def num_slots(self, task: str) -> int:
        """Slots that a task's epoch is cut into (B_i)."""
        return self._num_slots[task]

    def steps_per_epoch(self, task: str) -> int:
        """Steps after which every row of the task has been trained on at least once."""
        return -(-self._num_slots[task] // self.num_micro_batches)

    def tokens_per_step(self) -> float:
        """Real tokens of a step, on average."""
        slot_tokens = (
            self._units[task].unit_tokens.sum(dtype=np.int64) / slots
            for task, slots in self._num_slots.items()
        )
        return float(sum(slot_tokens)) * self.num_micro_batches

    def most_tokens(self, *, item_tokens: Mapping[str, Integers] | None = None) -> int:
        """Real tokens of a micro-batch, at most.

        Of each task a mean slot, its longest unit, and the longest items as its drawn negatives.

        Args:
            item_tokens: task -> int [C], real tokens of its catalogue's items.
        """
        rows = sum(
            -(-int(_unit_tokens(units).sum(dtype=np.int64)) // self._num_slots[task])
            + int(_unit_tokens(units).max())
            for task, units in self._units.items()
        )
        drawn = (
            np.sort(tokens)[::-1][: self._num_negatives] for tokens in (item_tokens or {}).values()
        )
        return rows + sum(int(tokens.sum(dtype=np.int64)) for tokens in drawn)

    def most_rows(self, task: str) -> int:
        """Rows of a task's slot, at most, in the first epoch; later ones are alike."""
        epoch, units = self._epoch(task, 0), self._units[task]
        rows = np.diff(units.unit_rows)[epoch.order]
        return int(np.add.reduceat(rows, epoch.starts[:-1]).max())

    def _bounds(self, position: int, task: str) -> tuple[_Epoch, int, int]:
        """The epoch of slot `position` of the run, and where the slot is in it."""
        number, slot = divmod(position, self._num_slots[task])
        epoch = self._epoch(task, number)
        return epoch, int(epoch.starts[slot]), int(epoch.starts[slot + 1])

    def _epoch(self, task: str, number: int) -> _Epoch:
        known = self._epochs[task]
        epoch = known.get(number)
        if epoch is None:
            epoch = _shuffled_epoch(
                self._units[task],
                num_slots=self._num_slots[task],
                entropy=(self._seed, crc32(task.encode()), number),
            )
            kept = list(known.items())[1 - _NUM_CACHED_EPOCHS :]
            # A new dict in one assignment: another thread that reads the plan sees either one.
            self._epochs[task] = dict([*kept, (number, epoch)])
        return epoch


def micro_batches_of_rank(
    *, rank: int, world_size: int, num_micro_batches: int
) -> tuple[int | None, ...]:
    """The micro-batches that a rank runs in each step, one a forward.

    Every rank runs ceil(M / world_size) forwards, so that collectives match; forward a of rank r
    takes micro-batch a × world_size + r, or none (an empty one) where there is no such.
    """
    assert 0 <= rank < world_size
    numbers = range(rank, -(-num_micro_batches // world_size) * world_size, world_size)
    return tuple(number if number < num_micro_batches else None for number in numbers)


def _check_tasks(tasks: Mapping[str, TaskUnits]) -> None:
    if not tasks:
        raise DataError(
            what="tasks", got="none", rule="a run trains at least one task", fix="add a task"
        )
    for task, units in tasks.items():
        if units.unit_tokens.size == 0:
            raise DataError(
                what=f"training rows of {task}",
                got=0,
                rule="every task of a run needs at least one training row",
                fix=f"prepare data for {task} or leave it out of train.tasks",
            )


def _shares(
    tasks: Mapping[str, TaskUnits], temperature: float, *, weights: Mapping[str, float]
) -> dict[str, float]:
    """p_i ∝ w_i n_i^(1/temperature), over the largest n, or it might overflow; they sum to 1."""
    rows = {task: int(units.unit_rows[-1]) for task, units in tasks.items()}
    largest = max(rows.values())
    powers = {task: weights[task] * (n / largest) ** (1 / temperature) for task, n in rows.items()}
    return {task: power / sum(powers.values()) for task, power in powers.items()}


def _unit_tokens(units: TaskUnits) -> Integers:
    # A row without text still costs a forward of its features.
    return np.maximum(units.unit_tokens, 1)


def _num_slots(units: TaskUnits, *, budget: float) -> int:
    total = int(_unit_tokens(units).sum(dtype=np.int64))
    return min(max(int(np.ceil(total / budget)), 1), units.unit_tokens.size)


def _shuffled_epoch(units: TaskUnits, *, num_slots: int, entropy: tuple[int, int, int]) -> _Epoch:
    num_units = units.unit_tokens.size
    order = np.arange(num_units, dtype=units.unit_rows.dtype)
    np.random.default_rng(entropy).shuffle(order)
    ends = np.cumsum(_unit_tokens(units)[order], dtype=np.int64)
    total = int(ends[-1])
    slots = np.arange(num_slots, dtype=np.int64)
    # Slot b begins at the first unit with (tokens before it) × B / total ≥ b. The product is
    # split, or it would overflow at 10^11 tokens.
    quotient, rest = divmod(total, num_slots)
    targets = slots * quotient - (-(slots * rest) // num_slots)
    starts = np.searchsorted(ends, targets, side="left") + 1
    starts[0] = 0
    # A unit longer than a slot would leave the next ones empty: each slot takes at least one
    # unit, and leaves at least one for each slot after it.
    starts = np.minimum(np.maximum.accumulate(starts - slots), num_units - num_slots) + slots
    return _Epoch(order=order, starts=np.append(starts, num_units))
