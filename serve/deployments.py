"""The two deployments: Ingress answers over HTTP with the small models, Large takes the doubtful.

A request that a small model can answer stays in one process; a deferred one makes one hop.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from ray.serve.handle import DeploymentHandle

from rectrain.errors import RectrainError
from rectrain.package import open_package
from serve.answering import Answerer, LargeReply
from serve.api import build_api
from serve.batcher import DeadlinePassed, Overloaded
from serve.caches import AnswerCache
from serve.config import Settings
from serve.health import Health
from serve.large import LargeClient
from serve.metrics import Metrics
from serve.pairs import open_pair, require_pinned
from serve.scoring import Engine, ModelFault, Work

__all__ = ["Ingress", "Large"]


class Large:
    """One large model.

    Args:
        settings: of the graph.
        name: of its pair.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        pair = settings.models[name]
        assert pair.large is not None
        require_pinned(open_package(pair.large), pair.large_sha256)
        metrics = Metrics()
        self._engine = Engine(settings.batching, observe=metrics.batch)
        self._model = self._engine.load(
            name,
            pair.large,
            pair.large_backend,
            settings.large.threads,
            settings.cache.texts,
            device=settings.large.device,
        )
        require_pinned(self._model.package, pair.large_sha256)  # it may just have been exchanged
        self._health = Health(self._engine, settings.golden, deviation=metrics.deviation)
        _freeze_heap()

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
        except ModelFault:
            return LargeReply(None, "unavailable")
        except RectrainError:  # no replica of this model would answer it; small's answer stands
            return LargeReply(None)
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
        _, large, policy, costs = open_pair(pair)
        model = self._engine.load(
            name,
            pair.small,
            pair.small_backend,
            settings.ingress.threads,
            settings.cache.texts,
            device=settings.ingress.device,
        )
        require_pinned(model.package, pair.small_sha256)  # it may just have been exchanged
        ask = None
        if handle is not None and large is not None:
            ask = LargeClient(handle.score.remote, version=large.version).ask
        return Answerer(
            name,
            engine=self._engine,
            policy=policy,
            ask_large=ask,
            large_version=large.version if large else None,
            large_s=settings.deadlines.large_ms / 1000,
            cache=cache,
            costs=costs,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve once the models are there: they decide what a request looks like."""
        app = build_api(
            self._settings,
            self._answerers,
            recorder=self._metrics,
            is_sound=lambda: self._engine.is_sound,
            check=self._health.check,
        )
        _freeze_heap()
        return app

    async def check_health(self) -> None:
        """Called by Serve: raises where golden requests get other answers."""
        for name, answerer in self._answerers.items():
            for task, budget in answerer.budgets.items():
                self._metrics.drift(name, task, budget.drift, units=budget.known)
        await self._health.check()


def _freeze_heap() -> None:
    """Tells the garbage collector to pass over what is there once a replica has started: models and
    modules stay, and to walk through them time and again holds up requests."""
    gc.collect()
    gc.freeze()
