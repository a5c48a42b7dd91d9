"""A load generator in a process of its own, on a core of its own: closed and open loop over HTTP.

    with Generator(core=1) as generator:
        outcomes = generator.run(Load(url, rate=50.0, duration_s=10.0), requests)

Closed loop: N connections, each sends its next request when the last one is answered. Open loop:
requests fall due as a Poisson process, whether or not the server keeps up, and latency counts from
the due time, so a server that stalls is charged for all that it kept waiting (no coordinated
omission). Every request that fell due gives exactly one outcome.

Times are seconds of the machine's monotonic clock, the same in all its processes.
"""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import aiohttp

from benchmarks.child import Child, parent

__all__ = ["Generator", "Load", "Outcome", "Request", "Summary", "summarise"]

_CODE = "from benchmarks.load import answer_parent; answer_parent()"


@dataclass(frozen=True)
class Request:
    """What is sent.

    Attributes:
        path: below the load's address.
        body: sent by POST; None: a GET.
        headers: beside the content type and the id.
    """

    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Load:
    """How requests are sent; they are taken by turns, from the first one on.

    Attributes:
        url: scheme, host and port.
        connections: of the closed loop; 0 in the open one, which opens what it needs.
        rate: requests a second of the open loop, on average; 0 in the closed one.
        duration_s: while new requests are sent; those under way are waited for.
        num_requests: ends the sending earlier; None: time alone ends it.
        timeout_s: a request without an answer after so long has failed.
        keep_answers: of how many requests the answer's bytes are kept: each n-th; 0: of none.
        prefix: of request ids, which are PREFIX-NUMBER.
        seed: of the arrivals.
    """

    url: str
    connections: int = 0
    rate: float = 0.0
    duration_s: float = 10.0
    num_requests: int | None = None
    timeout_s: float = 30.0
    keep_answers: int = 0
    prefix: str = "load"
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.connections > 0) == (self.rate > 0):
            raise ValueError("a load has connections (closed loop) or a rate (open loop)")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request.

    Attributes:
        id: the X-Request-ID that it was sent with.
        number: its place in the load, from 0; request number % len(requests) was sent.
        due_s: when it should have been sent; closed loop: when it was.
        sent_s: when it was.
        done_s: when the whole answer was there, or it had failed.
        status: of HTTP; 0: no answer.
        error: why there is none; empty where there is one.
        retry_after: the header, empty where there is none.
        num_bytes: of the answer.
        answer: the bytes, where they are kept.
    """

    id: str
    number: int
    due_s: float
    sent_s: float
    done_s: float
    status: int
    error: str = ""
    retry_after: str = ""
    num_bytes: int = 0
    answer: bytes | None = None

    @property
    def latency_s(self) -> float:
        """Seconds from when it was due to when it was done."""
        return self.done_s - self.due_s

    @property
    def is_ok(self) -> bool:
        """Whether it was answered with 2xx."""
        return 200 <= self.status < 300


class Generator(Child):
    """A process that sends loads, one at a time.

    Args:
        core: the only one it runs on; None: any.
    """

    def __init__(self, *, core: int | None = None) -> None:
        super().__init__([sys.executable, "-c", _CODE], core=core)
        self.core = core

    def run(self, load: Load, requests: Sequence[Request]) -> list[Outcome]:
        """Sends a load and waits for its end; outcomes by number."""
        self.start(load, requests)
        return self.finish()

    def start(self, load: Load, requests: Sequence[Request]) -> None:
        """Begins to send a load, and returns."""
        self.tell((load, tuple(requests)))

    def finish(self) -> list[Outcome]:
        """Waits for the end of the load that was begun; outcomes by number."""
        outcomes: list[Outcome] = self.hear()
        return outcomes

    def _ask_to_end(self) -> None:
        super()._ask_to_end()
        self._process.terminate()  # a load that is under way is broken off


def answer_parent() -> None:
    """What the generator's process does."""
    _, loads, answer = parent()
    answer("ready")
    for load, requests in loads:
        gc.collect()
        gc.disable()  # a pause here would look like one of the server
        outcomes = asyncio.run(send(load, requests))
        gc.enable()
        answer(outcomes)


async def send(load: Load, requests: Sequence[Request]) -> list[Outcome]:
    """Sends a load from this process; outcomes by number."""
    connector = aiohttp.TCPConnector(limit=load.connections)  # 0: no limit
    timeout = aiohttp.ClientTimeout(total=load.timeout_s)
    # A client that asks for no gzip: what compression costs is not what is measured.
    headers = {"Accept-Encoding": "identity"}
    async with aiohttp.ClientSession(
        load.url, connector=connector, timeout=timeout, headers=headers
    ) as session:
        sender = _Sender(load, requests, session)
        return await (sender.closed() if load.connections else sender.open())


