"""The models behind the benchmark of the small model: steps, rivals, scores; all kept on disk.

FOLDER                      of `jobs.compress`: the steps and the package
FOLDER/bench/runs/          cut, and the two runs of each rival
FOLDER/bench/encoders/      what the rivals begin with
FOLDER/bench/large/         the large encoder as graphs
FOLDER/bench/scores/        each system's scores of the test rows
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import BertConfig, BertModel

from benchmarks.one_process import in_processes, train_run
from benchmarks.quality_runs import Systems, load_systems, save_systems
from rectrain.compress.config import CompressConfig
from rectrain.compress.measure import Measured, TokenisingPredictor, measure
from rectrain.compress.pipeline import LARGE, SMALL, Pipeline, resolve
from rectrain.compress.quantize import export_graphs
from rectrain.compress.samples import sample
from rectrain.inference.backends import open_onnx, open_openvino
from rectrain.inference.compare import MODEL
from rectrain.inference.evaluate import judged_systems
from rectrain.inference.text_encoder import TextEncoder
from rectrain.metrics import Examples
from rectrain.package import ModelParts, Package, open_package
from rectrain.train.build import load_model
from rectrain.train.checkpoint import manifest_sha256
from rectrain.train.config import RunConfig, TrainConfig
from rectrain.train.selection import find_checkpoint
from rectrain.train.storage import Store

__all__ = ["RIVALS", "STEPS", "SmallStudy", "open_pipeline"]

#: Systems that are judged: each step, then rivals of the same size.
STEPS = (LARGE, "cut", "distilled", "heads", "trimmed", SMALL)
RIVALS = ("first_layers", "scratch")
_NUM_PROCESSES = 2
# The first layers are trained weights: at the rate at which the demo trained them, they lose least.
_RATES = {"first_layers": 1e-4}
_OF_A_TEACHER = (
    "teacher", "teacher_sha256", "distill_weight", "distill_temperature", "distill_relation",
)  # fmt: skip


class _Rival(NamedTuple):
    """Runs that make a rival, one after the other."""

    runs: tuple[RunConfig, ...]


def open_pipeline(config: CompressConfig) -> Pipeline:
    """The steps of `jobs.compress`, whose runs are trained in one process without Ray."""

    def train(run: RunConfig) -> None:
        in_processes(train_run, [run], processes=1)

    return Pipeline(resolve(config), say=partial(print, flush=True), train=train)


class SmallStudy:
    """Makes what is not yet there.

    Args:
        pipeline: from the large model to the small one.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self._root = pipeline.space.root
        self._bench = self._root / "bench"

    def make(self) -> list[Measured]:
        """Makes the small model and its rivals; a row of each, the large one first."""
        rows = self.pipeline.run()
        self._write_encoders()
        rivals = [_Rival((self._cut_heads(),)), *(self._rival(name) for name in RIVALS)]
        in_processes(_train, rivals, processes=_NUM_PROCESSES)
        return [*rows, *(self._measured(name) for name in RIVALS)]

    # ── what is trained beside the pipeline ──────────────────────────────────────────────────────

    def _write_encoders(self) -> None:
        """What the rivals begin with: the large one's first layers, and a fresh small one."""
        makers: dict[str, Callable[[], BertModel]] = {
            "first_layers": self._first_layers,
            "scratch": self._fresh,
        }
        for name, make in makers.items():
            self._write_encoder(name, make)

    def _write_encoder(self, name: str, make: Callable[[], BertModel]) -> Path:
        folder = self._bench / "encoders" / name
        if not folder.exists():
            draft = folder.with_name(f".{name}")
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            make().save_pretrained(draft)
            shutil.copytree(self.pipeline.teacher.tokenizer_path, draft, dirs_exist_ok=True)
            draft.rename(folder)
        return folder

    def _first_layers(self) -> BertModel:
        bert: Any = copy.deepcopy(self.pipeline.teacher.model.encoder)
        bert.config.num_hidden_layers = len(self.pipeline.shape.layers)
        bert.encoder.layer = bert.encoder.layer[: bert.config.num_hidden_layers]
        return bert

    def _fresh(self) -> BertModel:
        torch.manual_seed(self.pipeline.config.seed)
        return BertModel(BertConfig.from_pretrained(self._root / "cut"), add_pooling_layer=False)

    def _cut_heads(self) -> RunConfig:
        """Heads on the cut encoder as it is: what cutting alone leaves."""
        return self._changed("heads", "cut", encoder=self._root / "cut", train={"start_from": None})

    def _rival(self, name: str) -> _Rival:
        """Both runs of the small model on the same rows, by labels alone."""
        defaults = {field: TrainConfig.model_fields[field].default for field in _OF_A_TEACHER}
        encoder, begun = self._bench / "encoders" / name, f"{name}-encoder"
        rate = _RATES.get(name, self.pipeline.training().train.learning_rate)
        start = str(self._bench / "runs" / begun)
        return _Rival(
            (
                self._changed(
                    "distilled", begun, encoder=encoder, train=defaults | {"learning_rate": rate}
                ),
                self._changed(
                    "heads", name, encoder=encoder, train=defaults | {"start_from": start}
                ),
            )
        )

    def _changed(
        self, like: str, name: str, *, encoder: Path, train: Mapping[str, Any]
    ) -> RunConfig:
        """A run of the pipeline with another name, encoder and settings."""
        tree = self.pipeline.training(like).model_dump()
        tree |= {"name": name, "output": str(self._bench / "runs")}
        tree["model"]["encoder"] = str(encoder)
        tree["train"] |= train
        return RunConfig.model_validate(tree)

    # ── the models ───────────────────────────────────────────────────────────────────────────────

    def parts(self, name: str) -> ModelParts:
        """The model of a step or rival, in torch."""
        if package := self._package(name):
            return package.read()
        return ModelParts.of(load_model(self._run(name)))

    def _package(self, name: str) -> Package | None:
        """The package that a step is, if it is one."""
        folder = {SMALL: self._root / "package", "trimmed": self._root / "trimmed" / "model"}
        return open_package(folder[name]) if name in folder else None

    def _run(self, name: str) -> str:
        """The run, or checkpoint, that a step or rival is."""
        steps = {name: str(self._root / name) for name in ("distilled", "heads")}
        steps[LARGE] = self.pipeline.config.teacher
        return steps.get(name, str(self._bench / "runs" / name))

    def _version(self, name: str) -> str:
        """SHA-256 of what decides a model's scores."""
        if package := self._package(name):
            return package.version
        return manifest_sha256(find_checkpoint(Store.open(self._run(name))))

    def _measured(self, name: str) -> Measured:
        pipeline, config = self.pipeline, self.pipeline.config
        return pipeline.measured(
            name,
            lambda: measure(
                name, self.parts(name), pipeline.data, split=config.split, threads=config.threads
            ),
        )

    @property
    def small_graphs(self) -> tuple[str, ...]:
        """Names of the package's graphs."""
        return tuple(self._small_package().graphs)

    def small_graph(self, backend: str) -> TextEncoder:
        """The package's encoder in an engine."""
        return self._open(self._small_package().graphs[backend])

    def _small_package(self) -> Package:
        return open_package(self._root / "package")

    def large_graph(self, backend: str) -> TextEncoder:
        """The large encoder in an engine, made by the same code: all of its layers in int8, as
        nobody bounds what it loses."""
        pipeline, graphs = self.pipeline, self._bench / "large"
        if not (graphs / "done").exists():
            encoder = self._write_encoder(LARGE, lambda: pipeline.teacher.model.encoder)
            config = pipeline.config
            texts = sample(pipeline.data, num_texts=config.calibration_texts, seed=config.seed + 1)
            export_graphs(encoder, graphs, calibration=texts, max_drop=1.0)
            (graphs / "done").touch()
        suffix = ".xml" if backend.startswith("openvino") else ".onnx"
        return self._open(graphs / f"{backend}{suffix}")

    def _open(self, graph: Path) -> TextEncoder:
        open_one = open_openvino if graph.suffix == ".xml" else open_onnx
        return open_one(graph, threads=self.pipeline.config.threads)

    # ── scores ───────────────────────────────────────────────────────────────────────────────────

    def scores(self, task: str, *, backend: str) -> Systems:
        """Every system's scores of a task's test rows; the small one's by a backend."""
        return {
            name: self._scores(name, task, backend=backend if name == SMALL else "torch")
            for name in (*STEPS, *RIVALS)
        }

    def _scores(self, name: str, task: str, *, backend: str) -> Examples:
        split, version = self.pipeline.config.split, self._version(name)[:12]
        path = self._bench / "scores" / f"{name}-{version}-{backend}-{task}-{split}.npz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            graph = None if backend == "torch" else self.small_graph(backend)
            predictor = TokenisingPredictor.of(self.parts(name), encoder=graph)
            data = self.pipeline.data[task]
            found = judged_systems(predictor, data, task=task, split=split, baselines=False)
            save_systems(path, found)
        return load_systems(path)[MODEL]


def _train(rival: _Rival) -> None:
    for config in rival.runs:
        train_run(config)
