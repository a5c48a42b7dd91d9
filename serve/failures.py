"""Failures as responses, and never a stack trace.

422 and 413 are the client's to mend; 503 comes with Retry-After.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from rectrain.errors import DataError, NoIndex
from rectrain.inference.golden import Deviation
from serve.batcher import DeadlinePassed, Overloaded
from serve.failure_form import failure_body
from serve.proxy import WITHDRAWN
from serve.scoring import ModelFault

__all__ = ["HANDLERS", "failure"]

_SHOWN_PROBLEMS = 5
_HELD_S = 0.1  # of a withdrawn replica: one that answered at once would have the shortest queue


def failure(
    scope: Scope, status: int, code: str, message: str, *, retry_after_s: float | None = None
) -> JSONResponse:
    """A failure as a response.

    Args:
        scope: the request's.
        status: of HTTP.
        code: one word for programs.
        message: one line for people.
        retry_after_s: rounded up to whole seconds, at least 1.
    """
    request_id = Headers(scope=scope).get("x-request-id", "")
    body = failure_body(scope["path"], code, message, request_id)
    response = JSONResponse(body, status_code=status)
    if retry_after_s is not None:
        response.headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
    return response


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    # Without the input: it may be large, and it may hold what JSON can't.
    problems = error.errors()
    shown = "; ".join(
        f"{'.'.join(map(str, one['loc'][1:])) or 'body'}: {one['msg']}"
        for one in problems[:_SHOWN_PROBLEMS]
    )
    more = len(problems) - _SHOWN_PROBLEMS
    message = f"{shown}; and {more} more" if more > 0 else shown
    return failure(request.scope, 422, "invalid", message)


async def _mistake(request: Request, error: DataError) -> Response:
    return failure(request.scope, 422, "invalid", str(error))


async def _no_index(request: Request, error: NoIndex) -> Response:
    message = "this model has no catalogue to recommend from"
    return failure(request.scope, 422, "no_index", message)


async def _overloaded(request: Request, error: Overloaded) -> Response:
    message = "more requests wait than can be answered in time"
    wait_s = error.retry_after_s
    return failure(request.scope, 503, "overload", message, retry_after_s=wait_s)


async def _too_late(request: Request, error: DeadlinePassed) -> Response:
    return failure(request.scope, 503, "deadline", "the deadline passed", retry_after_s=1)


async def _withdrawn(request: Request, error: ModelFault | Deviation) -> Response:
    """The proxy asks another replica in the client's place, see `proxy.Front`."""
    await asyncio.sleep(_HELD_S)
    message = "the model is being replaced"
    response = failure(request.scope, 503, "withdrawn", message, retry_after_s=5)
    response.headers[WITHDRAWN] = "1"
    return response


async def _http(request: Request, error: HTTPException) -> Response:
    response = failure(request.scope, error.status_code, "refused", str(error.detail))
    response.headers.update(error.headers or {})
    return response


async def _internal(request: Request, error: Exception) -> Response:
    message = "the server failed; its log has this request's id"
    return failure(request.scope, 500, "internal", message)


#: Exception -> what makes a response of it, for `FastAPI.add_exception_handler`.
HANDLERS: dict[Any, Any] = {
    RequestValidationError: _invalid,
    HTTPException: _http,
    DataError: _mistake,
    NoIndex: _no_index,
    Overloaded: _overloaded,
    DeadlinePassed: _too_late,
    ModelFault: _withdrawn,
    Deviation: _withdrawn,
    Exception: _internal,
}
