"""The choice of a backend, with a clock that each of them moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rectrain.data.batch import PackedTexts
from rectrain.errors import ConfigError
from rectrain.inference.backends import choose
from rectrain.inference.backends.missing import needs_extra
from rectrain.inference.text_encoder import TextEncoder

_TEXTS = PackedTexts(torch.ones(100, dtype=torch.int64), torch.tensor([40, 60]))


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class _Timed:
    """Takes the next of `seconds` for each call."""

    width = 1

    def __init__(self, name: str, clock: _Clock, seconds: list[float]) -> None:
        self.name = name
        self._clock = clock
        self._left = iter(seconds)

    def encode(self, texts: PackedTexts) -> Tensor:
        self._clock.now += next(self._left)
        return torch.zeros(texts.lengths.shape[0], 1)


def _missing() -> TextEncoder:
    with needs_extra():
        import no_such_engine  # type: ignore[import-not-found]  # noqa: F401
    raise AssertionError


def test_the_fastest_by_the_median_after_the_first_pass() -> None:
    clock = _Clock()
    seconds = {"slow first": [9.0, 1.0, 5.0, 1.0], "even": [1.0, 2.0, 2.0, 2.0]}
    candidates: dict[str, Callable[[], TextEncoder]] = {
        name: lambda name=name, found=found: _Timed(name, clock, found)  # type: ignore[misc]
        for name, found in seconds.items()
    }
    choice = choose({**candidates, "gone": _missing}, _TEXTS, clock=clock)
    assert choice.backend == "slow first"
    assert list(choice.tokens_per_s.items()) == [("slow first", 100.0), ("even", 50.0)]
    assert "pip install 'rectrain[inference]'" in choice.skipped["gone"]


def test_nothing_to_choose_from_is_said_in_one_line() -> None:
    with pytest.raises(ConfigError, match="no_such_engine") as caught:
        choose({"gone": _missing}, _TEXTS)
    assert "\n" not in str(caught.value)
