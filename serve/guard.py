"""What a request must pass before anything of it is believed: a token, and limits on its body.

Plain ASGI, so that a body is measured as it comes in and never held beyond its limit.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import zlib
from collections.abc import Sequence

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.failures import failure
from serve.proxy import HEALTH_PATHS

__all__ = ["OPEN_PATHS", "BodyGuard", "TokenGuard", "is_known"]

#: Need no token: they say nothing of a model, and load balancers and browsers bring none.
OPEN_PATHS = (
    "/", "/docs", "/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js", *HEALTH_PATHS,
)  # fmt: skip

_GZIP = 16 + zlib.MAX_WBITS


def is_known(authorization: str, hashes: Sequence[str]) -> bool:
    """Whether an Authorization header holds one of the tokens.

    The time it takes says nothing: every hash is compared, each in constant time.

    Args:
        authorization: "Bearer TOKEN".
        hashes: SHA-256 of the tokens, in hex.
    """
    scheme, _, token = authorization.partition(" ")
    # Starlette reads the bytes of a header as Latin-1.
    digest = hashlib.sha256(token.strip().encode("latin-1", "replace")).hexdigest()
    matches = [hmac.compare_digest(digest, one) for one in hashes]
    return any(matches) and scheme.lower() == "bearer"


class TokenGuard:
    """Refuses requests without a token; does nothing where no tokens are set.

    Args:
        app: what is guarded.
        hashes: SHA-256 of the tokens, in hex.
    """

    def __init__(self, app: ASGIApp, *, hashes: Sequence[str]) -> None:
        self._app = app
        self._hashes = tuple(hashes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_open = scope["type"] != "http" or scope["path"] in OPEN_PATHS
        if self._hashes and not is_open:
            headers = Headers(scope=scope)
            if not is_known(headers.get("authorization", ""), self._hashes):
                response = failure(scope, 401, "unauthorized", "a bearer token is needed")
                response.headers["WWW-Authenticate"] = "Bearer"
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


class BodyGuard:
    """Bounds a body's size and time, and inflates gzip within the same bound.

    A body beyond its limits is refused as soon as that is seen, by an HTTPException out of the
    application's `receive`.

    Args:
        app: what is guarded.
        max_bytes: of the body, as sent and inflated.
        max_s: seconds in which the whole body must have come.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, max_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_s = max_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = MutableHeaders(scope=scope)
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if problem := self._refused(headers, encoding):
            status, code, message = problem
            await failure(scope, status, code, message)(scope, receive, send)
            return
        if encoding == "gzip":
            # What the application reads is inflated, and of another length.
            del headers["content-encoding"]
            del headers["content-length"]
        body = _Body(receive, self._max_bytes, self._max_s, is_gzip=encoding == "gzip")
        await self._app(scope, body.receive, send)

    def _refused(self, headers: Headers, encoding: str) -> tuple[int, str, str] | None:
        if encoding not in ("identity", "gzip"):
            return 415, "encoding", "content-encoding must be gzip or identity"
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            return 400, "invalid", "content-length must be a number"
        if len(length) > len(str(self._max_bytes)) or int(length) > self._max_bytes:
            return 413, "too_large", _too_large(self._max_bytes)
        return None


class _Body:
    """A body under its limits, message by message."""

    def __init__(self, receive: Receive, max_bytes: int, max_s: float, *, is_gzip: bool) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._end = asyncio.get_running_loop().time() + max_s
        self._inflate = zlib.decompressobj(_GZIP) if is_gzip else None
        self._raw_bytes = self._num_bytes = 0
        self._is_over = False

    async def receive(self) -> Message:
        if self._is_over:  # what comes now is the client's leaving, however late
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._end):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, "the body came too slowly") from None
        if message["type"] != "http.request":
            return message
        data, self._is_over = message.get("body", b""), not message.get("more_body", False)
        self._raw_bytes += len(data)
        if self._raw_bytes > self._max_bytes:
            raise HTTPException(413, _too_large(self._max_bytes))
        return {**message, "body": self._inflated(data) if self._inflate else data}

    def _inflated(self, data: bytes) -> bytes:
        assert self._inflate is not None
        try:
            plain = self._inflate.decompress(data, self._max_bytes - self._num_bytes + 1)
        except zlib.error:
            raise HTTPException(400, "the body is not gzip") from None
        self._num_bytes += len(plain)
        if self._num_bytes > self._max_bytes:
            raise HTTPException(413, _too_large(self._max_bytes))
        is_whole = self._inflate.eof and not self._inflate.unused_data
        if self._inflate.unused_data or (self._is_over and not is_whole):
            raise HTTPException(400, "the body is not one whole gzip stream")
        return plain


def _too_large(max_bytes: int) -> str:
    return f"a body may have {max_bytes} bytes, inflated"
