"""What Serve's proxy does around a request: what died with a replica is sent once more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest
from starlette.datastructures import Headers

from serve import proxy as proxy_module
from serve.proxy import (
    DEADLINE,
    DEFAULT_MS,
    HEALTH_PATHS,
    SENT,
    WITHDRAWN,
    Front,
    Limit,
    middlewares,
    on_the_way_s,
)
from serve.schemas import Failure

BODY = [
    {"type": "http.request", "body": b"one", "more_body": True},
    {"type": "http.request", "body": b"two", "more_body": False},
]
LOST = object()


class Count:
    value = 0

    def inc(self) -> None:
        self.value += 1


def answer(status: int = 200, kind: str = "application/json") -> list[dict[str, Any]]:
    headers = [(b"content-type", kind.encode())]
    return [
        {"type": "http.response.start", "status": status, "headers": headers},
        {"type": "http.response.body", "body": b"{}"},
    ]


class Proxy:
    """Serve's: each attempt has an end of its own, messages or silence."""

    def __init__(self, *ends: Any, wait_s: float = 0.0) -> None:
        self.ends = list(ends)
        self.wait_s = wait_s
        self.bodies: list[bytes] = []
        self.headers: list[dict[bytes, bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.headers.append(dict(scope["headers"]))
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        self.bodies.append(body)
        await asyncio.sleep(self.wait_s)
        end = self.ends.pop(0)
        for message in () if end is LOST else end:
            await send(message)


def front(app: Any, limit: Limit | None = None, **more: Any) -> Front:
    given = {"resent": Count().inc, "refused": Count().inc, "default_s": 5.0, **more}
    return Front(app, limit=limit or Limit(), **given)


def said_by(messages: Iterable[Any]) -> Callable[[], Awaitable[Any]]:
    """A client that says these, and then nothing more."""
    given = iter(messages)

    async def receive() -> Any:
        message = next(given, None)
        if message is None:
            await asyncio.Event().wait()
        return message

    return receive


def ask(
    proxy: Proxy,
    messages: list[Any] = BODY,
    headers: dict[str, str] | None = None,
    limit: Limit | None = None,
    path: str = "/v1/rank",
    **more: Any,
) -> tuple[list[Any], Count]:
    sent, resent = [], Count()
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()],
    }

    async def send(message: Any) -> None:
        sent.append(message)

    async def main() -> None:
        await front(proxy, limit, resent=resent.inc, **more)(scope, said_by(messages), send)

    asyncio.run(main())
    return sent, resent


def test_an_answer_is_passed_on():
    sent, resent = ask(Proxy(answer()))
    assert sent == answer()
    assert resent.value == 0


@pytest.mark.parametrize("end", [LOST, answer()[:1]], ids=["silence", "no more than a start"])
def test_what_died_with_a_replica_is_sent_once_more_with_its_whole_body(end):
    proxy = Proxy(end, answer())
    sent, resent = ask(proxy)
    assert sent == answer()
    assert proxy.bodies == [b"onetwo", b"onetwo"]
    assert resent.value == 1
    assert proxy.headers[0][b"x-request-id"] == proxy.headers[1][b"x-request-id"]


def test_below_v2_it_refuses_in_the_form_of_that_protocol():
    sent, _ = ask(Proxy(LOST, LOST), path="/v2/models/shop.rank/infer")
    assert list(json.loads(sent[1]["body"])) == ["error"]


@pytest.mark.parametrize(
    ("path", "is_serves"), [("/-/healthz", True), ("/-/routes", True), ("/-/x", False)]
)
def test_all_but_serves_own_answers_passes_the_front(path, is_serves):
    proxy = Proxy(answer())
    ask(proxy, path=path)
    assert (b"x-request-id" not in proxy.headers[0]) == is_serves


def test_what_dies_twice_is_told_when_to_come_back():
    sent, _ = ask(Proxy(LOST, LOST), headers={"X-Request-ID": "r1"})
    headers = dict(sent[0]["headers"])
    assert sent[0]["status"] == 503
    assert int(headers[b"retry-after"]) >= 1
    assert headers[b"x-request-id"] == b"r1"
    assert Failure.model_validate(json.loads(sent[1]["body"])).request_id == "r1"


@pytest.mark.parametrize("status", [408, 429, 503])
def test_the_proxys_own_refusals_take_our_form(status):
    sent, resent = ask(Proxy(answer(status, "text/plain; charset=utf-8")))
    assert sent[0]["status"] == 503
    assert b"retry-after" in dict(sent[0]["headers"])
    assert len(sent) == 2
    assert resent.value == 0


