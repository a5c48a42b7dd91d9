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

from rectrain import cluster
from rectrain.cascade import (
    POLICY,
    Calibration,
    Calibrations,
    ListDoubt,
    Policy,
    RowDoubt,
    TaskPolicy,
)
from rectrain.inference.golden import publish_golden
from rectrain.inference.packaged import PackagedModel, publish_index
from rectrain.package import Card, Package, update_package, write_package
from serve.app import start
from serve.config import Settings

TASKS = ("recommendation", "search_ranking", "ad_ctr", "risk")
CARD = Card(source="0" * 64, made=["a test"])


def write_pair(folder: Path) -> dict[str, Package]:
    """Packages `small` and `large` of all tasks with an index of 40 items each."""
    packages = {}
    for seed, name in enumerate(("small", "large")):
        parts = toy_parts(folder / "parts", seed=seed, tasks=TASKS)
        package = write_package(folder / name, parts, card=CARD)
        items = write_catalogue(folder / f"items-{name}", parts, num_items=40)
        packages[name] = publish_index(package, {"recommendation": items})
    return packages


def doubtful_policy(small: str, large: str, *, budget: float = 1.0, head: int = 3) -> Policy:
    """A policy of all tasks that doubts everything, as far as the budget goes."""
    common = {
        "threshold": 2.0,
        "bound": "budget",
        "budget": budget,
        "rate": 1.0,
        "deciles": tuple(n / 10 for n in range(1, 10)),
    }
    rows = RowDoubt(knots=((0.0, 1.0),), scale=1.0)
    lists = ListDoubt(temperature=1.0, noise=1.0, places=10, depth=20, scale=1.0)
    halved = Calibrations(
        small=Calibration("temperature", 2.0, 0.0), large=Calibration("temperature", 4.0, 0.0)
    )
    tasks = {}
    for task in TASKS:
        if task in ("ad_ctr", "risk"):
            tasks[task] = TaskPolicy(task=task, doubt=rows, calibration=halved, **common)
        else:
            tasks[task] = TaskPolicy(task=task, doubt=lists, head=head, **common)
    return Policy(small, large, tasks)


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
    folder: Path, *, cluster_options: Mapping[str, Any] | None = None, **settings: Any
) -> Iterator[Settings]:
    """The graph on Ray Serve in a cluster of its own, with a pair `shop` that defers everything.

    Args:
        folder: for the packages `small` and `large`.
        cluster_options: further ones of `ray.init`.
        settings: further ones; a port is chosen where none is given.
    """
    packages = write_pair(folder)
    policy = doubtful_policy(packages["small"].version, packages["large"].version)
    packages["small"] = update_package(packages["small"], {POLICY: policy.to_json()})
    pair = {name: str(publish_golden(package).path) for name, package in packages.items()}
    chosen = Settings.model_validate(
        {"models": {"shop": pair}, "http": {"port": free_port()}, **settings}
    )
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
