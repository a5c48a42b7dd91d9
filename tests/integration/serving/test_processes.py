"""The processes that answer requests."""

from __future__ import annotations

import psutil


def test_those_that_answer_have_the_niceness_of_an_ordinary_server(target):
    """And not that of Ray's bulk work, which stands behind everything else on a busy core."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        name = " ".join(process.cmdline())
        for kind in ("ProxyActor", "ServeReplica:rectrain:Ingress", "ServeReplica:rectrain:Large"):
            if name.startswith(f"ray::{kind}"):
                found[kind] = process.nice()
    assert len(found) == 3, found
    assert set(found.values()) == {0}
