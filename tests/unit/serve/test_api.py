"""Requests and answers, over the whole application in one process."""

from __future__ import annotations

import asyncio
import gzip
import json

import numpy as np
import pytest
from served_toy import RISKS, doubtful_policy, offline, search

from rectrain.errors import DataError
from serve.answering import LargeReply
from serve.scoring import Work

ADS = {
    "user_id": 7,
    "history": ["alpha beta"],
    "candidates": [{"item_id": n, "item_text": f"gamma {n}", "position": n} for n in range(3)],
}
USER = {"user_id": "u", "history": ["alpha", "beta"]}


# --- answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "task", "body"),
    [
        ("rank", "search_ranking", search()),
        ("ctr", "ad_ctr", ADS),
        ("risk", "risk", RISKS),
    ],
)
def test_scores_are_those_of_the_model_offline(graph, path, task, body):
    served = graph()
    answer = served.post(f"/v1/{path}", body).json()
    got = {item["index"]: item["score"] for item in answer["items"]}
    expected = offline(served.answerer.small, task, body)
    np.testing.assert_allclose([got[n] for n in range(len(got))], expected, atol=1e-6)
    assert answer["versions"] == {"small": served.answerer.small.version, "large": None}
    assert (answer["deferred"], answer["reason"]) == (False, "no_policy")


def test_lists_come_best_first_and_rows_in_their_order(graph):
    served = graph()
    ranked = [item["score"] for item in served.post("/v1/rank", search()).json()["items"]]
    assert ranked == sorted(ranked, reverse=True)
    rows = served.post("/v1/ctr", ADS).json()["items"]
    assert [(item["index"], item["item_id"]) for item in rows] == [(0, "0"), (1, "1"), (2, "2")]


def test_recommendations_come_from_the_catalogue_or_from_candidates(graph):
    served = graph()
    (expected,) = served.answerer.small.recommend([USER], k=4)
    items = served.post("/v1/recommend", {**USER, "k": 4}).json()["items"]
    assert [item["item_id"] for item in items] == [item.item_id for item in expected]
    some = {**USER, "candidates": ["i3", "i9", "unheard of", "i5"], "exclude": ["i9"]}
    items = served.post("/v1/recommend", some).json()["items"]
    assert {item["item_id"] for item in items} == {"i3", "i5"}


def test_a_batch_has_an_answer_a_request_in_their_order(graph):
    body = {"requests": [search(2), search(4)]}
    answers = graph().post("/v1/rank/batch", body).json()["answers"]
    assert [len(answer["items"]) for answer in answers] == [2, 4]


def test_timings_are_told_where_asked(graph):
    served = graph()
    assert served.post("/v1/rank", search()).json()["timings"] is None
    timed = served.post("/v1/rank", {**search(), "options": {"timings": True}}).json()
    assert timed["timings"]["total_ms"] >= timed["timings"]["small_ms"] > 0


# --- deferral --------------------------------------------------------------------------------


def test_doubtful_rows_get_the_large_models_calibrated_probability(graph, doubtful):
    served = graph(policy=doubtful)
    answer = served.post("/v1/risk", RISKS).json()
    assert (answer["deferred"], answer["reason"]) == (True, "doubtful")
    assert answer["versions"]["large"] == served.answerer.large_version
    raw = offline(served.large.models["shop"], "risk", RISKS)
    calibration = doubtful.tasks["risk"].calibration.large
    for item, score, chance in zip(answer["items"], raw, calibration.probability(raw), strict=True):
        assert item["by"] == "large"
        assert item["score"] == pytest.approx(score, abs=1e-6)
        assert item["probability"] == pytest.approx(chance, abs=1e-6)


def test_small_probabilities_are_calibrated_too(graph, doubtful):
    served = graph(policy=doubtful)
    body = {**RISKS, "options": {"route": "small"}}
    raw = offline(served.answerer.small, "risk", RISKS)
    expected = doubtful.tasks["risk"].calibration.small.probability(raw)
    got = [item["probability"] for item in served.post("/v1/risk", body).json()["items"]]
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert not served.asked


