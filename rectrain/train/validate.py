"""Validation during training: each task's primary metric over all ranks, through the engine.

Every rank scores its micro-batches with the same number of forwards, so it works at every ZeRO
stage; rank 0 computes the metrics from the gathered scores, which are those of one process.

Shapes: n rows, U users, I items, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from rectrain.data.batch import fill_columns
from rectrain.data.encoding import FeatureEncoder
from rectrain.data.loader import empty_tables, micro_batches_in_order
from rectrain.data.shards import Prepared
from rectrain.data.texts import MLM
from rectrain.metrics import Examples, catalogue_ranks, gather_arrays, graded_groups, group_codes
from rectrain.metrics import metric as metric_of
from rectrain.model.spec import TaskSpec
from rectrain.tasks import TASKS
from rectrain.train.step import Engine

__all__ = ["score_of", "validate"]

Arrays = dict[str, NDArray[Any]]

_ITEMS_PER_ROW = 10  # a larger catalogue is cut to this many items for each validated row


def validate(
    engine: Engine,
    data: Mapping[str, Prepared],
    *,
    tokens_per_micro_batch: int,
    max_rows: int,
) -> dict[str, float]:
    """The primary metric of each task on its validation split; every rank must call it.

    Of pre-training: "loss", the mean negative log-likelihood of the masked pieces in nats, and
    "perplexity", its exponential. The masks depend on each text alone.

    It watches a run; `jobs.evaluate` judges it. Of each task the first `max_rows` rows count. A
    two-tower task ranks the users' items in the catalogue, cut to ten items a row.

    Returns:
        task -> value on rank 0, NaN where the split has no rows or the metric is undefined; an
        empty dictionary on the other ranks.
    """
    features = {task: prepared.features(task) for task, prepared in data.items()}
    values: dict[str, float] = {}
    engine.eval()
    with torch.no_grad():
        for task, prepared in data.items():
            table = prepared.shards(task, "validation").table()
            rows = table.slice(0, min(max_rows, table.num_rows))  # without columns, Arrow counts on
            score = _Scorer(engine, task, features, tokens_per_micro_batch)
            if task == MLM:
                values |= _guess(score, rows)
                continue
            if rows.num_rows == 0:
                examples = None
            elif TASKS[task].has_catalogue:
                examples = _rank_items(score, rows, prepared.items(task).table())
            else:
                examples = _score_rows(score, rows, TASKS[task])
            if torch.distributed.get_rank() == 0:
                values[task] = (
                    metric_of(TASKS[task].primary)(examples)
                    if examples is not None and len(examples.label) > 0
                    else math.nan
                )
    engine.train()
    return values if torch.distributed.get_rank() == 0 else {}


def score_of(values: Mapping[str, float]) -> float:
    """One number of a validation, higher is better: the mean metric; of pre-training, -loss."""
    return -values["loss"] if "loss" in values else sum(values.values()) / len(values)


def _guess(score: _Scorer, rows: pa.Table) -> dict[str, float]:
    """Masked loss and perplexity; NaN where no text has a masked word."""
    sums = score(rows, mode="score") if rows.num_rows else {}
    count = float(sums["count"].sum()) if sums else 0.0
    if count == 0:
        return {"loss": math.nan, "perplexity": math.nan}
    loss = float(sums["score"].sum(dtype=np.float64)) / count
    return {"loss": loss, "perplexity": float(np.exp(loss))}


class _Scorer:
    """Runs rows of one task through the engine, split over ranks, gathered on all."""

    def __init__(
        self, engine: Engine, task: str, features: Mapping[str, FeatureEncoder], budget: int
    ) -> None:
        self._engine, self._task = engine, task
        self._features, self._budget = features, budget

    def __call__(self, rows: pa.Table, *, mode: str) -> Arrays:
        index, columns = [], []
        for numbers, batch in micro_batches_in_order(
            fill_columns(rows, like=empty_tables(self._features)[self._task]),
            task=self._task,
            features=self._features,
            tokens_per_micro_batch=self._budget,
            rank=torch.distributed.get_rank(),
            world_size=torch.distributed.get_world_size(),
        ):
            output = self._engine(batch.to(self._engine.device), mode=mode)[self._task]
            index.append(numbers)
            columns.append([part.float().cpu().numpy() for part in _parts(output)])
        names = ("score", "count") if mode == "score" else ("query", "item")
        arrays: Arrays = {"index": np.concatenate(index)}
        for name, parts in zip(names, zip(*columns, strict=True), strict=False):
            arrays[name] = np.concatenate(parts)
        return gather_arrays(arrays)


def _parts(output: Any) -> tuple[torch.Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


def _score_rows(score: _Scorer, rows: pa.Table, spec: TaskSpec) -> Examples:
    values = score(rows, mode="score")["score"].astype(np.float64)
    if spec.has_probabilities:
        values = 1.0 / (1.0 + np.exp(-values))
    label = rows.column("label").to_numpy()
    group = group_codes(rows.column("group").to_pylist())
    kept = graded_groups(label, group) if spec.has_lists else np.ones(len(label), dtype=bool)
    weight = rows.column("weight").to_numpy()
    return Examples(label=label[kept], score=values[kept], group=group[kept], weight=weight[kept])


def _rank_items(score: _Scorer, rows: pa.Table, items: pa.Table) -> Examples:
    """Places of the bought items among the catalogue without what the user had before."""
    ids = items.column("item_id").to_pylist()
    bought_now = set(rows.column("item_id").to_pylist())
    room = _ITEMS_PER_ROW * rows.num_rows
    kept = [n for n, item in enumerate(ids) if item in bought_now or n < room]
    place = {ids[n]: column for column, n in enumerate(kept)}
    user_ids = np.array(rows.column("group").to_pylist())
    _, first, user = np.unique(user_ids, return_index=True, return_inverse=True)
    users = rows.take(pa.array(first))
    vectors = score(items.take(pa.array(kept)), mode="embed")["item"]
    scores = score(users, mode="embed")["query"] @ vectors.T
    for row, had in enumerate(users.column("exclude").to_pylist()):
        scores[row, [place[item] for item in had or () if item in place]] = -np.inf
    wanted = np.array([place[item] for item in rows.column("item_id").to_pylist()])
    ranks = catalogue_ranks(scores, rows=user.reshape(-1), columns=wanted)
    return Examples(label=np.ones(len(ranks)), score=-ranks, group=user.reshape(-1), rank=ranks)
