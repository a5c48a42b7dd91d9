"""The ranking models as peers serve them; it imports nothing of Ray Serve or of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rectrain.inference.packaged import load

__all__ = ["TASK", "Scorer"]

TASK = "search_ranking"


class Scorer:
    """Models as a peer serves them: parsed JSON in, scores out, many requests in one call.

    Args:
        models: name -> package.
        backend: of them all.
    """

    def __init__(self, models: dict[str, str], backend: str) -> None:
        self._models = {
            name: load(path, backend=backend, threads=1, cached_texts=0)
            for name, path in models.items()
        }

    def score(self, bodies: Sequence[dict[str, Any]]) -> list[list[float]]:
        """Scores of the candidates of each request."""
        answers: list[list[float]] = [[] for _ in bodies]
        for name, model in self._models.items():
            places = [n for n, body in enumerate(bodies) if body["options"]["model"] == name]
            rows = [
                {"query_id": "-", "query": bodies[n]["query"], **candidate}
                for n in places
                for candidate in bodies[n]["candidates"]
            ]
            scores = iter(model.predict(TASK, rows).tolist())
            for n in places:
                answers[n] = [next(scores) for _ in bodies[n]["candidates"]]
        return answers
