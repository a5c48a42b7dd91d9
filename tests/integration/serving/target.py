"""The application under test as a client sees it, and requests as raw bytes.

Those go over a plain socket, so that no library mends them on the way.
"""

from __future__ import annotations

import json
import re
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import requests
from served_toy import search

from serve.config import Settings

TOKENS = ("first long random token", "second long random token")
CHUNKED = b"Transfer-Encoding: chunked"
T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """An application that runs.

    Attributes:
        settings: of it.
        folder: Ray's temporary one.
    """

    settings: Settings
    folder: Path

    @property
    def port(self) -> int:
        """TCP port of HTTP."""
        return self.settings.http.port

    @property
    def url(self) -> str:
        """Scheme, host and port."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def discovery(self) -> Path:
        """The file in which Ray tells Prometheus what to read; it comes after the start."""
        return self.folder / "prom_metrics_service_discovery.json"

    def scraped(self) -> list[str]:
        """Addresses in `discovery`."""
        if not self.discovery.is_file():
            return []
        groups = json.loads(self.discovery.read_text(encoding="utf-8"))
        return [address for group in groups for address in group["targets"]]

    def ask(self, path: str, body: Any = None, **headers: str) -> requests.Response:
        """A request of a well-behaved client, with a token."""
        headers = {"Authorization": f"Bearer {TOKENS[1]}", **headers}
        method = "GET" if body is None else "POST"
        return requests.request(method, self.url + path, json=body, headers=headers, timeout=60)

    def send(self, data: bytes, *, more: bytes = b"") -> list[int]:
        """Statuses of the answers to raw bytes, until the server closes.

        Args:
            data: sent at once.
            more: sent bit by bit, until there is an answer.

        Raises:
            ConnectionResetError: the server cut the connection without an answer.
        """
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            # A server need not read to its end what it refuses: its answer is there to be read.
            with suppress(ConnectionResetError, BrokenPipeError):
                connection.sendall(data)
                for byte in more:
                    if select.select([connection], [], [], 0.1)[0]:
                        break
                    connection.sendall(bytes([byte]))
            answer = _read(connection)
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d\d\d)", answer)]


def _read(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    answer = b""
    try:
        while block := connection.recv(65536):
            answer += block
    except ConnectionResetError:  # so a server ends that left something unread
        if not answer:
            raise
    return answer


def request(
    body: bytes = b"",
    *headers: bytes,
    path: str = "/v1/rank",
    method: str = "POST",
    token: bytes | None = TOKENS[0].encode(),
    length: bool = True,
) -> bytes:
    """A request as bytes, after which the connection is closed.

    Args:
        body: as sent.
        headers: further ones.
        path, method: of its first line.
        token: None: without Authorization.
        length: whether it has a Content-Length.
    """
    lines = [f"{method} {path} HTTP/1.1".encode("latin-1"), b"Host: a", b"Connection: close"]
    lines += [b"Authorization: Bearer " + token] if token is not None else []
    lines += [b"Content-Type: application/json"] if body else []
    lines += [f"Content-Length: {len(body)}".encode()] if length else []
    return b"\r\n".join([*lines, *headers, b"", body])


def good(**more: Any) -> bytes:
    """A body that /v1/rank answers."""
    return json.dumps({**search(2), **more}).encode()


def chunks(*blocks: bytes) -> bytes:
    """A body in HTTP's chunks."""
    return b"".join(b"%x\r\n%s\r\n" % (len(block), block) for block in (*blocks, b""))


def wait_for(fetch: Callable[[], T], *, what: str, within_s: float = 120) -> T:
    """What a function gives, once that is something.

    Raises:
        TimeoutError: it stays nothing.
    """
    end = time.monotonic() + within_s
    while not (found := fetch()):
        if time.monotonic() > end:
            raise TimeoutError(f"after {within_s:g} s still waiting for {what}")
        time.sleep(1)
    return found
