"""The Open Inference Protocol, driven by a client that was written for another server: Triton's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from served_toy import offline, search
from tensors_toy import tensors
from tritonclient.utils import InferenceServerException

import rectrain
from serving.target import TOKENS, Target

BODIES = {
    "rank": ("search_ranking", search(6)),
    "ctr": (
        "ad_ctr",
        {
            "user_id": "u",
            "history": ["alpha", "beta"],
            "candidates": [
                {"item_id": "a", "item_text": "gamma", "position": 0.0},
                {"item_id": "b", "item_text": "delta", "position": 2.0},
            ],
        },
    ),
    "risk": (
        "risk",
        {
            "country": "DE",
            "candidates": [
                {"item_text": "beta", "price": 3.5, "image": [0.5, -1.0]},
                {"item_text": "eta", "price": 0.0, "image": [2.0, 1.0]},
            ],
        },
    ),
}


@pytest.fixture
def client(target: Target) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{target.port}", concurrency=4) as client:
        yield client


def token() -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKENS[0]}"}


def inputs(body: Mapping[str, Any], *, is_binary: bool = False) -> list[triton.InferInput]:
    made = []
    for one in tensors(body):
        values = np.array(one["data"], dtype=object if one["datatype"] == "BYTES" else np.float64)
        made.append(triton.InferInput(one["name"], list(values.shape), one["datatype"]))
        made[-1].set_data_from_numpy(values, binary_data=is_binary)
    return made


def test_it_learns_what_the_server_has(client):
    assert client.is_server_live() and client.is_server_ready()
    assert client.get_server_metadata(headers=token())["name"] == "rectrain"
    told = client.get_model_metadata("shop.rank", headers=token())
    (version,) = told["versions"]
    assert {"name": "query", "datatype": "BYTES", "shape": [1]} in told["inputs"]
    assert client.get_model_metadata("shop.rank", version, headers=token()) == told
    assert client.is_model_ready("shop.rank", version, headers=token())
    assert not client.is_model_ready("shop.rank", "7", headers=token())
    assert not client.is_model_ready("made-up.rank", headers=token())


@pytest.mark.parametrize("path", BODIES)
def test_scores_of_a_lone_model_are_its_own_offline(client, target, path):
    task, body = BODIES[path]
    model = rectrain.load(target.settings.models["bare"].small, threads=1)
    result = client.infer(f"bare.{path}", inputs(body), headers=token(), request_id="a 1")
    np.testing.assert_allclose(result.as_numpy("score"), offline(model, task, body), atol=1e-6)
    answer = result.get_response()
    assert (answer["model_version"], answer["id"]) == (model.version, "a 1")


@pytest.mark.parametrize("path", BODIES)
def test_a_pair_answers_as_it_does_in_v1(client, target, path):
    _, body = BODIES[path]
    known = target.ask(f"/v1/{path}", body).json()
    wanted = [triton.InferRequestedOutput(name, binary_data=False) for name in ("score", "by")]
    result = client.infer(
        f"shop.{path}",
        inputs(body),
        outputs=wanted,
        headers=token(),
        request_compression_algorithm="gzip",
        response_compression_algorithm="gzip",
    )
    items = sorted(known["items"], key=lambda item: item["index"])
    assert "large" in result.as_numpy("by").tolist()
    assert result.as_numpy("by").tolist() == [item["by"] for item in items]
    np.testing.assert_allclose(
        result.as_numpy("score"), [item["score"] for item in items], atol=1e-9
    )


def test_many_at_a_time_get_their_own_answers(client):
    bodies = [search(count) for count in range(1, 9)]
    asked = [client.async_infer("bare.rank", inputs(one), headers=token()) for one in bodies]
    ranks = [one.get_result().as_numpy("rank") for one in asked]
    assert [sorted(one.tolist()) for one in ranks] == [list(range(n)) for n in range(1, 9)]


def test_it_understands_refusals(client):
    asked = inputs(search())
    cases = [
        ("401", "token", {"inputs": asked}),
        ("404", "shop.rank", {"inputs": asked, "headers": token(), "model_version": "7"}),
        ("415", "binary_data=False", {"inputs": inputs(search(), is_binary=True),
                                      "headers": token()}),
        ("422", "query", {"inputs": asked[1:], "headers": token()}),
        ("422", "x-deadline-ms", {"inputs": asked, "headers": {**token(), "x-deadline-ms": "0"}}),
    ]  # fmt: skip
    for status, said, given in cases:
        with pytest.raises(InferenceServerException) as refused:
            client.infer("shop.rank", **given)
        assert refused.value.status() == status
        assert said in refused.value.message()
