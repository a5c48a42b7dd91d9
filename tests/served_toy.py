"""Two tiny packages, and the serving graph on them."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from packaged_toy import toy_parts, write_catalogue
from ray import serve

from benchmarks.doubtful import doubtful_policy as policy_of
from rectrain import cluster
from rectrain.cascade import POLICY, Policy
from rectrain.inference.golden import publish_golden
from rectrain.inference.packaged import PackagedModel, publish_index
from rectrain.package import Card, Package, update_package, write_package
from serve.app import start
from serve.config import Settings

TASKS = ("recommendation", "search_ranking", "ad_ctr", "risk")
CARD = Card(source="0" * 64, made=["a test"])

RISKS = {
    "country": "DE",
    "candidates": [{"item_text": "alpha", "price": 3}, {"item_text": "beta", "country": "FR"}],
}


def write_pair(folder: Path) -> dict[str, Package]:
    """Packages `small` and `large` of all tasks with an index of 40 items each."""
    packages = {}
    for seed, name in enumerate(("small", "large")):
        parts = toy_parts(folder / "parts", seed=seed, tasks=TASKS)
        package = write_package(folder / name, parts, card=CARD)
        items = write_catalogue(folder / f"items-{name}", parts, num_items=40)
        packages[name] = publish_index(package, {"recommendation": items})
    return packages


def doubtful_policy(small: str, large: str, *, budget: float = 1.0) -> Policy:
    """A policy of all tasks that doubts everything, as far as the budget goes."""
    return policy_of(small, large, tasks=TASKS, budget=budget, head=3)


def write_deferring_pair(folder: Path) -> dict[str, Package]:
    """The packages of `write_pair`, the small one with the policy of `doubtful_policy`."""
    packages = write_pair(folder)
    policy = doubtful_policy(packages["small"].version, packages["large"].version)
    packages["small"] = update_package(packages["small"], {POLICY: policy.to_json()})
    return packages


def search(count: int = 4) -> dict[str, Any]:
    """A request of /v1/rank."""
    texts = ["alpha beta", "gamma", "delta epsilon zeta", "eta"]
    candidates = [{"item_id": f"i{n}", "item_text": f"{texts[n % 4]} {n}"} for n in range(count)]
    return {"query": "alpha gamma", "candidates": candidates}


def offline(model: PackagedModel, task: str, body: Mapping[str, Any]) -> NDArray[np.float64]:
    """What a model gives for a request's candidates, without any of the serving graph."""
    shared = {key: value for key, value in body.items() if key not in ("candidates", "options")}
    group = "query_id" if task == "search_ranking" else "user_id"
    return model.predict(task, [{group: "-", **shared, **one} for one in body["candidates"]])


@contextmanager
def served_pair(
    folder: Path,
    *,
    cluster_options: Mapping[str, Any] | None = None,
    further_models: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Iterator[Settings]:
    """The graph on Ray Serve in a cluster of its own, with a pair `shop` that defers everything.

    Args:
        folder: for the packages `small` and `large`.
        cluster_options: further ones of `ray.init`.
        further_models: beside `shop`, as in the settings.
        settings: further ones; a port is chosen where no `http` is given.
    """
    packages = write_deferring_pair(folder)
    pair = {name: str(publish_golden(package).path) for name, package in packages.items()}
    models = {"shop": pair, **(further_models or {})}
    chosen = Settings.model_validate({"models": models, "http": {"port": free_port()}, **settings})
    if chosen.http.is_loopback:
        cluster.keep_to_loopback()  # as `start` does for a cluster of its own
    options = {"include_dashboard": False, "log_to_driver": False, **(cluster_options or {})}
    ray.init(address="local", num_cpus=2, **options)
    try:
        start(chosen)
        yield chosen
        serve.shutdown()
    finally:
        ray.shutdown()


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
