"""Whole answers, kept for a while: the same request to the same models gets the same answer."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable

from pydantic import BaseModel

from serve.schemas import Answer, Versions

__all__ = ["AnswerCache"]


_LEARNED = 0.02  # weight of the last request in the share of hits
_ITEMS = 32  # of an answer, on average: an item takes about 1 kB, and some answers have hundreds
_ID_CHARS = 256  # of an id that count as one item more: up to 1 kB, at 4 bytes each


class AnswerCache:
    """The answers used last, each for a limited time; of one process and one event loop.

    Args:
        capacity: answers kept at most, and 32 times as many items in all, where an item's id counts
            as one more for each 256 characters; 0 keeps none.
        ttl_s: how long.
        clock: seconds that only grow.

    Attributes:
        hit_share: of the last requests that were looked for, 0 to 1.
        num_items: in all answers, counted so.
    """

    def __init__(
        self, capacity: int, *, ttl_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._capacity = capacity
        self._ttl_s = ttl_s
        self._clock = clock
        self._answers: OrderedDict[bytes, tuple[float, Answer]] = OrderedDict()
        self.hit_share = 0.0
        self.num_items = 0

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
        if self._clock() >= until:
            answer = None
        self.hit_share += _LEARNED * ((answer is not None) - self.hit_share)
        if answer is None:
            self._drop(key)
            return None
        self._answers.move_to_end(key)
        return answer

    def put(self, key: bytes, answer: Answer) -> None:
        """Keeps an answer, unless it alone is more than all that is kept."""
        self._drop(key)
        most = _ITEMS * self._capacity
        if not self._capacity or _num_items(answer) > most:
            return
        self._answers[key] = (self._clock() + self._ttl_s, answer)
        self.num_items += _num_items(answer)
        while len(self._answers) > self._capacity or self.num_items > most:
            self._drop(next(iter(self._answers)))

    def forget(self, large: str) -> None:
        """Drops what a large model had a part in.

        Args:
            large: its version.
        """
        for key in [key for key, (_, one) in self._answers.items() if one.versions.large == large]:
            self._drop(key)

    def _drop(self, key: bytes) -> None:
        if key in self._answers:
            _, answer = self._answers.pop(key)
            self.num_items -= _num_items(answer)


def _num_items(answer: Answer) -> int:
    """By the memory that they take: an item's id is the client's own, and may be long."""
    return sum(1 + len(item.item_id or "") // _ID_CHARS for item in answer.items)
