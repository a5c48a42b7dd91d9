"""Settings that have no effect as the others stand: what a user gave by hand is refused then."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import reduce
from typing import NamedTuple

from pydantic import BaseModel

from rectrain.errors import ConfigError

__all__ = ["Idle", "refuse_idle"]


class Idle(NamedTuple):
    """Settings that nothing reads.

    keys: dotted, from the root.
    because: of what, as "without train.adapter".
    deciders: dotted keys of the settings that decide it.
    """

    keys: tuple[str, ...]
    because: str
    deciders: tuple[str, ...]


def refuse_idle(config: BaseModel, idle: Iterable[Idle], *, given: Collection[str]) -> None:
    """Refuses settings without effect that the user asked for.

    Those of a file count where they differ from the default: a stored configuration holds all.
    Where the command line gives what decides, one file may serve several runs, and they don't.

    Args:
        config: the whole configuration.
        idle: of it.
        given: dotted keys of the command line.

    Raises:
        ConfigError: the first of them.
    """
    for keys, because, deciders in idle:
        for key in keys:
            *parents, name = key.split(".")
            section = reduce(getattr, parents, config)
            value = getattr(section, name)
            default = type(section).model_fields[name].get_default(call_default_factory=True)
            in_file = value != default and key not in given
            if key in given or (in_file and not set(deciders) & set(given)):
                raise ConfigError(
                    what=f"{key} {'in the file' if in_file else 'on the command line'}",
                    got=repr(value),
                    rule=f"has no effect {because}",
                    fix="leave it out",
                )
