"""The serving graph as an application, and the command that runs it on this machine.

    python -m serve.app                 # serve/settings.yaml; --models.shop.small=… is another
    serve run serve/config.yaml         # the same by Serve's own command
    serve deploy serve/config.yaml      # the same on a cluster

`--help` lists the settings with their defaults; docs/serving.md says what they do.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Mapping
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client

from jobs.cli import JobParser, run
from rectrain import cluster
from rectrain.config import help_text
from rectrain.errors import ConfigError, ResourceError
from rectrain.inference.engine import steady_backend
from serve.config import (
    APPLICATION,
    PROXY_LOCATION,
    SETTINGS_FILE,
    Settings,
    load_settings,
    settings_of,
)
from serve.deployments import Ingress, Large
from serve.metrics import metrics_urls
from serve.pairs import open_pair
from serve.proxy import DEFAULT_MS
from serve.sections import ModelPair, Replicas

__all__ = ["build", "check_cpus", "check_port", "main", "start"]

_SURGE_PERCENT = 100
_RETRY_AFTER_S = 1
_HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"
_STARTS = 3  # a broken package stays broken; a machine that was out of memory may recover


def build(args: dict[str, Any]) -> Application:
    """The application of settings, checked completely before anything is deployed.

    Args:
        args: `Settings` as a mapping; what `serve run` and `serve deploy` read from their YAML.

    Raises:
        ConfigError: wrong settings, TLS where HAProxy stands in front, or Serve runs already with
            other options: they would be left out.
        PackageError: a package that is foreign, incomplete or altered.
    """
    settings = settings_of(args, name="the application's args").absolute()
    _check_tls(settings)
    _check_serve(settings)
    settings = _settled(settings)
    large = {
        name: _deployment(Large, settings.large, settings, name=f"Large-{name}").bind(
            settings, name
        )
        for name, pair in settings.models.items()
        if pair.large
    }
    ingress = serve.ingress()(Ingress)
    front = _deployment(ingress, settings.ingress, settings, name="Ingress")
    app: Application = front.bind(settings, large)
    return app


def _check_tls(settings: Settings) -> None:
    if settings.http.ssl_certfile and os.environ.get(_HAPROXY) == "1":
        raise ConfigError(
            what="http.ssl_certfile",
            got=f"{_HAPROXY}=1 in the environment",
            rule="Ray's HAProxy speaks plain HTTP only, whatever this says",
            fix="unset one of them, or end TLS in front of HAProxy",
        )


def _settled(settings: Settings) -> Settings:
    """With verified packages, pinned by their contents, and the backends that "auto" stands for:
    every replica must give a request the same scores, whenever it starts."""
    settings.http.check_files()
    devices = {"small": settings.ingress.device, "large": settings.large.device}
    models = {}
    for name, pair in settings.models.items():
        opened, found = open_pair(pair), pair.model_dump()
        for side, package in (("small", opened.small), ("large", opened.large)):
            if package is not None:
                key = f"{side}_backend"
                found[key] = steady_backend(package, found[key], device=devices[side])
                found[f"{side}_sha256"] = package.sha256
        models[name] = ModelPair.model_validate(found)
    return settings.model_copy(update={"models": models})


def check_port(settings: Settings) -> None:
    """Refuses a port that is taken: two of Serve's proxies would share it, and each get some of the
    other's requests. On a cluster that is joined the port may be this application's own.

    Raises:
        ConfigError: somebody listens there.
    """
    if cluster.is_joined():
        return
    host, port = settings.http.host, settings.http.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET  # as Serve takes it
    *_, address = socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not what has just ended
        try:
            listener.bind(address)
        except OSError as error:
            raise ConfigError(
                what="http.port",
                got=f"{port}, where {host} can't be listened on ({error.strerror})",
                rule="must be free: another server may be running",
                fix="stop it, or choose another: --http.port=9000",
            ) from None


def _deployment(cls: type, replicas: Replicas, settings: Settings, *, name: str) -> Any:
    """A class as a deployment."""
    count: dict[str, Any] = {"num_replicas": replicas.min_replicas}
    if replicas.max_replicas > replicas.min_replicas:
        count = {
            "autoscaling_config": {
                "min_replicas": replicas.min_replicas,
                "max_replicas": replicas.max_replicas,
                "target_ongoing_requests": replicas.target_ongoing_requests,
                "upscale_delay_s": replicas.upscale_delay_s,
                "downscale_delay_s": replicas.downscale_delay_s,
            }
        }
    return serve.deployment(
        name=name,
        **count,
        max_ongoing_requests=replicas.max_ongoing_requests,
        max_queued_requests=replicas.max_queued_requests,
        backpressure_config={"status_code": 503, "retry_after_s": _RETRY_AFTER_S},
        graceful_shutdown_timeout_s=settings.drain_s,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=settings.golden.health_check_s,
        max_surge_percent=_SURGE_PERCENT,
        max_constructor_retry_count=_STARTS,
        logging_config=settings.logging_config(),
        ray_actor_options=_needs(replicas),
    )(cls)


def _needs(replicas: Replicas) -> dict[str, float]:
    """What a replica asks Ray for: half of the CPUs that it computes with, for an update runs the
    old and the new side by side; a whole GPU, for two models may not fit into its memory."""
    needs: dict[str, float] = {"num_cpus": replicas.threads / (1 + _SURGE_PERCENT / 100)}
    return {**needs, "num_gpus": 1} if replicas.device == "cuda" else needs


def main(argv: list[str]) -> int:
    """Runs the application here until Ctrl-C."""
    parser = JobParser(__doc__)
    parser.add_argument("--config", default=str(SETTINGS_FILE), metavar="FILE", help="settings")
    parser.epilog = f"settings (in FILE, or --key=VALUE):\n{help_text(Settings)}"
    options, overrides = parser.parse_known_args(argv)
    settings = load_settings(options.config, overrides).absolute()
    _check_tls(settings)
    _settled(settings)
    check_cpus(settings)
    check_port(settings)
    if options.dry_run:
        print(f"serve: {', '.join(settings.models)} on {_address(settings)}")
        return 0
    is_joined, is_deployed = cluster.is_joined(), False
    _connect(settings)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray has set one of its own
    try:
        start(settings)
        is_deployed = True
        print(_welcome(settings), flush=True)
        print(f"serve: metrics at {', '.join(metrics_urls())}", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        print("serve: finishing what was begun", flush=True)
    finally:
        _stop(is_joined=is_joined, is_deployed=is_deployed)
    return 0


def _stop(*, is_joined: bool, is_deployed: bool) -> None:
    """Ends what this process began: on a cluster that it joined others may have applications, and
    where it did not deploy ours, one of ours that runs is another process's."""
    if not is_joined:
        serve.shutdown()  # type: ignore[no-untyped-call]
    elif is_deployed:
        serve.delete(APPLICATION)


