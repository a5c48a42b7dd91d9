"""The ranking model under BentoML; run by `serve_servers.BentoML` in a venv of its own."""

from __future__ import annotations

import json
import os
from typing import Any

import bentoml

from benchmarks.serve_scorer import Scorer

_GIVEN = json.loads(os.environ["SERVE_BENCHMARK"])


@bentoml.service(workers=1, traffic={"timeout": 30, "max_concurrency": 1024})
class Rank:
    """Requests are scored together, as many as the adaptive batcher gathers."""

    def __init__(self) -> None:
        self._scorer = Scorer(_GIVEN["model"], _GIVEN["backend"])

    @bentoml.api(
        route="/v1/rank", batchable=True, batch_dim=0,
        max_batch_size=_GIVEN["size"], max_latency_ms=_GIVEN["wait_s"] * 1000,
    )  # fmt: skip
    def rank(self, bodies: list[dict[str, Any]]) -> list[list[float]]:
        return self._scorer.score(bodies)
