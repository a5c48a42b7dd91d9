"""The peer of T1: the same joint model in Hugging Face's Trainer, with DDP over gloo.

    torchrun --standalone --nproc-per-node=2 -m benchmarks.hf_trainer RUN.json

The same weights and heads, the same pool of rows and as many units (rows, or search lists) a step,
and no drawn negatives on either side (`run_config`).
The encoder is BertModel as it is, SDPA attention, on texts padded to the longest of their side,
which is what Trainer's users do. Grouping by length goes by a unit's longest text.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.loop import TIMEOUT_S, Measurement, Run, run_config, training_rows
from rectrain.data.batch import MicroBatch, batch_columns, build_micro_batch
from rectrain.data.plan import Plan
from rectrain.data.shards import Shards
from rectrain.model.multitask import MultiTaskModel
from rectrain.train.build import new_model, open_data
from rectrain.train.process import set_up_process

__all__ = ["JointModel", "Units", "collate"]

_SIDES = ("query", "item")
_PAD = 0  # the tokenizer's [PAD]; no text holds it
# Trainer sorts by length within 50 batches when it has at least 200: give it those.
_NUM_BATCHES = 200


class Units(Dataset[dict[str, Any]]):
    """The units of some steps of the plan: rows, or lists that stay together.

    Args:
        shards: task -> its training rows.
        plan: where the rows come from.
        steps: steps whose rows make the pool.
    """

    def __init__(self, shards: dict[str, Shards], *, plan: Plan, steps: range) -> None:
        self._units: list[dict[str, Any]] = []
        self.empty: dict[str, pa.Table] = {}
        for task, rows in shards.items():
            numbers = [
                plan.slot(step, task=task, micro_batch=micro_batch)
                for step in steps
                for micro_batch in range(plan.num_micro_batches)
            ]
            table = rows.take(np.concatenate(numbers), columns=batch_columns(rows.schema.names))
            self.empty[task] = table.slice(0, 0)
            self._units += [_unit(task, table.slice(a, b - a)) for a, b in _bounds(table)]

    def __len__(self) -> int:
        return len(self._units)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._units[index]


def _bounds(table: pa.Table) -> list[tuple[int, int]]:
    ids = table.column("list_id").to_numpy()
    return list(pairwise([0, *(np.flatnonzero(np.diff(ids)) + 1).tolist(), len(ids)]))


def _unit(task: str, table: pa.Table) -> dict[str, Any]:
    texts = [text for side in _SIDES for row in table.column(side).to_pylist() for text in row]
    # Trainer reads the length of a unit as len(input_ids).
    return {"task": task, "table": table, "input_ids": range(max(map(len, texts), default=0))}


def collate(units: Sequence[dict[str, Any]], *, empty: dict[str, pa.Table]) -> dict[str, Any]:
    """Pads each side's texts to its longest; every place has its own copy of a text.

    Returns:
        batch: the micro-batch; query and item: int64 [places, longest] of each side; text: int64
        [places of both], which text of the batch each place has.
    """
    tables = {
        task: pa.concat_tables(
            [none, *(unit["table"] for unit in units if unit["task"] == task)]
        ).combine_chunks()
        for task, none in empty.items()
    }
    counts = {task: sum(unit["task"] == task for unit in units) for task in tables}
    batch = build_micro_batch(tables, counts=counts)
    texts = batch.texts.input_ids.split(batch.texts.lengths.tolist())
    places = {
        side: torch.cat([getattr(slot, side).index for slot in batch.slots]) for side in _SIDES
    }
    padded = {
        side: nn.utils.rnn.pad_sequence(
            [texts[text] for text in index.tolist()], batch_first=True, padding_value=_PAD
        )
        for side, index in places.items()
        if len(index)
    }
    return {"batch": batch, "text": torch.cat(list(places.values())), **padded}


class JointModel(nn.Module):
    """Padded BERT under the same heads and losses; a text's vector is the mean of its copies'.

    Args:
        model: ours; its encoder is called as plain BertModel.
    """

    def __init__(self, model: MultiTaskModel) -> None:
        super().__init__()
        self.model = model
        self.num_tokens = 0

    def forward(
        self,
        batch: MicroBatch,
        text: Tensor,
        query: Tensor | None = None,
        item: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The loss of what `collate` gives."""
        self.num_tokens += batch.num_tokens
        copies = torch.cat([self._encode(side) for side in (query, item) if side is not None])
        vectors = copies.new_zeros(len(batch.texts.lengths), copies.shape[1])
        vectors = vectors.index_add(0, text, copies) / text.bincount()[:, None]
        loss, _ = self.model(batch, vectors=vectors)
        return {"loss": loss}

    def _encode(self, input_ids: Tensor) -> Tensor:
        mask = input_ids != _PAD
        hidden = self.model.encoder(
            input_ids=input_ids, attention_mask=mask.long()
        ).last_hidden_state
        return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


class _Clock(TrainerCallback):
    """Wall time and tokens after warm-up."""

    def __init__(self, model: JointModel, *, num_warmup: int) -> None:
        self._model = model
        self._num_warmup = num_warmup
        self._start = self._end = 0.0
        self._tokens = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._end = time.perf_counter()
        if state.global_step == self._num_warmup:
            self._start, self._tokens = self._end, self._model.num_tokens

    def tokens_per_s(self) -> float:
        """Real tokens of all ranks over wall time; a collective."""
        total = torch.tensor(float(self._model.num_tokens - self._tokens), dtype=torch.float64)
        dist.all_reduce(total)
        return total.item() / (self._end - self._start)


def _arguments(run: Run, *, units_per_batch: int, directory: str) -> TrainingArguments:
    grouped = run.variant == "trainer_grouped"
    return TrainingArguments(
        output_dir=directory,
        per_device_train_batch_size=units_per_batch,
        max_steps=run.num_warmup + run.num_steps,
        train_sampling_strategy="group_by_length" if grouped else "random",
        optim="adamw_torch_fused",
        learning_rate=5e-5,
        weight_decay=0.01,
        max_grad_norm=1.0,
        use_cpu=True,
        ddp_backend="gloo",
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        remove_unused_columns=False,
        average_tokens_across_devices=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=run.first_step,
    )


def _main(path: str) -> None:
    run = Run.read(path)
    dist.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT_S))
    set_up_process(num_threads=1)  # as ours: the peer at its best
    config = run_config(run)
    data = open_data(config)
    shards, plan = training_rows(run, data)
    pool = range(run.first_step, run.first_step + -(-_NUM_BATCHES // run.world_size))
    units = Units(shards, plan=plan, steps=pool)
    model = JointModel(new_model(config, data))
    clock = _Clock(model, num_warmup=run.num_warmup)
    with tempfile.TemporaryDirectory() as directory:
        trainer = Trainer(
            model,
            args=_arguments(
                run,
                units_per_batch=round(len(units) / (len(pool) * run.world_size)),
                directory=directory,
            ),
            train_dataset=units,
            data_collator=partial(collate, empty=units.empty),
            callbacks=[clock],
        )
        trainer.train()
    measurement = Measurement(clock.tokens_per_s())
    if dist.get_rank() == 0:
        run.keep(measurement)
    dist.destroy_process_group()


if __name__ == "__main__":
    _main(sys.argv[1])
