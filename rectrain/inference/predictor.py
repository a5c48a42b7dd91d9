"""Scores of a trained model for rows and catalogues, on one device, without Ray or DeepSpeed.

Each different text of a block of rows is encoded once, by the model's own encoder in torch or by a
backend; the small heads then run in torch over all rows of the block. A row's score does not depend
on the rows beside it, up to rounding.

Shapes: n rows, U texts or users, I items, D the encoder's hidden size.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from rectrain.data.batch import build_micro_batch, fill_columns
from rectrain.data.encoding import FeatureEncoder
from rectrain.data.fields import FieldTable
from rectrain.data.loader import empty_tables, open_tasks
from rectrain.data.shards import Prepared
from rectrain.data.tokenize import tokenizer_hash
from rectrain.errors import ConfigError, DataError, EncoderError, ResourceError
from rectrain.inference.backends import open_torch
from rectrain.inference.cache import VectorCache
from rectrain.inference.rows import EncodedRows, RowEncoder
from rectrain.inference.text_encoder import TextEncoder
from rectrain.model.multitask import Mode, MultiTaskModel, TaskModule
from rectrain.model.spec import TaskSpec
from rectrain.package import ModelParts
from rectrain.train.build import load_model
from rectrain.train.checkpoint import Checkpoint

__all__ = [
    "Predictor",
    "check_features",
    "check_threads",
    "check_tokenizer",
    "open_prepared",
    "pick_device",
]

Floats = NDArray[np.float32]

_BLOCK_ROWS = 8192


class Predictor:
    """A model in evaluation mode that scores prepared rows.

    Args:
        model: the trained model, moved to `device`.
        features: task -> how its features were encoded, in the model's task order.
        rows: how rows as a user gives them are encoded; None where only prepared rows are scored.
        device: "cpu", "cuda", or "auto" for a GPU where there is one.
        encoder: gives the vectors of texts in the place of the model's own encoder in torch.
        cached_texts: texts whose vectors are kept for the next calls, at most.

    Raises:
        EncoderError: vectors of another size than the heads'.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        *,
        features: Mapping[str, FeatureEncoder],
        rows: RowEncoder | None = None,
        device: str = "cpu",
        encoder: TextEncoder | None = None,
        cached_texts: int = 0,
    ) -> None:
        device = pick_device(device)
        self.model = model.eval().to(device)
        self.rows = rows
        self._checkpoint: Checkpoint | None = None
        self.features = features
        self._empty = empty_tables(features)
        self._device = device
        width = int(model.encoder.config.hidden_size)
        if encoder is not None and encoder.width != width:
            raise EncoderError(
                what=f"encoder {encoder.name}",
                got=f"vectors of size {encoder.width}",
                rule=f"the model's heads take size {width}",
                fix="give a graph of this very model's encoder",
            )
        self._encoder = encoder or open_torch(model.encoder, device=device)
        self._cache = VectorCache(cached_texts, width=width)

    @classmethod
    def from_checkpoint(cls, location: str, *, device: str = "cpu") -> Predictor:
        """The predictor of a trained model.

        Args:
            location: a checkpoint, or a run's folder; path or URI.
            device: see above.

        Raises:
            CheckpointError: nothing complete is there, or it is damaged.
            EncoderError: its tokenizer isn't the one it was trained with.
        """
        loaded = load_model(location)
        parts = ModelParts.of(loaded)
        sha256 = tokenizer_hash(parts.tokenizer)
        check_tokenizer(sha256, loaded.checkpoint.meta, where=loaded.tokenizer_path)
        predictor = cls.of(parts, device=device)
        predictor._checkpoint = loaded.checkpoint
        return predictor

    @classmethod
    def of(
        cls,
        parts: ModelParts,
        *,
        device: str = "cpu",
        encoder: TextEncoder | None = None,
        cached_texts: int = 0,
    ) -> Predictor:
        """The predictor of a model in memory.

        Args:
            parts: the model.
            device, encoder, cached_texts: see above.
        """
        return cls(
            parts.model,
            features=parts.features,
            rows=RowEncoder(parts.features, parts.tokenizer, parts.limits, parts.full_tokenizer),
            device=device,
            encoder=encoder,
            cached_texts=cached_texts,
        )

    @property
    def checkpoint(self) -> Checkpoint:
        """Where the model comes from."""
        assert self._checkpoint is not None, "this predictor was not made from a checkpoint"
        return self._checkpoint

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that the model was trained on."""
        return self.model.task_names

    @property
    def engine(self) -> str:
        """Name of the backend that runs the encoder."""
        return self._encoder.name

    def spec(self, task: str) -> TaskSpec:
        """What the task is.

        Raises:
            DataError: the model has no such task.
        """
        if task not in self.tasks:
            raise DataError(
                what="task",
                got=task,
                rule=f"the model was trained on {', '.join(self.tasks)}",
                fix="name one of them, or train this task",
            )
        module = self.model.tasks[task]
        assert isinstance(module, TaskModule)
        return module.spec

    def fields(self, task: str) -> FieldTable:
        """What a row must have to be scored; see `RowEncoder.fields`."""
        assert self.rows is not None, "this predictor scores prepared rows alone"
        return self.rows.fields(self.spec(task))

    def encode(self, task: str, rows: pa.Table, *, first: int = 0) -> EncodedRows:
        """Rows in the task's fields as prepared columns; see `RowEncoder.encode`."""
        assert self.rows is not None, "this predictor scores prepared rows alone"
        return self.rows.encode(self.spec(task), rows, first=first)

    def tokenised(self, task: str, prepared: pa.Table) -> pa.Table:
        """Prepared rows or items with this model's token ids; see `RowEncoder.tokenised`."""
        assert self.rows is not None, "this predictor has no tokenizer"
        return self.rows.tokenised(self.spec(task), prepared)

    def score(self, task: str, rows: pa.Table) -> NDArray[np.float64]:
        """Scores of prepared rows, in their order.

        Args:
            task: one of `tasks`.
            rows: prepared columns (of `Shards.table()` or `encode`).

        Returns:
            float64 [n]: probabilities for a task of 0/1 labels, else scores that only rank. In
            float32, probabilities of confident models would be equal: from 1 - 3e-8 on they are 1.
        """
        parts = [output.double() for output in self._blocks(task, rows, mode="score")]
        scores = torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)
        if self.spec(task).has_probabilities:
            scores = scores.sigmoid()
        return np.asarray(scores.cpu().numpy())

    def embed(self, task: str, rows: pa.Table) -> tuple[Floats, Floats]:
        """Vectors of both sides for a two-tower task: their inner product is the score.

        Args:
            task: a two-tower task.
            rows: prepared columns; a side without texts gets a learned vector, the same for all.

        Returns:
            float32 [n, D + 1] of the queries, and of the items.
        """
        pairs = list(self._blocks(task, rows, mode="embed"))
        queries, items = (torch.cat([pair[side].float() for pair in pairs]) for side in (0, 1))
        return _numpy(queries), _numpy(items)

    def _blocks(self, task: str, rows: pa.Table, *, mode: Mode) -> Iterator[Any]:
        self.spec(task)
        rows = fill_columns(rows, like=self._empty[task])
        for start in range(0, rows.num_rows, _BLOCK_ROWS):
            block = rows.slice(start, _BLOCK_ROWS)
            batch = build_micro_batch({task: block}, counts={task: float(block.num_rows)})
            with torch.inference_mode():
                vectors = self._cache.of(batch.texts, encode=self._encoder.encode)
                if self._device != "cpu":
                    batch, vectors = batch.to(self._device), vectors.to(self._device)
                yield self.model(batch, mode=mode, vectors=vectors)[task]


