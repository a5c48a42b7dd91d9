"""A serving graph to be harmed: started here, watched, its processes found and killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from serve.app import start
from serve.config import APPLICATION, Settings

__all__ = ["Graph", "Watch", "processes", "running", "wait_for"]

_PERIOD_S = 0.5


@dataclass
class Graph:
    """A graph that runs.

    Attributes:
        settings: of what serves.
        raylet: process id; all of Serve's processes of this node descend from it.
        logs: folder of Serve's logs.
    """

    settings: Settings
    raylet: int
    logs: Path

    @property
    def url(self) -> str:
        """Scheme, host and port."""
        return f"http://127.0.0.1:{self.settings.http.port}"

    def pids(self, title: str) -> list[int]:
        """Its processes whose title holds a text (ServeController, ProxyActor, Ingress)."""
        return processes(self.raylet, title)

    def kill(self, title: str) -> int:
        """Ends the oldest process of a title, which surely serves, without warning.

        Returns:
            Its id.
        """
        pid = self.pids(title)[0]
        os.kill(pid, signal.SIGKILL)
        return pid

    def update(self, settings: Settings) -> None:
        """Deploys other settings of the same graph, and waits until they serve.

        Raises:
            RuntimeError: they do not come to serve.
        """
        start(settings)
        self.settings = settings

    def replicas(self, deployment: str) -> int:
        """Replicas that take traffic, as Serve and the system see them."""
        return _alive(deployment)


def processes(parent: int, title: str) -> list[int]:
    """Descendants of a process whose title holds a text, the newest last."""
    found = []
    for one in psutil.Process(parent).children(recursive=True):
        try:
            if title in one.cmdline()[0]:
                found.append((one.create_time(), one.pid))
        except (psutil.NoSuchProcess, IndexError):  # it ended meanwhile
            continue
    return [pid for _, pid in sorted(found)]


def _alive(deployment: str) -> int:
    from ray.serve.context import _get_global_client

    application = _get_global_client().get_serve_details()["applications"].get(APPLICATION)
    deployments = application["deployments"] if application else {}
    return sum(
        one["state"] == "RUNNING" and one["pid"] is not None and psutil.pid_exists(one["pid"])
        for one in deployments.get(deployment, {"replicas": ()})["replicas"]
    )


@contextmanager
def running(settings: Settings, *, num_cpus: int) -> Iterator[Graph]:
    """A graph on a cluster of its own, for as long as the context lasts."""
    import ray
    from ray import serve

    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False)
    try:
        node = ray._private.worker._global_node
        raylet = node.all_processes["raylet"][0].process.pid
        start(settings)
        yield Graph(settings, raylet, Path(node.get_session_dir_path()) / "logs" / "serve")
        serve.shutdown()
    finally:
        ray.shutdown()


@dataclass
class Watch:
    """Follows the number of replicas in a thread.

    Attributes:
        graph: whose.
        deployments: which.
        seen: (seconds by the monotonic clock, deployment -> replicas that take traffic).
    """

    graph: Graph
    deployments: tuple[str, ...] = ("Ingress",)
    seen: list[tuple[float, Mapping[str, int]]] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watch:
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._over.wait(_PERIOD_S):
            now = {one: self.graph.replicas(one) for one in self.deployments}
            self.seen.append((time.monotonic(), now))

    def seconds(self, deployment: str, *, begin: float, end: float) -> dict[int, float]:
        """Number of replicas -> for how many of the seconds in between there were so many."""
        lasted: dict[int, float] = {}
        times = [(at, now[deployment]) for at, now in self.seen if begin <= at <= end]
        for (at, count), (until, _) in zip(times, [*times[1:], (end, 0)], strict=True):
            lasted[count] = lasted.get(count, 0.0) + until - at
        return lasted


def wait_for(is_so: Callable[[], bool], *, within_s: float, what: str) -> float:
    """Waits until something is so.

    Returns:
        The seconds that it took.

    Raises:
        TimeoutError: it does not become so.
    """
    begun = time.monotonic()
    while not is_so():
        if time.monotonic() - begun > within_s:
            raise TimeoutError(f"after {within_s:g} s still waiting for {what}")
        time.sleep(0.05)
    return time.monotonic() - begun