def test_the_large_model_orders_a_doubtful_lists_head(graph, doubtful):
    served = graph(policy=doubtful)
    body = search(8)
    answer = served.post("/v1/rank", body).json()
    small = offline(served.answerer.small, "search_ranking", body)
    large = offline(served.large.models["shop"], "search_ranking", body)
    order = np.argsort(-small, kind="stable")
    head = sorted(order[:3], key=lambda place: -large[place])
    assert [item["index"] for item in answer["items"]] == [*head, *order[3:]]
    assert [item["by"] for item in answer["items"]] == ["large"] * 3 + ["small"] * 5
    assert len(served.asked[0].rows) == 3


def test_where_nothing_was_found_there_is_nothing_to_ask_the_large_model(graph, doubtful):
    served = graph(policy=doubtful)
    body = {**USER, "candidates": ["unheard of"], "options": {"route": "large"}}
    answer = served.post("/v1/recommend", body).json()
    assert (answer["items"], answer["reason"], answer["deferred"]) == ([], "confident", False)
    assert not served.asked


def test_the_large_model_orders_what_the_small_one_recommends_first(graph, doubtful):
    served = graph(policy=doubtful)
    answer = served.post("/v1/recommend", {**USER, "k": 6}).json()
    (found,) = served.answerer.small.recommend([USER], k=6)
    head = [item.item_id for item in found[:3]]
    (ordered,) = served.large.models["shop"].recommend([USER], k=40)
    expected = [item.item_id for item in ordered if item.item_id in head]
    expected += [item.item_id for item in found[3:]]
    assert [item["item_id"] for item in answer["items"]] == expected


@pytest.mark.parametrize("refusal", ["overload", "deadline", "unavailable"])
def test_without_the_large_model_the_small_ones_answer_says_so(graph, doubtful, refusal):
    served = graph(policy=doubtful)
    served.refuse = refusal
    answer = served.post("/v1/risk", RISKS).json()
    assert (answer["deferred"], answer["reason"]) == (False, refusal)
    assert {item["by"] for item in answer["items"]} == {"small"}


def test_the_large_model_is_not_asked_when_too_little_time_is_left(graph, doubtful):
    served = graph(policy=doubtful, large_ms=20_000)
    answer = served.post("/v1/risk", RISKS).json()
    assert (answer["reason"], served.asked) == ("deadline", [])


def test_a_budget_that_is_spent_defers_no_more(graph, doubtful, packages):
    versions = packages["small"].version, packages["large"].version
    served = graph(policy=doubtful_policy(*versions, budget=0.001))
    one = {"candidates": [{"item_text": "alpha"}]}
    reasons = [served.post("/v1/risk", one).json()["reason"] for _ in range(3)]
    assert reasons == ["doubtful", "over_budget", "over_budget"]


# --- cache -----------------------------------------------------------------------------------


def test_a_request_that_comes_again_is_answered_from_before(graph):
    served = graph(cache=10)
    first, second = (served.post("/v1/rank", search()).json() for _ in range(2))
    assert (first.pop("cached"), second.pop("cached")) == (False, True)
    assert first == second
    assert not served.post("/v1/rank", search(3)).json()["cached"]


def test_what_hangs_on_the_moments_load_is_not_kept(graph, doubtful):
    served = graph(policy=doubtful, cache=10)
    served.refuse = "overload"
    served.post("/v1/risk", RISKS)
    served.refuse = None
    assert served.post("/v1/risk", RISKS).json()["reason"] == "doubtful"


def test_what_the_budget_cut_is_not_kept(graph, packages):
    versions = packages["small"].version, packages["large"].version
    # The credit is one row of the two; what is asked alike a moment later may be answered whole.
    served = graph(policy=doubtful_policy(*versions, budget=0.001), cache=10)
    first = served.post("/v1/risk", RISKS).json()
    assert first["reason"] == "doubtful"
    assert sorted(item["by"] for item in first["items"]) == ["large", "small"]
    assert not served.post("/v1/risk", RISKS).json()["cached"]


