"""Hostile bodies, numbers out of range, compression; and what a refusal shows."""

from __future__ import annotations

import gzip
import json
import re

import pytest
import requests
from served_toy import search

from serving.target import CHUNKED, TOKENS, chunks, good, request


def nested(levels: int, kind: str = "[]") -> bytes:
    opened = '{"a":' if kind == "{}" else "["
    closed = "}" if kind == "{}" else "]"
    return f'{{"query": {opened * levels}1{closed * levels}}}'.encode()


@pytest.mark.parametrize(
    ("body", "statuses"),
    [
        (b"x" * 20_001, {413}),
        (b" " * 20_000, {422}),
        (nested(250), {422}),
        (nested(9_000), {422}),
        (nested(3_000, "{}"), {422}),
        (b'{"query": "\xff\xfe", "candidates": []}', {422}),
        (good().decode().encode("utf-16"), {422}),
        (b"\xef\xbb\xbf" + good(), {422}),
        (good().replace(b"alpha gamma", b"\\ud800"), {422}),
        (good().replace(b"alpha gamma", b"\xed\xa0\x80"), {422}),
        (good().replace(b"alpha gamma", b"\\u0000"), {200}),
        (good()[:-1] + b', "k": NaN}', {422}),
        (b"Infinity", {422}),
        (b"-" + b"9" * 10_000, {422}),
        (b'{"a":' * 1_000, {422}),
        (b"[" * 10_000, {422}),
        (b"null", {422}),
        (b'"' + b"\\" * 9_999 + b'"', {422}),
        (b'{"query": "a", "query": "", "candidates": []}', {422}),
        (good() + good(), {422}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_hostile_bodies_are_refused(target, body, statuses):
    assert set(target.send(request(body))) == statuses
    assert set(target.send(request(chunks(body), CHUNKED, length=False))) == statuses


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 5000])
def test_numbers_are_finite(target, number):
    body = f'{{"candidates": [{{"item_text": "a", "price": {number}}}]}}'.encode()
    assert target.send(request(body, path="/v1/risk")) == [422]


def test_of_a_key_that_stands_twice_the_last_counts(target):
    body = good(query="")[:-1] + b', "query": "alpha"}'
    assert target.send(request(body)) == [200]


def test_bodies_may_be_gzip_both_ways(target):
    body = {**search(50), "options": {"timings": True}}
    packed = gzip.compress(json.dumps(body).encode())
    response = requests.post(
        f"{target.url}/v1/rank",
        data=packed,
        headers={"Authorization": f"Bearer {TOKENS[0]}", "Content-Type": "application/json",
                 "Content-Encoding": "gzip", "Accept-Encoding": "gzip"},
        timeout=60,
    )  # fmt: skip
    assert response.headers["content-encoding"] == "gzip"
    assert int(response.headers["content-length"]) < len(response.content)
    assert len(response.json()["items"]) == 50
    plain = target.ask("/v1/rank", body, **{"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers


def test_a_failure_names_its_request_and_shows_nothing_of_the_inside(target):
    for body in ({}, {"query": 5}, {"candidates": "x"}):
        response = target.ask("/v1/rank", body)
        failure = response.json()
        assert set(failure) == {"code", "message", "request_id"}
        assert failure["request_id"] == response.headers["x-request-id"]
        assert not re.search(r"Traceback|File \"|\.py|pydantic", response.text)
