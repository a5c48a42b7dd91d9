"""Training the super-network of an elastic search, once, and what it took."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from rectrain.compress.runs import train_run
from rectrain.train.storage import Store
from rectrain.tune.runs import SUPERNET, supernet_run
from rectrain.tune.workbench import Workbench

__all__ = ["train_supernet"]

_SPENT = "spent.json"
_WRITE_S = 2.0


def train_supernet(bench: Workbench, *, say: Callable[[str], None]) -> float:
    """Cuts the super-network's encoder and trains it on the connected cluster, where not yet done.

    Args:
        bench: of the search.
        say: is given the lines that a user should see.

    Returns:
        Device-seconds that it took, in all lives of the search: CPUs × seconds; of a life that was
        killed, to within a few seconds.
    """
    store = Store.open(str(bench.root))
    if store.exists(_SPENT):
        stored = json.loads(store.read(_SPENT))
    else:
        stored = {"device_seconds": 0.0, "is_done": False}
    if stored["is_done"]:
        return float(stored["device_seconds"])
    bench.start()
    config = supernet_run(bench.config, bench.teacher, bench.data, space=bench.space)
    cpus = config.train.max_workers * config.train.threads_per_worker
    account = _Account(store, before_s=float(stored["device_seconds"]), cpus=cpus)

    def listen(event: Any) -> None:
        account.write()

    say(f"training {SUPERNET}: {config.train.num_steps} steps")
    train_run(config, say=say, listen=listen)
    account.write(is_done=True)
    return account.device_seconds


class _Account:
    """What was spent, in a file that is never far behind."""

    def __init__(self, store: Store, *, before_s: float, cpus: int) -> None:
        self._store, self._before_s, self._cpus = store, before_s, cpus
        self._began = self._written = time.monotonic()

    @property
    def device_seconds(self) -> float:
        return self._before_s + self._cpus * (time.monotonic() - self._began)

    def write(self, *, is_done: bool = False) -> None:
        if is_done or time.monotonic() - self._written > _WRITE_S:
            facts = {"device_seconds": self.device_seconds, "is_done": is_done}
            self._store.replace(_SPENT, json.dumps(facts).encode())
            self._written = time.monotonic()
