"""Sockets: what this application's processes listen on, and what that answers without a token."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

import grpc
import psutil
import requests

from serving.target import wait_for

# Each of these would start code of whoever calls it: process -> method of gRPC.
CONTROL = {
    "gcs_server": "/ray.rpc.ActorInfoGcsService/GetAllActorInfo",
    "raylet": "/ray.rpc.NodeManagerService/GetNodeStats",
    "ray::ServeController": "/ray.rpc.CoreWorkerService/PushTask",
    "ray::ProxyActor": "/ray.rpc.CoreWorkerService/PushTask",
    "ray::ServeReplica": "/ray.rpc.CoreWorkerService/PushTask",
}
OPEN = "/ray.serve.ASGIService/HandleRequest"  # where a process listens beyond this machine
AGENTS = {
    "DashboardAgent": "/api/job_agent/jobs/",
    "dashboard.py": "/api/jobs/",
    "RuntimeEnvAgent": "/get_or_create_runtime_env",
}


def is_loopback(ip: str) -> bool:
    address = ipaddress.ip_address(ip)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def listeners() -> Iterator[tuple[str, str, int]]:
    """(process, address, port) of all that listens in this process and those it started."""
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            name = " ".join(process.cmdline()).split(" -")[0].strip()
            for one in process.net_connections("inet"):
                if one.status == psutil.CONN_LISTEN:
                    yield name, one.laddr.ip, one.laddr.port
        except psutil.NoSuchProcess:  # it ended meanwhile, and listens no more
            continue


def kind_of(process: str, kinds: dict[str, str]) -> str | None:
    """The first of these names that a process's holds."""
    return next((kind for kind in kinds if kind in process), None)


def refusal(port: int, method: str) -> grpc.StatusCode:
    """How a call without Ray's token fails."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        error = channel.unary_unary(method).future(b"", timeout=60).exception()
    assert isinstance(error, grpc.RpcError), f"port {port} answers {method}"
    code: grpc.StatusCode = error.code()
    return code


def test_nothing_listens_beyond_this_machine_but_serves_way_to_a_replica(target):
    found = set(listeners())
    assert ("127.0.0.1", target.port) in {(ip, port) for _, ip, port in found}
    beyond = [name.split(".")[0] for name, ip, _ in found if not is_loopback(ip)]
    # Serve writes [::] there whatever the settings are; the next test asks what it answers.
    assert sorted(beyond) == ["ray::ServeReplica:rectrain:Ingress",
                              "ray::ServeReplica:rectrain:Large-shop"]  # fmt: skip


def test_all_control_ports_ask_for_rays_token(target):
    refused = set()
    for name, ip, port in listeners():
        kind = kind_of(name.split("/")[-1], CONTROL)
        if kind is None or port == target.port:
            continue
        code = refusal(port, CONTROL[kind] if is_loopback(ip) else OPEN)
        if code != grpc.StatusCode.UNIMPLEMENTED:  # another service's port
            assert code == grpc.StatusCode.UNAUTHENTICATED, (name, port)
            refused.add(kind if is_loopback(ip) else OPEN)
    assert refused == {*CONTROL, OPEN}


def test_rays_http_ports_ask_for_its_token_but_for_metrics(target):
    metrics = wait_for(target.scraped, what="addresses of metrics")

    def statuses() -> dict[str, set[int]]:
        found: dict[str, set[int]] = {}
        for name, _, port in listeners():
            kind = kind_of(name, AGENTS)
            if kind is None or f"127.0.0.1:{port}" in metrics:
                continue
            try:
                answer = requests.post(f"http://127.0.0.1:{port}{AGENTS[kind]}", timeout=60)
            except requests.ConnectionError:  # it speaks gRPC
                continue
            found.setdefault(kind, set()).add(answer.status_code)
        # Not all of a node's agents have a port of their own.
        return found if {"dashboard.py", "RuntimeEnvAgent"} <= set(found) else {}

    found = wait_for(statuses, what="Ray's agents")
    assert set.union(*found.values()) == {401}, found
