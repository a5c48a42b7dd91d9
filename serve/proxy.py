"""What stands around each request in Serve's HTTP proxy: no death costs one, overload is refused.

A request outlives the replica it was on. Serve's own proxy makes a 500 of it; here its body is held
and sent once more, to another replica: scoring changes nothing, so that is safe. The same where the
replica is withdrawn: Serve sends requests to it until it has failed three health checks. And more
requests than can be answered in time are refused at once, before their bodies are read: to take one
in costs Serve about as much as to answer it: a proxy that takes in all of them soon answers none.

It costs no hop, for it runs in the proxy's process (`config.SERVE_ENVIRONMENT` puts it there).
Nothing heavy is imported: a proxy that was killed must be back in seconds.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from ray.serve.metrics import Counter, Gauge
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.failure_form import failure_body
from serve.headers import HeaderGuard

__all__ = [
    "DEADLINE",
    "DEFAULT_MS",
    "HEALTH_PATHS",
    "SENT",
    "WITHDRAWN",
    "Front",
    "Limit",
    "middlewares",
    "on_the_way_s",
]

DEADLINE = "x-deadline-ms"
#: Overload must not look like death here.
HEALTH_PATHS = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")
#: Name in the environment: milliseconds for an answer where the client gives no deadline.
DEFAULT_MS = "RECTRAIN_DEFAULT_MS"
#: When the proxy passed a request on: machine and seconds of its clock; replicas count from there.
SENT = "x-rectrain-sent"
#: In the answer of a replica that may not answer any more: another may. No client sees it, unless
#: HAProxy stands in the place of Serve's own.
WITHDRAWN = "x-rectrain-withdrawn"
_log = logging.getLogger("ray.serve")

_ATTEMPTS = 2  # a request that kills what reads it must not kill every replica
_HELD_BYTES = 8_000_000  # of a body; a larger one is not sent again
_GRACE_S = 0.25  # the replica's own refusal comes first: it knows the reason
_HASTE_S = 1.0  # a deadline below says nothing of load
_USUAL_MS = "5000"
_SLOW_S = 1.0  # a body that is not there by then keeps its place only while nobody else wants it
_SLOW_BODY = 408  # of the application; Serve says so where a replica does not answer in time
_BUSY = (_SLOW_BODY, 429, 503)
_RETRY_AFTER_S = 1
_SERVES_OWN = ("/-/healthz", "/-/routes")  # for load balancers; what else begins so is ours
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def middlewares() -> list[Middleware]:
    """Called by each of Serve's proxies when it starts."""
    resent = Counter(
        "rectrain_resent",
        description="requests sent once more, since their replica died or was withdrawn",
    )
    limit = Gauge("rectrain_proxy_limit", description="requests that a proxy takes in at a time")
    refused = Counter("rectrain_refused", description="requests that a proxy itself refused")
    front = Middleware(
        Front,
        resent=resent.inc,
        refused=refused.inc,
        limit=Limit(observe=limit.set),
        # Missing where Serve was started with an older configuration: no reason not to start.
        default_s=float(os.environ.get(DEFAULT_MS, _USUAL_MS)) / 1000,
    )
    return [Middleware(HeaderGuard, refused=refused.inc), front]


def on_the_way_s(headers: Headers) -> float:
    """Seconds since the proxy passed a request on; 0 where it did so on another machine."""
    machine, _, sent = headers.get(SENT, "").partition(" ")
    if not machine or machine != _machine():
        return 0.0
    try:
        passed_s = time.monotonic() - float(sent)
    except ValueError:
        return 0.0
    return passed_s if passed_s > 0 else 0.0


def _machine() -> str:
    """Processes that see the same text share the monotonic clock; empty where that is not known."""
    return _BOOT.read_text().strip() if _BOOT.is_file() else ""


