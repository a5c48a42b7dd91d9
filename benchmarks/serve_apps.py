"""Applications on Ray Serve, side by side in one cluster: ours, a bare one, and @serve.batch.

Run by `serve_servers.Cluster` as a process of its own, which is asked what to deploy. No annotation
here is a string: Serve has FastAPI read those of a class once more, where their names are unknown.
"""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from fastapi import FastAPI, Request
from ray import serve

from benchmarks.child import parent
from benchmarks.serve_scorer import Scorer
from serve.app import build
from serve.config import Settings

__all__ = ["main"]

_CPUS = 8.0  # of Ray's book-keeping; all of it runs on the one core that this process may use
_LOGS = {"enable_access_log": False}

bare_api, batched_api = FastAPI(), FastAPI()


@serve.deployment(max_ongoing_requests=64)
@serve.ingress(bare_api)
class _Bare:
    @bare_api.get("/healthz")
    async def healthy(self) -> dict[str, str]:
        return {"status": "ok"}


@serve.deployment(max_ongoing_requests=1024)
@serve.ingress(batched_api)
class _Batched:
    def __init__(self, model: str, backend: str, size: int, wait_s: float) -> None:
        self._thread = ThreadPoolExecutor(1)  # beside the event loop, as ours
        self._scorer = self._thread.submit(Scorer, model, backend).result()
        self._score.set_max_batch_size(size)
        self._score.set_batch_wait_timeout_s(wait_s)

    @serve.batch
    async def _score(self, bodies: list[dict[str, Any]]) -> list[list[float]]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._scorer.score, bodies)

    @batched_api.post("/v1/rank")
    async def rank(self, request: Request) -> dict[str, list[float]]:
        return {"scores": await self._score(await request.json())}


def _ours(settings: dict[str, Any]) -> Any:
    return build(Settings.model_validate(settings).model_dump(mode="json"))


_APPS = {
    "ours": (_ours, "/"),
    "large": (_ours, "/large"),
    "bare": (_Bare.bind, "/bare"),
    "batched": (_Batched.bind, "/batched"),
}


def main() -> None:
    """Deploys what it is asked to."""
    options, questions, answer = parent()
    ray.init(
        address="local", num_cpus=_CPUS, include_dashboard=False, log_to_driver=False,
        logging_level=logging.WARNING,
    )  # fmt: skip
    serve.start(**options, logging_config=_LOGS)
    answer("started")
    for name, arguments in questions:
        make, prefix = _APPS[name]
        serve.run(make(**arguments), name=name, route_prefix=prefix)
        answer(prefix.rstrip("/"))
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
