"""What clients of a graph over HTTPS see of a burst, a death, an update and a broken version."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import requests
from served_toy import free_port, search, served_pair

from benchmarks.faults_packages import deviate
from rectrain.package import open_package
from serve.app import start
from serve.config import Settings


@dataclass(frozen=True)
class Graph:
    """One that runs.

    Attributes:
        settings: of it.
        certificate: its own, as a PEM file.
    """

    settings: Settings
    certificate: Path

    @property
    def address(self) -> str:
        """Host and port."""
        return f"localhost:{self.settings.http.port}"

    def post(self, path: str, body: dict[str, Any], **headers: str) -> requests.Response:
        url, verify = f"https://{self.address}{path}", str(self.certificate)
        return requests.post(url, json=body, headers=headers, verify=verify, timeout=60)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Graph]:
    folder = tmp_path_factory.mktemp("disturbed")
    certificate, key = self_signed(folder)
    http = {"port": free_port(), "ssl_certfile": str(certificate), "ssl_keyfile": str(key)}
    golden = {"period_s": 1.0, "health_check_s": 1.0}
    with served_pair(folder, http=http, golden=golden) as settings:
        yield Graph(settings, certificate)


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate of localhost and its key, as PEM files."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost"
        f" -addext subjectAltName=DNS:localhost -keyout {key} -out {certificate}"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    return certificate, key


def replicas(deployment: str) -> list[Any]:
    """Handles of the replicas' actors."""
    names = ray.util.list_named_actors(all_namespaces=True)
    return [
        ray.get_actor(one["name"], namespace=one["namespace"])
        for one in names
        if f"#{deployment}#" in one["name"]
    ]


def test_https_with_a_certificate_of_ones_own(graph):
    assert graph.post("/v1/rank", search()).status_code == 200
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://{graph.address}/readyz", timeout=60)


def test_a_burst_gets_answers_or_is_told_when_to_come_back(graph):
    def ask(number: int) -> requests.Response:
        body = {**search(20), "query": f"alpha {number}"}
        return graph.post("/v1/rank", body, **{"X-Deadline-Ms": "400"})

    with ThreadPoolExecutor(24) as pool:
        responses = list(pool.map(ask, range(96)))
    assert {one.status_code for one in responses} <= {200, 503}
    for one in responses:
        assert one.status_code == 200 or int(one.headers["retry-after"]) >= 1


def test_a_large_replica_that_dies_costs_no_request(graph):
    with ThreadPoolExecutor(4) as pool:
        asked = [
            pool.submit(graph.post, "/v1/risk", {"candidates": [{"item_text": f"alpha {n}"}]})
            for n in range(16)
        ]
        for replica in replicas("Large-shop"):
            ray.kill(replica)
        answers = [one.result() for one in asked]
    assert {one.status_code for one in answers} == {200}
    assert {one.json()["reason"] for one in answers} <= {"doubtful", "unavailable", "deadline"}


def zero_the_model(replica: Any) -> None:
    """As a fault in memory might: the replica goes on, and answers wrongly."""

    def zero(actor: Any) -> None:
        import torch

        serving = actor._replica_impl._user_callable_wrapper.user_callable
        with torch.no_grad():
            for weight in serving._engine.models["shop"].predictor.model.parameters():
                weight.zero_()

    ray.get(replica.__ray_call__.remote(zero))


def test_a_running_replica_that_deviates_is_withdrawn_replaced_and_told_of(graph):
    body = {**search(), "options": {"route": "small"}}  # the large one may come and go
    expected = [one["score"] for one in graph.post("/v1/rank", body).json()["items"]]
    (damaged,) = replicas("Ingress")
    zero_the_model(damaged)
    deadline = time.monotonic() + 60
    while damaged in (found := replicas("Ingress")) or not found:
        assert time.monotonic() < deadline, "it was never replaced"
        time.sleep(0.5)
    answer = graph.post("/v1/rank", body)
    assert answer.status_code == 200
    assert [one["score"] for one in answer.json()["items"]] == pytest.approx(expected, rel=1e-4)
    logs = Path(ray._private.worker._global_node.get_logs_dir_path()) / "serve"
    events = [path for path in logs.glob("*Ingress*") if "golden_deviation" in path.read_text()]
    assert len(events) == 1


@contextmanager
def asked_all_along(graph: Graph) -> Iterator[list[int]]:
    """Asks again and again; the statuses of all answers are in the list at the end."""
    statuses: list[int] = []
    is_over = threading.Event()

    def keep_asking() -> None:
        while not is_over.is_set():
            statuses.append(graph.post("/v1/rank", search()).status_code)

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(keep_asking)
        try:
            yield statuses
        finally:
            is_over.set()
        asking.result()


@pytest.mark.slow
def test_an_update_loses_no_request_and_a_broken_one_changes_nothing(graph, tmp_path):
    shop = graph.settings.models["shop"]
    new, broken = (shutil.copytree(shop.large, tmp_path / name) for name in ("new", "broken"))
    deviate(broken)

    def deploy(small: Path) -> None:
        models = {"shop": shop.model_copy(update={"small": str(small)})}
        start(graph.settings.model_copy(update={"models": models}))

    def version() -> str:
        return str(graph.post("/v1/rank", search()).json()["versions"]["small"])

    assert version() == open_package(Path(shop.small)).version
    with asked_all_along(graph) as statuses:
        deploy(new)
        assert version() == open_package(new).version
        with pytest.raises(RuntimeError):
            deploy(broken)
        assert version() == open_package(new).version
    assert set(statuses) == {200}
