"""What benchmarks.cost_serving measures: loads of a served application, and models beside it."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import psutil

from benchmarks.load import Generator, Load, Request, summarise
from rectrain.cost.serving import Served, measure_served
from rectrain.data.simulate import Size, simulate
from rectrain.data.tokenize import load_tokenizer, reader
from rectrain.inference.engine import steady_backend
from rectrain.inference.packaged import PackagedModel, load
from rectrain.package import Package

__all__ = ["TASK", "Application", "Loaded", "Texts", "texts_of", "timer"]

TASK = "search_ranking"
_PATH = "/v1/rank"
_BESIDE = ("query_id", "query")  # of a request; its other fields are the candidates'
_NOT_ASKED = ("label", "timestamp", "row_id", "p_true")
_DEFERRED = b'"deferred":true'
_QUERIES = 400  # different ones


class Loaded(NamedTuple):
    """What a load took: cpu_s of all processes, duration_s, requests that were answered, and those
    of them that the large model of a cascade had a part in."""

    cpu_s: float
    duration_s: float
    requests: int
    deferred: int = 0


class Texts(NamedTuple):
    """tokens: of a candidate's text on average; spread: their relative standard deviation."""

    tokens: int
    spread: float


class Application:
    """Loads of an application that was started from this process.

    Args:
        address: of it.
        generator: of the loads.
        others: children of this process that are not the application's.
    """

    def __init__(self, address: str, generator: Generator, *, others: frozenset[int]) -> None:
        self._address, self._generator, self._others = address, generator, others

    def load(self, model: str, rate: float, candidates: int, *, requests: int, seed: int) -> Loaded:
        """Poisson requests; loads of one seed differ in the model alone.

        Args:
            model: that is asked.
            rate: requests a second.
            candidates: of each.
            requests: how many.
            seed: of texts and arrivals.
        """
        asked = _requests(model, candidates)
        first = seed * requests % len(asked)
        # The duration is a bound that the number of requests reaches first.
        load = Load(
            self._address, rate=rate, duration_s=10 * requests / rate, num_requests=requests,
            keep_answers=1, seed=seed,
        )  # fmt: skip
        begun, before = time.monotonic(), self._cpu_s()
        outcomes = self._generator.run(load, [*asked[first:], *asked[:first]])
        loaded = self._since(before, begun, requests=len(outcomes))
        answered = summarise(outcomes).num_ok
        assert answered == requests, f"{requests - answered} of {requests} requests failed"
        deferred = sum(_DEFERRED in (one.answer or b"") for one in outcomes)
        return loaded._replace(deferred=deferred)

    def idle(self, seconds: float) -> Loaded:
        """What it takes while nothing is asked."""
        begun, before = time.monotonic(), self._cpu_s()
        time.sleep(seconds)
        return self._since(before, begun, requests=0)

    def _since(self, before: Mapping[int, float], begun: float, *, requests: int) -> Loaded:
        after = self._cpu_s()
        spent = sum(max(0.0, cpu_s - before.get(pid, 0.0)) for pid, cpu_s in after.items())
        return Loaded(spent, time.monotonic() - begun, requests)

    def _cpu_s(self) -> dict[int, float]:
        """Of each process of the application."""
        found = {}
        for process in psutil.Process().children(recursive=True):
            if process.pid in self._others:
                continue
            try:
                spent = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            found[process.pid] = spent.user + spent.system
        return found


@lru_cache(maxsize=4)
def _lists(candidates: int) -> list[dict[str, Any]]:
    """Searches of a simulated shop, as bodies of requests."""
    size = Size(num_users=250, num_queries=_QUERIES, list_size=candidates)
    rows = simulate(size, seed=1)[TASK].drop_columns(list(_NOT_ASKED)).to_pylist()
    bodies = []
    for first in range(0, len(rows), candidates):
        items = [
            {
                name: value
                for name, value in row.items()
                if name not in _BESIDE and value is not None
            }
            for row in rows[first : first + candidates]
        ]
        beside = {name: rows[first][name] for name in _BESIDE}
        bodies.append({**beside, "candidates": items})
    return bodies


@lru_cache(maxsize=16)
def _requests(model: str, candidates: int) -> list[Request]:
    options = {"options": {"model": model}}
    return [Request(_PATH, json.dumps({**body, **options}).encode()) for body in _lists(candidates)]


def texts_of(package: Package, candidates: int) -> Texts:
    """Lengths of the candidates' texts, by a package's tokenizer."""
    read = reader(load_tokenizer(str(package.path / "encoder")), max_length=512)
    texts = [item["item_text"] for body in _lists(candidates) for item in body["candidates"]]
    lengths = np.array([len(ids) for ids in read(texts)])
    return Texts(round(float(lengths.mean())), float(lengths.std() / lengths.mean()))


# --- models beside it ----------------------------------------------------------------------------


@contextmanager
def timer(package: Package) -> Iterator[Callable[[int, Texts], Served]]:
    """The product's timing of a model, opened as the server does, in a process of its own that
    stays: of so many candidates with such texts."""
    backend = steady_backend(package, "auto", device="cpu")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(_open, str(package.path), backend).result()
        yield lambda candidates, texts: pool.submit(_time, candidates, texts).result()


_opened: list[PackagedModel] = []  # of a timer's process


def _open(path: str, backend: str) -> None:
    _opened.append(load(path, backend=backend, threads=1, cached_texts=0))


def _time(candidates: int, texts: Texts) -> Served:
    return measure_served(
        _opened[0], candidates=candidates, tokens=texts.tokens, spread=texts.spread, tasks=[TASK]
    )
