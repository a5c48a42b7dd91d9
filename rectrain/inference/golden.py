"""Golden requests: made-up rows with the scores that a package's model gave them when published.

A process that serves the package runs them before it takes traffic, and again and again: another
engine, a broken core or damaged memory shows as another score. The rows are made of the model's own
vocabulary and features, so a package holds nobody's data.

    golden.json     {"format": 1, "model": version, "cases": [{"task", "rows", "scores"}]}

`scores` is by backend, since int8 and float32 differ: {"torch": [...], "openvino-int8": [...]}.
Of a task that ranks a catalogue, whose items change more often than the model, a row's score is
its vector's product with a fixed pattern of signs.

How far scores of another machine may be off:

    tolerance · max(1, |score|) + 4 · max |score of this backend - score of torch|

both maxima over the case's rows as published. Float32 agrees everywhere up to rounding (measured
between CPUs with and without AVX-512: 1e-5 of 20), and there the second term is as small. A graph
in int8 does not: without VNNI its sums are rounded otherwise, and where the CPU has bfloat16, what
is not in int8 is computed in that. It then differs from the publication about as much as it
differs from float32 anyway (measured: 0.1 to 2.4 times), which the package itself tells. `own`
takes that term away again: what a process answered at its start, it must answer ever after.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic import Field as Bounds
from transformers import PreTrainedTokenizerFast

from rectrain.data.encoding import FeatureEncoder
from rectrain.data.fields import Field
from rectrain.errors import ConfigError, DataError, PackageError
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
    "made_up_rows",
    "publish_golden",
    "read_golden",
]

GOLDEN = "golden.json"
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
_MOST_BYTES, _MOST_ROWS, _MOST_CASES = 1_000_000, 100, 20  # of a file; ours has 20 kB
_ROWS = 6  # a task
_MACHINES = 4.0  # times a graph's distance from float32; the module's docstring says why
_TORCH = "torch"
_AS_PUBLISHED = "must be as it was published"
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
    rows: Annotated[tuple[dict[str, Any], ...], Bounds(min_length=1, max_length=_MOST_ROWS)]
    scores: Mapping[str, tuple[float, ...]]

    def allowed(self, backend: str, *, tolerance: float) -> float:
        """The largest difference from the scores of a backend; see the module's docstring."""
        scores = np.array(self.scores[backend])
        by_torch = np.array(self.scores.get(_TORCH, scores))
        size = max(1.0, float(np.abs(scores).max()))
        return tolerance * size + _MACHINES * float(np.abs(scores - by_torch).max())


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
    cases: Annotated[tuple[Case, ...], Bounds(min_length=1, max_length=_MOST_CASES)]
    format: Literal[1] = 1

    @property
    def backends(self) -> tuple[str, ...]:
        """Whose answers there are of all cases."""
        return tuple(name for name in self.cases[0].scores if self.has(name))

    def has(self, backend: str) -> bool:
        """Whether there are answers of a backend."""
        return all(backend in case.scores for case in self.cases)

    def check(self, model: PackagedModel, *, tolerance: float) -> None:
        """Runs all requests.

        Args:
            model: of this version, with a backend that there are answers of.
            tolerance: largest difference of a float32 score of size 1; see the module's docstring.

        Raises:
            Deviation: a score differs by more, or is no number.
            PackageError: rows that the model can't read.
        """
        backend = model.engine.encoder.name
        for case in self.cases:
            off = np.abs(_scores(model, case.task, case.rows) - np.array(case.scores[backend]))
            worst = float(off.max()) if np.isfinite(off).all() else math.inf
            allowed = case.allowed(backend, tolerance=tolerance)
            if worst > allowed:
                raise Deviation(
                    what=f"golden requests of {case.task} in {model.package.path}",
                    got=f"scores that differ by {worst:.2g} with {backend}",
                    rule=f"they may differ by {allowed:.2g} from the stored ones",
                    fix="load the model again, on another machine if it stays so",
                )

    def own(self, model: PackagedModel) -> Golden:
        """The same requests with the answers of this model, in this process, alone."""
        blank = tuple(Case(case.task, case.rows, {}) for case in self.cases)
        return answered(Golden(self.model, blank), model)

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
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise _unusable(path, got=f"{size:,} bytes", rule=f"{_MOST_BYTES:,} at most")
        golden = _ADAPTER.validate_json(path.read_bytes())
    except ValidationError as error:
        got = error.errors(include_url=False)[0]["msg"]
        raise _unusable(path, got=got, rule=_AS_PUBLISHED) from error
    if golden.model != package.version:
        got = f"answers of model {golden.model[:12]}"
        raise _unusable(path, got=got, rule=f"of {package.version[:12]} are needed")
    for case in golden.cases:
        lengths = {len(scores) for scores in case.scores.values()}
        if case.task not in package.tasks or lengths != {len(case.rows)}:
            raise _unusable(path, got=f"scores of {case.task}", rule=_AS_PUBLISHED)
    return golden


