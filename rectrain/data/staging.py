"""A directory that appears whole or not at all: built beside its place, renamed at the end."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rectrain.errors import DataError, StorageError

__all__ = ["build_directory"]


@contextmanager
def build_directory(output: Path) -> Iterator[Path]:
    """Give a temporary directory that takes the place of `output` when the block ends well.

    What an earlier, killed run left is removed. A directory already at `output` is replaced.

    Raises:
        DataError: another process is building the same output.
        StorageError: the place can't be written, or the disk is full.
    """
    temporary = output.with_name(f".{output.name}.building")
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        lock = os.open(temporary, os.O_RDONLY)
    except OSError as error:
        raise _unwritable(output, error) from error
    try:
        _lock(lock, output)
        _clear(temporary)
        yield temporary
        _replace(temporary, output)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise _unwritable(output, error) from error
        raise
    finally:
        os.close(lock)
        # only what this call still holds: a name that was renamed away is gone by now
        if temporary.exists() and not _held_by_other(temporary):
            shutil.rmtree(temporary, ignore_errors=True)


def _lock(descriptor: int, output: Path) -> None:
    """Lock the directory itself; the kernel lets go when the process dies, however it dies."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataError(
            what="output", got=output, rule="one process at a time builds a directory",
            fix="wait for the other one, or give another --output",
        ) from error  # fmt: skip


def _held_by_other(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _clear(directory: Path) -> None:
    for entry in directory.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _replace(temporary: Path, output: Path) -> None:
    for file in sorted(temporary.rglob("*")):
        _sync(file)
    old = output.with_name(f".{output.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    temporary.rename(output)
    _sync(output.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(output: Path, error: OSError) -> StorageError:
    return StorageError(
        what=f"output {output}", got=error, rule="must be a place that can be written",
        fix="free space, or give another --output",
    )  # fmt: skip
