"""Asking the large model: one more try when a replica dies, none while nothing answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException

from serve.answering import LargeReply
from serve.scoring import Work

__all__ = ["Call", "LargeClient"]

_log = logging.getLogger("ray.serve")

_ATTEMPTS = 2  # scoring changes nothing, so work lost with a replica is simply done again
_FAILURES, _REST_S = 3, 2.0  # so many in a row, and the large model is left alone for so long
_PATIENCE_S = 1.0  # a client that waits no longer than this says nothing about the large model


class Call(Protocol):
    """A call that is under way; Serve's DeploymentResponse is one."""

    def __await__(self) -> Any: ...

    def cancel(self) -> Any: ...


class LargeClient:
    """One process's way to a large model.

    While its replicas are gone, every doubtful request would wait for its whole deadline. So after
    three failures in a row none is asked for two seconds, then one failure is enough again.

    Args:
        score: starts a call of `Large.score`.
        version: SHA-256 of the model that is meant.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        score: Callable[[Work, float, str], Call],
        *,
        version: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.version = version
        self._score = score
        self._clock = clock
        self._failures = 0
        self._rests_until = 0.0

    async def ask(self, work: Work, left_s: float) -> LargeReply:
        """The large model's reply to work, within so many seconds."""
        begun = self._clock()
        if begun < self._rests_until:
            return LargeReply(None, "unavailable")
        reply = await self._tried(work, begun + left_s)
        is_patient = self._clock() - begun >= _PATIENCE_S
        if reply.refused == "unavailable" or (reply.refused == "deadline" and is_patient):
            self._failures += 1
            if self._failures >= _FAILURES:
                self._rests_until = self._clock() + _REST_S
        else:
            self._failures = 0
        return reply

    async def _tried(self, work: Work, end: float) -> LargeReply:
        reply, is_withdrawn = LargeReply(None, "unavailable"), False
        for _ in range(_ATTEMPTS):
            left_s = end - self._clock()
            call = self._score(work, left_s, self.version)
            try:
                reply = await asyncio.wait_for(_result(call), left_s)
            except TimeoutError:
                call.cancel()
                return LargeReply(None, "deadline", is_withdrawn)
            except asyncio.CancelledError:
                call.cancel()  # of a batch whose other request failed, Serve would not do it
                raise
            except BackPressureError:
                return LargeReply(None, "overload", is_withdrawn)
            except (RayError, RayServeException) as error:
                _log.warning(f"the large model failed: {type(error).__name__} {error}")
                continue
            if reply.refused != "unavailable":
                break
            is_withdrawn = True  # it lives, and says so itself
        return reply._replace(is_withdrawn=is_withdrawn)


async def _result(call: Awaitable[Any]) -> Any:
    return await call
