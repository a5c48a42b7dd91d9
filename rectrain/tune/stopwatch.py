"""Who computes and who is timed on a machine: a search's processes keep out of each other's clocks.

Trials judge models on all cores of a machine at a time, and would disturb each other's clocks. Two
locks of the machine keep them apart; both are the kernel's, on files in the folder of temporary
ones, so a process that dies lets go.

| who | training lock, one a search | stopwatch, one for all searches |
|---|---|---|
| `training`: waits for a run's workers | together with others | - |
| `busy`: computes in its own process | - | together with others |
| `alone`: measures times | by itself | by itself, taken second |

Rules that leave no circle of processes that wait for each other, however few the cores:

1. Within `busy` and within `alone` nothing is waited for: no CPUs, no workers, no other lock. So
   the stopwatch is always let go of.
2. Within `training` CPUs are waited for. So who asks for `alone` holds none that a training of the
   same search needs: a separate trial's process and the driver reserve none, and elastic trials,
   which do, run while no run of their search is trained. Runs of other searches are not waited for:
   one may need the very CPUs of the trial that waits.
3. The stopwatch is taken last: neither `training` nor `alone` begins within `busy` or `alone`, nor
   `alone` within `training`. That is an error, and not a wait without an end.

Who waits to be alone is not kept waiting for ever: all wait in one line, and whoever is at its head
waits for those who are inside. What a chosen model's compression computes between its timings
(trim, quantise) holds neither lock: it is timed `alone`, which can't begin within `busy`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from rectrain.train.storage import lock_file

__all__ = ["alone", "busy", "training"]

_SILENT_S = 30.0  # that one waits before it says so
_WAITS = "tune: waits for another trial or search on this machine (it holds {path})"
_mine = threading.local()  # .held: path -> kind of what this thread holds


def busy() -> AbstractContextManager[None]:
    """A context in which this process computes beside others of this machine's searches; it may be
    within any of these."""
    return _with_others(_stopwatch())


def training(root: Path) -> AbstractContextManager[None]:
    """A context in which a run of a search is trained, by workers that may have to be waited for.

    Args:
        root: the search's folder.

    Raises:
        RuntimeError: within `busy` or `alone`.
    """
    _check_order(_stopwatch())
    return _with_others(_training(root))


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """A context in which no other process of this machine's searches computes, and no run of this
    search is trained from this machine.

    Args:
        root: the search's folder.

    Raises:
        RuntimeError: within `busy`, `training` or `alone`.
    """
    _check_order(_stopwatch(), _training(root))
    with _held(_training(root), fcntl.LOCK_EX), _held(_stopwatch(), fcntl.LOCK_EX):
        yield


def _stopwatch() -> Path:
    return _folder() / f"rectrain-{os.getuid()}.stopwatch"


def _training(root: Path) -> Path:
    name = hashlib.sha256(str(root.absolute()).encode()).hexdigest()[:16]
    return _folder() / f"rectrain-{os.getuid()}-{name}.training"


def _folder() -> Path:
    return Path(tempfile.gettempdir())


def _held_here() -> dict[Path, int]:
    held: dict[Path, int] = _mine.__dict__.setdefault("held", {})
    return held


def _check_order(*later: Path) -> None:
    for path in later:
        if path in _held_here():
            raise RuntimeError(f"this thread holds {path}: it would wait for itself")


@contextmanager
def _with_others(path: Path) -> Iterator[None]:
    if path in _held_here():
        yield
        return
    with _held(path, fcntl.LOCK_SH):
        yield


@contextmanager
def _held(path: Path, kind: int) -> Iterator[None]:
    """Waits in line, and holds the lock. Others write into its folder, too: see `lock_file`."""
    line = path.with_name(f"{path.name}.line")
    with lock_file(path, mode=0o600) as file:
        waits = threading.Timer(_SILENT_S, print, [_WAITS.format(path=path)], {"flush": True})
        waits.daemon = True
        waits.start()
        try:
            with lock_file(line, mode=0o600) as place:
                fcntl.flock(place, fcntl.LOCK_EX)
                fcntl.flock(file, kind)
        finally:
            waits.cancel()
        _held_here()[path] = kind
        try:
            yield
        finally:
            del _held_here()[path]
