"""One request of each kind over HTTP, to two models served as `make serve` serves them.

The demo ends with this; jobs/configs/requests.json has the requests.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rectrain.errors import ResourceError

__all__ = ["REQUESTS", "Asked", "ask", "served"]

REQUESTS = Path(__file__).parent / "configs" / "requests.json"
_ROOT = Path(__file__).parents[1]
_START_S, _STOP_S, _ANSWER_S = 300.0, 60.0, 60.0
_POLL_S = 0.2
_BEST = 3  # items shown
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # this machine: no proxy


@dataclass(frozen=True)
class Asked:
    """A request and its answer.

    Attributes:
        path: below /v1.
        request, answer: JSON objects, as they went over HTTP.
        latency_ms: from the client's side, of a new connection.
    """

    path: str
    request: Mapping[str, Any]
    answer: Mapping[str, Any]
    latency_ms: float

    @property
    def facts(self) -> dict[str, Any]:
        """What a summary says of it."""
        kept = ("model", "deferred", "reason", "confidence", "versions")
        return {**{name: self.answer[name] for name in kept}, "latency_ms": self.latency_ms}

    def lines(self, texts: Mapping[str, str]) -> str:
        """What was asked, what came, from which model and why, in how long; three lines.

        Args:
            texts: item id -> text, of the catalogue.
        """
        facts = {name: value for name, value in self.request.items() if name != "candidates"}
        said = ", ".join(f"{name} {_said(value)}" for name, value in facts.items())
        given = self.request.get("candidates", [])
        best = [
            f"{_value(item)} {_text(item, given, texts)}" for item in self.answer["items"][:_BEST]
        ]
        by = "large" if self.answer["deferred"] else "small"
        why = self.answer["reason"].replace("_", " ")
        return (
            f"{self.path:10}{said}\n{'':10}→ {'; '.join(best)}\n"
            f"{'':12}{by} model ({why}), {self.latency_ms:.0f} ms"
        )


def _said(value: Any) -> str:
    return "; ".join(value) if isinstance(value, list) else str(value)


def _value(item: Mapping[str, Any]) -> str:
    """A probability, or a score that ranks."""
    chance = item["probability"]
    return f"{item['score']:.3f}" if chance is None else f"{chance:.1%}"


def _text(item: Mapping[str, Any], given: Any, texts: Mapping[str, str]) -> str:
    if item["index"] is not None:
        return str(given[item["index"]]["item_text"])
    return texts.get(item["item_id"], item["item_id"])


def ask(address: str, requests: Mapping[str, Mapping[str, Any]]) -> list[Asked]:
    """Asks one after the other.

    Args:
        address: as `http://127.0.0.1:8000`.
        requests: path below /v1 -> body.

    Raises:
        ResourceError: an answer other than 200, in the server's words.
    """
    found = []
    for path, body in requests.items():
        began = time.perf_counter()
        answer = _fetch(f"{address}/v1/{path}", body)
        found.append(Asked(path, body, answer, 1000 * (time.perf_counter() - began)))
    return found


def _fetch(url: str, body: Mapping[str, Any]) -> dict[str, Any]:
    data = json.dumps(body, allow_nan=False).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with _DIRECT.open(request, timeout=_ANSWER_S) as response:
            found: dict[str, Any] = json.load(response)
            return found
    except urllib.error.HTTPError as error:
        raise ResourceError(
            what=f"request to {url}",
            got=f"{error.code} {error.read().decode(errors='replace')}",
            rule="must be answered",
            fix="see the log of the serving graph",
        ) from error


@contextmanager
def served(*, small: Path, large: Path, log: Path, more: Sequence[str] = ()) -> Iterator[str]:
    """The serving graph of two packages on a free port of this machine, in a cluster of its own.

    It is another process, as of `make serve`, and stops with the block.

    Args:
        small, large: folders of the packages.
        log: the file that its output goes to.
        more: further settings.

    Yields:
        Its address; it answers.

    Raises:
        ResourceError: it did not start; its last words.
    """
    address = f"http://127.0.0.1:{_free_port()}"
    command = [
        sys.executable, "-m", "serve.app", f"--models.shop.small={small.absolute()}",
        f"--models.shop.large={large.absolute()}", f"--http.port={address.rpartition(':')[2]}",
        *more,
    ]  # fmt: skip
    # Not on the cluster of RAY_ADDRESS: it may serve something else, and this stops it at its end.
    alone = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=_ROOT, env=alone, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C is for the demo, which then stops it
        )  # fmt: skip
    try:
        _wait(process, address, log)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Until the graph may answer."""
    latest = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < latest:
        try:
            with _DIRECT.open(f"{address}/readyz", timeout=_ANSWER_S):
                return
        except OSError:  # nobody listens yet, or 503
            time.sleep(_POLL_S)
    ended = f"no answer in {_START_S:g} s"
    if process.poll() is not None:
        ended = f"exit status {process.returncode}"
    words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    raise ResourceError(
        what=f"serving {address}",
        got=f"{ended}: {words[-1] if words else 'not a word'}",
        rule="must be ready to answer",
        fix=f"see {log}",
    )
