"""The packages that the serving benchmark serves, made once of a run and a small model's package.

    large   the run's model, with int8 graphs: all of its layers in int8, so that it is as fast as
            it can be
    small   a copy, with golden requests and without a policy

Both read texts of up to 256 tokens, whatever they were trained on: the benchmark's texts are long.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rectrain.compress.quantize import export_graphs
from rectrain.compress.samples import sample
from rectrain.data.loader import open_tasks
from rectrain.data.shards import Prepared
from rectrain.inference.golden import publish_golden
from rectrain.inference.packaged import PackagedModel, item_indexes, load
from rectrain.package import Card, ModelParts, open_package, write_package
from rectrain.train.build import load_model
from rectrain.train.checkpoint import manifest_sha256
from rectrain.train.selection import find_checkpoint
from rectrain.train.storage import Store

__all__ = ["INT8", "MAX_LENGTH", "Models", "prepare"]

INT8 = "openvino-int8"
MAX_LENGTH = 256


class Models:
    """Packages of a large and a small model, and the data that they were trained on.

    Attributes:
        large, small: folders.
        data: task -> prepared data.
    """

    def __init__(self, folder: Path, data: dict[str, Prepared]) -> None:
        self.large, self.small = folder / "large", folder / "small"
        self.data = data

    def open(self, name: str, *, backend: str = INT8, cached_texts: int = 0) -> PackagedModel:
        """Opens "large" or "small" with one thread and no cache of texts."""
        return load(
            getattr(self, name), backend=backend, threads=1, cached_texts=cached_texts
        )  # fmt: skip


def prepare(
    folder: Path, *, large: str, small: str, data: Sequence[str] = (), num_texts: int = 512
) -> Models:
    """Makes the packages, unless they are there already and of the same models.

    Args:
        folder: for them; made.
        large: a run or a checkpoint.
        small: a package.
        data: prepared directories; by default what the run was trained on.
        num_texts: that calibrate int8.
    """
    checkpoint = find_checkpoint(Store.open(large))
    loaded = load_model(checkpoint)
    parts = ModelParts.of(loaded)
    paths = list(data) or loaded.checkpoint.meta["config"]["data"]["paths"]
    tables = open_tasks(paths, tasks=list(parts.specs))
    source = manifest_sha256(checkpoint)
    made = {"large": source, "small": open_package(small).version}
    models, note = Models(folder, tables), folder / "made.json"
    if note.is_file() and json.loads(note.read_text()) == made:
        return models
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    card = Card(source=source, made=["benchmarks.serve"])
    given = open_package(small)
    graphs = sorted((given.path / "graphs").iterdir())
    _write(models.small, given.read(), card=card, graphs=graphs, data=tables)
    graphs = _graphs(folder, parts, card=card, data=tables, num_texts=num_texts)
    _write(models.large, parts, card=card, graphs=graphs, data=tables)
    note.write_text(json.dumps(made))
    return models


def _graphs(
    folder: Path, parts: ModelParts, *, card: Card, data: Mapping[str, Prepared], num_texts: int
) -> list[Path]:
    """Graphs of the large model, calibrated on training texts."""
    plain = write_package(folder / "plain", parts, card=card)
    graphs = folder / "graphs"
    texts = sample(data, num_texts=num_texts, seed=1)
    found = export_graphs(plain.path / "encoder", graphs, calibration=texts, max_drop=1.0)
    return [graphs / name for graph in found.values() for name in graph.files]


def _write(
    output: Path,
    parts: ModelParts,
    *,
    card: Card,
    graphs: Sequence[Path],
    data: Mapping[str, Prepared],
) -> None:
    limits = {task: one._replace(max_length=MAX_LENGTH) for task, one in parts.limits.items()}
    parts = replace(parts, limits=limits)
    catalogues = {task: data[task] for task, spec in parts.specs.items() if spec.has_catalogue}
    indexes = partial(item_indexes, parts, catalogues)
    publish_golden(write_package(output, parts, card=card, graphs=graphs, indexes=indexes))
