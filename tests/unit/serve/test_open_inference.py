"""The Open Inference Protocol: the answers of /v1 as tensors, and refusals in its own form."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from served_toy import search
from tensors_toy import tensor, tensors

from serve.batcher import Overloaded
from serve.failure_form import failure_body
from serve.metrics import path_label

TEXTS = ["alpha beta", "gamma", "delta"]
BODIES = {
    "rank": search(5),
    "ctr": {
        "user_id": "u",
        "history": ["alpha", "beta"],
        "candidates": [
            {"item_id": f"i{n}", "item_text": text, "position": n} for n, text in enumerate(TEXTS)
        ],
    },
    "risk": {
        "country": "DE",
        "candidates": [
            {"item_text": text, "price": 3.5 * n, "image": [0.1 * n, -1.0]}
            for n, text in enumerate(TEXTS)
        ],
    },
}
MODELS = [f"shop.{path}" for path in BODIES]


def infer(served: Any, inputs: list[dict[str, Any]], model: str = "shop.rank", **more: Any) -> Any:
    return served.post(f"/v2/models/{model}/infer", {"inputs": inputs, **more})


def outputs(response: Any) -> dict[str, list[Any]]:
    assert response.status_code == 200, response.text
    found = response.json()["outputs"]
    assert all(one["shape"] == [len(one["data"])] for one in found)
    return {one["name"]: one["data"] for one in found}


def error(response: Any) -> str:
    """What a failure says; it says it in the protocol's form."""
    assert list(response.json()) == ["error"]
    message: str = response.json()["error"]
    assert "Traceback" not in message
    return message


# --- answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("defers", [False, True])
@pytest.mark.parametrize("path", BODIES)
def test_answers_are_those_of_v1(graph, doubtful, path, defers):
    served = graph(policy=doubtful if defers else None)
    known = served.post(f"/v1/{path}", BODIES[path]).json()
    response = infer(served, tensors(BODIES[path]), f"shop.{path}", id="a 1")
    got, answer = outputs(response), response.json()
    for rank, item in enumerate(known["items"]):
        index = item["index"]
        assert got["score"][index] == pytest.approx(item["score"], abs=1e-9)
        assert got["by"][index] == item["by"]
        if path == "rank":
            assert got["rank"][index] == rank
        else:
            assert got["probability"][index] == pytest.approx(item["probability"], abs=1e-9)
    assert ("rank" in got, "probability" in got) == (path == "rank", path != "rank")
    assert answer["model_version"] == known["versions"]["small"]
    assert answer["parameters"].get("large_version") == known["versions"]["large"]
    assert answer["parameters"]["deferred"] is known["deferred"] is defers
    assert answer["parameters"]["reason"] == known["reason"]
    assert (answer["model_name"], answer["id"]) == (f"shop.{path}", "a 1")


def test_a_list_of_two_models_is_in_the_order_of_its_ranks_not_of_its_scores(graph, doubtful):
    served = graph(policy=doubtful)
    got = outputs(infer(served, tensors(search(8))))
    head = [rank for rank, by in zip(got["rank"], got["by"], strict=True) if by == "large"]
    assert sorted(head) == [0, 1, 2]


def test_what_stands_beside_candidates_is_one_value_of_all_or_one_each(graph):
    served = graph()
    texts = tensor("item_text", TEXTS)
    one = infer(served, [texts, tensor("country", ["FR"])], "shop.risk")
    each = infer(served, [texts, tensor("country", ["FR"] * 3)], "shop.risk")
    other = infer(served, [texts, tensor("country", ["FR", "DE", "FR"])], "shop.risk")
    assert outputs(one) == outputs(each)
    assert outputs(one)["score"][1] != outputs(other)["score"][1]


