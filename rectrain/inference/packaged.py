"""A packaged model in use: rows as dictionaries or a table in, scores or lists of items out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from rectrain.data.fields import FieldTable
from rectrain.data.shards import Prepared
from rectrain.errors import ConfigError, DataError, NoIndex
from rectrain.inference.engine import Engine, open_engine
from rectrain.inference.index import ItemIndex
from rectrain.inference.predictor import Predictor, check_features, check_threads, pick_device
from rectrain.inference.rows import EXCLUDE, EncodedRows
from rectrain.package import ModelParts, Package, open_package, update_package
from rectrain.package.folder import ITEMS

__all__ = ["PackagedModel", "Recommended", "Rows", "item_indexes", "load", "publish_index"]

Rows: TypeAlias = Sequence[Mapping[str, Any]] | pa.Table
"""Rows in a task's fields; other keys and columns are passed over."""


class Recommended(NamedTuple):
    """item_id: of the catalogue; score: the model's, which only ranks."""

    item_id: str
    score: float


class PackagedModel:
    """A model that scores rows of its tasks, and recommends items where it has their index.

    Args:
        package: where it comes from, verified.
        predictor: of its model.
        engine: what runs its encoder.

    Raises:
        PackageError: an item index of another model.
    """

    def __init__(self, package: Package, *, predictor: Predictor, engine: Engine) -> None:
        self.package = package
        self.predictor = predictor
        self.engine = engine
        self._indexes = {
            task: ItemIndex.open(path, task=task, model=package.version)
            for task, path in package.indexes.items()
        }

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the model's tasks."""
        return self.predictor.tasks

    @property
    def version(self) -> str:
        """SHA-256 of what decides the model's vectors and scores."""
        return self.package.version

    @property
    def fallback_share(self) -> float:
        """Share of the texts read so far that have a piece that the trimmed vocabulary lacks, 0 to
        1: their vectors differ from the untrimmed model's. NaN where the vocabulary is whole."""
        assert self.predictor.rows is not None
        return self.predictor.rows.fallback_share

    def fields(self, task: str) -> FieldTable:
        """What a row of the task has.

        Raises:
            DataError: the model has no such task.
        """
        return self.predictor.fields(task)

    def predict(self, task: str, rows: Rows) -> NDArray[np.float64]:
        """Scores of rows, in their order.

        Args:
            task: one of `tasks`.
            rows: in the task's fields (see `fields`); may be none.

        Returns:
            float64 [n]: probabilities for a task of 0/1 labels, else scores that only rank, within
            a query or user.

        Raises:
            DataError: no such task, one that ranks a catalogue (see `recommend`), a missing or
                wrong column, or rows that break a rule: the first of them and their number.
        """
        if self.predictor.spec(task).has_catalogue:
            raise DataError(
                what=f"task {task}",
                got="predict",
                rule="its rows are users, for whom a whole catalogue is ranked",
                fix="call recommend(rows, k=10)",
            )
        if not _count(rows, task=task):
            return np.empty(0, dtype=np.float64)
        return self.predictor.score(task, self._encode(task, rows).prepared)

    def recommend(
        self,
        rows: Rows,
        *,
        k: int = 10,
        task: str | None = None,
        diversity: float = 0.0,
        out_of_stock: Collection[str] | NDArray[np.bool_] = (),
    ) -> list[list[Recommended]]:
        """The best items of the catalogue for each user, best first.

        Args:
            rows: users in the task's fields; the field `exclude` lists ids that the user must not
                get (already bought).
            k: length of the lists; a list is shorter where items run out.
            task: which, where several rank a catalogue.
            diversity: 0 (by score alone) to 1, see `index.diversify`.
            out_of_stock: ids that nobody gets, or bool [I] in the order of `index(task).ids`.

        Raises:
            DataError: see `predict` and `index`.
            ConfigError: an argument out of its range.
            NoIndex: the package has no item index.
        """
        task = task or self._catalogue_task()
        index = self.index(task)
        if not _count(rows, task=task):
            return []
        encoded = self._encode(task, rows)
        items, scores = index.search(
            self.predictor.embed(task, encoded.prepared)[0],
            k=k,
            exclude=[ids or [] for ids in encoded.given[EXCLUDE].to_pylist()],
            out_of_stock=out_of_stock,
            diversity=diversity,
        )
        return [
            [
                Recommended(index.ids[item], score)
                for item, score in zip(*pair, strict=True)
                if item >= 0
            ]
            for pair in zip(items.tolist(), scores.tolist(), strict=True)
        ]

    def index(self, task: str) -> ItemIndex:
        """The item index of a task.

        Raises:
            DataError: no such task, or one without a catalogue.
            NoIndex: the package has none.
        """
        if not self.predictor.spec(task).has_catalogue:
            raise DataError(
                what=f"task {task}",
                got="recommend",
                rule="it ranks the rows that it is given, and no catalogue",
                fix="call predict(task, rows)",
            )
        if task not in self._indexes:
            raise NoIndex(
                what=f"package {self.package.path}",
                got=f"no item index of {task}",
                rule="a catalogue is ranked by the vectors of its items",
                fix="python -m jobs.publish --refresh-index --output PACKAGE --data DATA",
            )
        return self._indexes[task]

    def _catalogue_task(self) -> str:
        found = [task for task in self.tasks if self.predictor.spec(task).has_catalogue]
        if len(found) != 1:
            raise DataError(
                what="task of recommend",
                got="nothing",
                rule=f"the model's tasks with a catalogue are {', '.join(found) or 'none'}",
                fix=f'task="{found[0]}"' if found else "train recommendation too",
            )
        return found[0]

    def _encode(self, task: str, rows: Rows) -> EncodedRows:
        fields = self.fields(task)
        encoded = self.predictor.encode(task, _table(rows, fields=fields))
        if bad := encoded.rejects.num_rows:
            first, reason = (encoded.rejects[name][0].as_py() for name in ("row", "reason"))
            raise _bad_rows(task, first, reason, num_bad=bad, num_rows=len(rows))
        return encoded


