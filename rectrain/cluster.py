"""The Ray cluster of this process."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from rectrain.errors import ResourceError, without_credentials

__all__ = ["connect", "is_joined", "keep_to_loopback", "resources"]

_ADDRESS = "RAY_ADDRESS"


def connect() -> None:
    """Joins the cluster that RAY_ADDRESS names (as under `ray job submit`), or starts one here.

    Without RAY_ADDRESS Ray would join any cluster that happens to run on this machine. Does
    nothing where Ray already runs in this process.

    Raises:
        ResourceError: nobody answers at RAY_ADDRESS.
    """
    import ray

    if ray.is_initialized():
        return
    try:
        ray.init(
            address=os.environ.get(_ADDRESS, "local"),
            include_dashboard=None if _ADDRESS in os.environ else False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except ConnectionError as error:
        raise ResourceError(
            what=_ADDRESS,
            got=f"{os.environ.get(_ADDRESS)} ({error})",
            rule="must be the address of a Ray cluster that runs",
            fix="start the cluster, correct the address, or unset it to start one here",
        ) from error


def is_joined() -> bool:
    """Whether `connect` joins a cluster, or has: else it starts one here."""
    import ray

    return _ADDRESS in os.environ or bool(ray.is_initialized())


def keep_to_loopback() -> None:
    """Makes a cluster that this process starts listen on this machine's loopback address alone.

    Ray does so by itself on macOS and Windows, where it is always a cluster of one machine; on
    Linux its ports are open on all interfaces, for other nodes and for whoever reads metrics. The
    switch is read from the environment once, when ray is imported, so it is set where it is kept.
    """
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False


def resources() -> tuple[str, Mapping[str, float]]:
    """Where `connect` would run a job, in words, and what is there; starts nothing.

    Joins the cluster that RAY_ADDRESS names; else counts this machine as Ray does.

    Returns:
        The place, and the number of its CPUs ("CPU") and GPUs ("GPU", missing where none is).

    Raises:
        ResourceError: see `connect`.
    """
    import ray

    address = os.environ.get(_ADDRESS, "local")
    if not ray.is_initialized() and address == "local":
        import torch
        from ray._private.utils import get_num_cpus  # minds the limits of a container

        gpus = torch.cuda.device_count()
        return "one started on this machine", {
            "CPU": float(get_num_cpus(override_docker_cpu_warning=True)),
            **({"GPU": float(gpus)} if gpus else {}),
        }
    connect()
    place = "the one joined" if address == "local" else without_credentials(address)
    return place, ray.cluster_resources()  # type: ignore[no-untyped-call]
