"""The demo's end: two packages served in a process of their own, asked over HTTP, and stopped."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
from served_toy import write_deferring_pair

from jobs.ask import REQUESTS, ask, served


def test_each_request_of_the_demo_is_answered_and_the_graph_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # of a cluster that must be left alone
    packages = write_deferring_pair(tmp_path)
    small, large = packages["small"], packages["large"]
    log = tmp_path / "serve.log"
    requests = json.loads(REQUESTS.read_text(encoding="utf-8"))
    with served(small=small.path, large=large.path, log=log) as address:
        answers = ask(address, requests)
    for one in answers:
        assert one.answer["versions"] == {"small": small.version, "large": large.version}
        assert one.answer["reason"] == "doubtful" and one.facts["deferred"]
        assert len(one.answer["items"]) == len(one.request.get("candidates", "123"))
        assert one.lines({}).splitlines()[-1].strip().startswith("large model (doubtful)")
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{address}/readyz", timeout=10)
    assert "finishing what was begun" in log.read_text(encoding="utf-8")
