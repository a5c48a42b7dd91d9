"""Publishing a model: its parts, its card and what belongs to it become a package."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from rectrain.metrics import Interval
from rectrain.package.card import Card, encoder_card, package_card
from rectrain.package.folder import (
    CARD,
    GRAPHS,
    ITEMS,
    Package,
    check_free,
    entry,
    version_of,
    write_folder,
)
from rectrain.package.parts import ModelParts, files_of

__all__ = ["update_package", "write_package"]


def write_package(
    output: Path | str,
    parts: ModelParts,
    *,
    card: Card,
    graphs: Iterable[Path] = (),
    pictures: Mapping[str, bytes] | None = None,
    indexes: Callable[[str], Mapping[str, bytes]] | None = None,
    overwrite: bool = False,
) -> Package:
    """Publishes a model as a folder.

    Args:
        output: the folder; those above it are made.
        parts: the model.
        card: what its README.md says.
        graphs: files that become graphs/ (.xml, .bin, .onnx).
        pictures: file name (.png) -> content; the card shows them.
        indexes: from the package's version to the item index of each task (`item_indexes` of
            rectrain.inference.packaged).
        overwrite: replace the package that is there.

    Returns:
        The package, read back and verified.

    Raises:
        PackageError: something else is at `output`, or a package and `overwrite` is false.
        StorageError: the folder can't be written.
    """
    root = Path(output).expanduser().resolve()
    check_free(root, overwrite=overwrite)
    files = files_of(parts, encoder_card=encoder_card(card)) | dict(pictures or {})
    files |= {f"{GRAPHS}{path.name}": path.read_bytes() for path in sorted(graphs)}
    version = version_of({name: entry(data) for name, data in files.items()})
    if indexes is not None:
        files |= {f"{ITEMS}{task}.safetensors": data for task, data in indexes(version).items()}
    listed = {name: entry(data) for name, data in files.items()}
    files[CARD] = package_card(parts, card, version=version, files=listed).encode()
    facts = {
        "version": version,
        "source": card.source,
        "tasks": list(parts.model.task_names),
        "made": list(card.made),
        "metrics": {
            task: {name: _stored(value) for name, value in found.items()}
            for task, found in card.metrics.items()
        },
        "facts": dict(card.facts),
        "files": {**listed, CARD: entry(files[CARD])},
    }
    return write_folder(root, facts, files)


def _stored(value: float | Interval) -> float | list[float] | None:
    """A metric for JSON, its interval beside it where it is known; null for no number."""
    if not isinstance(value, Interval):
        return value if math.isfinite(value) else None
    known = [number for number in value if math.isfinite(number)]
    return known or None


def update_package(package: Package, files: Mapping[str, bytes]) -> Package:
    """Adds files to a package or replaces some; its version, and so its model, stays.

    Args:
        package: an open one.
        files: path in the package -> content (an item index, a graph, a picture).

    Returns:
        The package, read back and verified; itself where it holds all of this.

    Raises:
        PackageError: another process has changed it since it was opened.
        StorageError: the folder can't be written.
    """
    listed = {**package.files, **{name: entry(data) for name, data in files.items()}}
    if listed == package.files:
        return package
    assert version_of(listed) == package.version, "an update changes no weights"
    root = package.path.resolve()
    return write_folder(root, {**package.manifest, "files": listed}, files)
