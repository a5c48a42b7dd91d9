"""What a stranger reaches and can do: sockets, tokens, hostile headers and bodies, slow clients.

One application with tokens on real Ray Serve; requests are raw bytes on sockets, so that nothing
mends them on the way. After all that the log has one line for each request, and Prometheus has the
figures.
"""

from __future__ import annotations

import gzip
import hashlib
import ipaddress
import json
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import requests
import yaml
from prometheus_client.parser import text_string_to_metric_families
from served_toy import free_port, search, served_pair

from serve.config import Settings
from serve.guard import OPEN_PATHS
from serve.metrics import metrics_urls

TOKENS = ("first long random token", "second long random token")
LIMITS = {"body_bytes": 20_000, "body_s": 1.0, "candidates": 50, "requests": 3}
pytestmark = pytest.mark.timeout(600)


@dataclass
class Target:
    """An application that runs.

    Attributes:
        folder: Ray's temporary one.
    """

    settings: Settings
    folder: Path

    @property
    def port(self) -> int:
        return self.settings.http.port

    def ask(self, path: str, body: Any = None, **headers: str) -> requests.Response:
        """A request of a well-behaved client, with a token."""
        headers = {"Authorization": f"Bearer {TOKENS[1]}", **headers}
        method = "GET" if body is None else "POST"
        url = f"http://127.0.0.1:{self.port}{path}"
        return requests.request(method, url, json=body, headers=headers, timeout=60)

    def send(self, data: bytes, *, more: bytes = b"") -> list[int]:
        """Statuses of the answers to raw bytes, until the server closes.

        Args:
            data: sent at once.
            more: sent bit by bit, until there is an answer.
        """
        answer = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            try:
                connection.sendall(data)
                for place in range(len(more)):
                    connection.settimeout(0.1)
                    connection.sendall(more[place : place + 1])
                    try:
                        answer += connection.recv(65536)
                        break
                    except TimeoutError:
                        continue
                connection.settimeout(60)
                while block := connection.recv(65536):
                    answer += block
            except (ConnectionResetError, BrokenPipeError):
                pass  # it need not read to its end what it refuses
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d\d\d)", answer)]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    # Ray's own folder: other clusters of this machine write theirs beside it. Paths of sockets
    # must be short.
    ray_folder = Path(tempfile.mkdtemp(prefix="r"))
    hashes = [hashlib.sha256(token.encode()).hexdigest() for token in TOKENS]
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, ray_folder, ignore_errors=True)
        settings = served_pair(
            tmp_path_factory.mktemp("served"),
            cluster_options={
                "_temp_dir": str(ray_folder),
                # It has endpoints that start code, and tells Prometheus what there is to read.
                "include_dashboard": True,
                "dashboard_port": free_port(),
            },
            security={"token_hashes": hashes},
            limits=LIMITS,
        )
        yield Target(stack.enter_context(settings), ray_folder)


def request(
    body: bytes = b"",
    *headers: bytes,
    path: str = "/v1/rank",
    method: str = "POST",
    token: bytes | None = TOKENS[0].encode(),
    length: bool = True,
) -> bytes:
    """A request as bytes, after which the connection is closed."""
    lines = [f"{method} {path} HTTP/1.1".encode("latin-1"), b"Host: a", b"Connection: close"]
    lines += [b"Authorization: Bearer " + token] if token is not None else []
    lines += [b"Content-Type: application/json"] if body else []
    lines += [f"Content-Length: {len(body)}".encode()] if length else []
    return b"\r\n".join([*lines, *headers, b"", body])


def good(**more: Any) -> bytes:
    return json.dumps({**search(2), **more}).encode()


# --- sockets ---------------------------------------------------------------------------------


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
        except psutil.NoSuchProcess:
            continue


