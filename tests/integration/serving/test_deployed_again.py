"""What is built for a cluster where Serve runs already, and keeps to its options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import ray

from rectrain.errors import ConfigError
from serve.app import build
from serve.config import Settings


def build_here(args: dict[str, Any]) -> None:
    """As `python -m serve.app`."""
    build(args)


def build_in_a_task(args: dict[str, Any]) -> None:
    """As `serve deploy`."""

    @ray.remote(num_cpus=0)
    def task() -> None:
        from serve.app import build

        build(args)

    ray.get(task.remote())


@pytest.mark.parametrize("make", [build_here, build_in_a_task])
def test_other_options_than_the_proxies_have_are_refused(
    target, make: Callable[[dict[str, Any]], None]
):
    same: dict[str, Any] = target.settings.model_dump(mode="json")
    make(same)
    other = Settings.model_validate({**same, "deadlines": {"default_ms": 6000}})
    with pytest.raises(ConfigError, match=r"deadlines\.default_ms.*with 5000\.0, and keeps that"):
        make(other.model_dump(mode="json"))
    public = Settings.model_validate({**same, "http": {**same["http"], "host": "0.0.0.0"}})
    with pytest.raises(ConfigError, match=r"http\.host: got 0\.0\.0\.0.*with 127\.0\.0\.1"):
        make(public.model_dump(mode="json"))
