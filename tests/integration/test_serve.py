"""The serving graph on real Ray Serve, over real HTTP, with two tiny packages."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import requests
from ray import serve
from served_toy import doubtful_policy, offline, search, write_pair

import rectrain
from rectrain.cascade import POLICY
from rectrain.inference.golden import GOLDEN, publish_golden
from rectrain.inference.packaged import PackagedModel
from rectrain.package import open_package, update_package
from serve.app import start
from serve.config import Settings

TOKEN = "a long random token"
pytestmark = pytest.mark.timeout(600)


@dataclass
class Served:
    """A graph that runs, and its models loaded here, as an oracle."""

    url: str
    settings: Settings
    small: PackagedModel
    large: PackagedModel

    def post(
        self, path: str, body: dict[str, Any], *, headers: dict[str, str] | None = None
    ) -> requests.Response:
        headers = {"Authorization": f"Bearer {TOKEN}", **(headers or {})}
        return requests.post(f"{self.url}{path}", json=body, headers=headers, timeout=60)

    def get(self, path: str) -> requests.Response:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return requests.get(f"{self.url}{path}", headers=headers, timeout=60)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("serve")
    packages = write_pair(folder)
    policy = doubtful_policy(packages["small"].version, packages["large"].version)
    packages["small"] = update_package(packages["small"], {POLICY: policy.to_json()})
    packages = {name: publish_golden(package) for name, package in packages.items()}
    pair = {name: str(package.path) for name, package in packages.items()}
    settings = Settings.model_validate(
        {
            # The second pair is one model alone: no policy, nothing to defer to.
            "models": {"shop": pair, "alone": {"small": pair["large"]}},
            "http": {"port": free_port()},
            "security": {"token_hashes": [hashlib.sha256(TOKEN.encode()).hexdigest()]},
            "golden": {"required": True},
        }
    )
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        start(settings)
        models = [rectrain.load(package.path, threads=1) for package in packages.values()]
        yield Served(f"http://127.0.0.1:{settings.http.port}", settings, *models)
        serve.shutdown()
    finally:
        ray.shutdown()


def replicas(deployment: str) -> list[Any]:
    """Handles of the replicas' actors."""
    names = ray.util.list_named_actors(all_namespaces=True)
    return [
        ray.get_actor(one["name"], namespace=one["namespace"])
        for one in names
        if f"#{deployment}#" in one["name"]
    ]


