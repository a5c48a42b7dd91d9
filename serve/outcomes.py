"""One line and one count for each request, whatever becomes of it."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.schemas import Answer

__all__ = ["OutcomeLog", "Recorder", "outcome_of"]

# Serve gives this logger's lines the request id, the deployment and the replica.
_log = logging.getLogger("ray.serve")


class Recorder(Protocol):
    """What counts outcomes; `metrics.Metrics` is one."""

    def request(self, path: str, status: int, outcome: str, total_ms: float) -> None: ...

    def answer(self, path: str, answer: Answer) -> None: ...


def outcome_of(status: int) -> str:
    """A status in a word: ok, refused (the client's mistake), busy, failed, or left (0)."""
    if status == 0:
        return "left"
    if status in (429, 503):
        return "busy"
    return "ok" if status < 400 else "refused" if status < 500 else "failed"


class OutcomeLog:
    """Outermost of the application: sees the status that really goes out.

    Handlers put their answers into `scope["state"]["answers"]`.

    Args:
        app: the rest.
        recorder: counts.
    """

    def __init__(self, app: ASGIApp, *, recorder: Recorder) -> None:
        self._app = app
        self._recorder = recorder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status, has_left = time.monotonic(), 0, False
        answers: list[Answer] = []
        scope.setdefault("state", {})["answers"] = answers

        async def heard() -> Message:
            nonlocal has_left
            message = await receive()
            has_left = has_left or (message["type"] == "http.disconnect" and not status)
            return message

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = 0 if has_left else message["status"]  # nobody gets what is said now
            await send(message)

        try:
            await self._app(scope, heard, watched)
        except Exception:
            status = status or 500  # what stands outside of us makes of it
            raise
        finally:  # also where the client left: Serve cancels the task
            self._record(scope, status, 1000 * (time.monotonic() - begun), answers)

    def _record(
        self, scope: Scope, status: int, total_ms: float, answers: Sequence[Answer]
    ) -> None:
        path, outcome = scope["path"], outcome_of(status)
        self._recorder.request(path, status, outcome, total_ms)
        if outcome != "ok":  # of a batch that failed, or whose client left, nobody gets any
            answers = ()
        for answer in answers:
            self._recorder.answer(path.removesuffix("/batch"), answer)
        facts: dict[str, Any] = {
            "status": status,
            "outcome": outcome,
            "total_ms": round(total_ms, 2),
        }
        if answers:
            facts["model"] = answers[0].model
            facts["versions"] = [answers[0].versions.small[:12], *_large(answers)]
            facts["reasons"] = dict(Counter(answer.reason for answer in answers))
            facts["cached"] = sum(answer.cached for answer in answers)
            facts["items"] = sum(len(answer.items) for answer in answers)
        _log.info(f"{scope['method']} {path[:100]!r} {outcome}", extra=facts)


def _large(answers: Sequence[Answer]) -> list[str]:
    return sorted({answer.versions.large[:12] for answer in answers if answer.versions.large})
