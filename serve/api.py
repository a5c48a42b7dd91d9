"""The HTTP interface: its routes, and what stands before them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request, Security
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.middleware.gzip import GZipMiddleware

from serve.answering import Answerer
from serve.asking import Asker, strict_route
from serve.config import Settings
from serve.failures import HANDLERS
from serve.guard import BodyGuard, TokenGuard
from serve.open_inference import InferenceFailure, health_router, models_router
from serve.outcomes import OutcomeLog, Recorder
from serve.pages import add_pages
from serve.schemas import (
    ENDPOINTS,
    Answer,
    BatchAnswer,
    Failure,
    ModelFacts,
    PolicyFacts,
    RequestModels,
    Versions,
    field_names,
    request_models,
    routes,
)
from serve.scoring import ModelFault

__all__ = ["build_api"]

T = TypeVar("T")

_MIN_GZIP_BYTES = 1024
_ABOUT = """A small model answers; what it doubts goes to a large one. Every answer says which
models and versions gave it and why. `X-Deadline-Ms` says how long an answer is worth waiting for;
bodies may be gzip in both directions."""


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

    def require_sound() -> None:
        if not is_sound():
            raise ModelFault("withdrawn")

    small = {name: one.small for name, one in answerers.items()}
    forms = request_models(small, settings.limits)
    asker = Asker(settings, answerers, check=check)
    for path, of_path in forms.items():
        api.include_router(_endpoint(path, of_path, asker), **_secured(settings))
    _add_facts(api, settings, answerers, require_sound)
    api.include_router(health_router(require_sound))
    open_inference = models_router(asker, forms, require_sound)
    api.include_router(open_inference, **_secured(settings, form=InferenceFailure))
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


def _endpoint(path: str, forms: RequestModels, asker: Asker) -> APIRouter:
    """The two routes of an endpoint: one request, and a batch."""
    router = APIRouter(
        route_class=strict_route(lambda request: asker.admit(request, path)),
        tags=[ENDPOINTS[path]],
        responses=_failures(400, 408, 413, 415, 422, 503),
    )

    async def single(request: Request, body: Any) -> Answer:
        return await asker.answer(request, path, body, deadline=asker.deadline(request))

    async def batch(request: Request, body: Any) -> BatchAnswer:
        deadline = asker.deadline(request)
        answers = await _all(
            [asker.answer(request, path, one, deadline=deadline) for one in body.requests]
        )
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


def _failures(*statuses: int, form: type[BaseModel] = Failure) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": form} for status in statuses}


def _secured(settings: Settings, *, form: type[BaseModel] = Failure) -> dict[str, Any]:
    """What the OpenAPI says of a route that needs a token; `TokenGuard` is what asks for it."""
    if not settings.security.token_hashes:
        return {}
    bearer = Security(HTTPBearer(auto_error=False))
    return {"dependencies": [bearer], "responses": _failures(401, form=form)}


def _add_facts(
    api: FastAPI,
    settings: Settings,
    answerers: Mapping[str, Answerer],
    require_sound: Callable[[], None],
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
        require_sound()
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
        routes=routes(settings.limits),
    )


async def _all(answers: Sequence[Awaitable[T]]) -> tuple[T, ...]:
    """All of them, or the first failure: then the others are withdrawn."""
    tasks = [asyncio.ensure_future(one) for one in answers]
    try:
        return tuple(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
