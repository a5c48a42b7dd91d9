"""The servers that are measured: each a process group of its own on one core, started and ended.

Cluster     Ray Serve, with the applications of `serve_apps`
LitServe, BentoML     in a virtual environment each (venv.py), with pinned versions
Loop        no server: the model called in a loop, in a process on the same core
"""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.child import Child, Group, parent
from benchmarks.serve_requests import Workload
from benchmarks.serve_scorer import TASK
from rectrain.inference.packaged import load

__all__ = ["FLAGS", "PEERS", "Cluster", "Loop", "Peer", "bentoml", "litserve"]

#: Name -> environment of a Ray cluster.
FLAGS: dict[str, dict[str, str]] = {
    "default": {},
    "fast": {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
}
#: Peer -> what is installed; the rest of what it needs is the product's own.
PEERS = {"litserve": "litserve==0.2.19", "bentoml": "bentoml==1.4.39"}

_START_S = 180.0


class Cluster(Child):
    """Ray Serve.

    Args:
        port: HTTP.
        flags: key of `FLAGS`.
        controller_options: of Serve, which give its proxies the product's layer; none for a peer.
        core, log: see `Group`.
    """

    def __init__(
        self,
        *,
        port: int,
        flags: str,
        controller_options: Mapping[str, Any],
        core: int,
        log: Path,
    ) -> None:
        command = [sys.executable, "-m", "benchmarks.serve_apps"]
        own = {
            **FLAGS[flags],
            "RAY_worker_niceness": "0",  # what ours asks for, for peers on Ray too
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"/tmp/haproxy-{port}/haproxy.cfg",
            "RAY_SERVE_HAPROXY_SOCKET_PATH": f"/tmp/haproxy-{port}/admin.sock",
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"/tmp/haproxy-{port}/metrics.sock",
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": f"/tmp/haproxy-{port}",
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"/tmp/haproxy-{port}/server-state",
            "RAY_SERVE_HAPROXY_STATS_PORT": str(port + 1),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(port + 2),
        }
        options = {
            "http_options": {"host": "127.0.0.1", "port": port},
            "controller_options": dict(controller_options),
        }
        super().__init__(command, given=options, core=core, environment=own, log=log)
        self._address = f"http://127.0.0.1:{port}"

    def deploy(self, name: str, **arguments: Any) -> str:
        """Deploys an application of `serve_apps`, in the place of an older one; its address."""
        prefix: str = self.ask((name, arguments))
        return self._address + prefix


class Peer(Group):
    """A server of another framework, once it answers.

    Attributes:
        url: its address.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        port: int,
        ready: str,
        core: int,
        environment: Mapping[str, str],
        log: Path,
    ) -> None:
        super().__init__(command, core=core, environment=environment, log=log)
        self.url = f"http://127.0.0.1:{port}"
        try:
            _wait(lambda: self._answers(ready))
        except BaseException:
            self.close()
            raise

    def _answers(self, path: str) -> bool:
        if self._process.poll() is not None:
            raise self._ended()
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def _wait(is_there: Callable[[], bool]) -> None:
    end = time.monotonic() + _START_S
    while not is_there():
        if time.monotonic() > end:
            raise RuntimeError(f"a server did not answer within {_START_S:g} s")
        time.sleep(0.2)


def litserve(python: Path, given: dict[str, Any], *, core: int, log: Path) -> Peer:
    """Starts LitServe.

    Args:
        python: of an environment that has it (venv.py).
        given: models, backend, size (of batches), wait_s, port.
    """
    command = [str(python), "-m", "benchmarks.serve_litserve", json.dumps(given)]
    return Peer(command, port=given["port"], ready="/health", core=core, environment={}, log=log)


def bentoml(python: Path, given: dict[str, Any], *, core: int, log: Path) -> Peer:
    """Starts BentoML; arguments as of `litserve`."""
    command = [
        *(str(python), "-m", "bentoml", "serve", "benchmarks.serve_bentoml:Rank"),
        *("--host", "127.0.0.1", "--port", str(given["port"]), "--working-dir", str(Path.cwd())),
    ]
    own = {
        "SERVE_BENCHMARK": json.dumps(given), "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(python.parents[1] / "home"),
    }  # fmt: skip
    return Peer(
        command, port=given["port"], ready="/readyz", core=core, environment=own, log=log
    )  # fmt: skip


class Loop(Child):
    """The model in a loop: what a server could do at most on this core.

    Args:
        model: its package.
        backend: of it.
        core, log: see `Group`.
    """

    def __init__(self, model: str, *, backend: str, core: int, log: Path) -> None:
        code = "from benchmarks.serve_servers import loop; loop()"
        command = [sys.executable, "-c", code]
        super().__init__(command, given=(model, backend), core=core, log=log)

    def measure(self, workload: Workload, *, together: int, seconds: float) -> float:
        """Requests a second.

        Args:
            workload: taken from the first on, again and again.
            together: requests in one call of `predict`.
            seconds: at least so long.
        """
        rate: float = self.ask((workload.rows, together, seconds))
        return rate


def loop() -> None:
    """What the process of `Loop` does."""
    (path, backend), questions, answer = parent()
    model = load(path, backend=backend, threads=1, cached_texts=0)
    answer("ready")
    for requests, together, seconds in questions:
        model.predict(TASK, requests[0])
        done, begun = 0, time.perf_counter()
        while time.perf_counter() < begun + seconds:
            chosen = [requests[(done + n) % len(requests)] for n in range(together)]
            model.predict(TASK, [row for one in chosen for row in one])
            done += together
        answer(done / (time.perf_counter() - begun))
