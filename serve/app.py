"""The serving graph as an application, and the command that runs it on this machine.

    python -m serve.app --config serve/settings.yaml --models.shop.small=runs/small/package
    serve run serve/config.yaml         # the same by Serve's own command
    serve deploy serve/config.yaml      # the same on a cluster

The settings are in docs/serving.md.
"""

from __future__ import annotations

import signal
import threading
from typing import Any

from ray import serve
from ray.serve import Application

from jobs.cli import JobParser, run
from rectrain import cluster
from rectrain.config import help_text
from rectrain.errors import ResourceError
from serve.config import (
    APPLICATION,
    PROXY_LOCATION,
    SETTINGS_FILE,
    Replicas,
    Settings,
    load_settings,
    settings_of,
)
from serve.deployments import Ingress, Large
from serve.metrics import metrics_urls
from serve.pairs import open_pair

__all__ = ["build", "main", "start"]

_SURGE_PERCENT = 100
_RETRY_AFTER_S = 1
_STARTS = 3  # a broken package stays broken; a machine that was out of memory may recover


def build(args: dict[str, Any]) -> Application:
    """The application of settings, checked completely before anything is deployed.

    Args:
        args: `Settings` as a mapping; what `serve run` and `serve deploy` read from their YAML.

    Raises:
        ConfigError: wrong settings.
        PackageError: a package that is foreign, incomplete or altered.
        ResourceError: more threads than the cluster has CPUs.
    """
    settings = settings_of(args, name="the application's args").absolute()
    _check_packages(settings)
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


def _check_packages(settings: Settings) -> None:
    settings.http.check_files()
    for pair in settings.models.values():
        open_pair(pair)


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
        # Half of what a replica computes with: an update runs the old and the new side by side.
        ray_actor_options={"num_cpus": replicas.threads / (1 + _SURGE_PERCENT / 100)},
    )(cls)


def main(argv: list[str]) -> int:
    """Runs the application here until Ctrl-C."""
    parser = JobParser(__doc__)
    parser.add_argument("--config", default=str(SETTINGS_FILE), metavar="FILE", help="settings")
    parser.epilog = f"settings (in FILE, or --key=VALUE):\n{help_text(Settings)}"
    options, overrides = parser.parse_known_args(argv)
    settings = load_settings(options.config, overrides).absolute()
    _check_packages(settings)
    _check_cpus(settings)
    if options.dry_run:
        print(f"serve: {', '.join(settings.models)} on {_address(settings)}")
        return 0
    start(settings)
    print(f"serve: {', '.join(settings.models)} on {_address(settings)}", flush=True)
    print(f"serve: metrics at {', '.join(metrics_urls())}", flush=True)
    if not settings.http.is_loopback and not settings.security.token_hashes:
        print(
            "serve: open to everyone who reaches this address (security.token_hashes)", flush=True
        )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print("serve: finishing what was begun", flush=True)
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
    return 0


def start(settings: Settings) -> None:
    """Deploys the application on the cluster that RAY_ADDRESS names, or one started here.

    Where the application is for this machine alone, so is a cluster started for it.
    """
    if settings.http.is_loopback:
        cluster.keep_to_loopback()
    cluster.connect()
    serve.start(
        proxy_location=PROXY_LOCATION,
        http_options=settings.http_options(),
        logging_config=settings.logging_config(),
    )
    app = build(settings.model_dump(mode="json"))
    serve.run(app, name=APPLICATION, route_prefix="/")


def _check_cpus(settings: Settings) -> None:
    """Refuses more computing threads than there are CPUs: Serve would wait for them for ever."""
    num_large = sum(bool(pair.large) for pair in settings.models.values())
    needed = settings.ingress.min_replicas * settings.ingress.threads
    needed += num_large * settings.large.min_replicas * settings.large.threads
    place, found = cluster.resources()
    if needed > found.get("CPU", 0):
        raise ResourceError(
            what="CPUs of the serving graph",
            got=f"{needed} threads of all replicas",
            rule=f"the cluster ({place}) has {found.get('CPU', 0):g}",
            fix="lower ingress.min_replicas, large.min_replicas or threads, or add nodes",
        )


def _address(settings: Settings) -> str:
    scheme = "https" if settings.http.ssl_certfile else "http"
    return f"{scheme}://{settings.http.host}:{settings.http.port}"


if __name__ == "__main__":
    run(main)
