"""Asking the large model: what dies is tried again, what is gone is left alone for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError

from serve.answering import LargeReply
from serve.large import LargeClient
from serve.scoring import Work

WORK = Work("shop", "risk", ({"item_text": "a"},))
GOOD = LargeReply(np.array([0.5]))
NEVER = object()


class Call:
    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome
        self.is_cancelled = False

    def __await__(self) -> Generator[Any, Any, Any]:
        if self.outcome is NEVER:
            yield from asyncio.Event().wait().__await__()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def cancel(self) -> None:
        self.is_cancelled = True


class Deployment:
    """Gives outcomes in turn, the last one for ever."""

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes = list(outcomes)
        self.calls: list[Call] = []

    def score(self, work: Work, left_s: float, version: str) -> Call:
        assert version == "v"
        self.calls.append(
            Call(self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0])
        )
        return self.calls[-1]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def ask(*outcomes: Any, times: int = 1, left_s: float = 5.0) -> tuple[list[LargeReply], Deployment]:
    deployment = Deployment(*outcomes)
    client = LargeClient(deployment.score, version="v", clock=Clock())

    async def main() -> list[LargeReply]:
        return [await client.ask(WORK, left_s) for _ in range(times)]

    return asyncio.run(main()), deployment


def test_a_reply_is_passed_on():
    assert ask(GOOD)[0] == [GOOD]


def test_work_of_a_replica_that_died_is_done_again():
    replies, deployment = ask(ActorDiedError(), GOOD)
    assert replies == [GOOD]
    assert len(deployment.calls) == 2


def test_another_replica_is_tried_where_one_is_withdrawn():
    assert ask(LargeReply(None, "unavailable"), GOOD)[0] == [GOOD._replace(is_withdrawn=True)]


@pytest.mark.parametrize(
    ("second", "reason"), [(BackPressureError(9, 8), "overload"), (NEVER, "deadline")]
)
def test_that_a_replica_is_withdrawn_is_told_whatever_another_says(second, reason):
    replies, _ = ask(LargeReply(None, "unavailable"), second, left_s=0.01)
    assert replies == [LargeReply(None, reason, is_withdrawn=True)]


@pytest.mark.parametrize(
    ("outcome", "reason", "calls"),
    [
        (ActorDiedError(), "unavailable", 2),
        (BackPressureError(9, 8), "overload", 1),
        (LargeReply(None, "overload"), "overload", 1),
    ],
    ids=["dies twice", "its queue is full", "it can't in time"],
)
def test_a_refusal_has_its_reason(outcome, reason, calls):
    replies, deployment = ask(outcome)
    assert replies == [LargeReply(None, reason)]
    assert len(deployment.calls) == calls


def test_a_call_that_takes_too_long_is_withdrawn():
    (reply,), deployment = ask(NEVER, left_s=0.01)
    assert reply.refused == "deadline"
    assert deployment.calls[0].is_cancelled


def test_after_three_failures_it_is_left_alone_and_then_tried_again():
    deployment, clock = Deployment(*[ActorDiedError()] * 8, GOOD), Clock()
    client = LargeClient(deployment.score, version="v", clock=clock)

    async def main() -> None:
        for _ in range(5):
            assert (await client.ask(WORK, 5)).refused == "unavailable"
        assert len(deployment.calls) == 6, "the last two were not asked"
        clock.now = 2.1
        await client.ask(WORK, 5)
        await client.ask(WORK, 5)
        assert len(deployment.calls) == 8, "one failure was enough this time"
        clock.now = 4.2
        for _ in range(3):
            assert await client.ask(WORK, 5) == GOOD

    asyncio.run(main())


def test_an_overload_is_no_failure():
    replies, deployment = ask(LargeReply(None, "overload"), times=9)
    assert len(deployment.calls) == 9
    assert {reply.refused for reply in replies} == {"overload"}


def test_what_it_can_not_read_is_no_failure_and_not_asked_again():
    replies, deployment = ask(LargeReply(None), times=9)
    assert len(deployment.calls) == 9
    assert {reply.refused for reply in replies} == {None}


def test_work_that_is_withdrawn_is_withdrawn_there_too():
    deployment = Deployment(NEVER)

    async def leave() -> None:
        asking = asyncio.create_task(LargeClient(deployment.score, version="v").ask(WORK, 60))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(leave())
    assert deployment.calls[0].is_cancelled


def test_impatient_clients_do_not_shut_out_the_others():
    _, deployment = ask(NEVER, NEVER, NEVER, NEVER, GOOD, times=5, left_s=0.001)
    assert len(deployment.calls) == 5