def test_the_applications_refusals_stay_as_they_are():
    assert ask(Proxy(answer(503)))[0] == answer(503)


def withdrawn() -> list[dict[str, Any]]:
    start, body = answer(503)
    return [{**start, "headers": [*start["headers"], (WITHDRAWN.encode(), b"1")]}, body]


def test_what_a_withdrawn_replica_refuses_is_sent_to_another():
    proxy, limit = Proxy(withdrawn(), answer()), Limit()
    sent, resent = ask(proxy, limit=limit, headers={DEADLINE: "2000"})
    assert sent == answer()
    assert proxy.bodies == [b"onetwo", b"onetwo"]
    assert resent.value == 1


def test_where_all_replicas_are_withdrawn_the_client_is_told_and_the_limit_stays():
    limit = Limit()
    before = limit.limit
    sent, _ = ask(Proxy(withdrawn(), withdrawn()), limit=limit, headers={DEADLINE: "2000"})
    assert sent == answer(503)  # without the header
    assert limit.limit == before


def test_a_withdrawn_replicas_answer_stands_where_the_body_is_not_held():
    large = [{"type": "http.request", "body": b"x" * 8_000_001, "more_body": False}]
    assert ask(Proxy(withdrawn()), messages=large)[0] == answer(503)


def test_nobody_waits_longer_than_the_deadline():
    sent, _ = ask(Proxy(answer(), wait_s=60), headers={DEADLINE: "1"})
    assert sent[0]["status"] == 503


def test_a_second_attempt_has_what_is_left_of_the_deadline():
    proxy = Proxy(LOST, answer(), wait_s=0.05)
    ask(proxy, headers={DEADLINE: "5000"})
    assert 0 < float(proxy.headers[1][DEADLINE.encode()]) <= 4950


def test_without_a_deadline_time_counts_from_the_whole_body():
    proxy = Proxy(LOST, answer(), wait_s=0.05)
    ask(proxy)
    first, second = proxy.headers
    assert SENT.encode() not in first  # by the replica, once it has it
    assert on_the_way_s(Headers({SENT: second[SENT.encode()].decode()})) >= 0.05


def test_without_a_deadline_nobody_waits_longer_than_the_default_from_the_whole_body():
    class SlowBody(Proxy):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await asyncio.sleep(0.4)  # longer than the default and the grace, before it is read
            await super().__call__(scope, receive, send)

    assert ask(SlowBody(answer()), default_s=0.05)[0] == answer()
    sent, _ = ask(Proxy(answer(), wait_s=60), default_s=0.05)
    assert sent[0]["status"] == 503


@pytest.mark.parametrize(("default_s", "is_lowered"), [(0.1, True), (5.0, False)])
def test_without_a_deadline_late_is_half_of_the_default(default_s, is_lowered):
    limit = Limit()
    ask(Proxy(answer(), wait_s=0.08), limit=limit, default_s=default_s)
    assert (limit.limit < 64) == is_lowered


def test_proxies_are_told_the_default(monkeypatch):
    monkeypatch.setenv(DEFAULT_MS, "700")
    assert middlewares()[-1].kwargs["default_s"] == 0.7


def test_a_slow_reader_neither_lowers_the_limit_nor_is_cut_off():
    sent: list[Any] = []
    limit, given = Limit(), iter(BODY)
    before = limit.limit

    async def receive() -> Any:
        return next(given)

    async def send(message: Any) -> None:
        await asyncio.sleep(0.5)
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/rank", "headers": []}
    asyncio.run(front(Proxy(answer()), limit, default_s=0.6)(scope, receive, send))
    assert sent == answer()
    assert limit.limit == before


def trickle(front: Front, scope: Any, started: list[str]) -> asyncio.Task[None]:
    """A sender whose body never ends."""

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            started.append(message["status"])

    return asyncio.create_task(front({**scope}, said_by(BODY[:1]), send))


def test_a_hundred_slow_senders_keep_nobody_out(monkeypatch):
    monkeypatch.setattr(proxy_module, "_SLOW_S", 0.05)
    scope = {"type": "http", "method": "POST", "path": "/v1/rank", "headers": []}
    refused, statuses, limit = [], [], Limit()
    before = limit.limit

    async def main() -> None:
        one = front(Proxy(*[answer()] * 80), limit)
        slow = [trickle(one, scope, refused) for _ in range(100)]
        await asyncio.sleep(0.1)
        assert len(refused) == 36  # there were 64 places
        for _ in range(80):
            given = iter(BODY)

            async def receive(given: Any = given) -> Any:
                return next(given)

            async def send(message: Any) -> None:
                statuses.append(message.get("status", 200))

            await one({**scope}, receive, send)
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)

    asyncio.run(main())
    assert set(statuses) == {200}
    # The first one's place is free for the others who come one by one.
    assert refused == [503] * 37
    assert limit.under_way == 0
    assert limit.limit >= before