def _unusable(path: Path, *, got: str, rule: str) -> PackageError:
    fix = "python -m jobs.publish --refresh-golden --output PACKAGE"
    return PackageError(what=f"{path}", got=got, rule=rule, fix=fix)


def publish_golden(package: Package, *, anew: bool = False) -> Package:
    """Puts golden requests into a package, with the answers of each backend that runs here.

    Args:
        package: an open one.
        anew: also where it has some, whatever they are; else only missing backends are added.

    Returns:
        The package with them; itself where they are there already.

    Raises:
        PackageError: see `read_golden`; not where they are made anew.
        StorageError: the folder can't be written.
    """
    golden = None if anew else read_golden(package)
    for backend in (_TORCH, *package.graphs):
        if golden is not None and golden.has(backend):
            continue
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
    """float64 [rows], past the cache of vectors: that would answer in the encoder's place.

    Raises:
        PackageError: rows that break the task's rules: they were not made here.
    """
    given = model.predictor
    fresh = Predictor(
        given.model, features=given.features, rows=given.rows, encoder=model.engine.encoder
    )
    names = dict.fromkeys(name for row in rows for name in row)
    try:
        table = pa.table({name: [row.get(name) for row in rows] for name in names})
        encoded = fresh.encode(task, table)
    except (DataError, pa.ArrowException, OverflowError) as error:
        raise _unusable(model.package.path / GOLDEN, got=f"{error}", rule=_AS_PUBLISHED) from error
    if encoded.rejects.num_rows:
        got = f"rows of {task} that break its rules"
        raise _unusable(model.package.path / GOLDEN, got=got, rule=_AS_PUBLISHED)
    if not given.spec(task).has_catalogue:
        return fresh.score(task, encoded.prepared)
    vectors = fresh.embed(task, encoded.prepared)[0].astype(np.float64)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], vectors.shape[1])
    return np.asarray(vectors @ signs)


def _rows(model: PackagedModel, task: str) -> tuple[dict[str, Any], ...]:
    random = np.random.default_rng([_TASK_SEED, model.tasks.index(task)])
    assert model.predictor.rows is not None
    longest = model.predictor.rows.limits[task].max_length
    # From one word to more than is read.
    sizes = [max(1, longest * number // (_ROWS - 1)) for number in range(_ROWS)]
    return made_up_rows(model, task, sizes, random=random)


def made_up_rows(
    model: PackagedModel, task: str, sizes: Sequence[int], *, random: np.random.Generator
) -> tuple[dict[str, Any], ...]:
    """Rows that the model can read, of its own vocabulary and features.

    Args:
        model: whose.
        task: one of its.
        sizes: words of each row's texts.
        random: decides them.
    """
    assert model.predictor.rows is not None
    words = _words(model.predictor.rows.tokenizer)
    features = model.predictor.features[task]
    return tuple(
        {
            field.name: _value(field, features, words, size, random)
            for field in model.fields(task).fields
            if field.kind not in ("timestamp", "split")
            and (field.required or random.random() >= _MISSING)
        }
        for size in sizes
    )


@lru_cache(maxsize=1)
def _words(tokenizer: PreTrainedTokenizerFast) -> NDArray[np.str_]:
    """Whole words of a vocabulary, once: it takes longer to list them than to answer a request."""
    return np.array(sorted(word for word in tokenizer.get_vocab() if word.isalpha()) or ["a"])


def _value(
    field: Field,
    features: FeatureEncoder,
    words: NDArray[np.str_],
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