@pytest.mark.parametrize("data", [[[0.5, 1.0], [2.0, -1.0]], [0.5, 1.0, 2.0, -1.0]])
def test_vectors_may_be_nested_or_flat(graph, data):
    served = graph()
    body = {"candidates": [{"item_text": "alpha", "image": image} for image in
                           ([0.5, 1.0], [2.0, -1.0])]}  # fmt: skip
    image = {"name": "image", "shape": [2, 2], "datatype": "FP32", "data": data}
    got = outputs(infer(served, [tensor("item_text", ["alpha"] * 2), image], "shop.risk"))
    known = served.post("/v1/risk", body).json()["items"]
    assert got["score"] == pytest.approx([item["score"] for item in known], abs=1e-9)


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "INT32", "INT64"])
def test_numbers_come_as_any_type_of_them(graph, datatype):
    price = tensor("price", [1, 2, 3], datatype)
    response = infer(graph(), [tensor("item_text", TEXTS), price], "shop.risk")
    assert response.status_code == 200, response.text


def test_only_the_outputs_that_are_wanted_are_given(graph):
    wanted = [{"name": "rank", "parameters": {"binary_data": True}}]
    response = infer(graph(), tensors(search()), outputs=wanted, parameters={"priority": 3})
    assert list(outputs(response)) == ["rank"]
    assert "id" not in response.json()


def test_a_request_without_a_content_type_is_json(graph):
    content = json.dumps({"inputs": tensors(search())})
    assert graph().client.post("/v2/models/shop.rank/infer", content=content).status_code == 200


def test_answers_are_kept_and_counted_as_those_of_v1(graph):
    served = graph(cache=10)
    first, second = (infer(served, tensors(search())).json() for _ in range(2))
    assert not first["parameters"]["cached"] and second["parameters"]["cached"]
    asked = ("/v2/models/shop.rank/infer", 200, "ok")
    assert served.recorded.requests == [asked] * 2
    assert [path for path, _ in served.recorded.answers] == [asked[0]] * 2


# --- what is told of models ------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_a_client_that_knows_nothing_but_the_metadata_gets_an_answer(graph, model):
    served = graph()
    told = served.client.get(f"/v2/models/{model}").json()
    version = served.answerer.small.version
    assert (told["name"], told["versions"]) == (model, [version])
    assert told["platform"] == "rectrain_torch"
    inputs = []
    for one in told["inputs"]:
        shape = [3 if size == -1 else size for size in one["shape"]]
        value: Any = "alpha" if one["datatype"] == "BYTES" else 1.0
        count = shape[0] * (shape[1] if shape[1:] else 1)
        inputs.append({**one, "shape": shape, "data": [value] * count})
    response = infer(served, inputs, model=f"{model}/versions/{version}")
    got = {one["name"]: one["datatype"] for one in response.json()["outputs"]}
    assert got == {one["name"]: one["datatype"] for one in told["outputs"]}
    assert set(outputs(response)["by"]) == {"small"}


def test_the_inputs_are_the_fields_of_the_endpoint(graph):
    served = graph()
    (facts,) = served.client.get("/v1/models").json()
    for path in BODIES:
        inputs = served.client.get(f"/v2/models/shop.{path}").json()["inputs"]
        assert [one["name"] for one in inputs] == facts["fields"][path]
    shapes = {one["name"]: (one["datatype"], one["shape"]) for one in inputs}
    assert shapes["item_text"] == ("BYTES", [-1])
    assert shapes["image"] == ("FP64", [-1, 2])
    assert shapes["user_id"] == ("BYTES", [1])


def test_the_server_and_each_model_say_that_they_are_there(graph, monkeypatch):
    served = graph()
    version = served.answerer.small.version
    told = served.client.get("/v2").json()
    assert (told["name"], told["extensions"]) == ("rectrain", [])
    ready = ["/v2/health/ready", "/v2/models/shop.rank/ready",
             f"/v2/models/shop.rank/versions/{version}/ready"]  # fmt: skip
    assert all(served.client.get(path).status_code == 200 for path in ready)
    assert served.client.get(ready[1]).json() == {"name": "shop.rank", "ready": True}
    monkeypatch.setattr(served.engine, "is_sound", False)
    for path in ready:
        response = served.client.get(path)
        assert response.status_code == 503 and "retry-after" in response.headers
        assert error(response) == "the model is being replaced"
    assert infer(served, tensors(search())).status_code == 503
    assert served.client.get("/v2/health/live").json() == {"live": True}


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["shop", "shop.recommend", "other.rank", "shop.rank/versions/1"])
def test_an_unknown_model_or_version_is_404_whatever_is_asked(graph, model):
    served = graph()
    path = f"/v2/models/{model}"
    responses = [served.client.get(path), served.client.get(f"{path}/ready")]
    for response in [*responses, served.client.post(f"{path}/infer", content=b"no JSON")]:
        assert response.status_code == 404
        assert "shop.rank" in error(response)


