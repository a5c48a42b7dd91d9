"""An engine that isn't installed, and a graph that it can't open: each is said in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rectrain.errors import ConfigError, EncoderError

__all__ = ["needs_extra", "readable"]

# OpenVINO says first where in its source an error arose, and below why.
_PLACE = re.compile(r"Exception from \S+:$|Check '.*' failed at \S+:$")


@contextmanager
def needs_extra() -> Iterator[None]:
    """Around the import of an engine.

    Raises:
        ConfigError: it isn't installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            what="inference engine",
            got=f"no installed package {error.name}",
            rule="it comes with the extra inference",
            fix="pip install 'rectrain[inference]', or use the torch backend",
        ) from error


@contextmanager
def readable(graph: Path) -> Iterator[None]:
    """Around an engine's opening of a graph; what engines raise has no common type.

    Raises:
        EncoderError: it can't.
    """
    try:
        yield
    except Exception as error:
        raise EncoderError(
            what=f"graph {graph}",
            got=_reason(error),
            rule="its engine must be able to open it",
            fix="publish it again, or use the torch backend",
        ) from error


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not _PLACE.match(line)), type(error).__name__)
