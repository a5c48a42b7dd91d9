"""What stands before the application: tokens, and bodies measured while they come in."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from typing import Any

import pytest
from fastapi import HTTPException

from serve.guard import BodyGuard, TokenGuard, is_known

TOKENS = [hashlib.sha256(token).hexdigest() for token in (b"one", b"two", "drei é".encode())]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("Bearer one", True),
        ("bearer two", True),
        ("Bearer three", False),
        ("Basic one", False),
        ("one", False),
        ("", False),
        (f"Bearer {TOKENS[0]}", False),
        ("Bearer " + "drei é".encode().decode("latin-1"), True),
        ("Bearer \udcff", False),
    ],
)
def test_a_token_is_known_by_its_hash(header, expected):
    assert is_known(header, TOKENS) is expected


def call(
    guard: Any, path: str, headers: dict[str, str], chunks: list[bytes]
) -> tuple[int, bytes | None]:
    """The status that goes out, or 0; and the body that the application read, or None."""
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        data = chunks.pop(0)
        return {"type": "http.request", "body": data, "more_body": bool(chunks)}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "path": path, "headers": raw, "method": "POST"}
    asyncio.run(guard(scope, receive, send))
    return (statuses or [0])[0], guard._app.body if hasattr(guard._app, "body") else None


class Reader:
    """An application that reads its body."""

    def __init__(self) -> None:
        self.body: bytes | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        self.body = body
        self.headers = dict(scope["headers"])


@pytest.mark.parametrize(
    ("path", "header", "status"),
    [
        ("/v1/rank", {}, 401),
        ("/docs", {}, 0),
        ("/samples", {}, 401),
        ("/openapi.json", {}, 401),
        ("/v1/rank", {"authorization": "Bearer one"}, 0),
        ("/readyz", {}, 0),
        ("/", {}, 0),
    ],
)
def test_all_but_health_and_the_pages_needs_a_token(path, header, status):
    assert call(TokenGuard(Reader(), hashes=TOKENS), path, header, [b""])[0] == status


def test_without_tokens_everyone_may_ask():
    assert call(TokenGuard(Reader(), hashes=()), "/v1/rank", {}, [b""])[0] == 0


def guard(app: Any = None, *, max_bytes: int = 10, max_s: float = 60) -> BodyGuard:
    return BodyGuard(app or Reader(), max_bytes=max_bytes, max_s=max_s)


def test_a_body_within_its_limits_passes():
    assert call(guard(), "/", {}, [b"12345", b"67890"]) == (0, b"1234567890")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-length": "11"}, 413),
        ({"content-length": "9" * 5000}, 413),
        ({"content-length": "-1"}, 400),
        ({"content-length": "ten"}, 400),
        ({"content-encoding": "br"}, 415),
    ],
)
def test_headers_that_promise_too_much_are_refused_unread(headers, status):
    chunks = [b"never read"]
    assert call(guard(), "/", headers, chunks) == (status, None)
    assert chunks


def test_a_body_that_grows_beyond_its_limit_is_refused_while_it_comes():
    chunks = [b"123456", b"789012", b"never read"]
    with pytest.raises(HTTPException) as refused:
        call(guard(), "/", {}, chunks)
    assert refused.value.status_code == 413
    assert chunks == [b"never read"]


def test_gzip_is_inflated_and_its_headers_are_gone():
    app, packed = Reader(), gzip.compress(b"1234567890")
    headers = {"content-encoding": "gzip", "content-length": str(len(packed))}
    got = call(guard(app, max_bytes=40), "/", headers, [packed[:7], packed[7:]])
    assert got == (0, b"1234567890")
    assert app.headers == {}


@pytest.mark.parametrize(
    ("packed", "status"),
    [
        (gzip.compress(b"0" * 100_000), 413),
        (b"no gzip at all", 400),
        (gzip.compress(b"12")[:-3], 400),
        (gzip.compress(b"12") + b"more", 400),
    ],
    ids=["a bomb", "no gzip", "cut", "more behind it"],
)
def test_bad_gzip_is_refused(packed, status):
    with pytest.raises(HTTPException) as refused:
        call(guard(max_bytes=1000), "/", {"content-encoding": "gzip"}, [packed])
    assert refused.value.status_code == status


def test_a_body_that_comes_too_slowly_is_refused():
    async def never() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/", "headers": [], "method": "POST"}
    with pytest.raises(HTTPException) as refused:
        asyncio.run(guard(max_s=0.01)(scope, never, send))
    assert refused.value.status_code == 408
    assert sent == []  # the application makes the answer, as of any failure
