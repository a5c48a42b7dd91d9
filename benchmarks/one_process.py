"""Many small training runs without Ray: one process a run, several side by side.

What a run comes to does not depend on the number of workers (T4), and a start on Ray costs more
than some of these runs. Settings, folders and checkpoints are those of `jobs.train`, so that either
goes on where the other stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rectrain.train.config import RunConfig

__all__ = ["in_processes", "train_here", "train_run"]

_T = TypeVar("_T")
_SAY_EVERY = 40  # steps


def in_processes(action: Callable[[_T], None], things: Sequence[_T], *, processes: int) -> None:
    """Calls an action with each thing, in processes of one thread that can train.

    Raises:
        Exception: the first that an action raised; what has not begun by then never does.
    """
    # A process for each: trained in one after the other, runs would keep what those before held.
    with ProcessPoolExecutor(
        processes, get_context("spawn"), initializer=_set_up, max_tasks_per_child=1
    ) as pool:
        try:
            for done in as_completed([pool.submit(action, thing) for thing in things]):
                done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _set_up() -> None:
    """Makes the process the only one of a gloo group."""
    import torch

    torch.set_num_threads(1)
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}  # DeepSpeed reads them
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)


def train_here(argv: Sequence[str], *, job: Any) -> None:
    """Trains what `job.main(argv)` would train, in this process; nothing when it is finished.

    Args:
        argv: settings of the run.
        job: the configuration's class: `RunConfig` or `PretrainConfig`.
    """
    from rectrain.config import load_config

    train_run(load_config(job, file=None, overrides=argv))


def train_run(config: RunConfig) -> None:
    """The same of a run's configuration."""
    from rectrain.train import preflight
    from rectrain.train.build import load_trained_encoder
    from rectrain.train.export import export_encoder
    from rectrain.train.worker import train_in_group

    config = preflight.resolve_paths(config, overwrite=False)
    place = preflight.claim(config, overwrite=False)
    with place.store.locked():
        if place.result is None:
            preflight.begin(config, place)
            train_in_group(config, send=_say_loss, report=lambda _: None)
        found = preflight.result(config, place.store)
        assert found is not None, f"run {config.name} ended without an error"
        export_encoder(load_trained_encoder(found), place.store)
    print(f"trained: {config.name}", flush=True)


def _say_loss(event: dict[str, Any]) -> None:
    if event["kind"] == "log" and event["step"] % _SAY_EVERY == 0:
        losses = ", ".join(f"{task} {loss:.4f}" for task, loss in event["loss"].items())
        print(f"step {event['step']}/{event['num_steps']}: {losses}", flush=True)
