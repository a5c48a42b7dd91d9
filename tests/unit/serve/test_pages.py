"""The pages as a client sees them, and the samples that the shop asks about."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest

from rectrain.data.simulate import SIZES
from rectrain.data.simulate.catalogue import make_catalogue
from serve.samples import samples, size_of


def demo_ids(size: str = "tiny") -> list[str]:
    return list(make_catalogue(SIZES[size].num_items, seed=0).item_id.to_pylist())


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_nothing_runs_in_a_page_but_what_its_policy_names(graph, path):
    page = graph().client.get(path)
    policy = dict(one.split(" ", 1) for one in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in str(policy)
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        (inline,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy[directive]
    assert not re.search(r"\son\w+=|style=", page.text)


@pytest.mark.parametrize("path", ["/", "/docs", "/docs/swagger-ui.css"])
def test_a_page_is_neither_framed_nor_taken_for_something_else(graph, path):
    headers = graph().client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"


def test_the_documentation_brings_its_own_files(graph):
    client = graph().client
    page = client.get("/docs").text
    assert "https://" not in page and "http://" not in page
    for name in re.findall(r'(?:src|href)="(docs/[^"]+)"', page):
        assert client.get(f"/{name}").status_code == 200


@pytest.mark.parametrize(
    ("ids", "size"),
    [
        (demo_ids(), "tiny"),
        (demo_ids()[:150], "tiny"),  # an index lacks what nobody bought
        (demo_ids()[:20], None),
        (demo_ids("demo"), "demo"),
        ([*demo_ids(), "sku-1"], None),
        ([], None),
    ],
)
def test_a_catalogue_is_known_by_its_ids(ids, size):
    assert size_of(ids) == size


def test_products_are_named_only_where_the_catalogue_is_theirs(graph):
    found = samples({"mine": ["sku-1"], "demo": demo_ids()}, max_candidates=5)
    assert b'"named": ["demo"]' in found and b'"max_candidates": 5' in found
    assert graph().client.get("/samples").json()["named"] == []


def test_every_sample_is_a_request_that_the_server_takes(graph):
    served = graph()
    given = served.client.get("/samples").json()
    (facts,) = served.client.get("/v1/models").json()

    def known(path, row):
        return {name: row[name] for name in facts["fields"][path] if row.get(name) is not None}

    products = [
        dict(zip(given["products"], row, strict=True))
        for row in zip(*given["products"].values(), strict=True)
    ]
    by_id = {one["item_id"]: one for one in products}
    for search in given["searches"]:
        rows = [known("rank", by_id[item]) for item in search["item_ids"]]
        assert len(rows) == len(search["gains"])
        body = {"query": search["query"], "candidates": rows}
        answer = served.post("/v1/rank", body)
        assert answer.status_code == 200, answer.text
    for shopper in given["shoppers"]:
        body = {"history": shopper["history"], **known("recommend", shopper)}
        assert served.post("/v1/recommend", body).status_code == 200
    orders = [known("risk", order) for order in given["orders"]]
    assert served.post("/v1/risk", {"candidates": orders}).status_code == 200
    risks = [order["p_true"] for order in given["orders"]]
    assert risks == sorted(risks) and risks[-1] > 5 * risks[0]
