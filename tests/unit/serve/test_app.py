"""What is checked before anything is deployed, and what a deployment is asked for."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from ray.serve.config import HTTPOptions

from rectrain import cluster
from rectrain.errors import ConfigError, ResourceError
from rectrain.package import Package
from serve import app, scoring
from serve.config import Settings
from serve.deployments import Large
from serve.proxy import DEFAULT_MS
from serve.scoring import Engine
from serve.sections import Batching

CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"


def settings(**given: object) -> Settings:
    models = {"shop": {"small": "s", "large": "l"}, "alone": {"small": "s"}}
    return Settings.model_validate({"models": models, **given})


@pytest.fixture
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "resources", lambda: ("a machine", {"CPU": 2.0}))


def test_more_threads_than_cpus_are_refused(two_cpus):
    with pytest.raises(ResourceError, match="3 threads of all replicas"):
        app.check_cpus(settings(ingress={"min_replicas": 2, "max_replicas": 2}))


def test_what_the_cluster_has_no_room_for_yet_is_said(two_cpus, capsys):
    app.check_cpus(settings(large={"max_replicas": 4, "threads": 1}))
    assert "at max_replicas there are 5 threads" in capsys.readouterr().out


def test_what_fits_is_not_spoken_of(two_cpus, capsys):
    app.check_cpus(settings())
    assert capsys.readouterr().out == ""


def test_a_replica_on_a_gpu_asks_for_one():
    given = settings(ingress={"threads": 4}, large={"device": "cuda", "threads": 2})
    assert app._needs(given.ingress) == {"num_cpus": 2}
    assert app._needs(given.large) == {"num_cpus": 1, "num_gpus": 1}
    large = app._deployment(Large, given.large, given, name="Large-shop")
    assert large.ray_actor_options["num_gpus"] == 1


def test_all_replicas_get_all_settings_as_they_are_deployed(packages):
    shop = {name: str(package.path) for name, package in packages.items()}
    given = Settings.model_validate(
        {"models": {"shop": shop}, "ingress": {"max_replicas": 3}, "large": {"max_replicas": 2}}
    )
    front = app.build(given.model_dump(mode="json"))._bound_deployment
    settled, large = front.init_args
    assert settled == app._settled(given)
    assert large["shop"]._bound_deployment.init_args == (settled, "shop")


def test_a_model_is_opened_on_the_device_of_its_replicas(monkeypatch):
    opened: dict[str, object] = {}
    monkeypatch.setattr(scoring, "load", lambda path, **given: opened.update(given))
    engine = Engine(Batching(), observe=lambda *_: None)
    engine.load("shop", "l", "torch", 3, 0, device="cuda")
    engine.close()
    assert (opened["device"], opened["threads"]) == ("cuda", 3)


def test_all_replicas_of_a_model_get_one_backend(packages, monkeypatch):
    shop = {"small": str(packages["small"].path), "large": str(packages["large"].path)}
    given = Settings.model_validate({"models": {"shop": shop}, "large": {"device": "cuda"}})
    graphs = {name: Path(name) for name in ("onnx", "openvino-int8", "onnx-int8")}
    monkeypatch.setattr(Package, "graphs", property(lambda _: graphs))
    pair = app._settled(given).models["shop"]
    assert (pair.small_backend, pair.large_backend) == ("openvino-int8", "torch")
    del graphs["openvino-int8"]
    assert app._settled(given).models["shop"].small_backend == "onnx-int8"
    assert app._settled(app._settled(given)) == app._settled(given)


RUNNING = {"host": "127.0.0.1", "port": 8000, "request_timeout_s": 45.0}


@pytest.mark.parametrize(
    ("running", "environment", "message"),
    [
        ({"port": 9}, {}, r"http\.port: got 8000; Serve already runs on this cluster with 9"),
        ({"host": "0.0.0.0"}, {}, r"http\.host: got 127"),
        ({"ssl_certfile": "c", "ssl_keyfile": "k"}, {}, r"http\.ssl_certfile: got None"),
        ({"request_timeout_s": 30.0}, {}, r"deadlines\.max_ms: got 45.*with 30"),
        ({}, {DEFAULT_MS: "700.0"}, r"deadlines\.default_ms, RECTRAIN_.*: got 5000\.0.*with 700"),
        ({}, {CALLBACK: None}, rf"{CALLBACK} of Serve's proxies: got serve\.proxy:.*with None"),
        ({}, {CALLBACK: "a:b"}, rf"{CALLBACK}.*with a:b"),
    ],
)
def test_other_options_than_serve_runs_with_are_refused(running, environment, message):
    given = settings()
    known = given.serve_environment()
    app._check_running(given, HTTPOptions(**RUNNING), known)
    with pytest.raises(ConfigError, match=message):
        app._check_running(given, HTTPOptions(**RUNNING | running), known | environment)


def test_what_serve_runs_with_may_wait_longer_and_haproxy_has_no_layer_of_ours():
    given = settings()
    for timeout_s in (None, 60.0):
        options = HTTPOptions(**RUNNING | {"request_timeout_s": timeout_s})
        app._check_running(given, options, given.serve_environment())
    app._check_running(given, HTTPOptions(**RUNNING), {"RAY_SERVE_ENABLE_HA_PROXY": "1"})


def test_a_port_that_somebody_listens_on_is_refused(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        given = settings(http={"port": port})
        taken.listen()
        with pytest.raises(ConfigError, match=r"localhost can't be listened on"):
            app.check_port(settings(http={"port": port, "host": "localhost"}))  # as IPv4, so Serve
        with pytest.raises(ConfigError, match=rf"http\.port: got {port}, .*must be free"):
            app.check_port(given)
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
        app.check_port(given)  # it may be this application's own
    monkeypatch.delenv("RAY_ADDRESS")
    app.check_port(given)


def test_tls_is_not_silently_left_out_by_haproxy(monkeypatch):
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    given = settings(http={"ssl_certfile": "c.pem", "ssl_keyfile": "k.pem"})
    with pytest.raises(ConfigError, match="plain HTTP"):
        app.build(given.model_dump(mode="json"))


class Stopped(Exception):
    """Ends the wait for Ctrl-C in a test."""


@pytest.mark.parametrize(
    ("is_joined", "fails", "expected"),
    [
        (True, False, ["delete rectrain"]),
        (True, True, []),
        (False, False, ["shutdown"]),
        (False, True, ["shutdown"]),
    ],
)
def test_on_a_joined_cluster_nothing_but_what_was_deployed_is_taken_down(
    monkeypatch, is_joined, fails, expected
):
    ended: list[str] = []
    monkeypatch.setattr(app.serve, "shutdown", lambda: ended.append("shutdown"))
    monkeypatch.setattr(app.serve, "delete", lambda name: ended.append(f"delete {name}"))
    monkeypatch.setattr(app.cluster, "is_joined", lambda: is_joined)
    for name in ("_settled", "check_cpus", "check_port", "_connect"):
        monkeypatch.setattr(app, name, lambda given: None)
    monkeypatch.setattr(app.signal, "signal", lambda *given: None)
    monkeypatch.setattr(app, "metrics_urls", list)

    def start(given: Settings) -> None:
        if fails:
            raise Stopped

    def wait(event: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "start", start)
    monkeypatch.setattr(app.threading.Event, "wait", wait)
    try:
        app.main(["--models.shop.small=s"])
    except Stopped:
        assert fails
    assert ended == expected
