"""The ranking model under LitServe; run by `serve_servers.LitServe` in a venv of its own."""

from __future__ import annotations

import json
import sys
from typing import Any

import litserve as ls

from benchmarks.serve_scorer import Scorer


class Rank(ls.LitAPI):
    """One model process; requests are scored together, as many as wait."""

    def __init__(self, facts: dict[str, Any]) -> None:
        super().__init__(
            max_batch_size=facts["size"], batch_timeout=facts["wait_s"], api_path="/v1/rank"
        )
        self._facts = facts

    def setup(self, device: str) -> None:
        self._scorer = Scorer(self._facts["model"], self._facts["backend"])

    def batch(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return inputs

    def predict(self, bodies: Any) -> Any:
        return self._scorer.score(bodies)

    def unbatch(self, output: list[list[float]]) -> list[list[float]]:
        return output

    def encode_response(self, output: list[float]) -> dict[str, list[float]]:
        return {"scores": output}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    server = ls.LitServer(
        Rank(given), accelerator="cpu", workers_per_device=1, timeout=30, fast_queue=True
    )
    server.run(host="127.0.0.1", port=given["port"], num_api_servers=1, log_level="warning",
               generate_client_file=False)  # fmt: skip
