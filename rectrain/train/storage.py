"""Files of a run in a local folder or on any pyarrow filesystem, written so that they last."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs

from rectrain.errors import ResourceError, StorageError

__all__ = ["LOCK", "Store", "lock_file"]

LOCK = ".lock"


@contextmanager
def lock_file(path: Path, *, mode: int = 0o666) -> Iterator[int]:
    """A file to hold by `flock`, made where it isn't there; what it says is left alone.

    Args:
        path: in a folder that is there.
        mode: of a new file, without the bits of the umask.

    Returns:
        Its descriptor, open for writing: NFS locks none that is read-only.

    Raises:
        StorageError: a symbolic link, or not this user's to write.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
    try:
        file = os.open(path, flags, mode)
    except OSError as error:
        reason = "a symbolic link" if path.is_symlink() else error.strerror
        raise StorageError(
            what="lock file",
            got=f"{path} ({reason})",
            rule="must be a plain file that this process can write",
            fix="remove it, or mend its permissions",
        ) from error
    try:
        yield file
    finally:
        os.close(file)


@dataclass(frozen=True)
class Store:
    """A folder. Paths given to its methods are relative to it and use `/`.

    Local files are fsynced, and so are the folders that name them: after `write` returns, a power
    cut loses nothing.
    """

    filesystem: fs.FileSystem
    root: str

    @classmethod
    def open(cls, location: str) -> Store:
        """The folder at a path or URI; it need not exist yet.

        Raises:
            StorageError: no filesystem knows the URI.
        """
        if "://" not in location:
            return cls(fs.LocalFileSystem(), str(Path(location).absolute()))
        try:
            filesystem, root = fs.FileSystem.from_uri(location)
        except (ValueError, OSError) as error:
            raise StorageError(
                what="output",
                got=f"{location} ({error})",
                rule="a folder, or a URI that pyarrow knows (file, s3, gs, hdfs, abfs)",
                fix="mend the URI or its credentials",
            ) from error
        return cls(filesystem, root)

    @property
    def local(self) -> Path | None:
        """The folder's path when it is on this machine's filesystem."""
        return Path(self.root) if isinstance(self.filesystem, fs.LocalFileSystem) else None

    def sub(self, name: str) -> Store:
        """The folder `name` in this one."""
        return Store(self.filesystem, self._full(name))

    def write(self, name: str, data: bytes) -> None:
        """Writes one file, making its folders; durable on return.

        Raises:
            OSError: the disk is full, or the filesystem refuses.
        """
        if self.local is None:
            self.filesystem.create_dir(self._full(name).rpartition("/")[0], recursive=True)
            with self.filesystem.open_output_stream(self._full(name)) as stream:
                stream.write(data)
            return
        path = self.local / name
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(descriptor, left) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def replace(self, name: str, data: bytes) -> None:
        """Writes one file so that a reader sees the old content or the new, never a part."""
        if self.local is None:
            self.write(name, data)
            return
        self.write(f".{name}.tmp", data)
        self.rename(f".{name}.tmp", name)

    def read(self, name: str) -> bytes:
        """The content of one file.

        Raises:
            FileNotFoundError: there is none.
        """
        with self.filesystem.open_input_stream(self._full(name)) as stream:
            return bytes(stream.read())

    def chunks(self, name: str, *, size: int = 1 << 22) -> Iterator[bytes]:
        """The content of one file in pieces of at most `size` bytes."""
        with self.filesystem.open_input_stream(self._full(name)) as stream:
            while piece := stream.read(size):
                yield piece

    def exists(self, name: str) -> bool:
        """Whether a file or folder has this name."""
        info = self.filesystem.get_file_info(self._full(name))
        return bool(info.type != fs.FileType.NotFound)

    def entries(self) -> list[str]:
        """Names of what lies directly in this folder, hidden or not; none when it isn't there."""
        selector = fs.FileSelector(self.root, allow_not_found=True)
        with self._usable():
            return sorted(info.base_name for info in self.filesystem.get_file_info(selector))

    def folders(self) -> list[str]:
        """Names of the folders directly in this one, sorted; none when it does not exist."""
        selector = fs.FileSelector(self.root, allow_not_found=True)
        found = self.filesystem.get_file_info(selector)
        return sorted(info.base_name for info in found if info.type == fs.FileType.Directory)

    def rename(self, old: str, new: str) -> None:
        """Renames in a local folder, at once and lastingly."""
        assert self.local is not None, "other filesystems have no atomic rename"
        (self.local / old).replace(self.local / new)
        self.sync(".")

    def sync(self, name: str) -> None:
        """Makes the names in a local folder durable; elsewhere they are already."""
        if self.local is None:
            return
        descriptor = os.open(self.local / name, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def make(self, name: str = "") -> None:
        """Makes a folder and those above it.

        Raises:
            StorageError: it can't be made.
        """
        with self._usable():
            self.filesystem.create_dir(self._full(name), recursive=True)

    def remove_file(self, name: str) -> None:
        """Removes a file, if it is there."""
        if self.local is not None:
            (self.local / name).unlink(missing_ok=True)
        elif self.exists(name):
            self.filesystem.delete_file(self._full(name))

    def remove(self, name: str) -> None:
        """Removes a folder or file with all in it, if it is there."""
        if self.local is not None:
            if (self.local / name).is_file():
                self.remove_file(name)
            shutil.rmtree(self.local / name, ignore_errors=True)
        elif self.filesystem.get_file_info(self._full(name)).is_file:
            self.remove_file(name)
        elif self.exists(name):
            self.filesystem.delete_dir(self._full(name))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds a local folder against other processes; the kernel lets go when this one dies.

        Raises:
            ResourceError: another process holds it.
        """
        if self.local is None:
            yield
            return
        self.make()
        with lock_file(self.local / LOCK) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ResourceError(
                    what=f"folder {self.root}",
                    got="another process that writes it",
                    rule="one process at a time writes a run",
                    fix="wait for the other one, or give another --name",
                ) from error
            yield

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                what="output",
                got=f"{self.root} ({error.strerror or error})",
                rule="must be a folder that this process can write",
                fix="give another output, or mend its permissions",
            ) from error

    def _full(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}".rstrip("/") if self.root else name
