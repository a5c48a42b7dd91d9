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
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch

from rectrain.compress.card import small_card
from rectrain.compress.config import CompressConfig
from rectrain.compress.cutting import cut_and_refit, open_cut, write_encoder
from rectrain.compress.measure import Measured, Quiet, measure, worst_share
from rectrain.compress.quantize import check_engines, export_graphs, pack
from rectrain.compress.runs import Run, run_config, train_run
from rectrain.compress.samples import digest, held_out_texts, renumbered, sample
from rectrain.compress.workspace import Workspace
from rectrain.data.shards import Prepared
from rectrain.data.tokenize import load_tokenizer
from rectrain.errors import DataError, without_credentials
from rectrain.inference.backends import choose, open_onnx, open_openvino
from rectrain.inference.golden import GOLDEN, publish_golden
from rectrain.inference.packaged import item_indexes
from rectrain.inference.predictor import Predictor, check_threads, open_prepared
from rectrain.inference.text_encoder import TextEncoder
from rectrain.model.shape import Shape, preset_shape
from rectrain.model.vocabulary import kept_pieces, measure_fallback, trim
from rectrain.package import Card, ModelParts, num_head_bytes, open_package, write_package
from rectrain.strict_json import strict_json
from rectrain.train import preflight
from rectrain.train.build import load_model, new_model
from rectrain.train.checkpoint import manifest_sha256
from rectrain.train.config import RunConfig
from rectrain.train.frozen import training_texts
from rectrain.train.provenance import check_origin
from rectrain.train.run_plan import plan_run
from rectrain.train.selection import find_checkpoint, newest_checkpoint
from rectrain.train.storage import Store
from rectrain.train.usage import recorded

__all__ = ["LARGE", "SMALL", "Pipeline", "resolve"]

LARGE, SMALL = "large", "small"


def resolve(config: CompressConfig) -> CompressConfig:
    """The same with absolute paths, and the checkpoint that the teacher's run has now.

    Raises:
        CheckpointError: the teacher's run has no complete checkpoint, or another one than
            `train.teacher_sha256` says.
    """

    def absolute(path: str) -> str:
        return path if "://" in path else str(Path(path).expanduser().absolute())

    teacher = newest_checkpoint(absolute(config.teacher))
    noted = config.train.teacher_sha256 if config.train.teacher == config.teacher else None
    sha256 = noted or manifest_sha256(Store.open(teacher))
    train = config.train.model_copy(update={"teacher": teacher, "teacher_sha256": sha256})
    check_origin(train, "teacher", fix="give another --output, and no train.teacher_sha256")
    update = {
        "teacher": teacher,
        "output": absolute(config.output),
        "encoder": config.encoder and absolute(config.encoder),
        "data": tuple(absolute(path) for path in config.data),
        "train": train,
    }
    return config.model_copy(update=update)


@dataclass(frozen=True)
class _Step:
    """A part of the work: its folder, what it is called, whether it is done, how it is done, and
    the row of the table that measures what it makes."""

    folder: str
    text: str
    is_done: Callable[[], bool]
    run: Callable[[], None]
    row: str


