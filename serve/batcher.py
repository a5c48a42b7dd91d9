"""Requests that wait are scored together, oldest first, as many as fit into a budget of tokens and
of time.

There is no timer: a batch is whatever waits when the model is free, so an idle model answers at
once, and a busy one finds its next batch ready. Order is strictly that of arrival: what does not
fit is first in the next batch, so no text is too long ever to be read. (`@serve.batch` with a
batch_size_fn sends it to the back of the queue.) Work whose client has left, or that can't be done
by its deadline, is dropped before it costs anything. A batch takes at most half of the time that
any work in it was given, since what arrives meanwhile must wait for it and be done in time, and no
more than it has left. (Half of what it has left makes batches of one where requests have waited:
the dearest size when there is least time.)
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

__all__ = ["Batcher", "DeadlinePassed", "Done", "Overloaded", "Pace"]

W = TypeVar("W")
R = TypeVar("R")
Run = Callable[[list[W]], Awaitable[Sequence[R | Exception]]]

_SMOOTHING = 0.1  # weight of the last batch in the measured pace
_HOPELESS = 4.0  # idle, it refuses what its pace says takes so many times what is left,
_FRESH_S = 0.1  # if it was measured so lately: one of a bad moment must not stand
_SPREAD = 0.05  # sizes of batches that differ less, as a share of their mean, tell no slope


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

    def most_s(self, now: float) -> float:
        """Seconds that a batch with it may take."""
        return min((self.deadline - self.arrived) / 2, self.deadline - now)


class Pace:
    """How long a batch takes: fixed seconds, and some for each token.

    Least squares over the batches so far, their weights falling by a tenth with each new one. A
    small batch is slow for its size, so tokens a second alone would make a long queue look longer
    than it is. Where batches are all of one size, all of their time is put down to the tokens.
    """

    def __init__(self) -> None:
        self._num_batches = 0
        self._tokens = self._seconds = self._squares = self._products = 0.0

    def feed(self, tokens: int, seconds: float) -> None:
        """Learns of a batch."""
        self._num_batches += 1
        share = max(_SMOOTHING, 1 / self._num_batches)
        self._tokens += share * (tokens - self._tokens)
        self._seconds += share * (seconds - self._seconds)
        self._squares += share * (tokens * tokens - self._squares)
        self._products += share * (tokens * seconds - self._products)

    def seconds(self, tokens: int, *, batches: int = 1) -> float:
        """Of so many tokens in so many batches; 0 before the first batch."""
        if not self._num_batches:
            return 0.0
        most = self._seconds / self._tokens  # then nothing is fixed
        variance = self._squares - self._tokens**2
        a_token = most
        if variance > (_SPREAD * self._tokens) ** 2:
            slope = (self._products - self._tokens * self._seconds) / variance
            a_token = min(max(slope, 0.0), most)
        fixed = self._seconds - a_token * self._tokens
        return batches * fixed + tokens * a_token


class Batcher(Generic[W, R]):
    """A queue in front of something that scores many at once.

    Args:
        run: scores a batch without blocking the event loop; a result or an exception for each.
        max_tokens: of a batch; work with more is a batch of its own.
        max_s: seconds that a batch may take, as far as the pace tells; so is work with more.
        max_queued_tokens: that wait at most; an empty queue takes any work.
        clock: seconds that only grow; deadlines are in its time.
        observe: told of each batch: its requests, its tokens.
    """

    def __init__(
        self,
        run: Run[W, R],
        *,
        max_tokens: int,
        max_s: float,
        max_queued_tokens: int,
        clock: Callable[[], float] = time.monotonic,
        observe: Callable[[int, int], None] = lambda requests, tokens: None,
    ) -> None:
        self._run = run
        self._max_tokens = max_tokens
        self._max_s = max_s
        self._max_queued_tokens = max_queued_tokens
        self._clock = clock
        self._observe = observe
        self._queue: deque[_Entry[W, R]] = deque()
        self._queued_tokens = 0
        self._running: tuple[int, float] | None = None  # tokens, since when
        self._pace = Pace()
        self._measured = -math.inf  # when the pace was
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
            Overloaded: at once, where too much waits to be done in time. A batcher that has nothing
                to do refuses only what is hopeless, and takes that, too, where its last batch was
                not just now: a pace that was measured in a bad moment must not stand.
            DeadlinePassed: its turn came too late.
            Exception: what `run` gave for it.
        """
        self.require_room(tokens, deadline=deadline)
        future: asyncio.Future[Done[R]] = asyncio.get_running_loop().create_future()
        entry = _Entry(work, tokens, deadline, self._clock(), future)
        self._queue.append(entry)
        self._queued_tokens += tokens
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        try:
            return await future
        finally:
            if not future.done() or future.cancelled():
                self._withdraw(entry)

    def require_room(self, tokens: int, *, deadline: float) -> None:
        """Raises what `submit` would at once for work of this size."""
        now, wait_s = self._clock(), self.expected_s(tokens)
        if now >= deadline:
            raise DeadlinePassed
        is_full = self._queue and self._queued_tokens + tokens > self._max_queued_tokens
        is_busy = bool(self._queue) or self._running is not None
        is_late = now + wait_s > deadline if is_busy else self._is_hopeless(wait_s, deadline - now)
        if is_full or is_late:
            raise Overloaded(wait_s)

    def expected_s(self, tokens: int = 0) -> float:
        """Seconds until so many more tokens would be done, at the pace of the last batches."""
        left_s = 0.0
        if self._running is not None:
            running, since = self._running
            left_s = max(0.0, self._pace.seconds(running) - (self._clock() - since))
        waiting = self._queued_tokens + tokens
        batches = max(
            -(-waiting // self._max_tokens), math.ceil(self._pace.seconds(waiting) / self._max_s)
        )
        return left_s + self._pace.seconds(waiting, batches=batches)

    def _withdraw(self, entry: _Entry[W, R]) -> None:
        if entry in self._queue:
            self._queue.remove(entry)
            self._queued_tokens -= entry.tokens

    async def _work(self) -> None:
        """Runs batches until nothing waits."""
        while batch := self._take():
            begun, tokens = self._clock(), sum(entry.tokens for entry in batch)
            self._running = tokens, begun
            self._observe(len(batch), tokens)
            results: Sequence[R | Exception]
            try:
                results = await self._run([entry.work for entry in batch])
            except Exception as error:
                results = [error] * len(batch)
            self._running, ran_s = None, self._clock() - begun
            self._pace.feed(tokens, ran_s)
            self._measured = self._clock()
            for entry, result in zip(batch, results, strict=True):
                _settle(entry, result, begun=begun, ran_s=ran_s)

    def _take(self) -> list[_Entry[W, R]]:
        """The oldest work up to the budgets of tokens and time, less what nobody waits for any more
        and what can't be done in time."""
        batch: list[_Entry[W, R]] = []
        tokens, most_s, now = 0, self._max_s, self._clock()
        while self._queue:
            entry = self._queue[0]
            if not entry.future.done() and not self._is_late(entry, now):
                together = tokens + entry.tokens
                most_s = min(most_s, entry.most_s(now))
                is_long = self._pace.seconds(together) > most_s
                if batch and (together > self._max_tokens or is_long):
                    break
                batch.append(entry)
                tokens = together
            elif not entry.future.done():
                entry.future.set_exception(DeadlinePassed())
            self._queue.popleft()
            self._queued_tokens -= entry.tokens
        return batch

    def _is_late(self, entry: _Entry[W, R], now: float) -> bool:
        """Whether it can't be done in time. The last that waits may try, unless it is hopeless."""
        needed_s, left_s = self._pace.seconds(entry.tokens), entry.deadline - now
        if len(self._queue) == 1:
            return left_s <= 0 or self._is_hopeless(needed_s, left_s)
        return needed_s >= left_s

    def _is_hopeless(self, needed_s: float, left_s: float) -> bool:
        """Whether a pace of just now says that work takes far longer than there is."""
        is_fresh = self._clock() - self._measured < _FRESH_S
        return is_fresh and needed_s > _HOPELESS * left_s


def _settle(entry: _Entry[W, R], result: R | Exception, *, begun: float, ran_s: float) -> None:
    if entry.future.done():  # its client left while the batch ran
        return
    if isinstance(result, Exception):
        entry.future.set_exception(result)
    else:
        entry.future.set_result(Done(result, begun - entry.arrived, ran_s))
