"""What all trials of a search work with: the teacher, the rows, the yardsticks, the folder.

OUTPUT/study.db          the study, which Optuna and its dashboard open
OUTPUT/start/            the encoder that the super-network begins with
OUTPUT/supernet/         its run
OUTPUT/trials/           what each trial found, and of separate ones their runs
OUTPUT/vectors/          the teacher's, of all texts
OUTPUT/latency/          what shapes were measured to take
OUTPUT/chosen/           the chosen models, a folder each; see `chosen.folder_name`
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertConfig, BertModel

from rectrain.compress.cutting import cut_and_refit, write_encoder
from rectrain.compress.quantize import pack
from rectrain.compress.samples import sample
from rectrain.data.batch import PackedTexts
from rectrain.data.shards import Prepared
from rectrain.inference.backends import open_torch
from rectrain.inference.predictor import Predictor, open_prepared
from rectrain.inference.text_encoder import TextEncoder
from rectrain.model.config import ModelConfig
from rectrain.model.multitask import MultiTaskModel
from rectrain.model.shape import Shape
from rectrain.model.slicing import cut, measure_importance, ordered, reorder
from rectrain.package import ModelParts
from rectrain.strict_json import strict_json
from rectrain.train.build import load_model
from rectrain.train.storage import Store
from rectrain.train.usage import cpu_name
from rectrain.tune.config import SearchConfig
from rectrain.tune.latency import Latency, LatencyTable, Noted
from rectrain.tune.objective import Facts, Standard, cost_per_1000, excesses, objectives
from rectrain.tune.quality import standards_of, values_of
from rectrain.tune.runs import SUPERNET, supernet_shape
from rectrain.tune.space import Point, Space
from rectrain.tune.stopwatch import busy
from rectrain.tune.study import Result

__all__ = ["Workbench"]

_LATENCY_ROWS = 512  # of a task


class Workbench:
    """The tools of a search's trials.

    Args:
        config: of the search, with absolute paths.

    Raises:
        RectrainError: the teacher, its data or the space can't be used.
    """

    def __init__(self, config: SearchConfig) -> None:
        self.config, self.root = config, Path(config.output)
        self.teacher = load_model(config.teacher)
        self.parts = ModelParts.of(self.teacher)
        trained_on = self.teacher.checkpoint.meta["config"]["data"]["paths"]
        predictor = Predictor.from_checkpoint(config.teacher)
        self.data: Mapping[str, Prepared] = open_prepared(
            predictor, list(config.data or trained_on), tasks=predictor.tasks
        )
        self.space = Space.of(config.space, self.teacher.model.encoder.config)

    # --- yardsticks ------------------------------------------------------------------------------

    @cached_property
    def standards(self) -> dict[str, Standard]:
        """What a random order and the teacher earn; judged once, kept in standards.json."""
        store = Store.open(str(self.root))
        if not store.exists("standards.json"):
            with busy():
                found = standards_of(Predictor.of(self.parts), self.data)
            content = {task: asdict(one) for task, one in found.items()}
            store.replace("standards.json", strict_json(content).encode())
        stored = json.loads(store.read("standards.json"))
        return {task: Standard.from_json(one) for task, one in stored.items()}

    @cached_property
    def tables(self) -> dict[str, pa.Table]:
        """Task -> the rows that requests are made of."""
        return {
            task: prepared.shards(task, "validation").table().slice(0, _LATENCY_ROWS)
            for task, prepared in self.data.items()
        }

    @cached_property
    def _latencies(self) -> LatencyTable:
        return LatencyTable(self.root, self.config.measure, self.tables)

    def latency(self, point: Point, *, noted: Noted = nullcontext) -> Latency:
        """What a point's model takes, measured alone; `noted` is a context for that."""
        shape, config = self.space.shape(point), self._model_config(point)
        key = {"shape": asdict(shape), "model": config.model_dump(mode="json")}
        return self._latencies.of(key, lambda: self._fresh(point), noted=noted)

    def cost_per_1000(self, latency: Latency) -> float:
        """Money for 1,000 requests."""
        threads, price = self.config.measure.threads, self.config.price
        return cost_per_1000(latency.request_s, threads=threads, price=price)

    def num_bytes(self, point: Point) -> int:
        """Of all weights of a point's model, in fp32."""
        return 4 * sum(parameter.numel() for parameter in self._model(point).parameters())

    def judged(
        self,
        point: Point,
        values: Mapping[str, float],
        *,
        device_seconds: float,
        noted: Noted = nullcontext,
    ) -> Result:
        """A trial's result from its metrics; measures its latency.

        Args:
            point: of the space.
            values: task -> primary metric on validation rows.
            device_seconds: that the trial took so far.
            noted: a context in which its latency is measured, where it has to be.
        """
        before_s = self._latencies.spent_s
        found = self.latency(point, noted=noted)
        device_seconds += self.config.measure.threads * (self._latencies.spent_s - before_s)
        return self.result(
            values, found, num_bytes=self.num_bytes(point), device_seconds=device_seconds
        )

    def result(
        self,
        values: Mapping[str, float],
        latency: Latency,
        *,
        num_bytes: int,
        device_seconds: float = 0.0,
    ) -> Result:
        """What measurements are worth.

        Args:
            values: task -> primary metric on validation rows.
            latency: of requests.
            num_bytes: of the weights.
            device_seconds: that it took to know all of this.
        """
        facts = Facts(
            values=values,
            request_s=latency.request_s,
            p99_ms=latency.p99_ms,
            threads=self.config.measure.threads,
            num_bytes=num_bytes,
        )
        worth = objectives(facts, standards=self.standards, price=self.config.price)
        return Result(
            objectives=worth,
            constraints=excesses(facts, worth, limits=self.config.limits),
            device_seconds=device_seconds,
            facts={"values": dict(values), "num_bytes": num_bytes,
                   "requests_per_s": 1 / latency.request_s, "chip": cpu_name()},
        )  # fmt: skip

    def _model_config(self, point: Point) -> ModelConfig:
        settings = self.space.settings(point)
        changes = {k.removeprefix("model."): v for k, v in settings.items() if k[:6] == "model."}
        return ModelConfig.model_validate({**self.parts.config.model_dump(), **changes})

    def _fresh(self, point: Point) -> ModelParts:
        """A model of a point's shape with random weights."""
        return replace(self.parts, model=self._model(point).eval())

    def _model(self, point: Point) -> MultiTaskModel:
        with torch.random.fork_rng(devices=[]):
            bert = BertModel(self.space.bert_config(point), add_pooling_layer=False)
        return MultiTaskModel(
            bert, tasks=self.parts.specs, features=self.parts.features,
            config=self._model_config(point),
        )  # fmt: skip

    # --- encoders --------------------------------------------------------------------------------

    def cut_encoder(self, shape: Shape, folder: Path, *, in_order: bool = False) -> None:
        """Writes a part of the teacher's encoder, fitted to it, as a folder; once.

        Args:
            shape: what is left.
            folder: is there, and whole, or is made.
            in_order: with the most important parts first, as a super-network needs them.
        """
        done = folder / "config.json"
        if done.exists():
            return
        texts = sample(self.data, num_texts=self.config.refit_texts, seed=self.config.seed)
        bert = cut_and_refit(self.teacher.model.encoder, shape=shape, texts=texts)
        if in_order:
            bert = reorder(bert, measure_importance(bert, [pack(texts)]))
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = folder.with_name(f".{folder.name}.draft")
        Store.open(str(folder.parent)).remove(draft.name)
        draft.mkdir()
        write_encoder(bert, draft, tokenizer=Path(self.teacher.tokenizer_path))
        Store.open(str(folder.parent)).rename(draft.name, folder.name)

    def start(self) -> None:
        """Writes the encoder that the super-network begins with."""
        self.cut_encoder(supernet_shape(self.space), self.root / "start", in_order=True)

    @cached_property
    def _supernet(self) -> ModelParts:
        return ModelParts.of(load_model(str(self.root / SUPERNET)))

    def sub_network(self, point: Point) -> BertModel:
        """The part of the trained super-network's encoder that a point stands for."""
        bert = self._supernet.model.encoder
        shape = self.space.shape(point, of=bert.config)
        return cut(bert, shape=shape, importance=ordered(bert.config))

    def sub_values(self, point: Point) -> dict[str, float]:
        """Task -> metric of a sub-network with the super-network's heads, on validation rows."""
        whole: BertConfig = self._supernet.model.encoder.config
        encoder = _Widened(open_torch(self.sub_network(point)), width=int(whole.hidden_size))
        return values_of(Predictor.of(self._supernet, encoder=encoder), self.data)

    def run_values(self, location: Path) -> dict[str, float]:
        """Task -> metric of a trained run's model, on validation rows."""
        parts = ModelParts.of(load_model(str(location)))
        return values_of(Predictor.of(parts), self.data)


class _Widened:
    """A narrow encoder for heads of a wide one: zeros behind its vectors."""

    def __init__(self, encoder: TextEncoder, *, width: int) -> None:
        self._encoder, self.width = encoder, width
        self.name = encoder.name

    def encode(self, texts: PackedTexts) -> Tensor:
        """See `TextEncoder.encode`."""
        return F.pad(self._encoder.encode(texts), (0, self.width - self._encoder.width))
