"""The HTTP interface: its routes, and what stands before them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from pydantic_core import from_json
from starlette.middleware.gzip import GZipMiddleware

from serve.answering import Answerer
from serve.config import Settings
from serve.failures import HANDLERS
from serve.guard import BodyGuard, TokenGuard
from serve.outcomes import OutcomeLog, Recorder
from serve.pages import add_pages
from serve.proxy import DEADLINE, on_the_way_s
from serve.schemas import (
    ENDPOINTS,
    Answer,
    BatchAnswer,
    Failure,
    ModelFacts,
    Options,
    PolicyFacts,
    RequestModels,
    Versions,
    field_names,
    request_models,
)
from serve.scoring import ModelFault, is_suspicious

__all__ = ["build_api"]

T = TypeVar("T")

_MIN_GZIP_BYTES = 1024
_ABOUT = """A small model answers; what it doubts goes to a large one. Every answer says which
models and versions gave it and why. `X-Deadline-Ms` says how long an answer is worth waiting for;
bodies may be gzip in both directions."""


class _StrictRequest(Request):
    """A request whose JSON has no NaN, no infinity and at most 200 levels."""

    async def json(self) -> Any:
        try:
            return from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise HTTPException(422, f"the body is no JSON: {error}") from None


def _strict_route(admit: Callable[[Request], None]) -> type[APIRoute]:
    """A route whose requests are strict; `admit` may refuse one before its body is read."""

    class StrictRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Any]:
            handle = super().get_route_handler()

            async def strict(request: Request) -> Response:
                admit(request)
                response: Response = await handle(_StrictRequest(request.scope, request.receive))
                return response

            return strict

    return StrictRoute


def build_api(
    settings: Settings,
    answerers: Mapping[str, Answerer],
    *,
    recorder: Recorder,
    is_sound: Callable[[], bool] = lambda: True,
    check: Callable[[], Awaitable[None]],
) -> FastAPI:
    """The application.

    Args:
        settings: of the graph.
        answerers: name of a pair of models -> what answers by it.
        recorder: counts outcomes.
        is_sound: whether this process may answer.
        check: raises where a model is broken; see `Health.check`.

    Raises:
        ConfigError: see `schemas.request_models`.
    """
    api = FastAPI(
        title="rectrain",
        summary="Recommendation, search ranking, ad click-through and order risk.",
        description=_ABOUT,
        version="1",
        docs_url=None,
        redoc_url=None,
    )
    small = {name: one.small for name, one in answerers.items()}
    for path, forms in request_models(small, settings.limits).items():
        router = _endpoint(path, forms, settings=settings, answerers=answerers, check=check)
        api.include_router(router, **_secured(settings))
    _add_facts(api, settings, answerers, is_sound)
    add_pages(api, answerers, settings.limits)
    for kind, handler in HANDLERS.items():
        api.add_exception_handler(kind, handler)
    limits = settings.limits
    # The one added last is outermost.
    api.add_middleware(GZipMiddleware, minimum_size=_MIN_GZIP_BYTES, compresslevel=1)
    api.add_middleware(BodyGuard, max_bytes=limits.body_bytes, max_s=limits.body_s)
    api.add_middleware(TokenGuard, hashes=settings.security.token_hashes)
    api.add_middleware(OutcomeLog, recorder=recorder)
    return api


def _endpoint(
    path: str,
    forms: RequestModels,
    *,
    settings: Settings,
    answerers: Mapping[str, Answerer],
    check: Callable[[], Awaitable[None]],
) -> APIRouter:
    """The two routes of an endpoint: one request, and a batch."""

    def admit(request: Request) -> None:
        deadline = _deadline(request, settings)
        answerers[settings.default].require_room(path, deadline=deadline)

    router = APIRouter(
        route_class=_strict_route(admit),
        tags=[ENDPOINTS[path]],
        responses=_failures(400, 408, 413, 415, 422, 429, 503),
    )

    async def answer(request: Request, body: BaseModel, deadline: float) -> Answer:
        options: Options = body.options  # type: ignore[attr-defined]
        answerer = answerers[options.model or settings.default]
        try:
            given = await answerer.answer(path, body, deadline=deadline)
        except Exception as error:
            if is_suspicious(error):
                await check()  # was it the model, the client is not to blame
            raise
        request.state.answers.append(given)
        asked = {"timings": options.timings, "cost": options.cost}
        return given.model_copy(update={name: None for name, wanted in asked.items() if not wanted})

    async def single(request: Request, body: Any) -> Answer:
        return await answer(request, body, _deadline(request, settings))

    async def batch(request: Request, body: Any) -> BatchAnswer:
        deadline = _deadline(request, settings)
        answers = await _all([answer(request, one, deadline) for one in body.requests])
        return BatchAnswer(answers=answers)

    # FastAPI reads the body's type from here.
    single.__annotations__["body"] = forms.single
    batch.__annotations__["body"] = forms.batch
    router.post(f"/v1/{path}", response_model=Answer, operation_id=path, summary="One request")(
        single
    )
    router.post(
        f"/v1/{path}/batch",
        response_model=BatchAnswer,
        operation_id=f"{path}_batch",
        summary="Several requests",
    )(batch)
    return router


def _failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Failure} for status in statuses}


def _secured(settings: Settings) -> dict[str, Any]:
    """What the OpenAPI says of a route that needs a token; `TokenGuard` is what asks for it."""
    if not settings.security.token_hashes:
        return {}
    bearer = Security(HTTPBearer(auto_error=False))
    return {"dependencies": [bearer], "responses": _failures(401)}


def _add_facts(
    api: FastAPI,
    settings: Settings,
    answerers: Mapping[str, Answerer],
    is_sound: Callable[[], bool],
) -> None:
    @api.get("/v1/models", tags=["models"], **_secured(settings))
    async def models() -> tuple[ModelFacts, ...]:
        return tuple(_facts(one, settings) for one in answerers.values())

    @api.get("/healthz", tags=["health"])
    async def healthy() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "ok"}

    @api.get("/readyz", tags=["health"], responses=_failures(503))
    async def ready() -> dict[str, str]:
        """Whether the process may answer: its golden requests got their answers."""
        if not is_sound():
            raise ModelFault("withdrawn")
        return {"status": "ready"}


def _facts(answerer: Answerer, settings: Settings) -> ModelFacts:
    model, policy = answerer.small, answerer.policy
    endpoints = tuple(path for path, task in ENDPOINTS.items() if task in model.tasks)
    return ModelFacts(
        name=answerer.name,
        is_default=answerer.name == settings.default,
        versions=Versions(small=model.version, large=answerer.large_version),
        small_backend=model.engine.encoder.name,
        endpoints=endpoints,
        fields={path: field_names(model.fields(ENDPOINTS[path])) for path in endpoints},
        policy={
            task: PolicyFacts(threshold=one.threshold, budget=one.budget, head=one.head)
            for task, one in (policy.tasks.items() if policy else ())
        },
    )


async def _all(answers: Sequence[Awaitable[T]]) -> tuple[T, ...]:
    """All of them, or the first failure: then the others are withdrawn."""
    tasks = [asyncio.ensure_future(one) for one in answers]
    try:
        return tuple(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def _deadline(request: Request, settings: Settings) -> float:
    """When the answer must be there, by the monotonic clock."""
    text, limits = request.headers.get(DEADLINE), settings.deadlines
    try:
        left_ms = limits.default_ms if text is None else float(text)
    except ValueError:
        left_ms = math.nan
    if not 0 < left_ms <= limits.max_ms:
        raise HTTPException(422, f"{DEADLINE} must be above 0 and at most {limits.max_ms:g}")
    return time.monotonic() + left_ms / 1000 - on_the_way_s(request.headers)
