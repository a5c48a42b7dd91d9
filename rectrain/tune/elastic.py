"""Training the super-network of an elastic search, once, and what it took."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch

from rectrain.compress.runs import train_run
from rectrain.strict_json import strict_json
from rectrain.train.storage import Store
from rectrain.train.usage import read_usage, recorded
from rectrain.tune.runs import SUPERNET, supernet_run
from rectrain.tune.stopwatch import busy, training
from rectrain.tune.workbench import Workbench

__all__ = ["train_supernet"]

_SPENT = "spent.json"  # written when the run is done
_START = "start of the super-network"


def train_supernet(bench: Workbench, *, say: Callable[[str], None]) -> float:
    """Cuts the super-network's encoder and trains it on the connected cluster, where not yet done.

    Args:
        bench: of the search.
        say: is given the lines that a user should see.

    Returns:
        Device-seconds of all its processes, in all lives of the search.
    """
    store = Store.open(str(bench.root))
    if store.exists(_SPENT):
        return float(json.loads(store.read(_SPENT))["device_seconds"])
    with busy(), recorded(store, work="tune", label=_START, num_threads=torch.get_num_threads(),
                          on_gpu=False):  # fmt: skip
        bench.start()
    config = supernet_run(bench.config, bench.teacher, bench.data, space=bench.space)
    say(f"training {SUPERNET}: {config.train.num_steps} steps")
    with training(bench.root):
        train_run(config, say=say)
    lives = [life for life in read_usage(store) if life.label == _START]
    lives += read_usage(store.sub(SUPERNET))
    spent = sum(life.device_seconds for life in lives)
    store.replace(_SPENT, strict_json({"device_seconds": spent}).encode())
    return spent
