"""The load generator against a small server of its own event loop."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from benchmarks.load import Generator, Load, Outcome, Request, send, summarise

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
GET = [Request("/x")]


def sent(load: dict[str, object], requests: list[Request], handler: Handler) -> list[Outcome]:
    async def run() -> list[Outcome]:
        app = web.Application()
        app.router.add_route("*", "/{path}", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        try:
            return await send(Load(f"http://127.0.0.1:{port}", **load), requests)  # type: ignore[arg-type]
        finally:
            await runner.cleanup()

    return asyncio.run(run())


async def echo(request: web.Request) -> web.Response:
    return web.Response(body=request.headers["X-Request-ID"].encode() + await request.read())


def test_each_request_has_one_outcome_and_its_own_id() -> None:
    requests = [Request("/a", b"one"), Request("/b", b"two")]
    load = {"connections": 3, "num_requests": 10, "keep_answers": 1, "prefix": "t"}

    outcomes = sent(load, requests, echo)

    assert [one.number for one in outcomes] == list(range(10))
    assert [one.answer for one in outcomes] == [
        f"t-{n}".encode() + (b"one", b"two")[n % 2] for n in range(10)
    ]
    assert all(one.due_s == one.sent_s <= one.done_s and one.is_ok for one in outcomes)


def test_a_closed_loop_never_has_more_requests_than_connections() -> None:
    here, most = 0, 0

    async def count(request: web.Request) -> web.Response:
        nonlocal here, most
        here += 1
        most = max(most, here)
        await asyncio.sleep(0.002)
        here -= 1
        return web.Response()

    outcomes = sent({"connections": 4, "num_requests": 40}, GET, count)

    assert most == 4 and len(outcomes) == 40


def test_latency_of_an_open_loop_counts_from_when_a_request_was_due() -> None:
    first = True

    async def stall(request: web.Request) -> web.Response:
        nonlocal first
        if first:
            first = False
            time.sleep(0.2)  # the sender shares this thread: nothing is sent meanwhile
        return web.Response()

    outcomes = sent({"rate": 200.0, "num_requests": 20, "seed": 3}, GET, stall)

    draw, due = random.Random(3), [0.0]
    for _ in outcomes:
        due.append(due[-1] + draw.expovariate(200.0))
    begun = outcomes[0].due_s - due[1]
    assert [one.due_s - begun for one in outcomes] == pytest.approx(due[1:])
    waited = [one for one in outcomes if one.due_s < outcomes[0].sent_s + 0.2]
    assert len(waited) > 5
    assert all(one.latency_s >= outcomes[0].sent_s + 0.2 - one.due_s - 0.001 for one in waited)


def test_a_refusal_and_a_broken_connection_are_outcomes() -> None:
    async def fail(request: web.Request) -> web.Response:
        if request.path == "/busy":
            return web.Response(status=503, headers={"Retry-After": "7"})
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    busy, broken = sent(
        {"connections": 1, "num_requests": 2}, [Request("/busy"), Request("/off", b"{}")], fail
    )

    assert (busy.status, busy.retry_after, busy.error, busy.is_ok) == (503, "7", "", False)
    assert broken.status == 0 and "Disconnected" in broken.error


def test_an_answer_that_takes_too_long_is_an_outcome() -> None:
    async def sleep(request: web.Request) -> web.Response:
        await asyncio.sleep(0.3)
        return web.Response()

    (late,) = sent({"connections": 1, "num_requests": 1, "timeout_s": 0.05}, GET, sleep)

    assert late.status == 0 and "Timeout" in late.error


def test_every_nth_answer_is_kept() -> None:
    outcomes = sent({"connections": 1, "num_requests": 6, "keep_answers": 3}, GET, echo)

    assert [one.number for one in outcomes if one.answer is not None] == [0, 3]
    assert all(one.num_bytes == len(f"load-{one.number}") for one in outcomes)


def test_the_generator_is_a_process_on_its_core_that_takes_one_load_after_another() -> None:
    refused = Load("http://127.0.0.1:9", connections=1, num_requests=2)  # nothing listens there
    core = max(os.sched_getaffinity(0))
    with Generator(core=core) as generator:
        assert os.sched_getaffinity(generator.pid) == {core}
        first, second = generator.run(refused, GET), generator.run(refused, GET)

    for outcomes in (first, second):
        assert [one.id for one in outcomes] == ["load-0", "load-1"]
        assert all("Connect" in one.error for one in outcomes)


def test_a_load_is_closed_or_open() -> None:
    for wrong in ({}, {"connections": 1, "rate": 1.0}):
        with pytest.raises(ValueError, match="closed loop"):
            Load("http://127.0.0.1", **wrong)  # type: ignore[arg-type]


def test_a_summary_tells_quantiles_and_goodput() -> None:
    def outcome(number: int, latency_s: float, status: int = 200) -> Outcome:
        return Outcome(str(number), number, 0.0, 0.001, latency_s, status, num_bytes=10)

    outcomes = [outcome(n, (n + 1) / 100) for n in range(100)] + [outcome(100, 2.0, 503)]

    found = summarise(outcomes, within_s=0.25)

    assert (found.num_requests, found.num_ok, found.num_good) == (101, 100, 25)
    assert (found.p50_ms, found.p99_ms, found.max_ms) == pytest.approx((500, 990, 1000))
    assert found.seconds == 2.0 and found.good_per_s == 12.5 and found.ok_per_s == 50
    assert found.late_ms == pytest.approx(1) and found.num_bytes == 1010
