"""R2: the head node is killed, and comes back with what Redis kept; another node serves on.

Two Ray nodes on this machine: the head (no CPUs, so no replicas) and another one with all replicas
and a proxy of its own, which the load goes to. Needs a `redis-server` program.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from benchmarks.faults_graph import Graph, processes
from benchmarks.faults_rounds import Bench, figure
from benchmarks.table import Figure
from serve.config import Settings

__all__ = ["head_killed"]

_WITHIN_S = 60.0  # the bound of R2
_STORE_BYTES = 100_000_000
_START = """
import sys
from serve.app import start
from serve.config import Settings
start(Settings.model_validate_json(sys.argv[1]))
import ray
print(ray._private.worker._global_node.get_session_dir_path())
"""
_JOIN = """
import ray, time
while not ray.is_initialized():
    try:
        ray.init(address="auto", log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError):  # it is not up yet
        time.sleep(0.2)
"""
_STATUS = f"""
{_JOIN}
from ray import serve
from serve.config import APPLICATION
while True:
    found = serve.status().applications.get(APPLICATION)
    if found is not None and found.status == "RUNNING":
        break
    time.sleep(0.2)
"""


def head_killed(make: Callable[..., Bench], settings: Settings) -> list[Figure]:
    """The head killed and started again at once, while a load runs on the other node.

    Args:
        make: a bench of a graph.
        settings: of the graph; the next ten ports after its own are used too.
    """
    port = settings.http.port
    with ExitStack() as stack:
        stack.enter_context(_process(_redis_command(port)))
        # Each head gets a folder: one that finds another node's there thinks itself running.
        first, second = (stack.enter_context(_folder()) for _ in range(2))
        env = _environment(port)
        head = stack.enter_context(_head(env, port, first))
        other = stack.enter_context(_process(_node_command(port), env=env))
        found = _python(_START, settings.model_dump_json(), env=env)
        served = settings.model_copy(
            update={"http": settings.http.model_copy(update={"port": port + 1})}
        )
        (raylet,) = processes(other.pid, "raylet")[:1]
        logs = Path(found.splitlines()[-1]) / "logs" / "serve"
        bench = make(graph=Graph(served, raylet, logs))
        load = bench.load(connections=4, duration_s=2 * bench.size.steady_s + _WITHIN_S)
        with bench.under(load) as outcomes:
            time.sleep(bench.size.steady_s)
            killed = time.monotonic()
            _end(head.pid)
            stack.enter_context(_head(env, port, second))
            _python(_STATUS, env=env)
            back_s = time.monotonic() - killed
        verdict = bench.judge(load.prefix, outcomes)
    print(f"R2 head killed, control plane back after {back_s:.1f} s: {verdict}", flush=True)
    failed = verdict.num_requests - verdict.num_ok
    return [
        figure("R2/head_failed", failed, "", f"of {verdict.num_requests} requests on another node"),
        figure("R2/head_s", back_s, "s", "until the control plane is back"),
    ]


def _environment(port: int) -> dict[str, str]:
    return {
        **os.environ,
        "RAY_REDIS_ADDRESS": f"127.0.0.1:{port + 2}",
        "RAY_external_storage_namespace": f"faults-{os.getpid()}",
        "RAY_ADDRESS": f"127.0.0.1:{port + 3}",
        "RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(port + 1),  # both nodes are one machine
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PYTHONPATH": str(Path.cwd()),
    }


@contextmanager
def _head(env: Mapping[str, str], port: int, folder: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [
        *("--head", f"--port={port + 3}", "--num-cpus=0", "--include-dashboard=false"),
        f"--temp-dir={folder}",
        *(f"--ray-client-server-port={port + 4}", f"--dashboard-agent-listen-port={port + 5}"),
    ]
    environment = {name: value for name, value in env.items() if name != "RAY_ADDRESS"}
    with _process(_ray(command), env=environment) as process:
        _python(_JOIN, env=env)
        yield process


def _folder() -> tempfile.TemporaryDirectory[str]:
    # Short: the paths of Unix sockets below it may have 107 bytes.
    return tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True)


def _redis_command(port: int) -> list[str]:
    return ["redis-server", "--bind", "127.0.0.1", "--port", str(port + 2), "--save", ""]


def _node_command(port: int) -> list[str]:
    return _ray([f"--address=127.0.0.1:{port + 3}", f"--dashboard-agent-listen-port={port + 6}"])


def _ray(arguments: Sequence[str]) -> list[str]:
    ray = str(Path(sys.executable).with_name("ray"))
    return [ray, "start", "--block", f"--object-store-memory={_STORE_BYTES}", *arguments]


@contextmanager
def _process(
    command: Sequence[str], *, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the context, and all that it started with it."""
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            _end(process.pid)


def _end(pid: int) -> None:
    """Kills a process and all below it; does nothing where it has ended."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for one in family:
        if one.is_running():
            one.send_signal(signal.SIGKILL)


def _python(code: str, *arguments: str, env: Mapping[str, str]) -> str:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, timeout=180)
    return done.stdout.decode()
