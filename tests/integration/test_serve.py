"""The serving graph on real Ray Serve, over real HTTP, with two tiny packages."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import ray
import requests
from ray import serve
from served_toy import write_pair

import rectrain
from rectrain.inference.packaged import PackagedModel
from serve.app import start
from serve.config import Settings

pytestmark = pytest.mark.timeout(600)


@dataclass
class Served:
    """A graph that runs, and its models loaded here, as an oracle."""

    url: str
    small: PackagedModel
    large: PackagedModel

    def post(self, path: str, body: dict[str, Any], **kwargs: Any) -> requests.Response:
        return requests.post(f"{self.url}{path}", json=body, timeout=60, **kwargs)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("serve")
    packages = write_pair(folder)
    settings = Settings.model_validate(
        {
            "models": {"shop": {name: str(package.path) for name, package in packages.items()}},
            "http": {"port": free_port()},
        }
    )
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        start(settings)
        models = [rectrain.load(package.path, threads=1) for package in packages.values()]
        yield Served(f"http://127.0.0.1:{settings.http.port}", *models)
        serve.shutdown()
    finally:
        ray.shutdown()


def search(count: int = 4) -> dict[str, Any]:
    texts = ["alpha beta", "gamma", "delta epsilon zeta", "eta"]
    return {
        "query": "alpha gamma",
        "candidates": [
            {"item_id": f"i{n}", "item_text": f"{texts[n % 4]} {n}"} for n in range(count)
        ],
    }


def offline(model: PackagedModel, task: str, body: dict[str, Any]) -> np.ndarray:
    shared = {key: value for key, value in body.items() if key not in ("candidates", "options")}
    group = "query_id" if task == "search_ranking" else "user_id"
    return model.predict(task, [{group: "-", **shared, **one} for one in body["candidates"]])


def test_a_list_is_ranked_by_the_small_model_as_offline(served):
    body = search()
    answer = served.post("/v1/rank", body).json()
    assert answer["versions"] == {"small": served.small.version, "large": None}
    assert (answer["deferred"], answer["reason"]) == (False, "no_policy")
    got = {item["index"]: item["score"] for item in answer["items"]}
    expected = offline(served.small, "search_ranking", body)
    np.testing.assert_allclose([got[n] for n in range(4)], expected, atol=1e-6)
    assert [item["score"] for item in answer["items"]] == sorted(expected, reverse=True)


@pytest.mark.parametrize(
    ("path", "task", "body"),
    [
        ("ctr", "ad_ctr", {"candidates": [{"item_id": "a", "item_text": "alpha", "position": 2}]}),
        ("risk", "risk", {"country": "DE", "candidates": [{"item_text": "beta", "price": 3}]}),
    ],
)
def test_the_large_model_answers_where_it_is_asked(served, path, task, body):
    answer = served.post(f"/v1/{path}", {**body, "options": {"route": "large"}}).json()
    assert answer["versions"]["large"] == served.large.version
    assert (answer["deferred"], answer["reason"]) == (True, "asked")
    expected = offline(served.large, task, body)
    np.testing.assert_allclose([item["score"] for item in answer["items"]], expected, atol=1e-6)


def test_a_user_gets_items_of_the_catalogue(served):
    user = {"user_id": "u", "history": ["alpha", "beta"], "exclude": ["i3"]}
    answer = served.post("/v1/recommend", {**user, "k": 5}).json()
    (expected,) = served.small.recommend([user], k=5)
    assert [item["item_id"] for item in answer["items"]] == [item.item_id for item in expected]


def test_a_batch_has_an_answer_a_request(served):
    body = {"requests": [search(2), search(3)]}
    answers = served.post("/v1/rank/batch", body).json()["answers"]
    assert [len(answer["items"]) for answer in answers] == [2, 3]


def test_the_facts_are_there(served):
    (model,) = requests.get(f"{served.url}/v1/models", timeout=60).json()
    assert model["versions"]["large"] == served.large.version
    assert set(model["endpoints"]) == {"recommend", "rank", "ctr", "risk"}
    for path in ("/healthz", "/readyz", "/docs", "/openapi.json"):
        assert requests.get(f"{served.url}{path}", timeout=60).status_code == 200
