"""The folder in which a small model is made: its settings, and what each step says when done."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rectrain.compress.config import CompressConfig
from rectrain.config import dump_config, yaml_mapping
from rectrain.errors import ConfigError, StorageError, without_credentials
from rectrain.strict_json import strict_json
from rectrain.train.storage import LOCK, Store

__all__ = ["Workspace"]

_CONFIG = "compress.yaml"
_DONE = "done.json"  # written last: what a step says of its folder
_FREE = ("output", "split", "threads")  # may change between calls


class Workspace:
    """A folder of steps that are done or not, all of the same settings.

    Args:
        config: with absolute paths.

    Raises:
        ConfigError: the folder is of other settings, or holds something else.
        StorageError: no folder can be made there.
    """

    def __init__(self, config: CompressConfig) -> None:
        self.root = Path(config.output)
        self._store = Store.open(str(self.root))
        self._settings = without_credentials(dump_config(config))
        stored = self.root / _CONFIG
        if stored.exists():
            self._check_same(stored.read_bytes())
        elif self.root.is_dir() and {p.name for p in self.root.iterdir()} - {LOCK}:
            raise ConfigError(
                what="output",
                got=f"{self.root}, which holds other files and no {_CONFIG}",
                rule="only a folder of jobs.compress is written",
                fix="give another --output",
            )
        _check_writable(self.root)

    def _check_same(self, stored: bytes) -> None:
        old, new = (
            dict(_flat(yaml_mapping(text, name=str(self.root / _CONFIG))))
            for text in (stored, self._settings.encode())
        )
        changed = sorted(
            key
            for key in old.keys() | new.keys()
            if old.get(key) != new.get(key) and key not in _FREE
        )
        if changed:
            raise ConfigError(
                what=f"output {self.root}",
                got=f"made with another {', '.join(changed[:5])}",
                rule="steps that are done are kept, so all have the same settings",
                fix=f"give another --output, or the settings of its {_CONFIG}",
            )

    @contextmanager
    def begun(self) -> Iterator[None]:
        """The folder with its settings, while no other process writes it.

        Raises:
            ResourceError: another one does.
        """
        self._store.make()
        with self._store.locked():
            for name in self._store.folders():
                if name.startswith(".package."):  # what a kill left: the package is made anew
                    self.remove(name)
            self.write(_CONFIG, self._settings)
            yield

    def is_done(self, step: str) -> bool:
        """Whether a step has said so."""
        return (self.root / step / _DONE).exists()

    def facts(self, step: str) -> dict[str, Any]:
        """What a step said when it was done."""
        found: dict[str, Any] = json.loads((self.root / step / _DONE).read_bytes())
        return found

    def finish(self, step: str, facts: Mapping[str, Any]) -> None:
        """Says that a step is done, once all that is in its folder is on the disk.

        Args:
            step: its folder.
            facts: what later steps, or people, need to know of it; JSON-serialisable.
        """
        for path in (self.root / step).iterdir():  # what a step writes itself has no folders
            if path.is_file():
                self._store.sync(f"{step}/{path.name}")
        self.write(f"{step}/{_DONE}", strict_json(facts))
        self._store.sync(".")

    def fresh(self, step: str) -> Path:
        """An empty folder, in the place of what an interruption left."""
        folder = self.root / step
        self.remove(step)
        folder.mkdir(parents=True)
        return folder

    def remove(self, name: str) -> None:
        """Removes a folder or file, if it is there."""
        self._store.remove(name)

    def write(self, name: str, text: str) -> None:
        """Replaces a file at once, and lastingly."""
        folder, _, file = name.rpartition("/")
        self._store.sub(folder).replace(file, text.encode())


def _check_writable(folder: Path) -> None:
    """Refuses a place where no folder can be made; makes none."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise StorageError(
            what="output",
            got=f"{folder}, where {there} is {'closed to us' if there.is_dir() else 'a file'}",
            rule="must be a folder that this process can write",
            fix="give another --output, or mend its permissions",
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A nested mapping by dotted key."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