class _Sender:
    """One load under way."""

    def __init__(
        self, load: Load, requests: Sequence[Request], session: aiohttp.ClientSession
    ) -> None:
        self._load = load
        self._session = session
        self._requests = [(_method(one), one.path, one.body, _headers(one)) for one in requests]
        self._outcomes: list[Outcome] = []

    async def closed(self) -> list[Outcome]:
        """Connections that each send their next request after the answer to the last one."""
        numbers, end = count(), time.monotonic() + self._load.duration_s

        async def connection() -> None:
            while time.monotonic() < end:
                number = next(numbers)
                if number >= self._num_requests:
                    return
                await self._one(number, due_s=None)

        await asyncio.gather(*(connection() for _ in range(self._load.connections)))
        return self._sorted()

    async def open(self) -> list[Outcome]:
        """Requests that are sent when they fall due."""
        draw, begun = random.Random(self._load.seed), time.monotonic()
        due, tasks = begun, set()
        for number in count():
            due += draw.expovariate(self._load.rate)
            if number >= self._num_requests or due > begun + self._load.duration_s:
                break
            await asyncio.sleep(due - time.monotonic())  # at least once to the event loop
            task = asyncio.create_task(self._one(number, due_s=due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        return self._sorted()

    @property
    def _num_requests(self) -> float:
        return float("inf") if self._load.num_requests is None else self._load.num_requests

    def _sorted(self) -> list[Outcome]:
        return sorted(self._outcomes, key=lambda one: one.number)

    async def _one(self, number: int, *, due_s: float | None) -> None:
        load = self._load
        method, path, body, headers = self._requests[number % len(self._requests)]
        name = f"{load.prefix}-{number}"
        sent_s = time.monotonic()
        status, retry_after, content, error = 0, "", b"", ""
        try:
            async with self._session.request(
                method, path, data=body, headers={**headers, "X-Request-ID": name}
            ) as response:
                content = await response.read()
                status = response.status
                retry_after = response.headers.get("Retry-After", "")
        except (aiohttp.ClientError, TimeoutError, OSError) as failed:
            error = f"{type(failed).__name__}: {failed}".rstrip(": ")
        is_kept = load.keep_answers > 0 and number % load.keep_answers == 0
        self._outcomes.append(
            Outcome(
                id=name,
                number=number,
                due_s=sent_s if due_s is None else due_s,
                sent_s=sent_s,
                done_s=time.monotonic(),
                status=status,
                error=error,
                retry_after=retry_after,
                num_bytes=len(content),
                answer=content if is_kept else None,
            )
        )


def _method(request: Request) -> str:
    return "GET" if request.body is None else "POST"


def _headers(request: Request) -> dict[str, str]:
    kind = {} if request.body is None else {"Content-Type": "application/json"}
    return {**kind, **request.headers}


@dataclass(frozen=True)
class Summary:
    """Outcomes in figures.

    Attributes:
        num_requests: all.
        num_ok: answered with 2xx.
        num_good: of these, within the bound.
        seconds: from the first due time to the last answer.
        p50_ms, p99_ms, max_ms: latency of the 2xx ones; NaN where there are none.
        late_ms: p99 of how late the generator itself sent: large, and the figures are false.
        num_bytes: of answers.
    """

    num_requests: int
    num_ok: int
    num_good: int
    seconds: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    late_ms: float
    num_bytes: int

    @property
    def ok_per_s(self) -> float:
        """Answers with 2xx a second."""
        return self.num_ok / self.seconds

    @property
    def good_per_s(self) -> float:
        """Goodput: those within the bound, a second."""
        return self.num_good / self.seconds


def summarise(outcomes: Sequence[Outcome], *, within_s: float = float("inf")) -> Summary:
    """Outcomes in figures.

    Args:
        outcomes: of one load, at least one.
        within_s: a later answer is no good one.
    """
    ok = sorted(one.latency_s for one in outcomes if one.is_ok)
    late = sorted(one.sent_s - one.due_s for one in outcomes)
    begun = min(one.due_s for one in outcomes)
    return Summary(
        num_requests=len(outcomes),
        num_ok=len(ok),
        num_good=sum(latency <= within_s for latency in ok),
        seconds=max(one.done_s for one in outcomes) - begun,
        p50_ms=1000 * _quantile(ok, 0.5),
        p99_ms=1000 * _quantile(ok, 0.99),
        max_ms=1000 * _quantile(ok, 1.0),
        late_ms=1000 * _quantile(late, 0.99),
        num_bytes=sum(one.num_bytes for one in outcomes),
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least this share does not exceed (nearest rank)."""
    if not ordered:
        return float("nan")
    return ordered[max(0, -(-round(share * 1e6) * len(ordered) // 1_000_000) - 1)]