def load(
    path: Path | str,
    *,
    backend: str = "auto",
    threads: int | None = None,
    device: str = "cpu",
    cached_texts: int = 1 << 14,
) -> PackagedModel:
    """Opens a package, verified, ready to score.

    Args:
        path: the package's folder.
        backend: what runs the encoder: "torch", one of the package's graphs by name, or "auto":
            the fastest by a short measurement of all of these, which `engine.choice` then holds.
        threads: of this process's computations, from now on; None: as many as torch has.
        device: "cpu", "cuda", or "auto" for a GPU where there is one.
        cached_texts: texts whose vectors are kept for the next calls, at most; 0 keeps none.

    Raises:
        PackageError: see `open_package`, `Package.read` and `PackagedModel`.
        ConfigError: no such backend or device, its engine is not installed, or a count out of its
            range.
        EncoderError: a graph that its engine can't open.
        ResourceError: no such device.
    """
    if threads is not None:
        check_threads(threads)
    if cached_texts < 0:
        raise ConfigError(
            what="cached_texts", got=cached_texts, rule="must be at least 0", fix="correct it"
        )
    device = pick_device(device)
    package = open_package(path)
    if threads is not None:
        torch.set_num_threads(threads)
    parts = package.read()
    engine = open_engine(
        package,
        parts.model.encoder,
        backend=backend,
        threads=torch.get_num_threads(),
        device=device,
        max_length=max(limit.max_length for limit in parts.limits.values()),
    )
    predictor = Predictor.of(
        parts, device=device, encoder=engine.encoder, cached_texts=cached_texts
    )
    return PackagedModel(package, predictor=predictor, engine=engine)


def item_indexes(parts: ModelParts, data: Mapping[str, Prepared], version: str) -> dict[str, bytes]:
    """The vectors of catalogues by a model in torch, as the files of item indexes.

    The texts are tokenised with the model's tokenizer, whatever the data's is.

    Args:
        parts: the model.
        data: two-tower task of it -> prepared data with the catalogue.
        version: of the package that they are for.

    Returns:
        Task -> content of the file.

    Raises:
        DataError: features that were encoded in another way than the model's.
    """
    predictor, files = Predictor.of(parts), {}
    for task, prepared in data.items():
        check_features(predictor, prepared, task=task)
        items = predictor.tokenised(task, prepared.items(task).table())
        index = ItemIndex.build(
            predictor, task, items, model=version, catalogue=_catalogue(prepared, task)
        )
        files[task] = index.to_bytes()
    return files