def check_tokenizer(sha256: str, meta: Mapping[str, Any], *, where: str) -> None:
    """Refuses token ids, or a tokenizer, that aren't those a checkpoint was trained with.

    Args:
        sha256: of the tokenizer (see `tokenize.tokenizer_hash`).
        meta: the checkpoint's.
        where: the tokenizer or the prepared data.

    Raises:
        EncoderError: they differ.
    """
    if sha256 != meta["tokenizer_sha256"]:
        raise EncoderError(
            what=f"tokenizer of {where}",
            got=f"SHA-256 {sha256[:12]}…",
            rule=f"the model was trained with {meta['tokenizer_sha256'][:12]}…",
            fix="prepare the data with the model's tokenizer (its checkpoint's tokenizer folder)",
        )


def pick_device(name: str) -> str:
    """The device of a name: "auto" is a GPU where there is one.

    Raises:
        ConfigError: another name than "cpu", "cuda" and "auto".
        ResourceError: "cuda" without a GPU.
    """
    if name not in (names := ("cpu", "cuda", "auto")):
        raise ConfigError(
            what="device", got=name, rule=f"must be one of {', '.join(names)}", fix="correct it"
        )
    found = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" != found:
        raise ResourceError(
            what="device", got=name, rule="torch finds no GPU here", fix="use auto or cpu"
        )
    return found if name == "auto" else name


def check_threads(threads: int) -> None:
    """Refuses a number of threads that this machine has no cores for.

    Raises:
        ConfigError: see above, or no whole number.
    """
    most = os.cpu_count() or 1
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= most:
        raise ConfigError(
            what="threads",
            got=repr(threads),
            rule=f"must be a whole number from 1 to {most}, the cores of this machine",
            fix="correct it",
        )


def open_prepared(
    predictor: Predictor, paths: Sequence[str], *, tasks: Sequence[str]
) -> dict[str, Prepared]:
    """The prepared data of some of a model's tasks, if it was encoded as the training data was.

    Args:
        predictor: made from a checkpoint.
        paths: prepared directories.
        tasks: names.

    Raises:
        EncoderError: another tokenizer.
        DataError: another encoding of features, or a task that isn't there.
    """
    data = open_tasks(paths, tasks=tasks)
    for task, prepared in data.items():
        predictor.spec(task)
        check_tokenizer(
            prepared.tokenizer_sha256, predictor.checkpoint.meta, where=str(prepared.root)
        )
        check_features(predictor, prepared, task=task)
    return data


def check_features(predictor: Predictor, prepared: Prepared, *, task: str) -> None:
    """Refuses prepared data whose features were encoded in another way than the model's.

    Raises:
        DataError: see above.
    """
    # As JSON, since the order of features counts too.
    if prepared.features(task).to_json() != predictor.features[task].to_json():
        raise DataError(
            what=f"features of {task} in {prepared.root}",
            got="other bins or vocabularies than the model's",
            rule="scores need data prepared together with the training data",
            fix="give the data of the training run",
        )


def _numpy(values: Tensor) -> Floats:
    return np.asarray(values.cpu().numpy(), dtype=np.float32)