def log_lines(request_id: str) -> list[dict[str, Any]]:
    """What the replicas of Ingress logged about a request."""
    logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs" / "serve"
    found = []
    for path in logs.glob("replica_*Ingress*.log"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if request_id in line:
                found.append(json.loads(line))
    return found


@pytest.mark.parametrize(
    ("path", "task", "body"),
    [
        ("rank", "search_ranking", search()),
        ("ctr", "ad_ctr", {"candidates": [{"item_id": "a", "item_text": "alpha", "position": 2}]}),
        ("risk", "risk", {"country": "DE", "candidates": [{"item_text": "beta", "price": 3}]}),
    ],
)
@pytest.mark.parametrize("route", ["small", "large"])
def test_scores_are_those_of_the_version_that_is_named(served, path, task, body, route):
    answer = served.post(f"/v1/{path}", {**body, "options": {"route": route}}).json()
    model = {"small": served.small, "large": served.large}[route]
    assert answer["versions"][route] == model.version
    assert answer["reason"] == {"small": "not_asked", "large": "asked"}[route]
    got = {item["index"]: item["score"] for item in answer["items"]}
    expected = offline(model, task, body)
    np.testing.assert_allclose([got[n] for n in range(len(got))], expected, atol=1e-6)


def test_the_policy_defers_the_doubtful_in_one_hop(served):
    answer = served.post("/v1/rank", {**search(6), "options": {"timings": True}}).json()
    assert (answer["deferred"], answer["reason"]) == (True, "doubtful")
    assert [item["by"] for item in answer["items"]] == ["large"] * 3 + ["small"] * 3
    assert answer["timings"]["large_ms"] > 0


def test_another_model_of_the_same_application_is_chosen_by_name(served):
    answer = served.post("/v1/rank", {**search(), "options": {"model": "alone"}}).json()
    assert answer["versions"] == {"small": served.large.version, "large": None}
    assert answer["reason"] == "no_large"


def test_a_user_gets_items_of_the_catalogue(served):
    user = {"user_id": "u", "history": ["alpha", "beta"], "exclude": ["i3"]}
    body = {**user, "k": 5, "options": {"route": "small"}}
    answer = served.post("/v1/recommend", body).json()
    (expected,) = served.small.recommend([user], k=5)
    assert [item["item_id"] for item in answer["items"]] == [item.item_id for item in expected]


def test_a_batch_has_an_answer_a_request(served):
    body = {"requests": [search(2), search(3)]}
    answers = served.post("/v1/rank/batch", body).json()["answers"]
    assert [len(answer["items"]) for answer in answers] == [2, 3]


def test_all_but_health_and_the_pages_needs_a_token(served):
    for path, status in (("/", 200), ("/healthz", 200), ("/readyz", 200), ("/samples", 401)):
        assert requests.get(f"{served.url}{path}", timeout=60).status_code == status
    refused = requests.post(f"{served.url}/v1/rank", json=search(), timeout=60)
    assert refused.status_code == 401
    assert served.get("/v1/models").status_code == 200


def test_only_this_machine_can_connect(served):
    port = served.settings.http.port
    listening = {
        one.laddr.ip
        for one in psutil.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN and one.laddr.port == port
    }
    assert listening == {"127.0.0.1"}


def test_a_request_has_one_line_and_one_outcome(served):
    served.post("/v1/rank", search(), headers={"X-Request-ID": "line-1"})
    refused = served.post("/v1/rank", {}, headers={"X-Request-ID": "line-2"})
    assert refused.json()["request_id"] == refused.headers["x-request-id"] == "line-2"
    for request_id, outcome in (("line-1", "ok"), ("line-2", "refused")):
        end = time.monotonic() + 30
        while not (lines := log_lines(request_id)) and time.monotonic() < end:
            time.sleep(0.5)
        assert [line["outcome"] for line in lines] == [outcome]


def test_a_burst_gets_answers_or_is_told_when_to_come_back(served):
    def ask(number: int) -> requests.Response:
        body = {**search(20), "query": f"alpha {number}"}
        return served.post("/v1/rank", body, headers={"X-Deadline-Ms": "400"})

    with ThreadPoolExecutor(24) as pool:
        responses = list(pool.map(ask, range(96)))
    assert {one.status_code for one in responses} <= {200, 503}
    for one in responses:
        assert one.status_code == 200 or int(one.headers["retry-after"]) >= 1


def test_a_large_replica_that_dies_costs_no_request(served):
    with ThreadPoolExecutor(4) as pool:
        asked = [
            pool.submit(served.post, "/v1/risk", {"candidates": [{"item_text": f"alpha {n}"}]})
            for n in range(16)
        ]
        for replica in replicas("Large-shop"):
            ray.kill(replica)
        answers = [one.result() for one in asked]
    assert {one.status_code for one in answers} == {200}
    assert {one.json()["reason"] for one in answers} <= {"doubtful", "unavailable", "deadline"}


@pytest.mark.slow
def test_an_update_loses_no_request_and_a_broken_one_changes_nothing(served, tmp_path):
    new = shutil.copytree(served.large.package.path, tmp_path / "new")
    broken = shutil.copytree(served.large.package.path, tmp_path / "broken")
    golden = json.loads((broken / GOLDEN).read_bytes())
    for case in golden["cases"]:
        case["scores"] = {name: [s + 1 for s in values] for name, values in case["scores"].items()}
    update_package(open_package(broken), {GOLDEN: json.dumps(golden).encode()})

    def settings(path: Path) -> Settings:
        pair = served.settings.models["shop"].model_copy(update={"small": str(path)})
        models = {**served.settings.models, "shop": pair}
        return served.settings.model_copy(update={"models": models})

    statuses: list[int] = []
    is_over = threading.Event()

    def keep_asking() -> None:
        while not is_over.is_set():
            statuses.append(served.post("/v1/rank", search()).status_code)

    asker = threading.Thread(target=keep_asking)
    asker.start()
    try:
        start(settings(new))
        updated = served.post("/v1/rank", search()).json()["versions"]["small"]
        with pytest.raises(RuntimeError):
            start(settings(broken))
        assert served.post("/v1/rank", search()).json()["versions"]["small"] == updated
    finally:
        is_over.set()
        asker.join()
    assert updated == served.large.version
    assert set(statuses) == {200}
