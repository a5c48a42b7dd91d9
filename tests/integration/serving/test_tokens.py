"""Tokens: what is open without one, and that nothing but a known one opens the rest."""

from __future__ import annotations

import hashlib

import pytest

from serve.guard import OPEN_PATHS
from serve.proxy import HEALTH_PATHS
from serving.target import TOKENS, Target, good, request


def routes(target: Target) -> list[tuple[str, str]]:
    paths = target.ask("/openapi.json").json()["paths"]
    known = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    return [*known, ("GET", "/openapi.json"), ("GET", "/nowhere")]


def test_all_but_health_and_the_page_needs_a_token(target):
    found = {
        path: target.send(request(token=None, method=method, path=path))
        for method, path in routes(target)
    }
    free = {path for path, statuses in found.items() if statuses == [200]}
    assert free == set(HEALTH_PATHS)
    assert all(statuses == [401] for path, statuses in found.items() if path not in free)
    assert [target.send(request(token=None, method="GET", path=path)) for path in OPEN_PATHS] == [
        [200]
    ] * len(OPEN_PATHS)


def test_the_openapi_says_where_a_token_is_needed(target):
    document = target.ask("/openapi.json").json()
    secured = {
        path for path, methods in document["paths"].items()
        if all(one.get("security") for one in methods.values())
    }  # fmt: skip
    assert set(document["paths"]) - secured == set(HEALTH_PATHS)


@pytest.mark.parametrize(
    "path",
    ["//", "//v1/models", "/healthz/../v1/models", "/%2e%2e/v1/models", "/v1/models/", "/healthz/",
     "/readyz%00", "/HEALTHZ", "/v1/models?/healthz", "/healthz;/v1/models", "/v1/models#/healthz",
     "http://a/v1/models", "*", "/-/../v1/models"],
)  # fmt: skip
def test_no_spelling_of_a_path_gets_around_the_token(target, path):
    (status,) = target.send(request(token=None, method="GET", path=path))
    assert status in (400, 401, 404), status


@pytest.mark.parametrize(
    ("headers", "statuses"),
    [
        ([b"Authorization: Bearer " + TOKENS[0].encode()], [200]),
        ([b"authorization: bEARER " + TOKENS[1].encode()], [200]),
        ([], [401]),
        ([b"Authorization:"], [401]),
        ([b"Authorization: Bearer"], [401]),
        ([b"Authorization: Bearer wrong"], [401]),
        ([b"Authorization: " + TOKENS[0].encode()], [401]),
        ([b"Authorization: Basic " + TOKENS[0].encode()], [401]),
        ([b"Authorization: Bearer " + hashlib.sha256(TOKENS[0].encode()).hexdigest().encode()],
         [401]),
        ([b"Authorization: Bearer " + TOKENS[0].encode()[:-1]], [401]),
        ([b"Authorization: Bearer " + TOKENS[0].encode() + b"," + TOKENS[1].encode()], [401]),
        ([b"Authorization: Bearer \xff\xfe"], [401]),
        ([b"Authorization: Bearer wrong", b"Authorization: Bearer " + TOKENS[0].encode()], [401]),
        ([b"Proxy-Authorization: Bearer " + TOKENS[0].encode()], [401]),
        ([b"Cookie: Authorization=Bearer " + TOKENS[0].encode()], [401]),
        ([b"Authorization: Bearer " + b"x" * 20_000], [401]),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_only_a_bearer_token_that_is_known_is_one(target, headers, statuses):
    assert target.send(request(good(), *headers, token=None)) == statuses


def test_a_web_socket_gets_nowhere_without_a_token(target):
    upgrade = [b"Upgrade: websocket", b"Sec-WebSocket-Version: 13",
               b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]  # fmt: skip
    data = request(b"", *upgrade, method="GET", token=None, length=False)
    data = data.replace(b"Connection: close", b"Connection: Upgrade")
    (status,) = target.send(data)
    assert status in (400, 401, 403, 404), status