class Limit:
    """How many requests may be under way in a process: as many as are answered in good time.

    Additive increase, multiplicative decrease, as TCP's window (Chiu and Jain, 1989): each answer
    in good time adds 1/limit, a late one takes a fifth away, once for all that were under way then.

    Args:
        clock: seconds that only grow.
        observe: told of the limit when it changes.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        observe: Callable[[float], object] = lambda limit: None,
    ) -> None:
        self.limit = 64.0
        self.under_way = 0
        self._least = 8.0
        self._clock = clock
        self._observe = observe
        self._lowered_at = -math.inf

    def begin(self, *, is_instead: bool = False) -> float | None:
        """Takes a request in, and gives the time; None where there is no room for it, unless it
        comes in the place of one that is about to end."""
        if self.under_way >= self.limit and not is_instead:
            return None
        self.under_way += 1
        return self._clock()

    def end(self, begun: float, *, is_late: bool | None) -> None:
        """A request that was taken in is over; None where it says nothing of the load."""
        if is_late and begun > self._lowered_at:
            self.limit = max(self._least, 0.8 * self.limit)
            self._lowered_at = self._clock()
        elif (
            is_late is False and 2 * self.under_way > self.limit
        ):  # else nothing is learned from it
            self.limit += 1 / self.limit
        self._observe(self.limit)
        self.under_way -= 1


class Front:
    """Takes a request in, sends it once more when its replica died or is withdrawn, all within its
    deadline.

    What it or the proxy itself says has the form of the application's failures, and a Retry-After.

    Args:
        app: the proxy.
        resent: counts what is sent once more.
        refused: counts what it refuses.
        limit: of requests under way.
        default_s: seconds for an answer, from the whole body on, where the client gives none.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        resent: Callable[[], object],
        refused: Callable[[], object],
        limit: Limit,
        default_s: float,
    ) -> None:
        self._app = app
        self._resent = resent
        self._refused = refused
        self._limit = limit
        self._default_s = default_s
        self._placed: dict[_Exchange, None] = {}  # those with a place, the eldest first
        self._machine = _machine()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _SERVES_OWN:
            await self._app(scope, receive, send)
            return
        headers = MutableHeaders(scope=scope)
        headers.setdefault("x-request-id", str(uuid.uuid4()))
        left_s = _left_s(headers)
        exchange = _Exchange(receive, send, left_s=left_s, default_s=self._default_s)
        if scope["path"] in HEALTH_PATHS:
            await self._pass_on(scope, headers, exchange, left_s)
        elif (begun := self._place()) is not None:
            self._placed[exchange] = None
            try:
                await self._pass_on(scope, headers, exchange, left_s)
            finally:
                del self._placed[exchange]
                self._limit.end(begun, is_late=exchange.is_late())
        if not exchange.is_over:
            self._refused()
            await _busy(scope["path"], headers)(scope, receive, send)
            what = f"{scope['method']} {scope['path'][:100]!r} busy"
            facts = {"request_id": headers["x-request-id"], "status": 503, "outcome": "busy"}
            _log.info(what, extra=facts)

    def _place(self) -> float | None:
        """See `Limit.begin`. Where there is no room the eldest of the slow bodies gives way: else a
        few senders that trickle would keep everyone out."""
        begun = self._limit.begin()
        if begun is not None:
            return begun
        slow = next((one for one in self._placed if one.gives_way()), None)
        return None if slow is None else self._limit.begin(is_instead=True)

    async def _pass_on(
        self, scope: Scope, headers: MutableHeaders, exchange: _Exchange, left_s: float | None
    ) -> None:
        """All attempts, each with what is left of the deadline."""
        end = math.inf if left_s is None else time.monotonic() + left_s
        try:
            async with exchange.patience():
                for attempt in range(_ATTEMPTS):
                    if attempt:
                        self._resent()
                        facts = {"request_id": headers["x-request-id"], "event": "resent"}
                        _log.warning("no replica answered; sent once more", extra=facts)
                    self._say_when(headers, exchange, end)
                    receive = exchange.replay(is_last=attempt == _ATTEMPTS - 1)
                    await self._app({**scope}, receive, exchange.send)
                    # Serve makes a plain return of the timeout's cancelling.
                    if exchange.is_over or not exchange.may_repeat or exchange.is_given_up:
                        return
        except TimeoutError:
            _log.info("given up before a replica answered")

    def _say_when(self, headers: MutableHeaders, exchange: _Exchange, end: float) -> None:
        """Tells the replica from when its time counts, and how much there is where it is given."""
        sent = now = time.monotonic()
        if end < math.inf:
            headers[DEADLINE] = f"{max(1.0, 1000 * (end - now)):.3f}"
        else:
            # Of the replica's own from the whole body on. While that comes it can't be said when:
            # the replica counts from when it has it.
            sent = exchange.read_at
        if sent < math.inf:
            headers[SENT] = f"{self._machine} {sent:.6f}"