def _welcome(settings: Settings) -> str:
    address = _address(settings)
    lines = [
        f"serve: {', '.join(settings.models)} on {address}, API on {address}/docs; Ctrl-C stops"
    ]
    if not settings.http.is_loopback and not settings.security.token_hashes:
        lines.append("serve: open to everyone who reaches this address (security.token_hashes)")
    return "\n".join(lines)


def start(settings: Settings) -> None:
    """Deploys the application on the cluster that RAY_ADDRESS names, or one started here."""
    _connect(settings)
    serve.start(
        proxy_location=PROXY_LOCATION,
        http_options=settings.http_options(),
        controller_options=settings.controller_options(),
        logging_config=settings.logging_config(),
    )
    app = build(settings.model_dump(mode="json"))
    serve.run(app, name=APPLICATION, route_prefix="/")


def _check_serve(settings: Settings) -> None:
    """Refuses a cluster where Serve runs already, with other options than these settings need."""
    if not ray.is_initialized():  # it is built for a cluster that comes later
        return
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return
    names = (_HAPROXY, *settings.serve_environment())
    # Its proxies' environment is the controller's, which Serve has no other way to tell.
    asked = client._controller.__ray_call__.remote(
        lambda _: {name: os.environ.get(name) for name in names}
    )
    _check_running(settings, client.http_config, ray.get(asked))


def _check_running(
    settings: Settings, running: HTTPOptions, environment: Mapping[str, str | None]
) -> None:
    """Refuses what Serve would pass over: it keeps to what it was started with, and only warns.

    Args:
        settings: of the graph.
        running: Serve's options of HTTP.
        environment: of its controller, and so of its proxies.

    Raises:
        ConfigError: the first of them that differs.
    """
    options = settings.http_options()
    for name in ("host", "port", "ssl_certfile", "ssl_keyfile"):
        if options.get(name) != getattr(running, name):
            raise _kept(f"http.{name}", options.get(name), getattr(running, name))
    wanted_s, found_s = options["request_timeout_s"], running.request_timeout_s
    if found_s and found_s < wanted_s:  # a longer one never comes first
        raise _kept("request_timeout_s, for limits.body_s and deadlines.max_ms", wanted_s, found_s)
    if environment.get(_HAPROXY) == "1":  # nothing of ours runs in it
        return
    for name, wanted in settings.serve_environment().items():
        if environment.get(name) != wanted:
            setting = "deadlines.default_ms, " if name == DEFAULT_MS else ""
            raise _kept(f"{setting}{name} of Serve's proxies", wanted, environment.get(name))


def _kept(what: str, wanted: object, found: object) -> ConfigError:
    return ConfigError(
        what=what,
        got=wanted,
        rule=f"Serve already runs on this cluster with {found}, and keeps that",
        fix="give what runs there, or end Serve with all its applications: serve shutdown",
    )


def _connect(settings: Settings) -> None:
    """Where the application is for this machine alone, so is a cluster started for it."""
    if settings.http.is_loopback:
        cluster.keep_to_loopback()
    cluster.connect()


def check_cpus(settings: Settings) -> None:
    """Refuses more threads than there are CPUs, for Serve would wait for them for ever; only warns
    where that is so at the most replicas, for a cluster may grow."""
    least, most = _threads(settings)
    place, found = cluster.resources()
    cpus = found.get("CPU", 0)
    if least > cpus:
        raise ResourceError(
            what="CPUs of the serving graph",
            got=f"{least} threads of all replicas",
            rule=f"the cluster ({place}) has {cpus:g}",
            fix="lower ingress.min_replicas, large.min_replicas or threads, or add nodes",
        )
    if most > cpus:
        print(
            f"serve: at max_replicas there are {most} threads, and the cluster ({place}) has"
            f" {cpus:g} CPUs: unless it grows, they share them or never start",
            flush=True,
        )


def _threads(settings: Settings) -> tuple[int, int]:
    """Threads of all replicas, at the fewest and at the most."""
    num_large = sum(bool(pair.large) for pair in settings.models.values())
    sides = ((settings.ingress, 1), (settings.large, num_large))
    least = sum(count * one.min_replicas * one.threads for one, count in sides)
    return least, sum(count * one.max_replicas * one.threads for one, count in sides)


def _address(settings: Settings) -> str:
    scheme = "https" if settings.http.ssl_certfile else "http"
    return f"{scheme}://{settings.http.host}:{settings.http.port}"


if __name__ == "__main__":
    run(main)