def test_nothing_listens_beyond_this_machine_but_serves_way_to_a_replica(target):
    found = set(listeners())
    assert ("127.0.0.1", target.port) in {(ip, port) for _, ip, port in found}
    beyond = [name.split(".")[0] for name, ip, _ in found if not is_loopback(ip)]
    # Serve writes [::] there whatever the settings are; the next test asks what it answers.
    assert sorted(beyond) == ["ray::ServeReplica:rectrain:Ingress",
                              "ray::ServeReplica:rectrain:Large-shop"]  # fmt: skip


def test_all_control_ports_ask_for_rays_token(target):
    """Each of these would start code of whoever calls it."""
    calls = {
        "gcs_server": "/ray.rpc.ActorInfoGcsService/GetAllActorInfo",
        "raylet": "/ray.rpc.NodeManagerService/GetNodeStats",
        "ray::ServeController": "/ray.rpc.CoreWorkerService/PushTask",
        "ray::ProxyActor": "/ray.rpc.CoreWorkerService/PushTask",
        "ray::ServeReplica": "/ray.rpc.CoreWorkerService/PushTask",
        "beyond": "/ray.serve.ASGIService/HandleRequest",
    }
    refused = set()
    for name, ip, port in listeners():
        kind = next((kind for kind in calls if kind in name.split("/")[-1]), "")
        if kind and port != target.port:
            is_open = not is_loopback(ip)
            kind = "beyond" if is_open else kind
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                with pytest.raises(grpc.RpcError) as error:
                    channel.unary_unary(calls[kind])(b"", timeout=60)
                if error.value.code() != grpc.StatusCode.UNIMPLEMENTED:  # another service's port
                    assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED, (name, port)
                    refused.add(kind)
    assert refused == set(calls)


def test_rays_http_ports_ask_for_its_token_but_for_metrics(target):
    paths = {"DashboardAgent": "/api/job_agent/jobs/", "dashboard.py": "/api/jobs/",
             "RuntimeEnvAgent": "/get_or_create_runtime_env"}  # fmt: skip
    read = wait_for(lambda: discovered(target))

    def statuses() -> dict[str, set[int]]:
        found: dict[str, set[int]] = {}
        for name, _, port in listeners():
            kind = next((kind for kind in paths if kind in name), None)
            if kind is None or f"127.0.0.1:{port}" in read:
                continue
            try:
                answer = requests.post(f"http://127.0.0.1:{port}{paths[kind]}", timeout=60)
                found.setdefault(kind, set()).add(answer.status_code)
            except requests.ConnectionError:  # it speaks gRPC
                continue
        return found if {"dashboard.py", "RuntimeEnvAgent"} <= set(found) else {}

    found = wait_for(statuses)  # not all of a node's agents have a port of their own
    assert found and set.union(*found.values()) == {401}, found


# --- tokens ----------------------------------------------------------------------------------


def routes(target: Target) -> list[tuple[str, str]]:
    paths = target.ask("/openapi.json").json()["paths"]
    known = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    return [*known, ("GET", "/openapi.json"), ("GET", "/nowhere")]


def test_all_but_health_and_the_page_needs_a_token(target):
    found = {
        path: target.send(request(token=None, method=method, path=path))
        for method, path in routes(target)
    }
    free = {path for path, statuses in found.items() if statuses == [200]}
    assert free == {"/healthz", "/readyz"}
    assert all(statuses == [401] for path, statuses in found.items() if path not in free)
    assert [target.send(request(token=None, method="GET", path=path)) for path in OPEN_PATHS] == [
        [200]
    ] * len(OPEN_PATHS)


def test_the_openapi_says_where_a_token_is_needed(target):
    document = target.ask("/openapi.json").json()
    secured = {
        path for path, methods in document["paths"].items()
        if all(one.get("security") for one in methods.values())
    }  # fmt: skip
    assert set(document["paths"]) - secured == {"/healthz", "/readyz"}


@pytest.mark.parametrize(
    "path",
    ["//", "//v1/models", "/healthz/../v1/models", "/%2e%2e/v1/models", "/v1/models/", "/healthz/",
     "/readyz%00", "/HEALTHZ", "/v1/models?/healthz", "/healthz;/v1/models", "/v1/models#/healthz",
     "http://a/v1/models", "*", "/-/../v1/models"],
)  # fmt: skip
def test_no_spelling_of_a_path_gets_around_the_token(target, path):
    (status,) = target.send(request(token=None, method="GET", path=path))
    assert status in (400, 401, 404), status


