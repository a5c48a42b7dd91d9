"""Score rows with a trained model, millions of them, on Ray Data.

    python -m jobs.predict --checkpoint runs/demo --task risk \\
        --input rows.parquet --output scores.parquet

Input: Parquet files, directories, globs or URIs with the task's fields (docs/data.md; label, weight
and p_true are not needed). Output: a folder of Parquet files, one table with

    row            place of the row in the input, from 0, over all files in order
    <ids>          the id and group columns that the input has
    score          a probability for 0/1 tasks (ad_ctr, risk, …), else a score that only ranks

Rows that break a rule are in OUTPUT.rejects with their `reason`. Rows of one input file stay in
order. Interrupted and run again, the job goes on with the parts that are missing; another model or
input is refused.

--task recommendation ranks the catalogue of the prepared data instead. Its input: one row a user

    user_id        string or integer
    history        list of strings: texts of the last purchases, newest last
    exclude        list of strings, optional: ids of items not to recommend (already bought)

and its output lists, best first: row, user_id, item_id (list of strings), score (list of floats).
"""

from __future__ import annotations

import logging
import pickle
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch

from jobs.cli import JobParser, count, lasting, run
from rectrain.cluster import connect
from rectrain.data.loader import open_tasks
from rectrain.errors import CheckpointError, ConfigError, RectrainError, without_credentials
from rectrain.inference.index import ItemIndex
from rectrain.inference.parts import Part, Sink, open_inputs, plan_parts, read_part
from rectrain.inference.predictor import Predictor, open_prepared, pick_device
from rectrain.inference.rows import EXCLUDE, EncodedRows
from rectrain.train.selection import newest_checkpoint

__all__ = ["main"]


@dataclass(frozen=True)
class _Job:
    """What an actor must know to score any part."""

    checkpoint: str
    sha256: str  # of the model, see Checkpoint.model_sha256
    task: str
    output: str
    columns: tuple[str, ...]
    ids: tuple[str, ...]
    catalogue: tuple[str, ...]  # prepared directories; empty for tasks of single rows
    k: int
    device: str


class _Scorer:
    """A Ray Data actor: one model, one part after the other."""

    def __init__(self, job: _Job) -> None:
        torch.set_num_threads(1)  # one actor a core
        self._job = job
        self._sink = Sink(job.output)
        self._predictor = Predictor.from_checkpoint(job.checkpoint, device=job.device)
        self._replaced = self._predictor.checkpoint.model_sha256 != job.sha256
        if job.catalogue:
            items = open_tasks(job.catalogue, tasks=[job.task])[job.task].items(job.task).table()
            self._index = ItemIndex.build(self._predictor, job.task, items)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Scores one part; a user's mistake travels as a value, or Ray would try again."""
        part = cast(Part, pickle.loads(batch["part"][0]))
        try:
            good, bad = self._score(part)
        except RectrainError as mistake:
            return {"rows": [0], "rejects": [0], "mistake": [pickle.dumps(mistake)]}
        return {"rows": [good], "rejects": [bad], "mistake": [b""]}

    def _score(self, part: Part) -> tuple[int, int]:
        if self._replaced:
            raise CheckpointError(
                what=f"checkpoint {self._job.checkpoint}",
                got="other weights than when the job began",
                rule="one output holds the scores of one model",
                fix="run it again with --overwrite",
            )
        rows = read_part(part, columns=self._job.columns)
        encoded = self._predictor.encode(self._job.task, rows, first=part.before + part.start)
        ids = {name: encoded.given[name] for name in self._job.ids}
        scores = pa.table({"row": encoded.number, **ids, **self._columns(encoded)})
        self._sink.write(part, scores=scores, rejects=encoded.rejects)
        return scores.num_rows, encoded.rejects.num_rows

    def _columns(self, encoded: EncodedRows) -> dict[str, pa.Array]:
        if not self._job.catalogue:
            return {"score": pa.array(self._predictor.score(self._job.task, encoded.prepared))}
        queries = self._predictor.embed(self._job.task, encoded.prepared)[0]
        bought = [ids or [] for ids in encoded.given[EXCLUDE].to_pylist()]
        best = self._index.search(queries, k=self._job.k, exclude=bought)
        full = best.items >= 0
        offsets = pa.array(np.concatenate([[0], full.sum(1).cumsum()]), pa.int32())
        items = pa.array(self._index.ids).take(pa.array(best.items[full]))
        return {
            "item_id": pa.ListArray.from_arrays(offsets, items),
            "score": pa.ListArray.from_arrays(offsets, pa.array(best.scores[full])),
        }


