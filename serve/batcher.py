"""Requests that wait are scored together, oldest first, as many as fit into a budget of tokens.

There is no timer: a batch is whatever waits when the model is free, so an idle model answers at
once, and a busy one finds its next batch ready. Order is strictly that of arrival: what does not
fit is first in the next batch, so no text is too long ever to be read. (`@serve.batch` with a
batch_size_fn sends it to the back of the queue.) Work whose client has left, or whose deadline
passed, is dropped before it costs anything.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

__all__ = ["Batcher", "DeadlinePassed", "Done", "Overloaded"]

W = TypeVar("W")
R = TypeVar("R")
Run = Callable[[list[W]], Awaitable[Sequence[R | Exception]]]

_SMOOTHING = 0.2  # weight of the last batch in the measured speed


class Overloaded(Exception):
    """More waits than may wait, or than can be done in time.

    Args:
        retry_after_s: when the queue will have been worked off.
    """

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s


class DeadlinePassed(Exception):
    """The answer would come too late."""


class Done(NamedTuple, Generic[R]):
    """A result, the seconds that it waited, and those that its batch took."""

    result: R
    waited_s: float
    ran_s: float


@dataclass(eq=False)
class _Entry(Generic[W, R]):
    work: W
    tokens: int
    deadline: float
    arrived: float
    future: asyncio.Future[Done[R]]


class Batcher(Generic[W, R]):
    """A queue in front of something that scores many at once.

    Args:
        run: scores a batch without blocking the event loop; a result or an exception for each.
        max_tokens: of a batch; work with more is a batch of its own.
        max_queued_tokens: that wait at most; an empty queue takes any work.
        clock: seconds that only grow; deadlines are in its time.
        observe: told of each batch: its requests, its tokens.
    """

    def __init__(
        self,
        run: Run[W, R],
        *,
        max_tokens: int,
        max_queued_tokens: int,
        clock: Callable[[], float] = time.monotonic,
        observe: Callable[[int, int], None] = lambda requests, tokens: None,
    ) -> None:
        self._run = run
        self._max_tokens = max_tokens
        self._max_queued_tokens = max_queued_tokens
        self._clock = clock
        self._observe = observe
        self._queue: deque[_Entry[W, R]] = deque()
        self._queued_tokens = 0
        self._running_tokens = 0
        self._tokens_per_s: float | None = None
        self._worker: asyncio.Task[None] | None = None

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait."""
        return self._queued_tokens

    async def submit(self, work: W, *, tokens: int, deadline: float) -> Done[R]:
        """The result of work, once its batch is done. Cancel the call to withdraw the work.

        Args:
            work: what `run` takes.
            tokens: its size, at least 1.
            deadline: by the clock.

        Raises:
            Overloaded: at once, where too much waits.
            DeadlinePassed: its turn came too late.
            Exception: what `run` gave for it.
        """
        now, wait_s = self._clock(), self.expected_s(tokens)
        if now >= deadline:
            raise DeadlinePassed
        is_full = self._queue and self._queued_tokens + tokens > self._max_queued_tokens
        if is_full or now + wait_s > deadline:
            raise Overloaded(wait_s)
        future: asyncio.Future[Done[R]] = asyncio.get_running_loop().create_future()
        entry = _Entry(work, tokens, deadline, now, future)
        self._queue.append(entry)
        self._queued_tokens += tokens
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        try:
            return await future
        finally:
            if not future.done() or future.cancelled():
                self._withdraw(entry)

    def expected_s(self, tokens: int = 0) -> float:
        """Seconds until so many more tokens would be done, at the speed of the last batches."""
        if not self._tokens_per_s:
            return 0.0
        return (self._queued_tokens + self._running_tokens + tokens) / self._tokens_per_s

    def _withdraw(self, entry: _Entry[W, R]) -> None:
        if entry in self._queue:
            self._queue.remove(entry)
            self._queued_tokens -= entry.tokens

    async def _work(self) -> None:
        """Runs batches until nothing waits."""
        while batch := self._take():
            begun = self._clock()
            self._running_tokens = sum(entry.tokens for entry in batch)
            self._observe(len(batch), self._running_tokens)
            results: Sequence[R | Exception]
            try:
                results = await self._run([entry.work for entry in batch])
            except Exception as error:
                results = [error] * len(batch)
            ran_s = self._clock() - begun
            self._measure(self._running_tokens, ran_s)
            self._running_tokens = 0
            for entry, result in zip(batch, results, strict=True):
                _settle(entry, result, begun=begun, ran_s=ran_s)

    def _take(self) -> list[_Entry[W, R]]:
        """The oldest work up to the budget, less what nobody waits for any more."""
        batch: list[_Entry[W, R]] = []
        tokens = 0
        while self._queue:
            entry = self._queue[0]
            is_late = self._clock() >= entry.deadline
            if batch and not is_late and tokens + entry.tokens > self._max_tokens:
                break
            self._queue.popleft()
            self._queued_tokens -= entry.tokens
            if entry.future.done():
                continue
            if is_late:
                entry.future.set_exception(DeadlinePassed())
                continue
            batch.append(entry)
            tokens += entry.tokens
        return batch

    def _measure(self, tokens: int, ran_s: float) -> None:
        if ran_s <= 0:
            return
        speed = tokens / ran_s
        last = self._tokens_per_s or speed
        self._tokens_per_s = last + _SMOOTHING * (speed - last)


def _settle(entry: _Entry[W, R], result: R | Exception, *, begun: float, ran_s: float) -> None:
    if entry.future.done():  # its client left while the batch ran
        return
    if isinstance(result, Exception):
        entry.future.set_exception(result)
    else:
        entry.future.set_result(Done(result, begun - entry.arrived, ran_s))
