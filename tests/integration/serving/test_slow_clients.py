"""Clients that are slow, never end or leave: they are refused, and nobody else waits for them."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from serving.target import CHUNKED, chunks, good, request

FEW = 6  # the proxy takes in more requests at a time whatever it learned of the machine


def test_a_body_without_end_is_refused_while_it_comes(target):
    data = request(b"", CHUNKED, length=False) + chunks(b"x" * 50_000).removesuffix(b"0\r\n\r\n")
    assert target.send(data) == [413]


def test_a_slow_body_is_refused_and_others_are_answered_meanwhile(target):
    with ThreadPoolExecutor(FEW) as pool:
        waiting = []
        for begun in [b"", b'{"query": '] * (FEW // 2):
            slow = request(begun, b"Content-Length: 1000", length=False)
            waiting.append(pool.submit(target.send, slow, more=b" " * 900))
        assert target.send(request(good())) == [200]
        assert [one.result() for one in waiting] == [[408]] * len(waiting)


def test_headers_that_never_end_keep_nobody_else_waiting(target):
    with ExitStack() as stack:
        for _ in range(200):
            address = ("127.0.0.1", target.port)
            connection = stack.enter_context(socket.create_connection(address))
            connection.sendall(b"POST /v1/rank HTTP/1.1\r\nHost: a\r\nX: ")
        assert target.send(request(good())) == [200]


def test_clients_that_leave_break_nothing(target):
    data = request(good())
    for cut in range(1, len(data), 17):
        with socket.create_connection(("127.0.0.1", target.port)) as connection:
            connection.sendall(data[:cut])
    for _ in range(20):  # the whole request, but nobody waits for the answer
        with socket.create_connection(("127.0.0.1", target.port)) as connection:
            connection.sendall(data)
    assert target.send(data) == [200]
