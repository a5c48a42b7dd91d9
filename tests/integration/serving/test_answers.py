"""Answers over real HTTP: their scores are those of the models that they name, loaded here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from served_toy import offline, search

import rectrain
from rectrain.inference.packaged import PackagedModel
from rectrain.package import open_package
from serving.target import Target


@pytest.fixture(scope="module")
def models(target: Target) -> dict[str, PackagedModel]:
    """Those of the pair `shop`: an oracle."""
    pair = target.settings.models["shop"]
    return {
        "small": rectrain.load(pair.small, threads=1),
        "large": rectrain.load(pair.large, threads=1),
    }


@pytest.mark.parametrize(
    ("path", "task", "body"),
    [
        ("rank", "search_ranking", search()),
        ("ctr", "ad_ctr", {"candidates": [{"item_id": "a", "item_text": "alpha", "position": 2}]}),
        ("risk", "risk", {"country": "DE", "candidates": [{"item_text": "beta", "price": 3}]}),
    ],
)
@pytest.mark.parametrize("route", ["small", "large"])
def test_scores_are_those_of_the_version_that_is_named(target, models, path, task, body, route):
    answer = target.ask(f"/v1/{path}", {**body, "options": {"route": route}}).json()
    assert answer["versions"][route] == models[route].version
    assert answer["reason"] == {"small": "not_asked", "large": "asked"}[route]
    got = {item["index"]: item["score"] for item in answer["items"]}
    expected = offline(models[route], task, body)
    np.testing.assert_allclose([got[n] for n in range(len(got))], expected, atol=1e-6)


def test_the_policy_defers_the_doubtful_in_one_hop(target):
    answer = target.ask("/v1/rank", {**search(6), "options": {"timings": True}}).json()
    assert (answer["deferred"], answer["reason"]) == (True, "doubtful")
    assert [item["by"] for item in answer["items"]] == ["large"] * 3 + ["small"] * 3
    assert answer["timings"]["large_ms"] > 0


def test_another_model_of_the_same_application_is_chosen_by_name(target):
    answer = target.ask("/v1/rank", {**search(), "options": {"model": "bare"}}).json()
    bare = open_package(Path(target.settings.models["bare"].small))
    assert answer["versions"] == {"small": bare.version, "large": None}
    assert answer["reason"] == "no_large"


def test_a_user_gets_items_of_the_catalogue(target, models):
    user = {"user_id": "u", "history": ["alpha", "beta"], "exclude": ["i3"]}
    body = {**user, "k": 5, "options": {"route": "small"}}
    answer = target.ask("/v1/recommend", body).json()
    (expected,) = models["small"].recommend([user], k=5)
    assert [item["item_id"] for item in answer["items"]] == [item.item_id for item in expected]


def test_a_batch_has_an_answer_a_request(target):
    body = {"requests": [search(2), search(3)]}
    answers = target.ask("/v1/rank/batch", body).json()["answers"]
    assert [len(answer["items"]) for answer in answers] == [2, 3]
