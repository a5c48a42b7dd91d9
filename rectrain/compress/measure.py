"""What a model is worth and what it costs: its metrics, its size, its speed.

Shapes: n rows, U texts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle, islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from rectrain.data.batch import PackedTexts, distinct_texts, take_texts
from rectrain.data.shards import Prepared
from rectrain.inference.backends import open_torch
from rectrain.inference.compare import MODEL
from rectrain.inference.evaluate import judged_systems
from rectrain.inference.predictor import Predictor
from rectrain.inference.text_encoder import TextEncoder
from rectrain.metrics import Examples, Interval, bootstrap_interval, metric, resample
from rectrain.package import ModelParts
from rectrain.strict_json import number

__all__ = [
    "BATCH_SIZES",
    "Judged",
    "Latency",
    "Measured",
    "Quiet",
    "TokenisingPredictor",
    "judged_rows",
    "least_share",
    "measure",
    "worst_share",
]

Floats = NDArray[np.float32]
#: A context in which models are timed.
Quiet = Callable[[], AbstractContextManager[None]]

BATCH_SIZES = (1, 32)
_CALLS = {1: 120, 32: 40}  # timed calls of each size
_WARM_UP = 5
_ROUNDS = 5  # of the throughput, whose median counts
_RESAMPLES = 200  # enough for a standard error
_ROWS = 512  # of a task, for latency
_TEXTS = 400  # different ones of all tasks, for throughput


class Judged(NamedTuple):
    """metric: the name of what judges the rows; rows: labels and a model's scores."""

    metric: str
    rows: Examples

    @property
    def value(self) -> float:
        """The metric of the rows."""
        return float(metric(self.metric).prepare(self.rows)(self.rows.weights))


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a call, from tokens to scores: the median and the 99th percentile."""

    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Measured:
    """A row of the table.

    Attributes:
        name: of the model.
        metrics: task -> its primary metric with a 95% interval; empty for an encoder alone.
        num_parameters: of encoder and heads.
        num_bytes: of their weights as they are stored.
        latency: rows of a request (of one task) -> latency; empty for an encoder alone.
        tokens_per_s: real tokens of different texts that the encoder takes a second.
        backend: what ran the encoder.
    """

    name: str
    metrics: Mapping[str, Interval]
    num_parameters: int
    num_bytes: int
    latency: Mapping[int, Latency]
    tokens_per_s: float
    backend: str = "torch"

    def to_json(self) -> dict[str, Any]:
        """JSON-serialisable; see `from_json`."""
        metrics = {task: list(value) for task, value in self.metrics.items()}
        latency = {str(size): asdict(found) for size, found in self.latency.items()}
        return {**vars(self), "metrics": metrics, "latency": latency}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Measured:
        """The inverse of `to_json`, with null for NaN."""
        metrics = {task: Interval(*map(number, value)) for task, value in stored["metrics"].items()}
        latency = {int(size): Latency(**found) for size, found in stored["latency"].items()}
        return cls(**{**stored, "metrics": metrics, "latency": latency})


class TokenisingPredictor(Predictor):
    """Scores prepared rows by their texts: its tokenizer may be another one than the data's."""

    def score(self, task: str, rows: pa.Table) -> NDArray[np.float64]:
        """See `Predictor.score`."""
        return super().score(task, self.tokenised(task, rows))

    def embed(self, task: str, rows: pa.Table) -> tuple[Floats, Floats]:
        """See `Predictor.embed`."""
        return super().embed(task, self.tokenised(task, rows))


def judged_rows(
    predictor: Predictor, data: Mapping[str, Prepared], *, split: str
) -> dict[str, Judged]:
    """Each task's primary metric, and the rows of a split as a model scores them."""
    return {
        task: Judged(
            predictor.spec(task).primary,
            judged_systems(predictor, prepared, task=task, split=split, baselines=False)[MODEL],
        )
        for task, prepared in data.items()
    }


def least_share(
    found: Mapping[str, Judged], exact: Mapping[str, Judged], *, errors: float = 1.0
) -> float:
    """The least share, over tasks, of the exact model's metric that another keeps.

    One standard error, of a paired bootstrap over groups, counts in its favour: what is smaller
    can't be told from chance on these rows (Breiman et al. 1984, "Classification and Regression
    Trees", the one-standard-error rule). 1 where no metric is above 0.

    Args:
        found, exact: task -> what was made of the same rows.
        errors: standard errors that count so; more where many are compared and none may fail by
            chance.
    """
    shares = []
    for task, judged in exact.items():
        if judged.value > 0:
            drawn = resample(
                [metric(judged.metric).prepare(each.rows) for each in (found[task], judged)],
                unit=judged.rows.groups,
                weight=judged.rows.weights,
                num_resamples=_RESAMPLES,
            )
            error = errors * float(np.nanstd(drawn[:, 0] - drawn[:, 1]))
            shares.append((found[task].value + error) / judged.value)
    return min(shares, default=1.0)