@pytest.mark.parametrize(
    ("headers", "statuses"),
    [
        ([b"Authorization: Bearer " + TOKENS[0].encode()], [200]),
        ([b"authorization: bEARER " + TOKENS[1].encode()], [200]),
        ([], [401]),
        ([b"Authorization:"], [401]),
        ([b"Authorization: Bearer"], [401]),
        ([b"Authorization: Bearer wrong"], [401]),
        ([b"Authorization: " + TOKENS[0].encode()], [401]),
        ([b"Authorization: Basic " + TOKENS[0].encode()], [401]),
        ([b"Authorization: Bearer " + hashlib.sha256(TOKENS[0].encode()).hexdigest().encode()],
         [401]),
        ([b"Authorization: Bearer " + TOKENS[0].encode()[:-1]], [401]),
        ([b"Authorization: Bearer " + TOKENS[0].encode() + b"," + TOKENS[1].encode()], [401]),
        ([b"Authorization: Bearer \xff\xfe"], [401]),
        ([b"Authorization: Bearer wrong", b"Authorization: Bearer " + TOKENS[0].encode()], [401]),
        ([b"Proxy-Authorization: Bearer " + TOKENS[0].encode()], [401]),
        ([b"Cookie: Authorization=Bearer " + TOKENS[0].encode()], [401]),
        ([b"Authorization: Bearer " + b"x" * 20_000], [401]),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_only_a_bearer_token_that_is_known_is_one(target, headers, statuses):
    assert target.send(request(good(), *headers, token=None)) == statuses


def test_a_web_socket_gets_nowhere_without_a_token(target):
    upgrade = [b"Upgrade: websocket", b"Sec-WebSocket-Version: 13",
               b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]  # fmt: skip
    data = request(b"", *upgrade, method="GET", token=None, length=False)
    data = data.replace(b"Connection: close", b"Connection: Upgrade")
    (status,) = target.send(data)
    assert status in (400, 401, 403, 404), status


# --- headers ---------------------------------------------------------------------------------

CHUNKED = b"Transfer-Encoding: chunked"


def chunks(*blocks: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(block), block) for block in (*blocks, b""))


@pytest.mark.parametrize(
    "data",
    [
        b"\x00" * 1000,
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        request(good(), b"X: a\x00b"),
        request(good(), b"X: a\rb"),
        request(good(), b"X Y: a"),
        request(good(), b": a"),
        request(good(), b"X: " + b"y" * 200_000),
        request(good(), *(b"X%d: y" % n for n in range(20_000))),
        request(good(), path="/v1/rank" + "x" * 200_000),
        request(good(), b"Content-Length: -1", length=False),
        request(good(), b"Content-Length: 1e3", length=False),
        request(good(), b"Content-Length: " + b"9" * 5000, length=False),
        request(good(), b"Content-Length: 5"),
        request(good(), b"Transfer-Encoding: xchunked", length=False),
        request(b"zz\r\n{}\r\n0\r\n\r\n", CHUNKED, length=False),
        request(b"-1\r\n{}\r\n0\r\n\r\n", CHUNKED, length=False),
        request(good(), b"Content-Encoding: gzip"),
        request(gzip.compress(good()), b"Content-Encoding: deflate"),
        request(gzip.compress(good()), b"Content-Encoding: gzip, gzip"),
        request(gzip.compress(gzip.compress(good())), b"Content-Encoding: gzip"),
        request(gzip.compress(good())[:-4], b"Content-Encoding: gzip"),
        request(gzip.compress(good()) * 2, b"Content-Encoding: gzip"),
        request(gzip.compress(b" " * 200_000_000, 9), b"Content-Encoding: gzip"),
        request(good(), b"X-Deadline-Ms: \xff"),
        request(good(), b"X-Deadline-Ms: nan"),
        request(good(), b"Content-Type: text/plain; charset=utf-7").replace(
            b"Content-Type: application/json\r\n", b"", 1
        ),
    ],
    ids=lambda data: repr(data[:1] + data[-60:]),
)
def test_hostile_headers_are_refused(target, data):
    statuses = target.send(data)
    assert all(400 <= status < 500 or status in (501, 505) for status in statuses), statuses
    assert target.send(request(good())) == [200]


@pytest.mark.parametrize(
    "header",
    [b"X-Request-Timeout-Seconds: 0.000001", b"X-Request-Timeout-Seconds: \xff",
     b"X-Request-Disconnect-Disabled: \xff", b"X-Session-Id: \xff", b"Traceparent: \xff",
     b"Serve_Multiplexed_Model_Id: \xff", b"Serve-Multiplexed-Model-Id: none"],
)  # fmt: skip
def test_clients_give_no_orders_to_serve(target, header):
    assert target.send(request(good(), header)) == [200]


def test_one_request_never_becomes_two(target):
    # What one server takes for a body, another may take for a request: both lengths are refused.
    hidden = request(token=None, method="GET", path="/healthz")
    both = request(b"0\r\n\r\n" + hidden, CHUNKED)
    assert len(target.send(both)) <= 1
    twice = request(b"{}" + hidden, b"Content-Length: 2")
    assert target.send(twice) in ([], [400])


@pytest.mark.parametrize("request_id", [b"a" * 5000, b"\xff\xfe", b"a, b", b"\x1b[31m", b"%00"])
def test_an_odd_request_id_breaks_nothing(target, request_id):
    for data in (good(), b"{"):
        (status,) = target.send(request(data, b"X-Request-ID: " + request_id))
        assert status in (200, 400, 422)


# --- bodies ----------------------------------------------------------------------------------


def nested(levels: int, kind: str = "[]") -> bytes:
    opened = '{"a":' if kind == "{}" else "["
    closed = "}" if kind == "{}" else "]"
    return f'{{"query": {opened * levels}1{closed * levels}}}'.encode()


@pytest.mark.parametrize(
    ("body", "statuses"),
    [
        (b"x" * 20_001, {413}),
        (b" " * 20_000, {422}),
        (nested(250), {422}),
        (nested(9_000), {422}),
        (nested(3_000, "{}"), {422}),
        (b'{"query": "\xff\xfe", "candidates": []}', {422}),
        (good().decode().encode("utf-16"), {422}),
        (b"\xef\xbb\xbf" + good(), {422}),
        (good().replace(b"alpha gamma", b"\\ud800"), {422}),
        (good().replace(b"alpha gamma", b"\xed\xa0\x80"), {422}),
        (good().replace(b"alpha gamma", b"\\u0000"), {200}),
        (good()[:-1] + b', "k": NaN}', {422}),
        (b"Infinity", {422}),
        (b"-" + b"9" * 10_000, {422}),
        (b'{"a":' * 1_000, {422}),
        (b"[" * 10_000, {422}),
        (b"null", {422}),
        (b'"' + b"\\" * 9_999 + b'"', {422}),
        (b'{"query": "a", "query": "", "candidates": []}', {422}),
        (good() + good(), {422}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_hostile_bodies_are_refused(target, body, statuses):
    assert set(target.send(request(body))) == statuses
    assert set(target.send(request(chunks(body), CHUNKED, length=False))) == statuses


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 5000])
def test_numbers_are_finite(target, number):
    body = f'{{"candidates": [{{"item_text": "a", "price": {number}}}]}}'.encode()
    assert target.send(request(body, path="/v1/risk")) == [422]


def test_of_a_key_that_stands_twice_the_last_counts(target):
    body = good(query="")[:-1] + b', "query": "alpha"}'
    assert target.send(request(body)) == [200]


def test_a_body_without_end_is_refused_while_it_comes(target):
    data = request(b"", CHUNKED, length=False) + chunks(b"x" * 50_000).removesuffix(b"0\r\n\r\n")
    assert target.send(data) == [413]


@pytest.mark.parametrize("sent", [b"", b'{"query": '])
def test_a_slow_body_is_refused_and_others_are_answered_meanwhile(target, sent):
    slow = request(sent, b"Content-Length: 1000", length=False)
    with ThreadPoolExecutor(24) as pool:
        waiting = [pool.submit(target.send, slow, more=b" " * 500) for _ in range(24)]
        assert target.send(request(good())) == [200]
        assert all(one.result() == [408] for one in waiting)


def test_headers_that_never_end_keep_nobody_else_waiting(target):
    with ExitStack() as stack:
        for _ in range(200):
            address = ("127.0.0.1", target.port)
            connection = stack.enter_context(socket.create_connection(address))
            connection.sendall(b"POST /v1/rank HTTP/1.1\r\nHost: a\r\nX: ")
        assert target.send(request(good())) == [200]


def test_clients_that_leave_break_nothing(target):
    data = request(good())
    for cut in range(1, len(data), 17):
        with socket.create_connection(("127.0.0.1", target.port)) as connection:
            connection.sendall(data[:cut])
    for _ in range(20):  # the whole request, but nobody waits for the answer
        with socket.create_connection(("127.0.0.1", target.port)) as connection:
            connection.sendall(data)
    assert target.send(data) == [200]


def test_bodies_may_be_gzip_both_ways(target):
    body = {**search(50), "options": {"timings": True}}
    packed = gzip.compress(json.dumps(body).encode())
    response = requests.post(
        f"http://127.0.0.1:{target.port}/v1/rank",
        data=packed,
        headers={"Authorization": f"Bearer {TOKENS[0]}", "Content-Type": "application/json",
                 "Content-Encoding": "gzip", "Accept-Encoding": "gzip"},
        timeout=60,
    )  # fmt: skip
    assert response.headers["content-encoding"] == "gzip"
    assert int(response.headers["content-length"]) < len(response.content)
    assert len(response.json()["items"]) == 50
    plain = target.ask("/v1/rank", body, **{"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers


def test_a_failure_names_its_request_and_shows_nothing_of_the_inside(target):
    for body in ({}, {"query": 5}, {"candidates": "x"}):
        response = target.ask("/v1/rank", body)
        failure = response.json()
        assert set(failure) == {"code", "message", "request_id"}
        assert failure["request_id"] == response.headers["x-request-id"]
        assert not re.search(r"Traceback|File \"|\.py|pydantic", response.text)


# --- what is left of it all --------------------------------------------------------------------


def wait_for(fetch: Callable[[], Any]) -> Any:
    """What a function gives, once that is something."""
    end = time.monotonic() + 120
    while not (found := fetch()) and time.monotonic() < end:
        time.sleep(1)
    return found


def test_each_request_has_one_line_and_one_outcome(target):
    asked = {f"line-{n}": [good(), b"{", b"x" * 30_000][n % 3] for n in range(60)}
    with ThreadPoolExecutor(8) as pool:
        sent = {
            name: pool.submit(target.send, request(body, b"X-Request-ID: " + name.encode()))
            for name, body in asked.items()
        }
        statuses = {name: one.result()[0] for name, one in sent.items()}

    def lines() -> list[dict[str, Any]]:
        logs = (target.folder / "session_latest" / "logs" / "serve").glob("replica_*Ingress*.log")
        read = [json.loads(line) for path in logs for line in path.read_text().splitlines()]
        found = [line for line in read if line.get("request_id") in asked]
        return found if len(found) >= len(asked) else []

    found = wait_for(lines)
    assert Counter(line["request_id"] for line in found) == Counter(asked.keys())
    assert {line["request_id"]: line["status"] for line in found} == statuses
    words = {200: "ok", 413: "refused", 422: "refused"}
    assert all(line["outcome"] == words[line["status"]] for line in found)


METRICS = {
    "ray_rectrain_requests": {"path", "status", "outcome"},
    "ray_rectrain_latency_ms": {"path", "stage"},
    "ray_rectrain_answers": {"path", "model", "reason", "cached"},
    "ray_rectrain_batch_fill": set(),
    "ray_rectrain_batch_requests": set(),
    "ray_rectrain_queued_tokens": set(),
    "ray_rectrain_confidence_drift": {"model", "task"},
    "ray_rectrain_golden_deviations": {"model"},
}
# Which process it was; Ray adds them, and clients have no part in them.
RAYS = {"application", "deployment", "replica", "Version", "SessionName", "NodeAddress",
        "Component", "WorkerId", "JobId", "NodeId", "le"}  # fmt: skip


def discovered(target: Target) -> list[str]:
    """What Ray tells Prometheus to read."""
    path = target.folder / "prom_metrics_service_discovery.json"
    if not path.is_file():
        return []
    return [one for group in json.loads(path.read_text()) for one in group["targets"]]


def test_the_metrics_are_there_with_labels_that_clients_can_not_multiply(target):
    for n in range(40):
        target.ask(f"/made-up-{n}")
    for n in range(8):
        target.ask("/v1/rank", {**search(4), "query": f"alpha {n % 4}"})
        target.ask("/v1/risk", {"candidates": [{"item_text": f"beta {n} {m}"} for m in range(50)]})

    (url,) = metrics_urls()

    def families() -> dict[str, Any]:
        # Beside it Ray names ports of its own that another cluster here may have taken.
        if url not in [f"http://{address}/metrics" for address in discovered(target)]:
            return {}
        read = {}
        for family in text_string_to_metric_families(requests.get(url, timeout=60).text):
            if family.samples:
                read[family.name] = family
        return read if set(METRICS) - {"ray_rectrain_golden_deviations"} <= set(read) else {}

    read = wait_for(families)
    assert read, "the metrics are not there"
    for name in set(METRICS) & set(read):
        for sample in read[name].samples:
            ours = {label for label in set(sample.labels) - RAYS if not label.startswith("otel_")}
            assert ours == METRICS[name], (name, sample.labels)
    paths = {sample.labels["path"] for sample in read["ray_rectrain_requests"].samples}
    assert "other" in paths and not any("made-up" in path for path in paths)
    answers = [sample.labels for sample in read["ray_rectrain_answers"].samples]
    assert {"doubtful"} <= {one["reason"] for one in answers}
    assert {one["cached"] for one in answers} == {"true", "false"}


def test_prometheus_finds_and_reads_them(target, tmp_path):
    if (program := shutil.which("prometheus")) is None:
        pytest.skip("no prometheus here (Debian: apt-get install prometheus)")
    discovery = str(target.folder / "prom_metrics_service_discovery.json")
    settings = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{"job_name": "ray", "file_sd_configs": [{"files": [discovery]}]}],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(settings))
    port = free_port()
    process = subprocess.Popen(
        [program, f"--config.file={tmp_path / 'prometheus.yml'}",
         f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def value(query: str) -> list[Any]:
        try:
            url = f"http://127.0.0.1:{port}/api/v1/query"
            answer = requests.get(url, params={"query": query}, timeout=10).json()
        except (requests.ConnectionError, ValueError):  # it starts
            return []
        return answer["data"]["result"]

    try:
        target.ask("/v1/rank", search(3))
        assert wait_for(lambda: value("sum(ray_rectrain_requests_total) > 0"))
        for query in (
            'sum(ray_rectrain_answers_total{reason=~"doubtful|asked"})',
            'sum(ray_rectrain_answers_total{cached="true"}) / sum(ray_rectrain_answers_total)',
            "histogram_quantile(0.99, sum by (le, stage) (ray_rectrain_latency_ms_bucket))",
            "sum(ray_rectrain_batch_fill_sum) / sum(ray_rectrain_batch_fill_count)",
            "max by (model, task) (ray_rectrain_confidence_drift)",
            "sum(ray_rectrain_queued_tokens)",
        ):
            assert wait_for(lambda query=query: value(query)), query
    finally:
        process.terminate()
        process.wait()
