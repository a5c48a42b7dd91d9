"""How long a request takes, measured alone on its machine; see `stopwatch`.

Latency is a matter of a shape and not of weights, so each shape is measured once on each kind of
processor, with fresh ones.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from rectrain.compress.openvino import OPENVINO
from rectrain.compress.samples import unpack
from rectrain.data.batch import distinct_texts
from rectrain.inference.predictor import Predictor
from rectrain.package import ModelParts
from rectrain.strict_json import strict_json
from rectrain.train.storage import Store
from rectrain.train.usage import cpu_name
from rectrain.tune.config import MeasureConfig
from rectrain.tune.stopwatch import alone

__all__ = ["Latency", "LatencyTable", "Noted", "measure_latency", "time_requests"]

_SCALING_TEXTS = 20


#: A context that notes what is computed in it.
Noted = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Latency:
    """Of requests on one stream, from tokens to scores.

    Attributes:
        request_s: seconds of one, on average.
        p99_ms: 99th percentile over requests, in milliseconds.
    """

    request_s: float
    p99_ms: float


class LatencyTable:
    """Latencies of shapes, a file each; what is there of a processor as this is not measured again.

    Attributes:
        spent_s: seconds that this process measured, without those that it waited.

    Args:
        root: the search's folder; the files are in its latency/.
        config: how they are measured.
        tables: task -> rows that requests are made of.
    """

    def __init__(self, root: Path, config: MeasureConfig, tables: Mapping[str, pa.Table]) -> None:
        self._root, self._store = root, Store.open(str(root / "latency"))
        self._config, self._tables = config, tables
        self.spent_s = 0.0

    def of(
        self,
        key: Mapping[str, Any],
        make: Callable[[], ModelParts],
        *,
        noted: Noted = nullcontext,
    ) -> Latency:
        """The latency of a shape.

        Args:
            key: all that it depends on, beside how and where it is measured; JSON-serialisable.
            make: a model of the shape.
            noted: a context in which it is measured.
        """
        facts = json.dumps({**key, **self._config.model_dump(), "chip": cpu_name()}, sort_keys=True)
        name = f"{hashlib.sha256(facts.encode()).hexdigest()[:16]}.json"
        if not self._store.exists(name):
            parts = make()
            with alone(self._root), noted():
                if not self._store.exists(name):  # another trial may have been faster
                    began = time.monotonic()
                    found = measure_latency(parts, self._tables, self._config)
                    self.spent_s += time.monotonic() - began
                    content = {"of": json.loads(facts), "latency": asdict(found)}
                    self._store.replace(name, strict_json(content).encode())
        return Latency(**json.loads(self._store.read(name))["latency"])


def measure_latency(
    parts: ModelParts, tables: Mapping[str, pa.Table], config: MeasureConfig
) -> Latency:
    """The latency of a model, its encoder opened in the engine.

    Args:
        parts: the model.
        tables: task -> prepared rows.
        config: how.
    """
    with _opened(parts, tables, config) as predictor:
        return time_requests(predictor, tables, config)


def time_requests(
    predictor: Predictor, tables: Mapping[str, pa.Table], config: MeasureConfig
) -> Latency:
    """Times requests of one task each, one after the other.

    A request is timed in several rounds and its median counts, so that what disturbs the machine
    for a moment is left out; the percentile is over requests, whose texts differ in length.

    Args:
        predictor: of the model.
        tables: task -> prepared rows, with its token ids.
        config: how.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        requests = list(itertools.islice(_requests(tables, config.rows), config.requests))
        for task, rows in requests[: 2 * len(tables)]:
            predictor.score(task, rows)
        seconds = [
            [_seconds(partial(predictor.score, task, rows)) for task, rows in requests]
            for _ in range(config.rounds)
        ]
    finally:
        torch.set_num_threads(before)
    each = np.median(np.array(seconds), axis=0)
    return Latency(float(each.mean()), float(1000 * np.quantile(each, 0.99)))


@contextmanager
def _opened(
    parts: ModelParts, tables: Mapping[str, pa.Table], config: MeasureConfig
) -> Iterator[Predictor]:
    """The model with its encoder in the engine."""
    bert, backend = parts.model.encoder, config.backend
    if backend == "torch":
        yield Predictor.of(parts)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{backend}{OPENVINO.suffix}"
        if backend == "openvino":
            OPENVINO.write(bert, path)
        else:  # its scales say nothing of time, so few texts do
            texts = unpack(distinct_texts(tables.values()))
            few = texts[:: max(1, len(texts) // _SCALING_TEXTS)]
            OPENVINO.quantize(bert, path, texts=few, float_layers=[])
        yield Predictor.of(parts, encoder=OPENVINO.open(path, threads=config.threads))


def _requests(tables: Mapping[str, pa.Table], size: int) -> Iterator[tuple[str, pa.Table]]:
    """Rows of each task in turn, for ever."""
    start = 0
    for task in itertools.cycle(tables):
        rows = tables[task]
        yield task, rows.slice(start % max(1, rows.num_rows - size + 1), size)
        start += size


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
