"""What Prometheus sees, through Ray: every label has few values, whatever clients send."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import ray
from ray.serve.metrics import Counter, Gauge, Histogram

from serve.failure_form import OPEN_INFERENCE
from serve.proxy import HEALTH_PATHS
from serve.schemas import ENDPOINTS, Answer

__all__ = ["Metrics", "metrics_urls", "path_label"]

_MS = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4]
_REQUESTS = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]
_SHARES = [0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 2.0]
_DRIFT_UNITS = 180  # by chance 0.05, a fifth of what is called much
_PATHS = {
    *(f"/v1/{path}" for path in ENDPOINTS),
    *(f"/v1/{path}/batch" for path in ENDPOINTS),
    *("/", "/v1/models", *HEALTH_PATHS, "/docs", "/openapi.json", OPEN_INFERENCE),
}
_INFER = re.compile(
    rf"{OPEN_INFERENCE}/models/[^/]*\.({'|'.join(ENDPOINTS)})(/versions/[^/]*)?/infer"
)


def _keys(*names: str) -> Any:
    """Names of labels; Ray takes any number, though its annotation says one."""
    return names


def path_label(path: str) -> str:
    """A path if it is one of ours, else "other": who asks must not decide how many labels are.

    All models of the Open Inference Protocol that belong to an endpoint have one label.
    """
    if infer := _INFER.fullmatch(path):
        return f"{OPEN_INFERENCE}/models/*.{infer[1]}/infer"
    return path if path in _PATHS else "other"


def metrics_urls() -> list[str]:
    """Where Prometheus reads the metrics of each node of the cluster that is joined."""
    return [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]


class Metrics:
    """The metrics of one process of the graph."""

    def __init__(self) -> None:
        self._requests = Counter(
            "rectrain_requests",
            description="requests by path, HTTP status (0: the client left first) and outcome",
            tag_keys=_keys("path", "status", "outcome"),
        )
        self._latency = Histogram(
            "rectrain_latency_ms",
            description="milliseconds by path and stage: queue, small, large, total",
            boundaries=_MS,
            tag_keys=_keys("path", "stage"),
        )
        self._answers = Counter(
            "rectrain_answers",
            description="answers by why they were deferred or not; doubtful and asked were",
            tag_keys=_keys("path", "model", "reason", "cached"),
        )
        self._batch_fill = Histogram(
            "rectrain_batch_fill",
            description="tokens of a batch as a share of its budget",
            boundaries=_SHARES,
        )
        self._batch_requests = Histogram(
            "rectrain_batch_requests",
            description="requests of a batch",
            boundaries=_REQUESTS,
        )
        self._queued_tokens = Gauge(
            "rectrain_queued_tokens", description="tokens that wait for the model"
        )
        self._drift = Gauge(
            "rectrain_confidence_drift",
            description="population stability index of the small model's confidences against the"
            " calibration data's; from 0.25 on calibrate again",
            tag_keys=_keys("model", "task"),
        )
        self._deviations = Counter(
            "rectrain_golden_deviations",
            description="golden requests that got another answer than the stored one",
            tag_keys=("model",),
        )

    def request(self, path: str, status: int, outcome: str, total_ms: float) -> None:
        """Counts one request's outcome."""
        path = path_label(path)
        self._requests.inc(tags={"path": path, "status": str(status), "outcome": outcome})
        self._latency.observe(total_ms, tags={"path": path, "stage": "total"})

    def answer(self, path: str, answer: Answer) -> None:
        """Counts one answer of an endpoint, whose path is that without /batch; a batch has many."""
        path = path_label(path)
        tags = {"path": path, "model": answer.model, "reason": answer.reason}
        self._answers.inc(tags={**tags, "cached": str(answer.cached).lower()})
        if answer.timings is None or answer.cached:
            return
        stages: Mapping[str, float] = {
            "queue": answer.timings.queue_ms,
            "small": answer.timings.small_ms,
            "large": answer.timings.large_ms,
        }
        for stage, value in stages.items():
            if stage != "large" or answer.deferred:
                self._latency.observe(value, tags={"path": path, "stage": stage})

    def batch(self, num_requests: int, fill: float, queued_tokens: int) -> None:
        """Records a batch; `fill` is the share of its token budget."""
        self._batch_fill.observe(fill)
        self._batch_requests.observe(num_requests)
        self._queued_tokens.set(queued_tokens)

    def drift(self, model: str, task: str, value: float, *, units: int) -> None:
        """Records how far a task's confidences have moved, once enough of them are known.

        Of n units that have not moved at all the index has the expectation 9 / n (it is a
        chi-squared statistic of ten classes, over n), so of few it says nothing.
        """
        if units >= _DRIFT_UNITS:
            self._drift.set(value, tags={"model": model, "task": task})

    def deviation(self, model: str) -> None:
        """Counts a golden request that failed."""
        self._deviations.inc(tags={"model": model})
