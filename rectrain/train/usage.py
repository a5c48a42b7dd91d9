"""What work takes: device-seconds and memory, noted in its folder while it goes on.

FOLDER/usage/<start>-<rank>-<random>.json    one life of one process

A life is rewritten every few seconds, so a process that is killed leaves all but the last of them.
Nothing here draws from a seeded random state or touches the work itself: a run that is measured
has the bits of one that is not.
"""

from __future__ import annotations

import json
import os
import re
import resource
import secrets
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

import psutil
import torch

from rectrain.errors import DataError
from rectrain.train.storage import Store

__all__ = ["FOLDER", "Usage", "Work", "cpu_name", "read_usage", "recorded"]

FOLDER = "usage"
Work = Literal["pretrain", "train", "compress", "tune"]
"""Pre-training, training, a step of a compression, a trial of a search."""

_FORMAT = "rectrain-usage"
_VERSION = 1
_LOCAL_INTERVAL_S = 2.0
_REMOTE_INTERVAL_S = 20.0  # an object store takes money for each write


@dataclass(frozen=True)
class Usage:
    """One life of one process.

    Attributes:
        work: what kind of work it was.
        label: which: the run, the step, the trial.
        device: what computed.
        chip: its name.
        num_devices: hardware threads, or GPUs, that the process had to itself.
        rank, world_size: of the process in its group.
        start: UTC, ISO 8601.
        end: as of the last write.
        seconds: of a monotonic clock, from start to end.
        peak_memory_bytes: the most that was held: of the GPU, or of the process.
        finished: whether it came to its end; a killed life did not, nor one that failed.
    """

    work: Work
    label: str
    device: Literal["cpu", "gpu"]
    chip: str
    num_devices: int
    rank: int
    world_size: int
    start: str
    end: str
    seconds: float
    peak_memory_bytes: int
    finished: bool

    @property
    def device_seconds(self) -> float:
        """Seconds × devices, whether they were busy or waited."""
        return self.seconds * self.num_devices


@contextmanager
def recorded(
    store: Store,
    *,
    work: Work,
    label: str,
    num_threads: int,
    on_gpu: bool | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[None]:
    """Notes what the work inside takes. Where it can't be written, the work goes on.

    Args:
        store: the folder of the work.
        work: what kind it is.
        label: which.
        num_threads: that the work has to itself, where it computes on the CPU; else it is one GPU.
        on_gpu: whether it does; by default, where torch sees one.
        rank, world_size: of this process in the group that works.
    """
    if on_gpu is None:
        on_gpu = torch.cuda.is_available()
    now = _now()
    usage = Usage(
        work=work,
        label=label,
        device="gpu" if on_gpu else "cpu",
        chip=torch.cuda.get_device_name() if on_gpu else cpu_name(),
        num_devices=1 if on_gpu else num_threads,
        rank=rank,
        world_size=world_size,
        start=now,
        end=now,
        seconds=0.0,
        peak_memory_bytes=0,
        finished=False,
    )
    life = _Life(store, usage)
    thread = threading.Thread(target=life.keep, name="rectrain-usage", daemon=True)
    thread.start()
    finished = False
    try:
        yield
        finished = True
    finally:
        life.ended.set()
        thread.join()
        life.write(finished=finished)


def read_usage(store: Store) -> list[Usage]:
    """All lives that a folder tells of, the earliest first.

    Raises:
        DataError: a file of another form.
    """
    folder = store.sub(FOLDER)
    found = [
        _parsed(folder.read(name), name=f"{folder.root}/{name}")
        for name in folder.entries()
        if name.endswith(".json") and not name.startswith(".")
    ]
    return sorted(found, key=lambda usage: (usage.start, usage.rank))


def _parsed(data: bytes, *, name: str) -> Usage:
    try:
        content = json.loads(data)
        known = content.pop("format"), content.pop("version")
        usage = Usage(**content)
        if known != (_FORMAT, _VERSION) or usage.work not in get_args(Work):
            raise ValueError(f"{known[0]} {known[1]} of {usage.work}")
        return usage
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            what=f"usage in {name}",
            got=error,
            rule=f"must be {_FORMAT} {_VERSION} as a run writes it",
            fix="remove the file, or read it with the version that wrote it",
        ) from None


class _Life:
    """Keeps one file up to date."""

    def __init__(self, store: Store, usage: Usage) -> None:
        self._folder = store.sub(FOLDER)
        self._usage = usage
        # Not by `random`: its state belongs to the work.
        start = re.sub(r"\D", "", usage.start)[:14]
        self._name = f"{start}-{usage.rank}-{secrets.token_hex(4)}.json"
        self._interval_s = _LOCAL_INTERVAL_S if store.local else _REMOTE_INTERVAL_S
        self._began = time.monotonic()
        self._memory = _Memory(usage.device)
        self._warned = False
        self.ended = threading.Event()

    def keep(self) -> None:
        """Writes until it has ended."""
        self.write(finished=False)
        while not self.ended.wait(self._interval_s):
            self.write(finished=False)

    def write(self, *, finished: bool) -> None:
        usage = replace(
            self._usage,
            end=_now(),
            seconds=time.monotonic() - self._began,
            peak_memory_bytes=self._memory.peak(),
            finished=finished,
        )
        content = {"format": _FORMAT, "version": _VERSION, **asdict(usage)}
        try:
            self._folder.replace(self._name, (json.dumps(content, indent=1) + "\n").encode())
        except OSError as error:
            if not self._warned:
                warnings.warn(f"usage not written: {error}; the work goes on", stacklevel=2)
            self._warned = True


class _Memory:
    """The most memory of a life: the GPU's allocator knows, of a process it is looked up.

    The kernel's mark of a process is of all its life; where it has risen since this began, it is
    this one's, and else the largest size that was seen.
    """

    def __init__(self, device: Literal["cpu", "gpu"]) -> None:
        self._device = device
        self._process = psutil.Process()
        self._before, self._seen = _high_water(), 0

    def peak(self) -> int:
        if self._device == "gpu":
            return int(torch.cuda.max_memory_allocated())
        self._seen = max(self._seen, int(self._process.memory_info().rss))
        mark = _high_water()
        return max(self._seen, mark if mark > self._before else 0)


def _high_water() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The name of this machine's processor; of one that tells none, its architecture."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, os.uname().machine)
