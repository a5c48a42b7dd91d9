"""The Ray cluster of this process."""

from __future__ import annotations

import logging
import os

__all__ = ["connect"]


def connect() -> None:
    """Joins the cluster that RAY_ADDRESS names (as under `ray job submit`), or starts one here.

    Without RAY_ADDRESS Ray would join any cluster that happens to run on this machine. Does
    nothing where Ray already runs in this process.
    """
    import ray

    if ray.is_initialized():
        return
    ray.init(
        address=os.environ.get("RAY_ADDRESS", "local"),
        include_dashboard=None if "RAY_ADDRESS" in os.environ else False,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
