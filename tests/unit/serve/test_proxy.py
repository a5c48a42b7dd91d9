"""What Serve's proxy does around a request: what died with a replica is sent once more."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from serve import api
from serve.proxy import DEADLINE, Resend
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


def ask(
    proxy: Proxy, messages: list[Any] = BODY, headers: dict[str, str] | None = None
) -> tuple[list[Any], Count]:
    given, sent, resent = iter(messages), [], Count()
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/rank",
        "headers": [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()],
    }

    async def receive() -> Any:
        message = next(given, None)
        if message is None:
            await asyncio.Event().wait()
        return message

    async def send(message: Any) -> None:
        sent.append(message)

    async def main() -> None:
        await Resend(proxy, resent=resent)(scope, receive, send)

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


def test_nobody_waits_longer_than_the_deadline():
    sent, _ = ask(Proxy(answer(), wait_s=60), headers={DEADLINE: "1"})
    assert sent[0]["status"] == 503


def test_a_second_attempt_has_what_is_left_of_the_deadline():
    proxy = Proxy(LOST, answer(), wait_s=0.05)
    ask(proxy, headers={DEADLINE: "5000"})
    assert 0 < float(proxy.headers[1][DEADLINE.encode()]) <= 4950


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


def test_the_header_is_the_applications():
    assert DEADLINE == api.DEADLINE
