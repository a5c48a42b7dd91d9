"""The ranking model as peers serve it; it imports nothing of Ray Serve or of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rectrain.inference.packaged import load

__all__ = ["TASK", "Scorer"]

TASK = "search_ranking"


class Scorer:
    """A model as a peer serves it: parsed JSON in, scores out, many requests in one call.

    Args:
        model: a package.
        backend: of its encoder.
    """

    def __init__(self, model: str, backend: str) -> None:
        self._model = load(model, backend=backend, threads=1, cached_texts=0)

    def score(self, bodies: Sequence[dict[str, Any]]) -> list[list[float]]:
        """Scores of the candidates of each request."""
        rows = [
            {"query_id": "-", "query": body["query"], **candidate}
            for body in bodies
            for candidate in body["candidates"]
        ]
        scores = iter(self._model.predict(TASK, rows).tolist())
        return [[next(scores) for _ in body["candidates"]] for body in bodies]