def test_a_body_that_never_came_says_nothing_of_the_load():
    limit = Limit()
    for _ in range(63):
        limit.begin()
    ask(Proxy(), messages=[{"type": "http.disconnect"}], limit=limit)
    assert limit.limit == 64


def test_a_body_that_comes_slowly_does_not_lower_the_limit():
    class Slow(Proxy):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await receive()  # the first part; the rest does not come
            await asyncio.sleep(0.6)
            for message in answer(408):
                await send(message)

    limit = Limit()
    before = limit.limit
    ask(Slow(), headers={DEADLINE: "1000"}, limit=limit)
    assert limit.limit == before


def test_a_client_that_leaves_gets_no_second_attempt():
    sent, resent = ask(Proxy(), messages=[BODY[0], {"type": "http.disconnect"}])
    assert sent == []
    assert resent.value == 0


def test_a_body_too_large_to_hold_is_not_sent_again():
    large = [{"type": "http.request", "body": b"x" * 8_000_001, "more_body": False}]
    sent, resent = ask(Proxy(LOST), messages=large)
    assert sent[0]["status"] == 503
    assert resent.value == 0


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf"])
def test_a_deadline_that_is_none_is_left_to_the_application(text):
    assert ask(Proxy(answer(422)), headers={DEADLINE: text})[0] == answer(422)


def test_replicas_know_how_long_a_request_was_on_the_way(monkeypatch):
    proxy = Proxy(answer())
    ask(proxy, headers={DEADLINE: "5000"})
    (given,) = proxy.headers
    on_the_way = on_the_way_s(Headers({SENT: given[SENT.encode()].decode()}))
    assert 0 <= on_the_way < 60
    assert on_the_way_s(Headers({SENT: "elsewhere 1.0"})) == 0
    assert on_the_way_s(Headers({})) == 0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def through(limit: Limit, count: int, *, is_late: bool) -> None:
    """So many requests at once."""
    begun = [limit.begin() for _ in range(count)]
    for one in begun:
        assert one is not None
        limit.end(one, is_late=is_late)


def test_late_answers_lower_the_limit_once_for_all_that_were_under_way():
    clock = Clock()
    limit = Limit(clock=clock)
    clock.now = 1.0
    through(limit, 60, is_late=True)
    assert limit.limit == pytest.approx(0.8 * 64)
    clock.now = 2.0
    through(limit, 40, is_late=True)
    assert limit.limit == pytest.approx(0.64 * 64)


def test_answers_in_good_time_raise_the_limit_by_one_a_round_if_it_is_used():
    limit = Limit(clock=Clock())
    through(limit, 20, is_late=False)
    assert limit.limit == 64
    through(limit, 64, is_late=False)
    assert 64.4 < limit.limit < 64.6  # until half of them are left


def test_the_limit_never_shuts_everyone_out():
    clock = Clock()
    limit = Limit(clock=clock)
    for clock.now in range(1, 99):
        through(limit, 1, is_late=True)
    assert limit.limit == 8


def test_what_there_is_no_room_for_is_refused_before_it_is_read():
    limit = Limit()
    while limit.begin() is not None:
        pass
    proxy, refused = Proxy(), Count()
    sent, _ = ask(proxy, limit=limit, refused=refused.inc)
    assert sent[0]["status"] == 503
    assert refused.value == 1
    assert b"retry-after" in dict(sent[0]["headers"])
    assert proxy.headers == []


@pytest.mark.parametrize("path", HEALTH_PATHS)
def test_health_is_told_where_there_is_no_room(path):
    limit = Limit()
    while limit.begin() is not None:
        pass
    under_way = limit.under_way
    assert ask(Proxy(answer()), limit=limit, path=path)[0] == answer()
    assert limit.under_way == under_way


@pytest.mark.parametrize(
    ("ends", "deadline_ms", "lowered"),
    [
        ([answer()], "2000", False),
        ([answer(503)], "2000", True),
        ([answer(503)], "200", False),
        ([answer(503, "text/plain")], "2000", True),
    ],
    ids=["answered", "refused", "refused to a client in a hurry", "refused by Serve"],
)
def test_a_refusal_lowers_the_limit_unless_the_client_was_in_a_hurry(ends, deadline_ms, lowered):
    limit = Limit()
    ask(Proxy(*ends), headers={DEADLINE: deadline_ms}, limit=limit)
    assert (limit.limit < 64) == lowered
    assert limit.under_way == 0