def worst_share(
    parts: ModelParts, data: Mapping[str, Prepared], *, say: Callable[[str], None]
) -> Callable[[TextEncoder], float]:
    """From an encoder to the `least_share` that it keeps in validation, with int8 heads.

    Args:
        parts: the model in fp32.
        data: task -> its prepared data, with the texts; the tokenizer may be another one.
        say: is told which tasks have no metric to judge by.
    """

    def judged(model: ModelParts, encoder: TextEncoder | None = None) -> dict[str, Judged]:
        predictor = TokenisingPredictor.of(model, encoder=encoder)
        return judged_rows(predictor, data, split="validation")

    exact, small = judged(parts), parts.with_int8_heads()
    for task, rows in exact.items():
        if rows.value <= 0:
            say(f"int8 is not judged by {task}: its metric in validation is {rows.value:g}")
    return lambda encoder: least_share(judged(small, encoder), exact)


def measure(
    name: str,
    parts: ModelParts,
    data: Mapping[str, Prepared],
    *,
    split: str,
    threads: int,
    encoder: TextEncoder | None = None,
    num_bytes: int | None = None,
    is_trained: bool = True,
    quiet: Quiet = nullcontext,
) -> Measured:
    """Measures a model on the prepared data of its tasks.

    Args:
        name: of the row.
        parts: the model.
        data: task -> its prepared data, with the texts; the tokenizer may be another one.
        split: rows that judge it; their texts are timed too.
        threads: of torch in this process while it is timed.
        encoder: in the place of the model's own, which torch runs.
        num_bytes: of the stored weights; those of fp32 by default.
        is_trained: whether its heads are; if not, it has no metrics and no latency.
        quiet: a context in which it is timed.
    """
    own = encoder or open_torch(parts.model.encoder)
    predictor = TokenisingPredictor.of(parts, encoder=own)
    metrics = _intervals(predictor, data, split=split) if is_trained else {}
    tables = {
        task: predictor.tokenised(task, prepared.shards(task, split).table().slice(0, _ROWS))
        for task, prepared in data.items()
    }
    texts = distinct_texts(tables.values())
    every = torch.arange(0, len(texts.lengths), max(1, len(texts.lengths) // _TEXTS))
    num_parameters = sum(p.numel() for p in parts.model.parameters())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with quiet():
            latency = _latencies(Predictor.of(parts, encoder=own), tables) if is_trained else {}
            tokens_per_s = _throughput(own, take_texts(texts, every))
    finally:
        torch.set_num_threads(before)
    return Measured(
        name=name,
        metrics=metrics,
        num_parameters=num_parameters,
        num_bytes=4 * num_parameters if num_bytes is None else num_bytes,
        latency=latency,
        tokens_per_s=tokens_per_s,
        backend=own.name,
    )


def _intervals(
    predictor: Predictor, data: Mapping[str, Prepared], *, split: str
) -> dict[str, Interval]:
    found = {}
    for task, prepared in data.items():
        judged = judged_systems(predictor, prepared, task=task, split=split, baselines=False)[MODEL]
        found[task] = bootstrap_interval(predictor.spec(task).primary, judged)
    return found


def _latencies(predictor: Predictor, tables: Mapping[str, pa.Table]) -> dict[int, Latency]:
    """Of requests of one task each, the tasks in turn."""
    found = {}
    for size in BATCH_SIZES:
        requests = _requests(tables, size=size)
        for task, rows in islice(requests, _WARM_UP * len(tables)):
            predictor.score(task, rows)
        calls = [
            _seconds(partial(predictor.score, task, rows))
            for task, rows in islice(requests, _CALLS[size])
        ]
        p50, p99 = 1000 * np.quantile(calls, [0.5, 0.99])
        found[size] = Latency(float(p50), float(p99))
    return found


def _requests(tables: Mapping[str, pa.Table], *, size: int) -> Iterator[tuple[str, pa.Table]]:
    """Rows of each task in turn, for ever."""
    start = 0
    for task in cycle(tables):
        rows = tables[task]
        first = start % max(1, rows.num_rows - size + 1)
        yield task, rows.slice(first, size)
        start += size


def _throughput(encoder: TextEncoder, texts: PackedTexts) -> float:
    """Real tokens a second; every text once, sorted by length."""
    encoder.encode(texts)
    seconds = [_seconds(partial(encoder.encode, texts)) for _ in range(_ROUNDS)]
    return int(texts.lengths.sum()) / float(np.median(seconds))


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
