"""Hostile first lines and headers: each is refused, and the next client gets its answer."""

from __future__ import annotations

import gzip

import pytest

from serving.target import CHUNKED, good, request


@pytest.mark.parametrize(
    "data",
    [
        b"\x00" * 1000,
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        request(good(), b"X: a\x00b"),
        request(good(), b"X: a\rb"),
        request(good(), b"X Y: a"),
        request(good(), b": a"),
        request(good(), b"X: " + b"y" * 200_000),
        request(good(), *(b"X%d: y" % n for n in range(20_000))),
        request(good(), path="/v1/rank" + "x" * 200_000),
        request(good(), b"Content-Length: -1", length=False),
        request(good(), b"Content-Length: 1e3", length=False),
        request(good(), b"Content-Length: " + b"9" * 5000, length=False),
        request(good(), b"Content-Length: 5"),
        request(good(), b"Transfer-Encoding: xchunked", length=False),
        request(b"zz\r\n{}\r\n0\r\n\r\n", CHUNKED, length=False),
        request(b"-1\r\n{}\r\n0\r\n\r\n", CHUNKED, length=False),
        request(good(), b"Content-Encoding: gzip"),
        request(gzip.compress(good()), b"Content-Encoding: deflate"),
        request(gzip.compress(good()), b"Content-Encoding: gzip, gzip"),
        request(gzip.compress(gzip.compress(good())), b"Content-Encoding: gzip"),
        request(gzip.compress(good())[:-4], b"Content-Encoding: gzip"),
        request(gzip.compress(good()) * 2, b"Content-Encoding: gzip"),
        request(gzip.compress(b" " * 200_000_000, 9), b"Content-Encoding: gzip"),
        request(good(), b"X-Deadline-Ms: \xff"),
        request(good(), b"X-Deadline-Ms: nan"),
        request(good(), b"Content-Type: text/plain; charset=utf-7").replace(
            b"Content-Type: application/json\r\n", b"", 1
        ),
    ],
    ids=lambda data: repr(data[:1] + data[-60:]),
)
def test_hostile_headers_are_refused(target, data):
    (status,) = target.send(data)
    assert 400 <= status < 500 or status in (501, 505)
    assert target.send(request(good())) == [200]


@pytest.mark.parametrize(
    "header",
    [b"X-Request-Timeout-Seconds: 0.000001", b"X-Request-Timeout-Seconds: \xff",
     b"X-Request-Disconnect-Disabled: \xff", b"X-Session-Id: \xff", b"Traceparent: \xff",
     b"Serve_Multiplexed_Model_Id: \xff", b"Serve-Multiplexed-Model-Id: none"],
)  # fmt: skip
def test_clients_give_no_orders_to_serve(target, header):
    assert target.send(request(good(), header)) == [200]


def test_one_request_never_becomes_two(target):
    # What one server takes for a body, another may take for a request: both lengths are refused.
    hidden = request(token=None, method="GET", path="/healthz")
    both = request(b"0\r\n\r\n" + hidden, CHUNKED)
    assert target.send(both) == [400]
    twice = request(b"{}" + hidden, b"Content-Length: 2")
    assert target.send(twice) == [400]


@pytest.mark.parametrize("request_id", [b"a" * 5000, b"\xff\xfe", b"a, b", b"\x1b[31m", b"%00"])
def test_an_odd_request_id_breaks_nothing(target, request_id):
    for data in (good(), b"{"):
        (status,) = target.send(request(data, b"X-Request-ID: " + request_id))
        assert status in (200, 400, 422)
