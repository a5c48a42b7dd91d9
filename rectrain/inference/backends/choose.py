"""Which backend is the fastest on this machine, by a short measurement on real texts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from rectrain.data.batch import PackedTexts
from rectrain.errors import ConfigError
from rectrain.inference.text_encoder import TextEncoder

__all__ = ["Choice", "choose"]


@dataclass(frozen=True)
class Choice:
    """What a measurement found.

    Attributes:
        backend: the fastest.
        tokens_per_s: backend -> real tokens a second, padding not counted; the fastest first.
        skipped: backend -> why it could not run here.
    """

    backend: str
    tokens_per_s: dict[str, float]
    skipped: dict[str, str]


def choose(
    candidates: Mapping[str, Callable[[], TextEncoder]],
    texts: PackedTexts,
    *,
    rounds: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> Choice:
    """Measures the candidates in turn, after one pass each that isn't counted.

    Args:
        candidates: backend -> opens it. One whose engine is missing is skipped.
        texts: like those to come in number and length; some thousand tokens are enough.
        rounds: measurements of each; their median counts.
        clock: seconds.

    Raises:
        ConfigError: none can run here.
    """
    opened: dict[str, TextEncoder] = {}
    skipped: dict[str, str] = {}
    for name, open_one in candidates.items():
        try:
            opened[name] = open_one()
        except ConfigError as error:
            skipped[name] = str(error)
    if not opened:
        raise ConfigError(
            what="backends",
            got="; ".join(skipped.values()) or "none",
            rule="at least one must run here",
            fix="pip install 'rectrain[inference]', or use the torch backend",
        )
    seconds: dict[str, list[float]] = {name: [] for name in opened}
    for number in range(rounds + 1):
        for name, encoder in opened.items():
            start = clock()
            encoder.encode(texts)
            if number:
                seconds[name].append(clock() - start)
    num_tokens = int(texts.lengths.sum())
    speed = {name: num_tokens / median(found) for name, found in seconds.items()}
    ranked = dict(sorted(speed.items(), key=lambda pair: -pair[1]))
    return Choice(next(iter(ranked)), ranked, skipped)
