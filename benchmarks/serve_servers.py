"""The servers that are measured: each a process group of its own on one core, started and ended.

Cluster     Ray Serve, with the applications of `serve_apps`
LitServe, BentoML     in a virtual environment each, made here, with pinned versions
Loop        no server: the model called in a loop, in a process on the same core
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import psutil

from benchmarks.serve_requests import Workload
from benchmarks.serve_scorer import TASK
from rectrain.inference.packaged import load

__all__ = ["FLAGS", "PEERS", "Cluster", "Loop", "Peer", "bentoml", "litserve", "make_venv"]

#: Name -> environment of a Ray cluster.
FLAGS: dict[str, dict[str, str]] = {
    "default": {},
    "fast": {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
}
#: Peer -> what is installed; the rest of what it needs is the product's own.
PEERS = {"litserve": "litserve==0.2.19", "bentoml": "bentoml==1.4.39"}

_STOP_S, _START_S = 60.0, 180.0
_FOLDER = Path(__file__).parent
S = TypeVar("S", bound="_Process")


class _Process:
    """A process group on one core, that is ended with all that it started.

    Args:
        command: of it.
        core: the only one that it and its children run on.
        environment: beside this process's.
        log: takes what it prints.
    """

    _ends_with_stdin = True  # else it is asked by a signal

    def __init__(
        self, command: Sequence[str], *, core: int, environment: Mapping[str, str], log: Path
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("wb"),
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
            process_group=0,
            text=True,
        )

    def __enter__(self: S) -> S:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends it: asks, waits, then kills what is left of it."""
        found = [self._process.pid]
        with suppress(psutil.NoSuchProcess):
            found += [one.pid for one in psutil.Process(self._process.pid).children(recursive=True)]
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            if not self._ends_with_stdin:
                self._process.terminate()
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        left = [psutil.Process(pid) for pid in found if psutil.pid_exists(pid)]
        for one in psutil.wait_procs(left, timeout=5)[1]:
            with suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL)
        self._process.stdout.close()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} ended; see {self._log}")
        return line.strip()

    def _tell(self, message: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()


class Cluster(_Process):
    """Ray Serve.

    Args:
        port: HTTP.
        flags: key of `FLAGS`.
        core, log: see above.
    """

    def __init__(self, *, port: int, flags: str, core: int, log: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.serve_apps"]
        own = {
            **FLAGS[flags],
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"/tmp/haproxy-{port}/haproxy.cfg",
            "RAY_SERVE_HAPROXY_SOCKET_PATH": f"/tmp/haproxy-{port}/admin.sock",
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"/tmp/haproxy-{port}/metrics.sock",
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": f"/tmp/haproxy-{port}",
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"/tmp/haproxy-{port}/server-state",
            "RAY_SERVE_HAPROXY_STATS_PORT": str(port + 1),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(port + 2),
        }
        super().__init__(command, core=core, environment=own, log=log)
        self._address = f"http://127.0.0.1:{port}"
        self._tell({"host": "127.0.0.1", "port": port})
        self._line()

    def deploy(self, name: str, **arguments: Any) -> str:
        """Deploys an application of `serve_apps`, in the place of an older one; its address."""
        self._tell([name, arguments])
        return self._address + self._line()


class Peer(_Process):
    """A server of another framework, once it answers.

    Attributes:
        url: its address.
    """

    _ends_with_stdin = False

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
        path = os.pathsep.join([str(_FOLDER.parent), os.environ.get("PYTHONPATH", "")])
        environment = {**environment, "PYTHONPATH": path.rstrip(os.pathsep)}
        super().__init__(command, core=core, environment=environment, log=log)
        self.url = f"http://127.0.0.1:{port}"
        try:
            _wait(lambda: self._answers(ready))
        except BaseException:
            self.close()
            raise

    def _answers(self, path: str) -> bool:
        if self._process.poll() is not None:
            raise RuntimeError(f"{self._process.args} ended; see {self._log}")
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


def litserve(venv: Path, given: dict[str, Any], *, core: int, log: Path) -> Peer:
    """Starts LitServe.

    Args:
        venv: see `make_venv`.
        given: models, backend, size (of batches), wait_s, port.
    """
    command = [str(venv / "bin/python"), "-m", "benchmarks.serve_litserve", json.dumps(given)]
    return Peer(command, port=given["port"], ready="/health", core=core, environment={}, log=log)


def bentoml(venv: Path, given: dict[str, Any], *, core: int, log: Path) -> Peer:
    """Starts BentoML; arguments as of `litserve`."""
    command = [
        *(str(venv / "bin/python"), "-m", "bentoml", "serve", "benchmarks.serve_bentoml:Rank"),
        *("--host", "127.0.0.1", "--port", str(given["port"]), "--working-dir", str(Path.cwd())),
    ]
    own = {
        "SERVE_BENCHMARK": json.dumps(given), "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(venv / "home"),
    }  # fmt: skip
    return Peer(
        command, port=given["port"], ready="/readyz", core=core, environment=own, log=log
    )  # fmt: skip


def make_venv(folder: Path, requirement: str) -> Path:
    """A virtual environment with a peer, unless it is there; what else it needs is found in the
    packages of this one, behind its own."""
    done = folder / ".done"
    if done.is_file() and done.read_text() == requirement:
        return folder
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    packages = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    Path(packages, "zz_product.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", requirement]
    subprocess.run(pip, check=True)
    done.write_text(requirement)
    return folder


class Loop(_Process):
    """The model in a loop: what a server could do at most on this core.

    Args:
        model: its package.
        backend: of it.
        core, log: see above.
    """

    def __init__(self, model: str, *, backend: str, core: int, log: Path) -> None:
        code = "from benchmarks.serve_servers import loop; loop()"
        command = [sys.executable, "-c", code]
        super().__init__(command, core=core, environment={}, log=log)
        self._tell([model, backend])
        self._line()

    def measure(self, workload: Workload, *, together: int, seconds: float) -> float:
        """Requests a second.

        Args:
            workload: taken from the first on, again and again.
            together: requests in one call of `predict`.
            seconds: at least so long.
        """
        self._tell([workload.rows, together, seconds])
        return float(self._line())


def loop() -> None:
    """What the process of `Loop` does."""
    answers, sys.stdout = sys.stdout, sys.stderr
    path, backend = json.loads(sys.stdin.readline())
    model = load(path, backend=backend, threads=1, cached_texts=0)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        requests, together, seconds = json.loads(line)
        model.predict(TASK, requests[0])
        done, begun = 0, time.perf_counter()
        while time.perf_counter() < begun + seconds:
            chosen = [requests[(done + n) % len(requests)] for n in range(together)]
            model.predict(TASK, [row for one in chosen for row in one])
            done += together
        print(done / (time.perf_counter() - begun), file=answers, flush=True)