def main(argv: list[str]) -> int:
    """Run the job; see the module's docstring."""
    options = _parser().parse_args(argv)
    output = _absolute(lasting(options.output))
    # The one that a run has now: while it trains, it soon has a newer one.
    checkpoint = newest_checkpoint(_absolute(options.checkpoint))
    predictor = Predictor.from_checkpoint(checkpoint)
    task = _task(options.task, predictor.tasks)
    fields = predictor.fields(task)
    found = open_inputs(options.input)
    for _, schema in found:
        fields.check_columns(schema)
    files = [file for file, _ in found]
    present = set.intersection(*(set(schema.names) for _, schema in found))
    ranks = predictor.spec(task).has_catalogue
    job = _Job(
        checkpoint=checkpoint,
        sha256=predictor.checkpoint.model_sha256,
        task=task,
        output=output,
        columns=fields.names(),
        ids=tuple(name for name in fields.names("id", "group") if name in present),
        catalogue=tuple(map(_absolute, options.data or _paths(predictor))) if ranks else (),
        k=options.k,
        device=pick_device(options.device),
    )
    parts = plan_parts(files, rows_per_part=options.rows_per_part)
    facts = {
        "checkpoint": job.sha256,
        "rows_per_part": options.rows_per_part,
        **_ranking_facts(job, predictor),
    }
    print(
        f"predict: {sum(file.rows for file in files):,} rows of {task} in {len(parts)} parts "
        f"-> {without_credentials(output)}"
    )
    for what, names in (
        ("columns not given", [name for name in fields.names() if name not in present]),
        ("columns not used", sorted(present.difference(fields.names()))),
    ):
        if names:
            print(f"predict: {what}: {', '.join(names)}")
    if options.dry_run:
        return 0
    sink = Sink(output)
    if options.overwrite:
        sink.clear()
    sink.claim({"task": task, **facts}, files)
    missing = [part for part in parts if not sink.is_done(part)]
    if missing:
        _score(job, missing, num_workers=options.num_workers, done=len(parts) - len(missing))
    shown = without_credentials(sink.output)
    print(f"scores: {shown}\nrejects: {shown}.rejects ({sink.num_rejects(parts):,} rows)")
    return 0


def _parser() -> JobParser:
    parser = JobParser(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a run's folder, or one checkpoint")
    parser.add_argument("--input", required=True, nargs="+", help="Parquet to score")
    parser.add_argument("--output", required=True, help="folder of the scores; path or URI")
    parser.add_argument("--task", help="one of the model's tasks (default: its only one)")
    parser.add_argument("--data", nargs="+", help="recommendation: prepared data with the catalogue"
                        " (default: what the model was trained on)")  # fmt: skip
    parser.add_argument("--k", type=count, default=10, help="recommendation: items of a list")
    parser.add_argument("--rows-per-part", type=count, default=20_000, help="rows between saves")
    parser.add_argument(
        "--num-workers", type=count, help="models side by side (default: one a CPU or GPU)"
    )
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="auto: a GPU if there is"
    )
    parser.add_argument("--overwrite", action="store_true", help="remove earlier output first")
    return parser


def _task(name: str | None, tasks: Sequence[str]) -> str:
    if name is None and len(tasks) > 1:
        raise ConfigError(
            what="--task",
            got="nothing",
            rule=f"the model has several tasks: {', '.join(tasks)}",
            fix=f"--task {tasks[0]}",
        )
    return name or tasks[0]


def _absolute(location: str) -> str:
    """Actors may run in another folder."""
    return location if "://" in location else str(Path(location).absolute())


def _paths(predictor: Predictor) -> list[str]:
    """Prepared data that the model was trained on."""
    paths: list[str] = predictor.checkpoint.meta["config"]["data"]["paths"]
    return paths


def _ranking_facts(job: _Job, predictor: Predictor) -> dict[str, Any]:
    """What else decides the lists: their length and the catalogue."""
    if not job.catalogue:
        return {}
    prepared = open_prepared(predictor, job.catalogue, tasks=[job.task])[job.task]
    return {"k": job.k, "catalogue": prepared.manifest["tasks"][job.task]["items"]["sha256"]}


def _score(job: _Job, parts: Sequence[Part], *, num_workers: int | None, done: int) -> None:
    """Streams the parts through a pool of actors, saying how far it is."""
    connect()
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    on_gpu = job.device == "cuda"
    free: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    size = num_workers or int(free.get("GPU" if on_gpu else "CPU", 1))
    results = ray.data.from_items(
        [{"part": pickle.dumps(part)} for part in parts], override_num_blocks=len(parts)
    ).map_batches(
        _Scorer,
        fn_constructor_args=(job,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=max(1, min(size, len(parts)))),
        num_cpus=0 if on_gpu else 1,
        num_gpus=1 if on_gpu else 0,
    )
    start, rows = time.monotonic(), 0
    for number, result in enumerate(results.iter_rows(), 1):
        if result["mistake"]:
            raise cast(RectrainError, pickle.loads(result["mistake"]))
        rows += result["rows"] + result["rejects"]
        seconds = max(time.monotonic() - start, 1e-9)
        left = seconds / number * (len(parts) - number)
        print(
            f"predict: {done + number}/{done + len(parts)} parts, {rows:,} rows, "
            f"{rows / seconds:,.0f} rows/s, {left:.0f} s left",
            file=sys.stderr,
        )


if __name__ == "__main__":
    run(main)