class Pipeline:
    """The steps from one teacher to one package.

    Args:
        config: from `resolve`.
        say: is given the lines that a user should see.
        train: trains a run to its end, from where it is; on the Ray cluster by default.
        quiet: a context in which models are timed; none by default.
        model: settings of the small model that are other than the teacher's.

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
        quiet: Quiet = nullcontext,
        model: Mapping[str, Any] | None = None,
    ) -> None:
        self.config, self._say, self._model = config, say, model or {}
        self._train_run, self._quiet = train or partial(train_run, say=say), quiet
        self.space = Workspace(config)
        check_engines()
        check_threads(config.threads)
        self.teacher = load_model(config.teacher)
        self._given = config.encoder and open_cut(config.encoder, self.teacher)
        self.shape = (
            Shape.of(self._given.config)
            if self._given
            else preset_shape(config.preset, self.teacher.model.encoder.config)
        )
        trained_on = self.teacher.checkpoint.meta["config"]["data"]["paths"]
        self._paths = list(config.data or trained_on)
        predictor = Predictor.from_checkpoint(config.teacher)
        self.data: Mapping[str, Prepared] = open_prepared(
            predictor, self._paths, tasks=predictor.tasks
        )
        _check_rows(self.data, splits=("validation", config.split))
        plan_run(self.training(), self.data)
        self.steps = (
            self._step("cut", "cut the encoder and refit it", self._cut),
            self._step("distilled", "distil encoder and heads", partial(self._train, "distilled")),
            self._step("heads", "train the heads alone", partial(self._train, "heads")),
            self._step("trimmed", "trim the vocabulary", self._trim),
            self._step("graphs", "quantise encoder and heads", self._quantise, row=SMALL),
            _Step("package", "package", self._is_packaged, self._package, row=""),
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
            + (
                f"{self.config.preset}: layers {', '.join(map(str, shape.layers))} (of 0 to "
                f"{bert.num_hidden_layers - 1})"
                if not self._given
                else f"{without_credentials(self.config.encoder or '')}: {len(shape.layers)} layers"
            )
            + f" of {shape.hidden}, {shape.heads} heads, inner size {shape.intermediate}",
            f"training: {train.num_steps} steps of encoder and heads, {self.config.head_steps} of "
            f"the heads alone, {train.max_workers} workers, ZeRO-{train.zero_stage}",
            f"output: {self.space.root}",
        ]
        num_done = self._num_done()
        for number, step in enumerate(self.steps, 1):
            state = "done" if number <= num_done else "to do"
            lines.append(f"{number}/{len(self.steps)} {step.text}: {state} ({step.folder}/)")
        return "\n".join(lines)

    def is_trained(self) -> bool:
        """Whether both runs are done."""
        return self._num_done() > [step.folder for step in self.steps].index("heads")

    def run(self) -> list[Measured]:
        """Does what is left to do, and measures each model on the way; the large one first."""
        with self.space.begun():
            for number, step in enumerate(self.steps[self._num_done() :], self._num_done() + 1):
                self._say(f"── {number}/{len(self.steps)} {step.text}")
                self._forget(step.row, *self.steps[number:])
                with self._recorded(step.folder):
                    step.run()
            with self._recorded("measured"):
                return self._measure_all()

    def training(self, name: Run = "distilled") -> RunConfig:
        """The configuration of one of the two runs; the first needs most of the cluster."""
        taught = self.teacher.checkpoint.meta["config"]
        taught = {**taught, "model": {**taught["model"], **self._model}}
        return run_config(
            name, self.config, teacher=taught, tasks=list(self.data), paths=self._paths
        )

    def _recorded(self, step: str) -> AbstractContextManager[None]:
        """Notes what a step takes; a training notes it in its own folder, worker by worker."""
        if step in get_args(Run):
            return nullcontext()
        return recorded(
            Store.open(str(self.space.root)),
            work="compress",
            label=step,
            num_threads=torch.get_num_threads(),
            on_gpu=False,
        )

    def _num_done(self) -> int:
        """How many steps are done before the first that is not: what follows that one is stale."""
        return next((n for n, step in enumerate(self.steps) if not step.is_done()), len(self.steps))

    def _forget(self, row: str, *later: _Step) -> None:
        """Removes what was made, or measured, of what is now made anew."""
        for folder in (step.folder for step in later):
            self.space.remove(folder)
        for name in filter(None, (row, *(step.row for step in later))):
            self.space.remove(f"measured/{name}.json")

    # --- the steps -------------------------------------------------------------------------------

    def _step(
        self, folder: str, text: str, run: Callable[[], None], *, row: str | None = None
    ) -> _Step:
        return _Step(folder, text, partial(self.space.is_done, folder), run, row or folder)

    def _is_packaged(self) -> bool:
        return (self.space.root / "package" / GOLDEN).exists()  # what is written last

    def _cut(self) -> None:
        facts: dict[str, Any] = {"shape": asdict(self.shape)}
        if self._given:
            student = self._given
            facts["encoder"] = without_credentials(self.config.encoder or "")
        else:
            texts = sample(self.data, num_texts=self.config.refit_texts, seed=self.config.seed)
            student = cut_and_refit(self.teacher.model.encoder, shape=self.shape, texts=texts)
            facts["texts"] = digest(texts)
        folder = self.space.fresh("cut")
        write_encoder(student, folder, tokenizer=Path(self.teacher.tokenizer_path))
        self.space.finish("cut", facts)

    def _train(self, name: Run) -> None:
        config = self.training(name)
        self._train_run(config)
        self.space.finish(name, {"num_steps": config.train.num_steps})

    def _trim(self) -> None:
        parts = ModelParts.of(load_model(str(self.space.root / "heads")))
        full, split = parts.model.encoder, self.config.split
        trimmed = trim(
            parts.tokenizer, full, kept_pieces(parts.tokenizer, [training_texts(self.data)])
        )
        smaller = replace(
            parts,
            model=copy.deepcopy(parts.model),
            tokenizer=trimmed.tokenizer,
            full_tokenizer=parts.tokenizer,  # so that who uses it knows how many texts fall back
        )
        smaller.model.encoder = trimmed.bert
        fallback = measure_fallback(
            parts.tokenizer,
            full,
            trimmed,
            held_out_texts(self.data, split=split),
            max_length=max(limit.max_length for limit in parts.limits.values()),
        )
        facts = {
            "pieces": len(trimmed.ids),
            "of": full.config.vocab_size,
            "fallback": {**asdict(fallback), "share": fallback.share, "split": split},
        }
        self._say(
            f"vocabulary: {facts['pieces']:,} of {facts['of']:,} pieces; {fallback.share:.2%} of "
            f"{fallback.num_texts:,} texts of {split} have others, with mean cosine "
            f"{fallback.fallback_cosine:.4f} to before"
        )
        self.space.fresh("trimmed")
        card = self._card(smaller, facts=facts)
        write_package(self.space.root / "trimmed" / "model", smaller, card=card)
        self.space.finish("trimmed", facts)

    def _quantise(self) -> None:
        parts, texts = self._trimmed(), self._calibration()
        found = export_graphs(
            self.space.root / "trimmed" / "model" / "encoder",
            self.space.fresh("graphs"),
            calibration=texts,
            quality=worst_share(parts, self.data, say=self._say),
            max_drop=self.config.max_drop,
        )
        for name, graph in found.items():
            if kept := len(graph.float_layers):
                self._say(f"{name}: {kept} layers stay in float")
            if not graph.holds:
                self._say(
                    f"{name}: left out; a task keeps {graph.quality:.2%} of its metric in "
                    f"validation, and max_drop={self.config.max_drop:g} allows no less than "
                    f"{1 - self.config.max_drop:.2%}"
                )
        graphs = {name: asdict(graph) for name, graph in found.items()}
        self.space.finish("graphs", {"graphs": graphs, "calibration_sha256": digest(texts)})

    def _package(self) -> None:
        parts, small = self._small(), self.measured(SMALL, self._measure_small)
        facts = {"vocabulary": self.space.facts("trimmed"), **self.space.facts("graphs")}
        files = (name for graph in self._graphs().values() for name in graph["files"])
        package = write_package(
            self.space.root / "package",
            parts,
            card=self._card(parts, facts=facts, measured=small),
            graphs=[self.space.root / "graphs" / name for name in files],
            indexes=partial(item_indexes, parts, self._catalogues()),
            overwrite=True,  # a kill may have come before its golden requests
        )
        publish_golden(package)

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
        text = strict_json({**facts, "measured": found.to_json()})
        self.space.write(f"measured/{name}.json", text)
        return found

    def _measure(self, name: str, parts: ModelParts, **more: Any) -> Measured:
        config = self.config
        return measure(
            name, parts, self.data, split=config.split, threads=config.threads, quiet=self._quiet,
            **more,
        )  # fmt: skip

    def _measure_cut(self) -> Measured:
        """The cut encoder, whose heads are still fresh."""
        model: Any = new_model(preflight.resolve_paths(self.training()), self.data)
        parts = replace(ModelParts.of(self.teacher), model=model)
        return self._measure("cut", parts, is_trained=False)

    def _measure_small(self) -> Measured:
        """The graph that is fastest here, with the heads in torch: one in int8 where any holds."""
        parts, graphs = self._small(), self._graphs()
        names = [name for name in graphs if name.endswith("-int8")]
        if not names:
            self._say("no graph in int8 loses as little as max_drop allows: fp32 is taken")
        candidates = {
            name: partial(self._open_graph, graphs[name]["files"][0]) for name in names or graphs
        }
        with self._quiet():
            choice = choose(candidates, pack(self._calibration()))
        self._say(f"fastest here: {choice.backend}")
        return self._measure(
            SMALL,
            parts,
            encoder=candidates[choice.backend](),
            num_bytes=int(graphs[choice.backend]["num_bytes"]) + num_head_bytes(parts),
        )

    def _open_graph(self, file: str) -> TextEncoder:
        open_one = open_openvino if file.endswith(".xml") else open_onnx
        return open_one(self.space.root / "graphs" / file, threads=self.config.threads)

    # --- what was made ---------------------------------------------------------------------------

    def _catalogues(self) -> dict[str, Prepared]:
        return {task: found for task, found in self.data.items() if found.has_items(task)}

    def _trimmed(self) -> ModelParts:
        return open_package(self.space.root / "trimmed" / "model").read()

    def _small(self) -> ModelParts:
        return self._trimmed().with_int8_heads()

    def _graphs(self) -> dict[str, dict[str, Any]]:
        """Facts of the graphs that lose as little as `max_drop` allows; of fp32 in any case."""
        graphs: dict[str, dict[str, Any]] = self.space.facts("graphs")["graphs"]
        return {
            name: graph
            for name, graph in graphs.items()
            if graph["holds"] or not name.endswith("-int8")
        }

    def _calibration(self) -> list[list[int]]:
        """Training texts of all tasks in the trimmed vocabulary, at their real lengths."""
        config = self.config
        texts = sample(self.data, num_texts=config.calibration_texts, seed=config.seed + 1)
        full = load_tokenizer(self.teacher.tokenizer_path)
        return renumbered(texts, full=full, trimmed=self._trimmed().tokenizer)

    def _card(
        self, parts: ModelParts, *, facts: Mapping[str, Any], measured: Measured | None = None
    ) -> Card:
        return small_card(
            self.config,
            parts,
            source=manifest_sha256(find_checkpoint(Store.open(str(self.space.root / "heads")))),
            teacher=self.teacher.checkpoint.meta,
            shape=self.shape,
            facts=facts,
            measured=measured,
        )


def _check_rows(data: Mapping[str, Prepared], *, splits: Sequence[str]) -> None:
    """Refuses data that the end of the work would find too small."""
    for task, prepared in data.items():
        for split in splits:
            if not prepared.splits(task)[split]["rows"]:
                raise DataError(
                    what=f"{split} split of {task} in {prepared.root}",
                    got="no rows",
                    rule="validation bounds what int8 may lose, and the table is of `split`",
                    fix="prepare more data, or larger split shares",
                )
