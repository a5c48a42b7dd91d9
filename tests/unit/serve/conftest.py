"""The application in this process: two tiny models, no Ray, a real thread, a real event loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from served_toy import doubtful_policy, write_pair
from starlette.testclient import TestClient

from rectrain.cascade import Policy
from rectrain.package import Package
from serve.answering import Answerer, LargeReply
from serve.api import build_api
from serve.caches import AnswerCache
from serve.config import Settings
from serve.costs import AnswerCosts
from serve.health import Health
from serve.schemas import Answer
from serve.scoring import Engine, Work


@dataclass
class Recorded:
    """Counts in lists."""

    requests: list[tuple[str, int, str]] = field(default_factory=list)
    answers: list[tuple[str, Answer]] = field(default_factory=list)

    def request(self, path: str, status: int, outcome: str, total_ms: float) -> None:
        self.requests.append((path, status, outcome))

    def answer(self, path: str, answer: Answer) -> None:
        self.answers.append((path, answer))


@dataclass
class Graph:
    """A client of the application, and what stands behind it.

    Attributes:
        refuse: what the large model says instead of an answer.
        asked: what the large model was asked.
    """

    client: TestClient
    engine: Engine
    answerer: Answerer
    recorded: Recorded
    large: Engine
    refuse: str | None = None
    asked: list[Work] = field(default_factory=list)

    def post(self, path: str, body: Any, **headers: str) -> Any:
        return self.client.post(path, json=body, headers=headers)


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Package]:
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session")
def engines(packages: dict[str, Package]) -> dict[str, Engine]:
    made = {}
    for name, package in packages.items():
        engine = Engine(Settings.model_validate(_settings()).batching, observe=lambda *_: None)
        engine.load("shop", str(package.path), "torch", 1, 1000)
        made[name] = engine
    return made


def _settings(**more: Any) -> dict[str, Any]:
    limits = {"candidates": 20, "text_chars": 200, "requests": 3, "body_bytes": 20_000}
    return {"models": {"shop": {"small": "unused"}}, "limits": limits, **more}


Serve = Callable[..., Graph]


@pytest.fixture
def graph(engines: dict[str, Engine], packages: dict[str, Package]) -> Iterator[Serve]:
    """Makes a graph: `graph(policy=..., cache=..., settings...)`."""
    opened: list[TestClient] = []

    def make(
        *,
        policy: Policy | None = None,
        cache: int = 0,
        large_ms: float = 0,
        costs: AnswerCosts | None = None,
        **settings: Any,
    ) -> Graph:
        config = Settings.model_validate(_settings(**settings))
        made: list[Graph] = []

        async def ask(work: Work, left_s: float) -> LargeReply:
            made[0].asked.append(work)
            if made[0].refuse:
                return LargeReply(None, made[0].refuse)  # type: ignore[arg-type]
            done = await engines["large"].submit(work, deadline=1e12)
            return LargeReply(done.result)

        answerer = Answerer(
            "shop",
            engine=engines["small"],
            policy=policy,
            ask_large=ask,
            large_version=packages["large"].version,
            large_s=large_ms / 1000,
            cache=AnswerCache(cache, ttl_s=60),
            costs=costs,
        )
        recorded = Recorded()
        health = Health(engines["small"], config.golden, deviation=lambda name: None)
        api = build_api(
            config,
            {"shop": answerer},
            recorder=recorded,
            is_sound=lambda: engines["small"].is_sound,
            check=health.check,
        )
        client = TestClient(api, raise_server_exceptions=False)
        client.__enter__()
        opened.append(client)
        made.append(Graph(client, engines["small"], answerer, recorded, engines["large"]))
        return made[0]

    yield make
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture
def doubtful(packages: dict[str, Package]) -> Policy:
    """A policy that doubts everything."""
    return doubtful_policy(packages["small"].version, packages["large"].version)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path
