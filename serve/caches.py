"""Whole answers, kept for a while: the same request to the same models gets the same answer."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable

from pydantic import BaseModel

from serve.schemas import Answer, Versions

__all__ = ["AnswerCache"]


class AnswerCache:
    """The answers used last, each for a limited time; of one process and one event loop.

    Args:
        capacity: answers kept at most; 0 keeps none.
        ttl_s: how long.
        clock: seconds that only grow.
    """

    def __init__(
        self, capacity: int, *, ttl_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._capacity = capacity
        self._ttl_s = ttl_s
        self._clock = clock
        self._answers: OrderedDict[bytes, tuple[float, Answer]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._answers)

    def key(self, versions: Versions, path: str, request: BaseModel) -> bytes:
        """What decides an answer: the models' versions, and all of the request but its wish for
        timings; empty where nothing is kept."""
        if not self._capacity:
            return b""
        asked = request.model_dump_json(exclude={"options": {"timings", "cost"}})
        text = f"{versions.small} {versions.large} {path} {asked}"
        return hashlib.blake2b(text.encode(), digest_size=16).digest()

    def get(self, key: bytes) -> Answer | None:
        """The answer of a key, if it is not too old."""
        until, answer = self._answers.get(key, (0.0, None))
        if answer is None or self._clock() >= until:
            self._answers.pop(key, None)
            return None
        self._answers.move_to_end(key)
        return answer

    def put(self, key: bytes, answer: Answer) -> None:
        """Keeps an answer."""
        if not self._capacity:
            return
        self._answers[key] = (self._clock() + self._ttl_s, answer)
        self._answers.move_to_end(key)
        while len(self._answers) > self._capacity:
            self._answers.popitem(last=False)