class _Exchange:
    """A request's body, held for another attempt, and what became of its answer.

    Args:
        receive: from the client.
        send: to the client.
        left_s: that the client gives; None where it says nothing.
        default_s: in their place, from the whole body on.

    Attributes:
        read_at: when the whole body was there; until then it is the client who takes time.
        is_over: the client has an answer, or has left.
        is_busy: somebody said that there was no room; not that the body came too slowly, nor that
            the replica is withdrawn.
        may_repeat: the body is held, and it was not the proxy itself that said so.
    """

    def __init__(
        self, receive: Receive, send: Send, *, left_s: float | None, default_s: float
    ) -> None:
        self._receive = receive
        self._send = send
        self._left_s = left_s
        self._default_s = default_s
        self._begun = time.monotonic()
        self._answered_at = math.inf
        self._patience = asyncio.timeout(None)
        self._held: list[Message] = []
        self._num_bytes = 0
        self._start: Message | None = None
        self._is_dropped = self._is_last = False
        self.read_at = math.inf
        self.is_over = self.is_busy = False
        self.may_repeat = True

    def patience(self) -> asyncio.Timeout:
        """Ends the attempts when nobody waits any more; not an answer that has begun, which the
        client may read as slowly as it likes."""
        left_s = self._left_s
        self._patience = asyncio.timeout(None if left_s is None else left_s + _GRACE_S)
        return self._patience

    @property
    def is_given_up(self) -> bool:
        return self._patience.expired()

    def gives_way(self) -> bool:
        """Ends the attempts if the body is slow; false where it is not, or they end already."""
        is_slow = self.read_at == math.inf and time.monotonic() - self._begun > _SLOW_S
        if not is_slow or self.is_over or self.is_given_up:
            return False
        self._wait(0)
        self._begun = math.inf  # it gives way to one
        return True

    def is_late(self) -> bool | None:
        """Whether it took more than half of the time that there was, or there was no room for it;
        a client in a hurry says nothing about the others, nor does one whose body never came."""
        wait_s = self._default_s
        if self._left_s is not None:
            wait_s = max(_HASTE_S, self._left_s)
        if self.is_busy and (self._left_s is None or self._left_s >= _HASTE_S):
            return True
        if self.read_at == math.inf:
            return None
        return min(self._answered_at, time.monotonic()) - self.read_at > wait_s / 2

    def _wait(self, seconds: float | None) -> None:
        """Ends the attempts after so many seconds from now, if they don't end already."""
        if not self._patience.expired():
            now = asyncio.get_running_loop().time()
            self._patience.reschedule(None if seconds is None else now + seconds)

    def replay(self, *, is_last: bool) -> Receive:
        """The client's messages from the first one on, for an attempt; the last one's answer
        stands, whatever it is."""
        held = iter(tuple(self._held))
        self._start, self._is_dropped, self._is_last = None, False, is_last

        async def receive() -> Message:
            return next(held, None) or await self._next()

        return receive

    async def _next(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.is_over = True
            return message
        if not message.get("more_body", False):
            self.read_at = time.monotonic()
            if self._left_s is None:
                self._wait(self._default_s + _GRACE_S)
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
            self._is_dropped = self._is_to_drop(start)
            if not self._is_dropped:
                self.is_over, self._answered_at = True, time.monotonic()
                self._wait(None)
                await self._send(start)
        if not self._is_dropped:
            await self._send(message)

    def _is_to_drop(self, start: Message) -> bool:
        """Whether an answer is not for the client: ours comes in its place, or another's."""
        headers = Headers(raw=start["headers"])
        is_refused, is_own = start["status"] in _BUSY, _is_serves_own(headers)
        is_withdrawn = WITHDRAWN in headers
        self.is_busy = is_refused and not is_withdrawn and (is_own or start["status"] != _SLOW_BODY)
        if is_refused and is_own:
            self.may_repeat = False
            return True
        start["headers"] = [pair for pair in headers.raw if pair[0] != WITHDRAWN.encode()]
        return is_withdrawn and self.may_repeat and not self._is_last


def _is_serves_own(headers: Headers) -> bool:
    """Whether the proxy itself speaks: the application's failures are JSON."""
    return headers.get("content-type", "").startswith("text/plain")


def _left_s(headers: Headers) -> float | None:
    """Seconds that the client gives; None where it says nothing, or nothing sensible."""
    try:
        left_ms = float(headers.get(DEADLINE, "nan"))
    except ValueError:  # the application says what is wrong with it
        return None
    return left_ms / 1000 if 0 < left_ms < math.inf else None


def _busy(path: str, headers: Headers) -> JSONResponse:
    request_id = headers["x-request-id"]
    message = "more requests wait than can be answered in time"
    content = failure_body(path, "busy", message, request_id)
    extra = {"Retry-After": str(_RETRY_AFTER_S), "X-Request-ID": request_id}
    return JSONResponse(content, status_code=503, headers=extra)
