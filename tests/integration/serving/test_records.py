"""What is left of requests: a line each in the log, and figures that Prometheus reads."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from prometheus_client.parser import text_string_to_metric_families
from served_toy import free_port, search

from serve.metrics import metrics_urls
from serving.target import Target, good, request, wait_for

DOCS = Path(__file__).parents[3] / "docs" / "serving.md"
METRICS = {
    "ray_rectrain_requests": {"path", "status", "outcome"},
    "ray_rectrain_latency_ms": {"path", "stage"},
    "ray_rectrain_answers": {"path", "model", "reason", "cached"},
    "ray_rectrain_batch_fill": set(),
    "ray_rectrain_batch_requests": set(),
    "ray_rectrain_queued_tokens": set(),
    "ray_rectrain_confidence_drift": {"model", "task"},
    "ray_rectrain_golden_deviations": {"model"},
}
# Which process it was; Ray adds them, and clients have no part in them.
RAYS = {"application", "deployment", "replica", "Version", "SessionName", "NodeAddress",
        "Component", "WorkerId", "JobId", "NodeId", "le"}  # fmt: skip


def log_lines(target: Target, request_ids: set[str]) -> list[dict[str, Any]]:
    """What the ingress replicas logged of some requests."""
    logs = (target.folder / "session_latest" / "logs" / "serve").glob("replica_*Ingress*.log")
    read = [json.loads(line) for path in logs for line in path.read_text().splitlines()]
    return [line for line in read if line.get("request_id") in request_ids]


def test_each_request_has_one_line_and_one_outcome(target):
    asked = {f"line-{n}": [good(), b"{", b"x" * 30_000][n % 3] for n in range(60)}
    with ThreadPoolExecutor(8) as pool:
        sent = {
            name: pool.submit(target.send, request(body, b"X-Request-ID: " + name.encode()))
            for name, body in asked.items()
        }
        statuses = {name: one.result()[0] for name, one in sent.items()}
    wait_for(lambda: len(log_lines(target, set(asked))) >= len(asked), what="lines of the log")
    found = log_lines(target, set(asked))
    assert Counter(line["request_id"] for line in found) == Counter(asked.keys())
    assert {line["request_id"]: line["status"] for line in found} == statuses
    outcomes = {line["status"]: line["outcome"] for line in found}
    assert outcomes == {200: "ok", 413: "refused", 422: "refused"}


@pytest.fixture(scope="module")
def traffic(target: Target) -> None:
    """Requests that give every metric something to say: repeated, unknown, many confidences."""
    for n in range(40):
        target.ask(f"/made-up-{n}")
    for n in range(8):
        target.ask("/v1/rank", {**search(4), "query": f"alpha {n % 4}"})
        target.ask("/v1/risk", {"candidates": [{"item_text": f"beta {n} {m}"} for m in range(50)]})


def test_the_metrics_are_there_with_labels_that_clients_can_not_multiply(target, traffic):
    (url,) = metrics_urls()
    # Beside it Ray names ports of its own that another cluster here may have taken.
    wait_for(lambda: url in [f"http://{address}/metrics" for address in target.scraped()],
             what="the node's address in Prometheus's list")  # fmt: skip

    def families() -> dict[str, Any]:
        text = requests.get(url, timeout=60).text
        read = {one.name: one for one in text_string_to_metric_families(text) if one.samples}
        return read if set(METRICS) - {"ray_rectrain_golden_deviations"} <= set(read) else {}

    read = wait_for(families, what="the metrics")
    for name in set(METRICS) & set(read):
        for sample in read[name].samples:
            ours = {label for label in set(sample.labels) - RAYS if not label.startswith("otel_")}
            assert ours == METRICS[name], (name, sample.labels)
    paths = {sample.labels["path"] for sample in read["ray_rectrain_requests"].samples}
    assert "other" in paths and not any("made-up" in path for path in paths)
    answers = [sample.labels for sample in read["ray_rectrain_answers"].samples]
    assert "doubtful" in {one["reason"] for one in answers}
    assert {one["cached"] for one in answers} == {"true", "false"}


@pytest.fixture
def prometheus(target: Target, tmp_path: Path) -> Iterator[Callable[[str], list[Any]]]:
    """Asks a Prometheus that reads what Ray tells it to: a query's result."""
    if (program := shutil.which("prometheus")) is None:
        pytest.skip("no prometheus here (Debian: apt-get install prometheus)")
    scrape = {"job_name": "ray", "file_sd_configs": [{"files": [str(target.discovery)]}]}
    settings = {"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(settings))
    address = f"127.0.0.1:{free_port()}"
    command = [
        program, f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address={address}",
    ]  # fmt: skip

    def is_ready() -> bool:
        assert process.poll() is None, "Prometheus ended; its output is above"
        try:
            return requests.get(f"http://{address}/-/ready", timeout=10).ok
        except requests.ConnectionError:  # it does not listen yet
            return False

    def ask(query: str) -> list[Any]:
        url = f"http://{address}/api/v1/query"
        answer = requests.get(url, params={"query": query}, timeout=10).json()
        assert answer["status"] == "success", answer
        found: list[Any] = answer["data"]["result"]
        return found

    with subprocess.Popen(command) as process:
        try:
            wait_for(is_ready, what="Prometheus")
            yield ask
        finally:
            process.terminate()


def test_prometheus_finds_the_metrics_and_answers_the_queries_of_the_docs(traffic, prometheus):
    text = DOCS.read_text(encoding="utf-8")
    (block,) = re.findall(r"^In Prometheus:\n\n((?:    .+\n)+)", text, flags=re.MULTILINE)
    queries = [line.partition("#")[0].strip() for line in block.splitlines()]
    assert len(queries) == 6
    for query in queries:
        assert wait_for(lambda query=query: prometheus(query), what=query)
