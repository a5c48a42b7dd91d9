"""The two deployments: Ingress answers over HTTP with the small models, Large takes the doubtful.

A request that a small model can answer stays in one process; a deferred one makes one hop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from fastapi import FastAPI
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from rectrain.errors import DataError
from serve.answering import Answerer, LargeReply
from serve.api import build_api
from serve.batcher import DeadlinePassed, Overloaded
from serve.caches import AnswerCache
from serve.config import Settings
from serve.health import Health
from serve.metrics import Metrics
from serve.pairs import open_pair
from serve.scoring import Engine, ModelFault, Work

__all__ = ["Ingress", "Large"]

_log = logging.getLogger("ray.serve")

_ATTEMPTS = 2  # scoring changes nothing, so work lost with a replica is simply done again


class Large:
    """One large model.

    Args:
        settings: of the graph.
        name: of its pair.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        pair = settings.models[name]
        assert pair.large is not None
        metrics = Metrics()
        self._engine = Engine(settings.batching, observe=metrics.batch)
        self._model = self._engine.load(
            name, pair.large, pair.large_backend, settings.large.threads, settings.cache.texts
        )
        self._health = Health(self._engine, settings.golden, deviation=metrics.deviation)

    async def check_health(self) -> None:
        """Called by Serve: raises where golden requests get other answers."""
        await self._health.check()

    async def score(self, work: Work, left_s: float, version: str) -> LargeReply:
        """The result of work.

        Args:
            work: of this model.
            left_s: seconds until nobody waits for it any more.
            version: the model that the caller means; during an update another may run here.
        """
        if version != self._model.version:
            return LargeReply(None, "unavailable")
        try:
            done = await self._engine.submit(work, deadline=time.monotonic() + left_s)
        except Overloaded:
            return LargeReply(None, "overload")
        except DeadlinePassed:
            return LargeReply(None, "deadline")
        except (ModelFault, DataError):  # small's answer stands
            return LargeReply(None, "unavailable")
        return LargeReply(done.result)


class Ingress:
    """HTTP in front of the small models of all pairs.

    Args:
        settings: of the graph.
        large: name of a pair -> its large model's deployment.
    """

    def __init__(self, settings: Settings, large: Mapping[str, DeploymentHandle[Any]]) -> None:
        self._settings = settings
        self._metrics = Metrics()
        self._engine = Engine(settings.batching, observe=self._metrics.batch)
        cache = AnswerCache(settings.cache.answers, ttl_s=settings.cache.ttl_s)
        self._answerers = {
            name: self._open(name, large.get(name), cache) for name in settings.models
        }
        self._health = Health(self._engine, settings.golden, deviation=self._metrics.deviation)

    def _open(
        self, name: str, handle: DeploymentHandle[Any] | None, cache: AnswerCache
    ) -> Answerer:
        settings, pair = self._settings, self._settings.models[name]
        self._engine.load(
            name, pair.small, pair.small_backend, settings.ingress.threads, settings.cache.texts
        )
        _, large, policy = open_pair(pair)
        ask = partial(_ask, handle, large.version) if handle is not None and large else None
        return Answerer(
            name,
            engine=self._engine,
            policy=policy,
            ask_large=ask,
            large_version=large.version if large else None,
            large_s=settings.deadlines.large_ms / 1000,
            cache=cache,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve once the models are there: they decide what a request looks like."""
        return build_api(
            self._settings,
            self._answerers,
            recorder=self._metrics,
            is_sound=lambda: self._engine.is_sound,
        )

    async def check_health(self) -> None:
        """Called by Serve: raises where golden requests get other answers."""
        for name, answerer in self._answerers.items():
            for task, budget in answerer.budgets.items():
                self._metrics.drift(name, task, budget.drift)
        await self._health.check()


async def _ask(
    handle: DeploymentHandle[Any], version: str, work: Work, left_s: float
) -> LargeReply:
    """Asks the large deployment; a replica that dies costs one more try, not the answer."""
    end = time.monotonic() + left_s
    reply = LargeReply(None, "unavailable")
    for _ in range(_ATTEMPTS):
        left_s = end - time.monotonic()
        response: Any = handle.score.remote(work, left_s, version)
        try:
            reply = await asyncio.wait_for(_result(response), left_s)
        except TimeoutError:
            response.cancel()
            return LargeReply(None, "deadline")
        except BackPressureError:
            return LargeReply(None, "overload")
        except (RayError, RayServeException) as error:
            _log.warning(f"the large model failed: {type(error).__name__} {error}")
            continue
        if reply.refused != "unavailable":
            return reply
    return reply


async def _result(response: Any) -> Any:
    return await response
