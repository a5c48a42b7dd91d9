"""Headers that Serve's proxy would obey or stumble over."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from serve.headers import HeaderGuard

Headers = list[tuple[bytes, bytes]]


def passed(headers: Headers) -> tuple[Headers | None, list[int]]:
    """The headers that the proxy gets, and the statuses that were answered before it."""
    seen: list[Headers] = []
    statuses: list[int] = []

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["headers"])

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {"type": "http", "method": "GET", "path": "/", "headers": headers}
    guard = HeaderGuard(proxy, refused=lambda: None)
    asyncio.run(guard(scope, None, send))  # type: ignore[arg-type]
    return (seen or [None])[0], statuses


KEPT = (b"authorization", b"Bearer a")


@pytest.mark.parametrize(
    "header",
    [
        (b"x-request-timeout-seconds", b"0"),
        (b"X-Request-Disconnect-Disabled", b"?1"),
        (b"serve_multiplexed_model_id", b"\xff"),
        (b"serve-multiplexed-model-id", b"a"),
        (b"x-session-id", b"a"),
        (b"x-serve-router-a", b"a"),
        (b"X-Rectrain-Sent", b"a 1"),
        (b"traceparent", b"\xff"),
        (b"x-request-id", b"\xff"),
        (b"x-request-id", b"a b"),
        (b"x-request-id", b"a" * 129),
        (b"x-request-id", b""),
        (b"\xff", b"a"),
    ],
)
def test_orders_to_serve_and_odd_ids_are_dropped(header):
    assert passed([KEPT, header]) == ([KEPT], [])


def test_other_headers_pass():
    headers = [KEPT, (b"x-request-id", b"a" * 128), (b"x-deadline-ms", b"\xff")]
    assert passed(headers) == (headers, [])


@pytest.mark.parametrize(
    "headers", [[(b"x", b"y" * 32_768)], [(b"x%d" % n, b"y") for n in range(20_000)]], ids=len
)
def test_more_bytes_than_a_client_needs_are_refused(headers):
    assert passed(headers) == (None, [431])


class Lines(logging.Handler):
    """What is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.facts: list[tuple[str, int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        facts = vars(record)
        self.facts.append((facts["request_id"], facts["status"], facts["outcome"]))


@pytest.fixture
def lines() -> Iterator[Lines]:
    log, handler = logging.getLogger("ray.serve"), Lines()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield handler
    log.removeHandler(handler)
    log.setLevel(level)


@pytest.mark.parametrize(("given", "is_kept"), [(b"a-1", True), (b"\xff", False), (b"", False)])
def test_what_is_refused_is_counted_and_has_a_line_and_an_id(lines, given, is_kept):
    counted: list[None] = []
    answered: list[Any] = []

    async def send(message: Any) -> None:
        answered.append(message)

    guard = HeaderGuard(None, refused=lambda: counted.append(None))  # type: ignore[arg-type]
    headers = [(b"x", b"y" * 32_768), (b"x-request-id", given)]
    scope = {"type": "http", "method": "GET", "path": "/", "headers": headers}
    asyncio.run(guard(scope, None, send))  # type: ignore[arg-type]
    start, body = answered
    request_id = dict(start["headers"])[b"x-request-id"].decode()
    assert (request_id == "a-1") if is_kept else len(request_id) == 36
    assert json.loads(body["body"])["request_id"] == request_id
    assert lines.facts == [(request_id, 431, "refused")]
    assert len(counted) == 1
