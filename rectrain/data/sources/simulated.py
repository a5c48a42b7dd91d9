"""The simulated marketplace as a source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial

from rectrain.data.config import PrepareConfig
from rectrain.data.simulate import SIZES, num_chunks, simulate
from rectrain.data.sources.source import Part, Source
from rectrain.errors import ConfigError

__all__ = ["SOURCE"]


def _parts(config: PrepareConfig) -> Sequence[Part]:
    if config.size not in SIZES:
        raise ConfigError(
            what="size", got=config.size, rule=f"must be one of {', '.join(SIZES)}",
            fix="name one of them, and change its counts by --simulated.num_users=…",
        )  # fmt: skip
    known = {field.name: field.type for field in fields(SIZES[config.size])}
    for name in config.simulated:
        if name not in known:
            raise ConfigError(
                what=f"simulated.{name}", got=config.simulated[name],
                rule=f"known counts are {', '.join(known)}", fix="use one of these names",
            )  # fmt: skip
    counts = {n: v if known[n] == "float" else int(v) for n, v in config.simulated.items()}
    size = replace(SIZES[config.size], **counts)  # type: ignore[arg-type]
    return [partial(simulate, size, seed=config.seed, chunk=i) for i in range(num_chunks(size))]


SOURCE = Source(_parts)