TEXT = tensor("item_text", TEXTS)
IDS = tensor("item_id", ["a", "b", "c"])
QUERY = tensor("query", ["alpha"])


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([], "candidates"),
        ([QUERY, IDS], "item_text"),
        ([QUERY, IDS, TEXT, tensor("label", [1.0] * 3)], "label"),
        ([QUERY, IDS, TEXT, TEXT], "once"),
        ([IDS, TEXT], "query"),
        ([tensor("query", ["alpha"] * 3), IDS, TEXT], "shape"),
        ([QUERY, IDS, {**TEXT, "shape": [2]}], "shape"),
        ([QUERY, IDS, {**TEXT, "shape": [3, 1]}], "shape"),
        ([QUERY, IDS, {**TEXT, "shape": []}], "shape"),
        ([QUERY, IDS, {**TEXT, "shape": [10**30]}], "shape"),
        ([QUERY, IDS, {**TEXT, "shape": [-1]}], "shape"),
        ([QUERY, IDS, {**TEXT, "shape": ["3"]}], "shape"),
        ([QUERY, IDS, tensor("item_text", TEXTS[:2])], "2 values"),
        ([QUERY, tensor("item_id", ["a"]), TEXT], "1 values"),
        ([QUERY, IDS, {**TEXT, "datatype": "FP32"}], "BYTES"),
        ([QUERY, IDS, {**TEXT, "datatype": "UINT8"}], "datatype"),
        ([QUERY, IDS, TEXT, tensor("price", ["1", "2", "3"])], "FP64"),
        ([QUERY, IDS, {**TEXT, "data": [1, 2, 3]}], "item_text"),
        ([QUERY, IDS, {**TEXT, "data": [["alpha"], ["beta"], ["gamma"]]}], "item_text"),
        ([QUERY, IDS, {**TEXT, "data": [None, "a", "b"]}], "data"),
        ([QUERY, IDS, {key: TEXT[key] for key in ("name", "shape", "datatype")}], "data"),
        ([QUERY, IDS, {**TEXT, "bytes": 3}], "bytes"),
        ([QUERY, IDS, tensor("item_text", ["a", " ", "b"])], "item_text"),
        ([QUERY, IDS, tensor("item_text", ["a", "b", "x" * 201])], "item_text"),
        ([tensor("query", ["x" * 201]), IDS, TEXT], "query"),
        (tensors(search(21)), "20 items"),
    ],
)
def test_tensors_that_are_not_the_models_are_refused_with_the_reason(graph, inputs, said):
    response = infer(graph(), inputs)
    assert response.status_code == 422, response.text
    assert said in error(response)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"outputs": [{"name": "probability"}]}, "score, rank, by"),
        ({"outputs": [{}]}, "name"),
        ({"options": {"route": "small"}}, "options"),
        ({"id": 7}, "id:"),
        ({"parameters": []}, "parameters"),
    ],
)
def test_a_request_that_is_not_the_protocols_is_refused_with_the_reason(graph, more, said):
    response = infer(graph(), tensors(search()), **more)
    assert response.status_code == 422, response.text
    assert said in error(response)


@pytest.mark.parametrize("price", ["NaN", "Infinity", "1e999", "1e39", "-1", "1" + "0" * 5000])
def test_numbers_are_finite_and_keep_their_rules(graph, price):
    text = json.dumps({"inputs": [tensor("item_text", ["a"]), tensor("price", [77])]})
    content = text.replace("77", price)
    response = graph().client.post("/v2/models/shop.risk/infer", content=content)
    assert response.status_code == 422, response.text
    assert error(response)