def test_what_a_withdrawn_large_model_had_a_part_in_is_kept_no_longer(graph, doubtful, monkeypatch):
    served = graph(policy=doubtful, cache=10)
    alone = {**RISKS, "options": {"route": "small"}}
    for body in (RISKS, alone):
        served.post("/v1/risk", body)

    async def withdrawn(work: Work, left_s: float) -> LargeReply:
        return LargeReply(None, "unavailable", is_withdrawn=True)

    monkeypatch.setattr(served.answerer, "_ask_large", withdrawn)
    assert served.post("/v1/risk", RISKS).json()["cached"], "nobody has learned of it yet"
    assert served.post("/v1/rank", search()).json()["reason"] == "unavailable"
    assert served.post("/v1/risk", RISKS).json()["reason"] == "unavailable"
    assert served.post("/v1/risk", alone).json()["cached"]


# --- the rest --------------------------------------------------------------------------------


def test_every_request_has_one_outcome_and_every_answer_is_counted(graph):
    served = graph()
    served.post("/v1/rank/batch", {"requests": [search(), search(2)]})
    served.client.get("/nowhere")
    assert served.recorded.requests == [
        ("/v1/rank/batch", 200, "ok"),
        ("/nowhere", 404, "refused"),
    ]
    assert [path for path, _ in served.recorded.answers] == ["/v1/rank", "/v1/rank"]


def test_answers_of_a_batch_that_fails_are_not_counted_for_nobody_gets_them(graph, monkeypatch):
    served, done = graph(), []
    answer = served.answerer.answer

    async def second_fails(path, request, *, deadline):
        if len(request.candidates) == 2:
            while not done:
                await asyncio.sleep(0.001)
            raise DataError(what="w", got="g", rule="r", fix="f")
        done.append(await answer(path, request, deadline=deadline))
        return done[-1]

    monkeypatch.setattr(served.answerer, "answer", second_fails)
    response = served.post("/v1/rank/batch", {"requests": [search(), search(2)]})
    assert response.status_code == 422 and done
    assert served.recorded.requests == [("/v1/rank/batch", 422, "refused")]
    assert served.recorded.answers == []


def test_bodies_may_be_gzip_both_ways(graph):
    packed = gzip.compress(json.dumps(search(20)).encode())
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    response = graph().client.post("/v1/rank", content=packed, headers=headers)
    assert response.headers["content-encoding"] == "gzip"
    assert len(response.json()["items"]) == 20


def test_a_body_beyond_its_limit_is_refused(graph):
    packed = gzip.compress(b"0" * 1_000_000)
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    response = graph().client.post("/v1/rank", content=packed, headers=headers)
    assert (response.status_code, response.json()["code"]) == (413, "refused")


def test_the_facts_of_the_models_are_told(graph, doubtful):
    (facts,) = graph(policy=doubtful).client.get("/v1/models").json()
    assert set(facts["endpoints"]) == {"recommend", "rank", "ctr", "risk"}
    assert facts["policy"]["search_ranking"]["head"] == 3
    assert "position" in facts["fields"]["ctr"]
    assert not {"timestamp", "row_id", "label"} & set(facts["fields"]["ctr"])


def test_a_server_may_leave_the_choice_of_the_model_to_the_policy(graph, doubtful):
    free = graph(policy=doubtful)
    assert free.client.get("/v1/models").json()[0]["routes"] == ["auto", "small", "large"]
    bound = graph(policy=doubtful, limits={"choose_route": False})
    for route in ("small", "large"):
        body = {**search(), "options": {"route": route}}
        assert free.post("/v1/rank", body).status_code == 200
        assert bound.post("/v1/rank", body).status_code == 422
        assert bound.post("/v1/rank/batch", {"requests": [body]}).status_code == 422
    assert not bound.asked
    assert bound.client.get("/v1/models").json()[0]["routes"] == ["auto"]
    for options in ({}, {"route": "auto"}):
        answer = bound.post("/v1/rank", {**search(), "options": options}).json()
        assert answer["reason"] == "doubtful"


def test_the_schema_names_what_a_request_may_have(graph):
    schemas = graph().client.get("/openapi.json").json()["components"]["schemas"]
    assert schemas["RankRequest"]["required"] == ["query", "candidates"]
    assert schemas["RankCandidate"]["required"] == ["item_id", "item_text"]
    assert schemas["RankRequest"]["additionalProperties"] is False
    assert schemas["RiskCandidate"]["properties"]["image"]["anyOf"][0]["minItems"] == 2


def test_the_page_needs_nothing_from_elsewhere(graph):
    page = graph().client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "http://" not in page.text and "https://" not in page.text
