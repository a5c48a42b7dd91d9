"""rectrain: one BERT trained on recommendation, search ranking, ad CTR and risk, on Ray.

    model = rectrain.load("runs/small/package")
    scores = model.predict("search_ranking", rows)

The parts are imported where they are used: `rectrain.data`, `rectrain.model`, `rectrain.tasks`,
`rectrain.train`, `rectrain.inference`. This module alone imports none of the heavy frameworks.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from rectrain.config import Section, dump_config, load_config
from rectrain.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    EncoderError,
    PackageError,
    RectrainError,
    ResourceError,
    StorageError,
)

if TYPE_CHECKING:
    from rectrain.inference.packaged import PackagedModel

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EncoderError",
    "PackageError",
    "RectrainError",
    "ResourceError",
    "Section",
    "StorageError",
    "__version__",
    "dump_config",
    "load",
    "load_config",
]

try:
    __version__ = version("rectrain")
except PackageNotFoundError:  # the source alone, as a job's working directory on a cluster
    __version__ = "0+source"


def load(
    path: Path | str, *, backend: str = "auto", threads: int | None = None, device: str = "cpu"
) -> PackagedModel:
    """Opens a published model, every file verified first; see `inference.packaged.load`.

    Args:
        path: the package's folder (the --output of `jobs.publish` or `jobs.compress`).
        backend: what runs the encoder; "auto" chooses.
        threads: of this process's computations; None leaves the choice.
        device: "cpu", "cuda", or "auto" for a GPU where there is one.

    Raises:
        PackageError: a folder that is foreign, incomplete, altered, or of a newer format.
        ConfigError: no such backend, or threads below 1.
        EncoderError: a graph that its engine can't open.
        ResourceError: no such device.
    """
    from rectrain.inference import packaged

    return packaged.load(path, backend=backend, threads=threads, device=device)