def publish_index(package: Package, data: Mapping[str, Prepared]) -> Package:
    """Puts the vectors of catalogues into a package; see `item_indexes`.

    Args:
        package: an open one.
        data: two-tower task of its model -> prepared data with the catalogue.

    Returns:
        The package with the indexes; itself where they are there already.

    Raises:
        DataError: see `item_indexes`.
        PackageError: another process has changed the package since it was opened.
        StorageError: the folder can't be written.
    """
    stale = {
        task: prepared
        for task, prepared in data.items()
        if not _is_current(package, task, _catalogue(prepared, task))
    }
    if not stale:
        return package
    found = item_indexes(package.read(), stale, package.version)
    files = {f"{ITEMS}{task}.safetensors": content for task, content in found.items()}
    return update_package(package, files)


def _catalogue(prepared: Prepared, task: str) -> str:
    return str(prepared.manifest["tasks"][task]["items"]["sha256"])


def _is_current(package: Package, task: str, catalogue: str) -> bool:
    path = package.indexes.get(task)
    if path is None:
        return False
    facts = ItemIndex.read_facts(path, task=task, model=package.version)
    return facts.get("catalogue") == catalogue


def _table(rows: Rows, *, fields: FieldTable) -> pa.Table:
    """Rows as a table of those of the task's fields that any row has."""
    if isinstance(rows, pa.Table):
        return rows
    for row in rows:
        if not isinstance(row, Mapping):
            raise _no_rows(row, task=fields.task, fix="give one dictionary a row")
    given = set().union(*rows)
    names = [name for name in fields.names() if name in given]
    if not names:
        raise DataError(
            what=f"rows of {fields.task}",
            got=f"none of its fields in {', '.join(map(str, rows[0])) or 'an empty row'}",
            rule=f"its fields are {', '.join(fields.names())}",
            fix="name the values so",
        )
    return pa.table(
        {name: _column([row.get(name) for row in rows], name, fields) for name in names}
    )


def _count(rows: Rows, *, task: str) -> int:
    """Number of rows; refuses what holds none of their forms."""
    if not isinstance(rows, pa.Table | Sequence) or isinstance(rows, str | bytes):
        fix = "list(rows), rows.to_dict('records') or pa.Table.from_pandas(rows) make one"
        raise _no_rows(rows, task=task, fix=fix)
    return len(rows)


def _no_rows(got: object, *, task: str, fix: str) -> DataError:
    return DataError(
        what=f"rows of {task}",
        got=type(got).__name__,
        rule="must be a list of dictionaries, or a pyarrow Table",
        fix=fix,
    )


def _column(values: list[Any], name: str, fields: FieldTable) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        alone = replace(fields, fields=(fields[name],))
        faults = {row: fault for row, value in enumerate(values) if (fault := _fault(value, alone))}
        if not faults:  # each is right by itself, but they don't go together
            kind = next(type(value) for value in values if value is not None)
            others = [n for n, value in enumerate(values) if type(value) not in (kind, type(None))]
            reason = f"a {kind.__name__} before, then another type; a column has one"
            faults = dict.fromkeys(others or [0], reason)
        first = min(faults)
        raise _bad_rows(
            fields.task,
            first,
            f"{name}: {faults[first]}",
            num_bad=len(faults),
            num_rows=len(values),
        ) from None


def _fault(value: Any, field: FieldTable) -> str | None:
    """Why a value alone can't be in its field's column; None where it can."""
    name = field.fields[0].name
    try:
        field.check_columns(pa.schema([(name, pa.array([value]).type)]))
    except DataError as error:
        return f"got {error.got}; {error.rule}"
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return f"got {type(value).__name__}, which no column holds"
    return None


def _bad_rows(task: str, first: int, reason: str, *, num_bad: int, num_rows: int) -> DataError:
    return DataError(
        what=f"row {first} of {task}",
        got=reason,
        rule=f"{num_bad:,} of {num_rows:,} rows break a rule of their fields; this is the first",
        fix="mend these rows or leave them out (model.fields(task) has the rules)",
    )
