"""What stands around each request in Serve's HTTP proxy: a request outlives the replica it was on.

Serve's own proxy makes a 500 of a request whose replica dies. Here the proxy holds its body and
sends it once more, to another replica: scoring changes nothing, so that is safe. It costs no hop,
for it runs in the proxy's process (`config.PROXY_ENVIRONMENT` puts it there).

Nothing heavy is imported: a proxy that was killed must be back in seconds.
"""

from __future__ import annotations

import asyncio
import logging
import math
import uuid

from ray.serve.metrics import Counter
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.headers import HeaderGuard

__all__ = ["DEADLINE", "Resend", "middlewares"]

DEADLINE = "x-deadline-ms"
_log = logging.getLogger("ray.serve")

_ATTEMPTS = 2  # a request that kills what reads it must not kill every replica
_HELD_BYTES = 8_000_000  # of a body; a larger one is not sent again
_GRACE_S = 0.25  # the replica's own refusal comes first: it knows the reason
_BUSY = (408, 429, 503)
_RETRY_AFTER_S = 1
_MAX_ID = 128
_SERVES_OWN = "/-/"  # its health and routes, for load balancers


def middlewares() -> list[Middleware]:
    """Called by each of Serve's proxies when it starts."""
    resent = Counter(
        "rectrain_resent", description="requests sent once more, since their replica died"
    )
    return [Middleware(HeaderGuard), Middleware(Resend, resent=resent)]


class Resend:
    """Sends a request once more when no answer comes back, within its deadline.

    What it or the proxy itself says has the form of the application's failures, and a Retry-After.

    Args:
        app: the proxy.
        resent: counts.
    """

    def __init__(self, app: ASGIApp, *, resent: Counter) -> None:
        self._app = app
        self._resent = resent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_SERVES_OWN):
            await self._app(scope, receive, send)
            return
        headers = MutableHeaders(scope=scope)
        headers.setdefault("x-request-id", str(uuid.uuid4()))
        exchange = _Exchange(receive, send)
        try:
            async with asyncio.timeout(_patience_s(headers)) as patience:
                await self._attempt(scope, headers, exchange, patience)
        except TimeoutError:
            _log.info("the deadline passed before a replica answered")
        if not exchange.is_over:
            await _busy(headers)(scope, receive, send)
            what = f"{scope['method']} {scope['path'][:100]!r} busy"
            facts = {"request_id": headers["x-request-id"], "status": 503, "outcome": "busy"}
            _log.info(what, extra=facts)

    async def _attempt(
        self,
        scope: Scope,
        headers: MutableHeaders,
        exchange: _Exchange,
        patience: asyncio.Timeout,
    ) -> None:
        for attempt in range(_ATTEMPTS):
            if attempt:
                if not _shorten(headers, patience):
                    return
                self._resent.inc()
                facts = {"request_id": headers["x-request-id"], "event": "resent"}
                _log.warning("no answer came back; sent once more", extra=facts)
            await self._app({**scope}, exchange.replay(), exchange.send)
            # Serve makes a plain return of the timeout's cancelling.
            if exchange.is_over or not exchange.may_repeat or patience.expired():
                return


class _Exchange:
    """A request's body, held for another attempt, and what became of its answer.

    Attributes:
        is_over: the client has an answer, or has left.
        may_repeat: the body is held, and the proxy did not say itself that it is busy.
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._held: list[Message] = []
        self._num_bytes = 0
        self._start: Message | None = None
        self._is_dropped = False
        self.is_over = False
        self.may_repeat = True

    def replay(self) -> Receive:
        """The client's messages from the first one on."""
        held = iter(tuple(self._held))
        self._start = None

        async def receive() -> Message:
            return next(held, None) or await self._next()

        return receive

    async def _next(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.is_over = True
            return message
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes <= _HELD_BYTES:
            self._held.append(message)
        else:
            self.may_repeat, self._held = False, []
        return message

    async def send(self, message: Message) -> None:
        """Passes an answer on, from its first bytes of body on: a start alone may yet be lost."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        if self._start is not None:
            start, self._start = self._start, None
            if _is_serves_own(start):
                self.may_repeat, self._is_dropped = False, True
            else:
                self.is_over = True
                await self._send(start)
        if not self._is_dropped:
            await self._send(message)


def _is_serves_own(start: Message) -> bool:
    """Whether the proxy itself refuses: the application's failures are JSON."""
    kind = Headers(raw=start["headers"]).get("content-type", "")
    return start["status"] in _BUSY and kind.startswith("text/plain")


def _patience_s(headers: Headers) -> float | None:
    """Seconds until nobody waits any more; None where Serve's own limit holds."""
    try:
        left_ms = float(headers.get(DEADLINE, "nan"))
    except ValueError:  # the application says what is wrong with it
        return None
    return left_ms / 1000 + _GRACE_S if 0 < left_ms < math.inf else None


def _shorten(headers: MutableHeaders, patience: asyncio.Timeout) -> bool:
    """Takes what has passed off the deadline; false where nothing is left."""
    end = patience.when()
    if end is None:
        return True
    left_ms = 1000 * (end - asyncio.get_running_loop().time() - _GRACE_S)
    headers[DEADLINE] = f"{left_ms:.3f}"
    return left_ms >= 1


def _busy(headers: Headers) -> JSONResponse:
    request_id = headers["x-request-id"]
    content = {
        "code": "busy",
        "message": "no replica could answer in time",
        "request_id": request_id[:_MAX_ID],
    }
    extra = {"Retry-After": str(_RETRY_AFTER_S), "X-Request-ID": request_id}
    return JSONResponse(content, status_code=503, headers=extra)
