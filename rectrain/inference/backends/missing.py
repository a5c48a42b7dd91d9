"""Engines are an extra: one that isn't installed is said in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rectrain.errors import ConfigError

__all__ = ["needs_extra"]


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
