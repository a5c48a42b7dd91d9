"""Headers that Serve's proxy would obey or stumble over."""

from __future__ import annotations

import asyncio
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

    scope = {"type": "http", "path": "/", "headers": headers}
    asyncio.run(HeaderGuard(proxy)(scope, None, send))  # type: ignore[arg-type]
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
