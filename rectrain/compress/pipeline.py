"""From a large model to a small one, a step at a time; what is done is not done again.

OUTPUT/compress.yaml        the settings that all of it is made with
OUTPUT/cut/                 1 the large encoder, cut and refitted (Hugging Face layout)
OUTPUT/distilled/           2 a run: encoder and heads learn of the large model
OUTPUT/heads/               3 a run: the heads alone, on vectors that are computed once
OUTPUT/trimmed/model/       4 a package: the vocabulary trimmed to what the data uses
OUTPUT/graphs/              5 the encoder for OpenVINO and ONNX Runtime, in fp32 and int8
OUTPUT/package/             6 the small model: what `rectrain.load` opens
OUTPUT/measured/            what each of them is worth and costs, a file each
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rectrain.cluster import connect
from rectrain.compress.config import CompressConfig
from rectrain.compress.measure import Measured, TokenisingPredictor, measure, primary_metrics
from rectrain.compress.quantize import export_graphs, pack
from rectrain.compress.samples import digest, held_out_texts, renumbered, sample
from rectrain.compress.workspace import Workspace
from rectrain.data.shards import Prepared
from rectrain.data.tokenize import load_tokenizer
from rectrain.errors import ConfigError, without_credentials
from rectrain.inference.backends import choose, open_onnx, open_openvino
from rectrain.inference.packaged import publish_index
from rectrain.inference.predictor import Predictor, open_prepared
from rectrain.inference.text_encoder import TextEncoder
from rectrain.metrics import Interval
from rectrain.model.slicing import cut, measure_importance, preset_shape, refit
from rectrain.model.vocabulary import kept_pieces, measure_fallback, trim
from rectrain.package import Card, ModelParts, open_package, write_package
from rectrain.train import launch, preflight
from rectrain.train.build import load_model, load_trained_encoder, new_model
from rectrain.train.checkpoint import manifest_sha256
from rectrain.train.config import RunConfig, TrainConfig
from rectrain.train.export import base_model, export_encoder
from rectrain.train.frozen import training_texts
from rectrain.train.selection import find_checkpoint, newest_checkpoint
from rectrain.train.storage import Store

__all__ = ["LARGE", "SMALL", "Pipeline", "resolve"]

LARGE, SMALL = "large", "small"
_ENGINES = ("openvino", "nncf", "onnx", "onnxruntime")
# Of the teacher's last run: the small model learns from rows in the same shares.
_MIXING = ("num_negatives", "temperature", "mixing_weights")
_HEAD_TOKENS = 4  # times as many in a micro-batch, where texts are vectors


def resolve(config: CompressConfig) -> CompressConfig:
    """The same with absolute paths, and the checkpoint that the teacher's run has now.

    Raises:
        CheckpointError: the teacher's run has no complete checkpoint.
    """

    def absolute(path: str) -> str:
        return path if "://" in path else str(Path(path).expanduser().absolute())

    teacher = newest_checkpoint(absolute(config.teacher))
    sha256 = manifest_sha256(Store.open(teacher))
    update = {
        "teacher": teacher,
        "output": absolute(config.output),
        "data": tuple(absolute(path) for path in config.data),
        "train": config.train.model_copy(update={"teacher": teacher, "teacher_sha256": sha256}),
    }
    return config.model_copy(update=update)


@dataclass(frozen=True)
class _Step:
    """A part of the work: its folder, what it is called, whether it is done, how it is done."""

    folder: str
    text: str
    is_done: Callable[[], bool]
    run: Callable[[], None]


class Pipeline:
    """The steps from one teacher to one package.

    Args:
        config: from `resolve`.
        say: is given the lines that a user should see.
        train: trains a run to its end, from where it is; on the Ray cluster by default.

    Raises:
        RectrainError: what the user must mend first: of the teacher, its data, the output, or an
            engine that is missing.
    """

    def __init__(
        self,
        config: CompressConfig,
        *,
        say: Callable[[str], None],
        train: Callable[[RunConfig], None] | None = None,
    ) -> None:
        self.config, self._say = config, say
        self._train_run = train or self._train_on_cluster
        self.space = Workspace(config)
        _check_engines()
        self.teacher = load_model(config.teacher)
        self.shape = preset_shape(config.preset, self.teacher.model.encoder.config)
        trained_on = self.teacher.checkpoint.meta["config"]["data"]["paths"]
        self._paths = list(config.data or trained_on)
        predictor = Predictor.from_checkpoint(config.teacher)
        self.data: Mapping[str, Prepared] = open_prepared(
            predictor, self._paths, tasks=predictor.tasks
        )
        self.steps = (
            self._step("cut", "cut the encoder and refit it", self._cut),
            self._run_step("distilled", "distil encoder and heads"),
            self._run_step("heads", "train the heads alone"),
            self._step("trimmed", "trim the vocabulary", self._trim),
            self._step("graphs", "quantise", self._quantise),
            _Step("package", "package", self._is_packaged, self._package),
        )

    # --- the whole -------------------------------------------------------------------------------

    def plan(self) -> str:
        """What will be done, as text; writes nothing."""
        large, shape, train = self.teacher.model, self.shape, self.config.train
        bert, size = large.encoder.config, sum(p.numel() for p in large.parameters())
        lines = [
            f"teacher: {without_credentials(self.config.teacher)} (step "
            f"{self.teacher.checkpoint.step}, {size:,} parameters, {', '.join(self.data)})",
            f"encoder: {bert.num_hidden_layers} layers of {bert.hidden_size} → "
            f"{self.config.preset}: layers {', '.join(map(str, shape.layers))} (of 0 to "
            f"{bert.num_hidden_layers - 1}) of {shape.hidden}, {shape.heads} heads, inner size "
            f"{shape.intermediate}",
            f"training: {train.num_steps} steps of encoder and heads, {self.config.head_steps} of "
            f"the heads alone, {train.max_workers} workers, ZeRO-{train.zero_stage}",
            f"output: {self.space.root}",
        ]
        for number, step in enumerate(self.steps, 1):
            state = "done" if step.is_done() else "to do"
            lines.append(f"{number}/{len(self.steps)} {step.text}: {state} ({step.folder}/)")
        return "\n".join(lines)

    def run(self) -> list[Measured]:
        """Does what is left to do, and measures each model on the way; the large one first."""
        with self.space.begun():
            for number, step in enumerate(self.steps, 1):
                if not step.is_done():
                    self._say(f"── {number}/{len(self.steps)} {step.text}")
                    step.run()
            return self._measure_all()

    def training(self, name: str = "distilled") -> RunConfig:
        """The configuration of one of the two runs; the first needs most of the cluster.

        Args:
            name: "distilled" or "heads".
        """
        train, tokens = self.config.train.model_dump(), self.config.tokens_per_micro_batch
        if name == "heads":
            unused = ("learning_rate", "layer_decay", "balancer", "distill_relation", "offload")
            train |= {field: TrainConfig.model_fields[field].default for field in unused}
            train |= {
                "start_from": str(self.space.root / "distilled"),
                "freeze": "encoder",
                "zero_stage": min(self.config.train.zero_stage, 2),
                "num_steps": self.config.head_steps,
                "head_learning_rate": self.config.head_rate,
            }
            tokens *= _HEAD_TOKENS
        taught = self.teacher.checkpoint.meta["config"]
        rows = {key: taught["data"][key] for key in _MIXING if key in taught["data"]}
        return RunConfig.model_validate(
            {
                "name": name,
                "output": str(self.space.root),
                "seed": self.config.seed,
                "data": {**rows, "paths": self._paths, "tokens_per_micro_batch": tokens},
                "model": {**taught["model"], "encoder": str(self.space.root / "cut")},
                "train": {**train, "tasks": list(self.data)},
                "tracking": {"mlflow": "off"},
            }
        )

    # --- the steps -------------------------------------------------------------------------------

    def _step(self, folder: str, text: str, run: Callable[[], None]) -> _Step:
        return _Step(folder, text, partial(self.space.is_done, folder), run)

    def _run_step(self, name: str, text: str) -> _Step:
        exported = self.space.root / name / "encoder" / "modules.json"
        return _Step(name, text, exported.exists, lambda: self._train(self.training(name)))

    def _is_packaged(self) -> bool:
        package = self.space.root / "package"
        indexes = (package / "items" / f"{task}.safetensors" for task in self._catalogues())
        return all(file.exists() for file in (package / "manifest.json", *indexes))

    def _catalogues(self) -> dict[str, Prepared]:
        return {task: found for task, found in self.data.items() if found.has_items(task)}

    def _cut(self) -> None:
        large = self.teacher.model.encoder
        texts = sample(self.data, num_texts=self.config.refit_texts, seed=self.config.seed)
        packed = [pack(texts)]
        importance = measure_importance(large, packed)
        student = cut(large, shape=self.shape, importance=importance)
        refit(student, large, shape=self.shape, importance=importance, texts=packed)
        folder = self.space.fresh("cut")
        student.save_pretrained(folder)
        shutil.copytree(self.teacher.tokenizer_path, folder, dirs_exist_ok=True)
        self.space.finish("cut", {"shape": asdict(self.shape), "texts": digest(texts)})

    def _train(self, config: RunConfig) -> None:
        """Trains a run to its end, from where it is."""
        config = preflight.resolve_paths(config)
        self._say(preflight.describe(config))
        self._train_run(config)

    def _train_on_cluster(self, config: RunConfig) -> None:
        place = preflight.claim(config, overwrite=False)
        if place.result is None:
            connect()
            launch.launch(config, place, say=self._say)
        else:  # a kill came between the last checkpoint and the export
            export_encoder(load_trained_encoder(place.result), place.store)

    def _trim(self) -> None:
        parts = ModelParts.of(load_model(str(self.space.root / "heads")))
        full = parts.model.encoder
        trimmed = trim(
            parts.tokenizer, full, kept_pieces(parts.tokenizer, [training_texts(self.data)])
        )
        smaller = replace(parts, model=copy.deepcopy(parts.model), tokenizer=trimmed.tokenizer)
        smaller.model.encoder = trimmed.bert
        fallback = measure_fallback(
            parts.tokenizer,
            full,
            trimmed,
            held_out_texts(self.data, split=self.config.split),
            max_length=max(limit.max_length for limit in parts.limits.values()),
        )
        facts = {
            "pieces": len(trimmed.ids),
            "of": full.config.vocab_size,
            "fallback": {**asdict(fallback), "share": fallback.share},
        }
        self._say(
            f"vocabulary: {facts['pieces']:,} of {facts['of']:,} pieces; {fallback.share:.2%} of "
            f"{fallback.num_texts:,} texts of {self.config.split} have others, with mean cosine "
            f"{fallback.fallback_cosine:.4f} to before"
        )
        self.space.fresh("trimmed")
        write_package(self.space.root / "trimmed" / "model", smaller, card=self._card(facts=facts))
        self.space.finish("trimmed", facts)

    def _quantise(self) -> None:
        parts, texts = self._trimmed(), self._calibration()
        found = export_graphs(
            self.space.root / "trimmed" / "model" / "encoder",
            self.space.fresh("graphs"),
            calibration=texts,
            quality=self._worst_share(parts),
            max_drop=self.config.max_drop,
        )
        graphs = {name: asdict(facts) for name, facts in found.items()}
        for name, facts in graphs.items():
            if kept := len(facts["float_layers"]):
                self._say(f"{name}: {kept} layers stay in float")
        self.space.finish("graphs", {"graphs": graphs, "calibration_sha256": digest(texts)})

    def _package(self) -> None:
        small, parts = self.measured(SMALL, self._measure_small), self._trimmed()
        metrics = {task: {parts.specs[task].primary: v} for task, v in small.metrics.items()}
        graphs = self.space.fresh(".graphs")  # without what the step says of itself
        for facts in self.space.facts("graphs")["graphs"].values():
            for name in facts["files"]:
                shutil.copy2(self.space.root / "graphs" / name, graphs / name)
        facts = {"vocabulary": self.space.facts("trimmed"), **self.space.facts("graphs")}
        package = write_package(
            self.space.root / "package",
            parts,
            card=self._card(metrics=metrics, facts=facts),
            graphs=graphs,
            overwrite=True,  # a kill may have come before its index
        )
        shutil.rmtree(graphs)
        if catalogues := self._catalogues():
            publish_index(package, catalogues)

    # --- measuring -------------------------------------------------------------------------------

    def _measure_all(self) -> list[Measured]:
        """Each model on the way; measured once."""

        def of_run(location: str) -> ModelParts:
            return ModelParts.of(load_model(location))

        root = self.space.root
        made: dict[str, Callable[[], Measured]] = {
            LARGE: lambda: self._measure(LARGE, of_run(self.config.teacher)),
            "cut": self._measure_cut,
            "distilled": lambda: self._measure("distilled", of_run(str(root / "distilled"))),
            "heads": lambda: self._measure("heads", of_run(str(root / "heads"))),
            "trimmed": lambda: self._measure("trimmed", self._trimmed()),
            SMALL: self._measure_small,
        }
        return [self.measured(name, make) for name, make in made.items()]

    def measured(self, name: str, make: Callable[[], Measured]) -> Measured:
        """A row of the table, from its file if the same was measured before.

        Args:
            name: of the row and its file.
            make: measures it.
        """
        facts = {"split": self.config.split, "threads": self.config.threads}
        path = self.space.root / "measured" / f"{name}.json"
        if path.exists():
            stored = json.loads(path.read_bytes())
            if {key: stored[key] for key in facts} == facts:
                return Measured.from_json(stored["measured"])
        self._say(f"measure {name}")
        found = make()
        text = json.dumps({**facts, "measured": found.to_json()}, indent=1)
        self.space.write(f"measured/{name}.json", text + "\n")
        return found

    def _measure(self, name: str, parts: ModelParts, **more: Any) -> Measured:
        config = self.config
        return measure(name, parts, self.data, split=config.split, threads=config.threads, **more)

    def _measure_cut(self) -> Measured:
        """The cut encoder, whose heads are still fresh."""
        model: Any = new_model(preflight.resolve_paths(self.training()), self.data)
        parts = replace(ModelParts.of(self.teacher), model=model)
        return self._measure("cut", parts, is_trained=False)

    def _measure_small(self) -> Measured:
        """The int8 graph that is fastest here, with the heads in torch."""
        parts, graphs = self._trimmed(), self.space.facts("graphs")["graphs"]
        candidates = {
            name: partial(self._open_graph, facts["files"][0])
            for name, facts in graphs.items()
            if name.endswith("-int8")
        }
        choice = choose(candidates, pack(self._calibration()))
        self._say(f"fastest here: {choice.backend}")
        encoder = {id(p) for p in parts.model.encoder.parameters()}
        heads = sum(p.numel() for p in parts.model.parameters() if id(p) not in encoder)
        return self._measure(
            SMALL,
            parts,
            encoder=candidates[choice.backend](),
            num_bytes=int(graphs[choice.backend]["num_bytes"]) + 4 * heads,
        )

    def _open_graph(self, file: str) -> TextEncoder:
        open_one = open_openvino if file.endswith(".xml") else open_onnx
        return open_one(self.space.root / "graphs" / file, threads=self.config.threads)

    def _worst_share(self, parts: ModelParts) -> Callable[[TextEncoder], float]:
        """Of an encoder: the least share, over tasks, of its fp32's metric in validation."""
        judged = {
            task: prepared
            for task, prepared in self.data.items()
            if prepared.splits(task)["validation"]["rows"]
        }

        def values(encoder: TextEncoder | None) -> dict[str, float]:
            predictor = TokenisingPredictor.of(parts, encoder=encoder)
            return primary_metrics(predictor, judged, split="validation")

        exact = {task: value for task, value in values(None).items() if value > 0}

        def worst(encoder: TextEncoder) -> float:
            found = values(encoder)
            return min((found[task] / value for task, value in exact.items()), default=1.0)

        return worst

    # --- what was made ---------------------------------------------------------------------------

    def _trimmed(self) -> ModelParts:
        return open_package(self.space.root / "trimmed" / "model").read()

    def _calibration(self) -> list[list[int]]:
        """Training texts of all tasks in the trimmed vocabulary, at their real lengths."""
        config = self.config
        texts = sample(self.data, num_texts=config.calibration_texts, seed=config.seed + 1)
        full = load_tokenizer(self.teacher.tokenizer_path)
        return renumbered(texts, full=full, trimmed=self._trimmed().tokenizer)

    def _card(
        self,
        *,
        facts: Mapping[str, Any],
        metrics: Mapping[str, Mapping[str, Interval]] | None = None,
    ) -> Card:
        meta, shape, train = self.teacher.checkpoint.meta, self.shape, self.config.train
        source = find_checkpoint(Store.open(str(self.space.root / "heads")))
        measured = (
            f"On the {self.config.split} split, by the int8 graph that was fastest where it was "
            "made; intervals are 95% of a bootstrap over groups."
        )
        return Card(
            source=manifest_sha256(source),
            made=[
                f"The encoder of a model that was trained on {', '.join(self.data)} for "
                f"{meta['step']:,} steps was cut to layers {', '.join(map(str, shape.layers))}, "
                f"hidden size {shape.hidden}, {shape.heads} heads and inner size "
                f"{shape.intermediate}, and refitted to the large one's hidden states.",
                f"Encoder and heads learned of that model for {train.num_steps:,} steps: "
                f"{train.distill_weight:.0%} soft labels at temperature "
                f"{train.distill_temperature:g}, relation of texts × {train.distill_relation:g}.",
                f"The heads alone learned of it for {self.config.head_steps:,} steps.",
                "The vocabulary was trimmed to the pieces of the training texts.",
            ],
            base_model=base_model(meta),
            metrics=metrics or {},
            measured=measured if metrics else "",
            facts=facts,
        )


def _check_engines() -> None:
    """Refuses to begin what could not be ended."""
    absent = [name for name in _ENGINES if find_spec(name) is None]
    if absent:
        raise ConfigError(
            what="inference engines",
            got=f"no installed {', '.join(absent)}",
            rule="quantising needs the extra inference",
            fix="pip install 'rectrain[inference]'",
        )
