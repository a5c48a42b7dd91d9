"""The token-budget batcher: order, budgets, deadlines, withdrawn work. Time is a variable."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from serve.batcher import Batcher, DeadlinePassed, Overloaded, Pace

FAR = 1e9


@dataclass
class Model:
    """Scores when it is told to, at 100 tokens a second; a work is its number of tokens."""

    now: float = 0.0
    batches: list[list[int]] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, works: list[int]) -> list[int | Exception]:
        self.batches.append(works)
        await self.gate.wait()
        self.now += sum(works) / 100
        return [ValueError(str(work)) if work == 13 else work for work in works]


def run(
    scenario: Callable[[Model, Batcher[int, int]], Awaitable[None]],
    *,
    max_tokens: int = 100,
    max_s: float = FAR,
) -> None:
    async def main() -> None:
        model = Model()
        batcher = Batcher(
            model.run,
            max_tokens=max_tokens,
            max_s=max_s,
            max_queued_tokens=300,
            clock=lambda: model.now,
        )
        await scenario(model, batcher)

    asyncio.run(main())


def ask(batcher: Batcher[int, int], tokens: int, *, deadline: float = FAR) -> asyncio.Task[int]:
    async def submit() -> int:
        return (await batcher.submit(tokens, tokens=tokens, deadline=deadline)).result

    return asyncio.create_task(submit())


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def busy(model: Model, batcher: Batcher[int, int], *, tokens: int) -> asyncio.Task[int]:
    """A batch that runs until the gate opens, of a model whose speed is known: its first batch, of
    100 tokens, took a second."""
    model.gate.set()
    await ask(batcher, 100)
    model.gate.clear()
    running = ask(batcher, tokens)
    await settle()
    return running


def test_what_waits_while_a_batch_runs_is_the_next_batch():
    async def scenario(model, batcher):
        first = ask(batcher, 5)
        await settle()
        others = [ask(batcher, tokens) for tokens in (40, 50, 20)]
        await settle()
        model.gate.set()
        assert await asyncio.gather(first, *others) == [5, 40, 50, 20]
        assert model.batches == [[5], [40, 50], [20]]

    run(scenario)


def test_a_batch_takes_no_longer_than_it_may_but_for_work_that_is_long_by_itself():
    async def scenario(model, batcher):
        running = await busy(model, batcher, tokens=1)
        others = [ask(batcher, tokens) for tokens in (20, 29, 2, 80, 5)]
        await settle()
        # 1.36 s of work in batches of half a second, the 80 of them beyond it.
        assert batcher.expected_s() == pytest.approx(0.01 + 1.36)
        model.gate.set()
        await asyncio.gather(running, *others)
        assert model.batches[2:] == [[20, 29], [2], [80], [5]]

    run(scenario, max_tokens=300, max_s=0.5)


def test_a_long_text_is_not_overtaken_by_short_ones():
    async def scenario(model, batcher):
        first = ask(batcher, 90)
        await settle()
        others = [ask(batcher, tokens) for tokens in (20, 99, 10, 10, 10)]
        await settle()
        model.gate.set()
        await asyncio.gather(first, *others)
        assert model.batches == [[90], [20], [99], [10, 10, 10]]

    run(scenario)


def test_work_above_the_budget_is_a_batch_of_its_own():
    async def scenario(model, batcher):
        model.gate.set()
        assert await ask(batcher, 1000) == 1000

    run(scenario)


def test_work_whose_client_left_is_never_run():
    async def scenario(model, batcher):
        first = ask(batcher, 1)
        await settle()
        left, last = ask(batcher, 50), ask(batcher, 2)
        await settle()
        assert batcher.queued_tokens == 52
        left.cancel()
        await settle()
        assert batcher.queued_tokens == 2
        model.gate.set()
        await asyncio.gather(first, last)
        assert model.batches == [[1], [2]]

    run(scenario)


def test_a_client_that_leaves_during_its_batch_harms_nobody():
    async def scenario(model, batcher):
        first, other = ask(batcher, 1), ask(batcher, 2)
        await settle()
        first.cancel()
        await settle()
        model.gate.set()
        assert await other == 2

    run(scenario)


def test_work_whose_deadline_passed_is_never_run():
    async def scenario(model, batcher):
        first = ask(batcher, 1)
        await settle()
        late, last = ask(batcher, 2, deadline=5), ask(batcher, 3)
        await settle()
        model.now = 6
        model.gate.set()
        assert await first == 1
        with pytest.raises(DeadlinePassed):
            await late
        assert await last == 3
        assert model.batches == [[1], [3]]

    run(scenario)


def test_more_than_may_wait_is_refused_at_once_and_says_when_to_come_back():
    async def scenario(model, batcher):
        running = await busy(model, batcher, tokens=100)
        waiting = ask(batcher, 200)
        await settle()
        with pytest.raises(Overloaded) as refused:
            await ask(batcher, 101)
        assert refused.value.retry_after_s == pytest.approx(4.01)
        model.gate.set()
        await asyncio.gather(running, waiting)

    run(scenario)


def test_work_that_can_not_be_done_in_time_is_refused_before_it_costs_anything():
    async def scenario(model, batcher):
        running = await busy(model, batcher, tokens=100)
        with pytest.raises(Overloaded):
            await ask(batcher, 50, deadline=model.now + 1.4)
        in_time = ask(batcher, 50, deadline=model.now + 1.6)
        await settle()
        model.gate.set()
        assert await asyncio.gather(running, in_time) == [100, 50]

    run(scenario)


def test_one_works_fault_is_its_own():
    async def scenario(model, batcher):
        model.gate.set()
        first, faulty, last = ask(batcher, 1), ask(batcher, 13), ask(batcher, 2)
        with pytest.raises(ValueError, match="13"):
            await faulty
        assert await asyncio.gather(first, last) == [1, 2]

    run(scenario)


def test_a_batch_that_fails_whole_fails_its_works_and_no_others():
    async def scenario(model, batcher):
        async def broken(works: list[int]) -> list[int | Exception]:
            raise RuntimeError("broken")

        batcher._run, healthy = broken, batcher._run
        with pytest.raises(RuntimeError):
            await ask(batcher, 1)
        batcher._run = healthy
        model.gate.set()
        assert await ask(batcher, 2) == 2

    run(scenario)


def test_times_are_told():
    async def scenario(model, batcher):
        first = asyncio.create_task(batcher.submit(100, tokens=100, deadline=FAR))
        await settle()
        second = asyncio.create_task(batcher.submit(50, tokens=50, deadline=FAR))
        await settle()
        model.gate.set()
        assert (await first).ran_s == pytest.approx(1.0)
        done = await second
        assert (done.waited_s, done.ran_s) == (pytest.approx(1.0), pytest.approx(0.5))

    run(scenario)


def test_a_pace_tells_what_is_fixed_from_what_each_token_costs():
    pace = Pace()
    assert pace.seconds(100) == 0
    for tokens in (100, 400, 200, 1000, 50):
        pace.feed(tokens, 0.5 + tokens / 100)
    assert pace.seconds(300) == pytest.approx(3.5)
    assert pace.seconds(300, batches=3) == pytest.approx(4.5)


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        ([(100, 2.0), (100, 2.0)], 4.0),  # of one size: all of it is the tokens'
        ([(100, 1.0), (300, 4.0)], 10 / 4),  # no batch has less than nothing fixed
        ([(100, 4.0), (300, 2.0)], 3.0),  # nor do tokens give time back
    ],
)
def test_a_pace_makes_sense_of_odd_batches(batches, expected):
    pace = Pace()
    for tokens, seconds in batches:
        pace.feed(tokens, seconds)
    assert pace.seconds(200) == pytest.approx(expected)


def test_an_idle_model_tries_what_a_bad_moment_says_is_too_slow():
    async def scenario(model, batcher):
        model.gate.set()
        batcher._pace.feed(1, 1000.0)
        assert await ask(batcher, 10, deadline=0.5) == 10

    run(scenario)


def test_an_idle_model_refuses_what_its_pace_of_just_now_says_is_hopeless():
    async def scenario(model, batcher):
        model.gate.set()
        await ask(batcher, 100)  # a second
        with pytest.raises(Overloaded):
            await ask(batcher, 90, deadline=model.now + 0.2)
        assert await ask(batcher, 70, deadline=model.now + 0.2) == 70  # its pace may err
        model.now += 0.2  # idle for a while: it harms nobody, and the pace may be an old one
        assert await ask(batcher, 90, deadline=model.now + 0.2) == 90
        assert model.batches == [[100], [70], [90]]

    run(scenario)


def test_the_last_that_waits_is_dropped_where_it_is_hopeless():
    async def scenario(model, batcher):
        running = await busy(model, batcher, tokens=10)
        last = ask(batcher, 80, deadline=model.now + 1.0)
        await settle()
        model.now += 0.75  # the running batch is late
        model.gate.set()
        assert await running == 10
        with pytest.raises(DeadlinePassed):
            await last
        assert model.batches == [[100], [10]]

    run(scenario)


# Seconds that works have when they arrive, behind a batch of so many tokens, a second for 100.
@pytest.mark.parametrize(
    ("running_tokens", "works", "batches"),
    [
        (10, [(30, 0.95), (10, FAR), (20, FAR)], [[30, 10], [20]]),  # half of 0.95 s, which it had
        (50, [(20, 1.2), (20, 1.2), (20, 1.2)], [[20, 20, 20]]),  # half of 1.2 s, of which 0.7 left
        (100, [(30, 1.5), (40, FAR)], [[30], [40]]),  # 0.5 s are left
    ],
)
def test_a_batch_takes_half_of_the_time_given_and_no_more_than_is_left(
    running_tokens, works, batches
):
    async def scenario(model, batcher):
        running = await busy(model, batcher, tokens=running_tokens)
        waiting = [ask(batcher, tokens, deadline=model.now + has_s) for tokens, has_s in works]
        await settle()
        model.gate.set()
        await asyncio.gather(running, *waiting)
        assert model.batches == [[100], [running_tokens], *batches]

    run(scenario)


def test_work_that_would_be_late_is_left_out_before_it_costs_anything():
    async def scenario(model, batcher):
        running = await busy(model, batcher, tokens=10)
        hopeless = ask(batcher, 80, deadline=model.now + 1.0)
        last = ask(batcher, 5)
        await settle()
        model.now += 0.5  # the running batch is late
        model.gate.set()
        with pytest.raises(DeadlinePassed):
            await hopeless
        assert await asyncio.gather(running, last) == [10, 5]
        assert model.batches == [[100], [10], [5]]

    run(scenario)


def test_what_a_running_batch_has_done_already_is_not_waited_for_again():
    async def scenario(model, batcher):
        running = await busy(model, batcher, tokens=100)
        assert batcher.expected_s(50) == pytest.approx(1.5)
        model.now += 0.75
        assert batcher.expected_s(50) == pytest.approx(0.75)
        model.gate.set()
        await running

    run(scenario)
