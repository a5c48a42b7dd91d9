"""What the demo asks and says, and that the README's commands send just that."""

from __future__ import annotations

import json
import re
import shlex
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from jobs.ask import REQUESTS, Asked, ask, served
from rectrain.errors import ResourceError

README = Path(__file__).parents[3] / "README.md"
LIST = {
    "items": [
        {"index": None, "item_id": "i1", "score": 2.5, "probability": None},
        {"index": None, "item_id": "i2", "score": 1.0, "probability": None},
    ],
    "deferred": True,
    "reason": "over_budget",
}


class Echo(BaseHTTPRequestHandler):
    """Answers with the request's path and body; 422 to what has no query."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, answer = (200, {"path": self.path, "got": body}) if "query" in body else (422, "no")
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a test's output is its own."""


@pytest.fixture
def echo() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_each_request_goes_to_its_path(echo: str) -> None:
    bodies = {"rank": {"query": "mug"}, "ctr": {"query": "näve"}}
    answers = ask(echo, bodies)
    assert [one.answer for one in answers] == [
        {"path": f"/v1/{path}", "got": body} for path, body in bodies.items()
    ]
    assert all(one.latency_ms > 0 for one in answers)


def test_a_refusal_is_told_in_the_servers_words(echo: str) -> None:
    with pytest.raises(ResourceError, match='/v1/risk: got 422 "no"'):
        ask(echo, {"risk": {}})


def test_a_list_is_said_with_the_texts_of_the_catalogue() -> None:
    one = Asked("recommend", {"history": ["a mug", "a cup"], "k": 2}, LIST, 12.3)
    assert one.lines({"i1": "a teapot"}).splitlines() == [
        "recommend history a mug; a cup, k 2",
        "          → 2.500 a teapot; 1.000 i2",
        "            large model (over budget), 12 ms",
    ]


def test_probabilities_are_said_with_the_texts_of_the_request() -> None:
    items = [{"index": 0, "item_id": None, "score": 0.2, "probability": 0.125}]
    request = {"country": "DE", "candidates": [{"item_text": "a watch"}]}
    answer = {"items": items, "deferred": False, "reason": "confident"}
    lines = Asked("risk", request, answer, 1.0).lines({}).splitlines()
    assert lines[0].split() == ["risk", "country", "DE"]
    assert lines[1:] == ["          → 12.5% a watch", "            small model (confident), 1 ms"]


def test_a_graph_that_does_not_start_is_one_line_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/ls")  # knows none of these options, and ends
    log = tmp_path / "serve.log"
    with (
        pytest.raises(ResourceError, match=r"exit status 2: Try .*help") as told,
        served(small=tmp_path, large=tmp_path, log=log),
    ):
        pytest.fail("nothing was served")
    assert "\n" not in str(told.value) and str(log) in str(told.value)


def test_the_readmes_commands_ask_what_the_demo_asks() -> None:
    text = README.read_text(encoding="utf-8")
    found = {}
    for command in re.findall(r"^    (curl .*?'(?s:.*?)')$", text, flags=re.MULTILINE):
        words = shlex.split(command)
        address, body = words[2], words[words.index("-d") + 1]
        assert address.startswith("localhost:8000/v1/")
        found[address.rpartition("/")[2]] = json.loads(body)
    assert found == json.loads(REQUESTS.read_text(encoding="utf-8"))