@pytest.mark.parametrize(
    "data", [[1.0], [1.0, 2.0, 3.0], [[1.0], 2.0], [[1.0, True]], [["a", "b"]]]
)
def test_a_vector_is_of_its_size_and_of_numbers(graph, data):
    image = {"name": "image", "shape": [1, 2], "datatype": "FP64", "data": data}
    response = infer(graph(), [tensor("item_text", ["alpha"]), image], "shop.risk")
    assert response.status_code == 422, response.text


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{", {}, 422),
        (b"[]", {}, 422),
        (b"", {}, 422),
        (b'{"inputs": ' + b"[" * 300 + b"]" * 300 + b"}", {}, 422),
        (b" " * 30_000, {}, 413),
        (b"{}", {"content-encoding": "br"}, 415),
        (b"{}xxxx", {"inference-header-content-length": "2"}, 415),
        (b"{}", {"x-deadline-ms": "soon"}, 422),
    ],
)
def test_what_is_refused_elsewhere_is_refused_here_in_the_protocols_form(
    graph, content, headers, status
):
    path = "/v2/models/shop.rank/infer"
    response = graph().client.post(path, content=content, headers=headers)
    assert response.status_code == status, response.text
    assert error(response)


def test_what_there_is_no_room_for_is_refused_before_its_body_is_read(graph, monkeypatch):
    served, asked = graph(), []

    def refuse(task: str, *, deadline: float) -> None:
        asked.append(task)
        raise Overloaded(2.5)

    monkeypatch.setattr(served.engine, "require_room", refuse)
    response = served.client.post("/v2/models/shop.ctr/infer", content=b"no JSON")
    assert (response.status_code, response.headers["retry-after"]) == (503, "3")
    assert "more requests wait" in error(response)
    assert asked == ["ad_ctr"]


def test_a_fault_of_ours_shows_nothing_of_its_inside(graph, monkeypatch):
    served = graph()

    async def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(served.engine, "submit", broken)
    response = infer(served, tensors(search()))
    assert response.status_code == 500
    assert "secret" not in error(response)


def test_all_but_health_needs_a_token(graph):
    hashes = [hashlib.sha256(b"one").hexdigest()]
    served = graph(security={"token_hashes": hashes})
    for path in ("/v2", "/v2/models/shop.rank", "/v2/models/shop.rank/ready"):
        response = served.client.get(path)
        assert (response.status_code, error(response)) == (401, "a bearer token is needed")
        known = {"authorization": "Bearer one"}
        assert served.client.get(path, headers=known).status_code == 200
    assert infer(served, tensors(search())).status_code == 401
    for path in ("live", "ready"):
        assert served.client.get(f"/v2/health/{path}").status_code == 200


# --- labels and forms ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("/v2", "/v2"),
        ("/v2/health/ready", "/v2/health/ready"),
        ("/v2/models/shop.rank/infer", "/v2/models/*.rank/infer"),
        ("/v2/models/made-up.risk/versions/7/infer", "/v2/models/*.risk/infer"),
        ("/v2/models/shop.made-up/infer", "other"),
        ("/v2/models/a/b.rank/infer", "other"),
        ("/v2/models/shop.rank", "other"),
        ("/v1/rank", "/v1/rank"),
    ],
)
def test_clients_can_not_multiply_labels(path, label):
    assert path_label(path) == label


@pytest.mark.parametrize("path", ["/v2", "/v2/", "/v2/nowhere"])
def test_failures_below_v2_have_the_protocols_form(path):
    assert failure_body(path, "busy", "later", "r") == {"error": "later"}


@pytest.mark.parametrize("path", ["/", "/v20", "/v1/v2"])
def test_other_failures_have_ours(path):
    known = {"code": "busy", "message": "later", "request_id": "r" * 128}
    assert failure_body(path, "busy", "later", "r" * 200) == known
