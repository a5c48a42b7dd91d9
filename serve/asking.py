"""What all routes have in common that ask a model: strict JSON, deadlines, early refusals."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic_core import from_json

from serve.answering import Answerer
from serve.config import Settings
from serve.proxy import DEADLINE, on_the_way_s
from serve.schemas import Answer, Options
from serve.scoring import is_suspicious

__all__ = ["Asker", "strict_route"]


class _StrictRequest(Request):
    """A request whose JSON has no NaN, no infinity and at most 200 levels."""

    async def json(self) -> Any:
        try:
            return from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise HTTPException(422, f"the body is no JSON: {error}") from None


def strict_route(admit: Callable[[Request], None]) -> type[APIRoute]:
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


class Asker:
    """Asks pairs of models for what HTTP requests want to know.

    Args:
        settings: of the graph.
        answerers: name of a pair of models -> what answers by it.
        check: raises where a model is broken; see `Health.check`.
    """

    def __init__(
        self,
        settings: Settings,
        answerers: Mapping[str, Answerer],
        *,
        check: Callable[[], Awaitable[None]],
    ) -> None:
        self.answerers = answerers
        self._settings = settings
        self._check = check

    def admit(self, request: Request, path: str, *, model: str | None = None) -> None:
        """Raises what can be said by a request's headers alone; see `Answerer.require_room`.

        Args:
            request: whose body may not be there yet.
            path: of its endpoint, see `schemas.ENDPOINTS`.
            model: name of the pair; None where the body will say.
        """
        answerer = self.answerers[model or self._settings.default]
        answerer.require_room(path, deadline=self.deadline(request))

    async def answer(
        self, request: Request, path: str, body: BaseModel, *, deadline: float
    ) -> Answer:
        """The answer, with timings and cost where asked; see `Answerer.answer`."""
        options: Options = body.options  # type: ignore[attr-defined]
        answerer = self.answerers[options.model or self._settings.default]
        try:
            given = await answerer.answer(path, body, deadline=deadline)
        except Exception as error:
            if is_suspicious(error):
                await self._check()  # was it the model, the client is not to blame
            raise
        request.state.answers.append(given)
        asked = {"timings": options.timings, "cost": options.cost}
        return given.model_copy(update={name: None for name, wanted in asked.items() if not wanted})

    def deadline(self, request: Request) -> float:
        """When the answer must be there, by the monotonic clock."""
        text, limits = request.headers.get(DEADLINE), self._settings.deadlines
        try:
            left_ms = limits.default_ms if text is None else float(text)
        except ValueError:
            left_ms = math.nan
        if not 0 < left_ms <= limits.max_ms:
            raise HTTPException(422, f"{DEADLINE} must be above 0 and at most {limits.max_ms:g}")
        return time.monotonic() + left_ms / 1000 - on_the_way_s(request.headers)
