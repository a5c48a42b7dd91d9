"""What a client's headers may not do to Serve's proxy, as a middleware of that proxy.

Serve takes orders from headers of its own: how long to wait, whether to notice that the client has
left, which replica to take. And it decodes some values as UTF-8, so that any other byte is a 500.
Strangers give no such orders here. (Behind HAProxy they do: no code of ours runs there before
Serve's.) Nothing heavy is imported: a proxy must start in seconds.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.failure_form import failure_body

__all__ = ["HeaderGuard"]

_log = logging.getLogger("ray.serve")

_TOO_LARGE = 431
_MOST_BYTES = 32_768  # of all headers together, as other servers allow
_REQUEST_ID = re.compile(rb"[!-~]{1,128}")  # goes into logs and back to the client
_ORDERS = (
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
    b"x-session-id",
    b"serve-multiplexed-model-id",
    b"traceparent",
    b"tracestate",
)
_INSIDE = (b"x-serve-", b"x-rectrain-")  # what its own processes tell one another


class HeaderGuard:
    """Drops headers that are orders to Serve and request ids that are none; refuses too many bytes.

    Args:
        app: the proxy, or what else stands in it.
        refused: counts what it refuses.
    """

    def __init__(self, app: ASGIApp, *, refused: Callable[[], object]) -> None:
        self._app = app
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = [pair for pair in scope["headers"] if _is_taken(*pair)]
        if sum(len(name) + len(value) for name, value in scope["headers"]) > _MOST_BYTES:
            await self._refuse(scope, Headers(raw=headers))(scope, receive, send)
            return
        await self._app({**scope, "headers": headers}, receive, send)

    def _refuse(self, scope: Scope, headers: Headers) -> JSONResponse:
        """The refusal, counted and with a line in the log as any."""
        self._refused()
        request_id = headers.get("x-request-id", str(uuid.uuid4()))
        facts = {"request_id": request_id, "status": _TOO_LARGE, "outcome": "refused"}
        _log.info(f"{scope.get('method', '')} {scope['path'][:100]!r} refused", extra=facts)
        message = f"headers may have {_MOST_BYTES} bytes, together"
        failure = failure_body(scope["path"], "too_large", message, request_id)
        return JSONResponse(failure, _TOO_LARGE, headers={"X-Request-ID": request_id})


def _is_taken(name: bytes, value: bytes) -> bool:
    plain = name.lower().replace(b"_", b"-")
    if not name.isascii() or plain in _ORDERS or plain.startswith(_INSIDE):
        return False
    return plain != b"x-request-id" or _REQUEST_ID.fullmatch(value) is not None
