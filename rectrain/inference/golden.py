"""Golden requests: made-up rows with the scores that a package's model gave them when published.

A process that serves the package runs them before it takes traffic, and again and again: another
engine, a broken core or damaged memory shows as another score. The rows are made of the model's own
vocabulary and features, so a package holds nobody's data.

    golden.json     {"format": 1, "model": version, "cases": [{"task", "rows", "scores"}]}

`scores` is by backend, since int8 and float32 differ: {"torch": [...], "openvino-int8": [...]}.
Of a task that ranks a catalogue, whose items change more often than the model, a row's score is
its vector's product with a fixed pattern of signs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError

from rectrain.data.encoding import FeatureEncoder
from rectrain.data.fields import Field
from rectrain.errors import ConfigError, PackageError
from rectrain.inference.packaged import PackagedModel, load
from rectrain.inference.predictor import Predictor
from rectrain.package import Package, update_package

__all__ = [
    "GOLDEN",
    "Case",
    "Deviation",
    "Golden",
    "answered",
    "made_up",
    "publish_golden",
    "read_golden",
]

GOLDEN = "golden.json"
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
_ROWS = 6  # a task
_MISSING = 0.2  # share of optional values
_TASK_SEED = 7


class Deviation(PackageError):
    """A golden request got another score than the stored one."""


@dataclass(frozen=True)
class Case:
    """Rows of one task.

    Attributes:
        task: its name.
        rows: in its fields.
        scores: backend -> a score a row.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    task: str
    rows: tuple[dict[str, Any], ...]
    scores: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Golden:
    """The golden requests of one version of a model.

    Attributes:
        model: version of the package.
        cases: one a task.
        format: of the file.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    model: str
    cases: tuple[Case, ...]
    format: Literal[1] = 1

    def has(self, backend: str) -> bool:
        """Whether there are answers of a backend."""
        return all(backend in case.scores for case in self.cases)

    def check(self, model: PackagedModel, *, tolerance: float) -> None:
        """Runs all requests.

        Args:
            model: of this version, with a backend that there are answers of.
            tolerance: largest difference of a score.

        Raises:
            Deviation: a score differs by more, or is no number.
        """
        backend = model.engine.encoder.name
        for case in self.cases:
            got = _scores(model, case.task, case.rows)
            off = np.abs(got - np.array(case.scores[backend]))
            worst = float(off.max()) if np.isfinite(off).all() else math.inf
            if worst > tolerance:
                raise Deviation(
                    what=f"golden requests of {case.task} in {model.package.path}",
                    got=f"scores that differ by {worst:.2g} with {backend}",
                    rule=f"they may differ by {tolerance:g} from those of the publication",
                    fix="load the model again, on another machine if it stays so",
                )

    def to_json(self) -> bytes:
        """The file."""
        return (json.dumps(_ADAPTER.dump_python(self, mode="json"), indent=1) + "\n").encode()


_ADAPTER = TypeAdapter(Golden)


def read_golden(package: Package) -> Golden | None:
    """The golden requests of a package; None where it has none.

    Raises:
        PackageError: those of another model, or no golden requests at all.
    """
    if GOLDEN not in package.files:
        return None
    path = package.path / GOLDEN
    try:
        golden = _ADAPTER.validate_json(path.read_bytes())
    except ValidationError as error:
        got, rule = error.errors(include_url=False)[0]["msg"], "must be as it was published"
    else:
        if golden.model == package.version:
            return golden
        got, rule = f"answers of model {golden.model[:12]}", f"of {package.version[:12]} are needed"
    raise PackageError(what=f"{path}", got=got, rule=rule, fix="publish the package again")


def publish_golden(package: Package) -> Package:
    """Puts golden requests into a package, with the answers of each backend that runs here.

    Args:
        package: an open one.

    Returns:
        The package with them; itself where they are there already.

    Raises:
        StorageError: the folder can't be written.
    """
    backends = ["torch", *package.graphs]
    known = read_golden(package)
    if known is not None and all(known.has(backend) for backend in backends):
        return package
    golden: Golden | None = None
    for backend in backends:
        try:
            model = load(package.path, backend=backend, cached_texts=0)
        except ConfigError:  # its engine is not installed here
            continue
        golden = answered(golden or made_up(model), model)
    assert golden is not None, "torch is always there"
    return update_package(package, {GOLDEN: golden.to_json()})


def made_up(model: PackagedModel) -> Golden:
    """Golden requests for a model, without answers yet: the same for the same model."""
    cases = tuple(Case(task, _rows(model, task), {}) for task in model.tasks)
    return Golden(model.version, cases)


def answered(golden: Golden, model: PackagedModel) -> Golden:
    """The same with the model's answers under its backend's name."""
    backend = model.engine.encoder.name
    cases = tuple(
        Case(
            case.task,
            case.rows,
            {**case.scores, backend: tuple(_scores(model, case.task, case.rows).tolist())},
        )
        for case in golden.cases
    )
    return Golden(golden.model, cases)


def _scores(
    model: PackagedModel, task: str, rows: Sequence[Mapping[str, Any]]
) -> NDArray[np.float64]:
    """float64 [rows], past the cache of vectors: that would answer in the encoder's place."""
    given = model.predictor
    fresh = Predictor(
        given.model, features=given.features, rows=given.rows, encoder=model.engine.encoder
    )
    names = dict.fromkeys(name for row in rows for name in row)
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    encoded = fresh.encode(task, table)
    assert not encoded.rejects.num_rows, "made-up rows keep the rules"
    if not given.spec(task).has_catalogue:
        return fresh.score(task, encoded.prepared)
    vectors = fresh.embed(task, encoded.prepared)[0].astype(np.float64)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], vectors.shape[1])
    return np.asarray(vectors @ signs)


def _rows(model: PackagedModel, task: str) -> tuple[dict[str, Any], ...]:
    random = np.random.default_rng([_TASK_SEED, model.tasks.index(task)])
    assert model.predictor.rows is not None
    vocabulary = model.predictor.rows.tokenizer.get_vocab()
    words = sorted(word for word in vocabulary if word.isalpha()) or ["a"]
    longest = model.predictor.rows.limits[task].max_length
    features = model.predictor.features[task]
    rows = []
    for number in range(_ROWS):
        size = max(1, longest * number // (_ROWS - 1))  # from one word to more than is read
        rows.append(
            {
                field.name: _value(field, features, words, size, random)
                for field in model.fields(task).fields
                if field.kind not in ("timestamp", "split")
                and (field.required or random.random() >= _MISSING)
            }
        )
    return tuple(rows)


def _value(
    field: Field,
    features: FeatureEncoder,
    words: Sequence[str],
    size: int,
    random: np.random.Generator,
) -> Any:
    """A value that keeps the field's rule."""
    if field.kind == "numeric":
        edges = features.numeric.get(field.name, (0.0, 1.0))
        low = edges[0] if field.low is None else max(edges[0], field.low)
        high = edges[-1] if field.high is None else min(edges[-1], field.high)
        return float(random.uniform(low, max(low, high)))
    if field.kind == "categorical":
        return str(random.choice([*features.categorical.get(field.name, ())[:50], "unheard of"]))
    if field.kind == "vector":
        return random.normal(size=field.size or 1).round(6).tolist()
    if field.kind == "text":
        return " ".join(random.choice(words, size))
    if field.kind == "text_list":
        return [" ".join(random.choice(words, size)) for _ in range(2)]
    return f"{field.name}-{int(random.integers(1 << 30))}"
