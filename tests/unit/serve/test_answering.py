"""What an answerer makes of slow models, and of a hanging and a withdrawn large one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel
from served_toy import RISKS

from serve.answering import LargeReply
from serve.batcher import DeadlinePassed
from serve.schemas import Answer, request_models
from serve.scoring import Work
from serve.sections import Limits


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def request(served: Any, path: str, body: dict[str, Any]) -> BaseModel:
    forms = request_models({"shop": served.answerer.small}, Limits())
    return forms[path].single.model_validate(body)


def slow(served: Any, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock by which the small model takes 0.1 s for anything."""
    clock, submit = Clock(), served.engine.submit

    async def takes_a_while(work: Work, *, deadline: float) -> object:
        clock.now += 0.1
        return await submit(work, deadline=1e12)

    monkeypatch.setattr(served.engine, "submit", takes_a_while)
    monkeypatch.setattr(served.answerer, "_clock", clock)
    return clock


@pytest.mark.parametrize(("deadline", "reserve_s"), [(0.3, 0.02), (30.0, 0.05)])
def test_a_large_model_that_hangs_leaves_time_for_the_small_ones_answer(
    graph, doubtful, monkeypatch, deadline, reserve_s
):
    served = graph(policy=doubtful)
    clock = slow(served, monkeypatch)

    async def hangs(work: Work, left_s: float) -> LargeReply:
        clock.now += left_s
        return LargeReply(None, "deadline")

    monkeypatch.setattr(served.answerer, "_ask_large", hangs)

    async def answer() -> Answer:
        body = request(served, "risk", RISKS)
        return await served.answerer.answer("risk", body, deadline=deadline)

    given = asyncio.run(answer())
    assert (given.deferred, given.reason) == (False, "deadline")
    assert {item.by for item in given.items} == {"small"}
    assert clock.now == pytest.approx(deadline - reserve_s)


def test_an_answer_that_is_ready_too_late_is_not_given_but_kept(graph, monkeypatch):
    served = graph(cache=8)
    slow(served, monkeypatch)

    async def answer(deadline: float) -> Answer:
        body = request(served, "risk", RISKS)
        return await served.answerer.answer("risk", body, deadline=deadline)

    async def asked_twice() -> Answer:
        with pytest.raises(DeadlinePassed):
            await answer(deadline=0.05)
        return await answer(deadline=0.15)

    assert asyncio.run(asked_twice()).cached
