"""The models of one process, and the single thread that computes.

The event loop of a replica must never wait: health checks and other requests run on it. All
computing happens in one thread beside it, one batch at a time.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from rectrain.errors import DataError, PackageError
from rectrain.inference.index import ItemIndex
from rectrain.inference.packaged import PackagedModel, Recommended, load
from serve.batcher import Batcher, DeadlinePassed, Done, Overloaded
from serve.sections import Batching

__all__ = [
    "Engine",
    "ModelFault",
    "NoNumber",
    "Result",
    "Work",
    "is_suspicious",
    "num_tokens",
    "score_works",
]

T = TypeVar("T")
Row: TypeAlias = Mapping[str, Any]
Result: TypeAlias = NDArray[np.float64] | list[Recommended]

_CHARS_A_TOKEN = 4.0  # until texts have been read; only the size of batches depends on it
_LEARNED = 0.05  # weight of the text, or the request, that was read last
_FEWEST, _MOST = 1.0, 8.0  # characters of a token that are believed: odd texts must not skew sizes
_TOKENS_A_TEXT = 2  # [CLS] and [SEP]


class ModelFault(Exception):
    """The models of this process may not be used: a golden request got another answer."""


class NoNumber(DataError):
    """A model's score of some row is no finite number: odd values, or a broken model."""


def is_suspicious(error: Exception) -> bool:
    """Whether what work failed with may be the model's fault, and is no sound model's refusal."""
    refusals = (DataError, PackageError, Overloaded, DeadlinePassed, ModelFault)
    return isinstance(error, NoNumber) or not isinstance(error, refusals)


@dataclass(frozen=True)
class Work:
    """What one request asks of one model.

    Attributes:
        model: its name in the settings.
        task: one of the model's.
        rows: to score; of a recommendation one row, the user.
        k: items to recommend; 0 where rows are scored.
        diversity: of the recommended items, see `PackagedModel.recommend`.
        candidates: ids among which to recommend; None for the whole catalogue.
    """

    model: str
    task: str
    rows: tuple[Row, ...]
    k: int = 0
    diversity: float = 0.0
    candidates: tuple[str, ...] | None = None


class Engine:
    """Loads models in the thread that will run them, and puts a batcher in front of it.

    Args:
        batching: its limits.
        observe: told of each batch: its requests, its share of the token budget, the tokens that
            still wait.

    Attributes:
        models: name -> model.
        is_sound: whether the models may be used; see `health.Health`.
        is_suspect: whether work failed since golden requests were run, see `is_suspicious`.
    """

    def __init__(self, batching: Batching, *, observe: Callable[[int, float, int], None]) -> None:
        self.models: dict[str, PackagedModel] = {}
        self.is_sound, self.is_suspect = True, False
        self._chars_a_token: dict[str, float] = {}
        self._log_tokens: dict[str, float] = {}  # task -> of its requests lately; a mean
        self._num_batches = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="score")
        self._batcher: Batcher[Work, Result] = Batcher(
            self._run,
            max_tokens=batching.max_tokens,
            max_s=batching.max_ms / 1000,
            max_queued_tokens=batching.max_queued_tokens,
            observe=lambda count, tokens: observe(
                count, tokens / batching.max_tokens, self._batcher.queued_tokens
            ),
        )

    def load(
        self,
        name: str,
        path: str,
        backend: str,
        threads: int,
        cached_texts: int,
        *,
        device: str = "cpu",
    ) -> PackagedModel:
        """Opens a package in the computing thread, so that its number of threads holds there;
        see `rectrain.load`."""
        opener = partial(
            load, path, backend=backend, threads=threads, device=device, cached_texts=cached_texts
        )
        self.models[name] = self.call(opener)
        return self.models[name]

    def call(self, function: Callable[[], T]) -> T:
        """Runs something in the computing thread and waits: at start-up, before any request."""
        return self._thread.submit(function).result()

    async def call_async(self, function: Callable[[], T]) -> T:
        """Runs something in the computing thread, behind what it does now."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def close(self) -> None:
        """Ends the thread, once it has done what it does."""
        self._thread.shutdown()

    async def submit(self, work: Work, *, deadline: float) -> Done[Result]:
        """The result of work; see `Batcher.submit` and `score_works`.

        Raises:
            ModelFault: the process is being withdrawn.
        """
        self.require_sound()
        tokens = num_tokens(
            work,
            self.models[work.model],
            chars_a_token=self.chars_a_token(work.model),
        )
        known = self._log_tokens.get(work.task, math.log(tokens))
        self._log_tokens[work.task] = known + _LEARNED * (math.log(tokens) - known)
        try:
            return await self._batcher.submit(work, tokens=tokens, deadline=deadline)
        except Exception as error:
            if is_suspicious(error):
                self.is_suspect = True  # golden requests will tell whether it was the model
            raise

    def require_room(self, task: str, *, deadline: float) -> None:
        """Raises what `submit` would at once for a request of the task's usual size, which is the
        geometric mean of its last ones: a giant among them does not count for many."""
        tokens = round(math.exp(self._log_tokens.get(task, 0.0)))
        self._batcher.require_room(tokens, deadline=deadline)

    def require_sound(self) -> None:
        """Raises ModelFault where the process is being withdrawn."""
        if not self.is_sound:
            raise ModelFault("withdrawn")

    def chars_a_token(self, model: str) -> float:
        """Characters of a token, on average, of the texts that a model has read lately."""
        return self._chars_a_token.get(model, _CHARS_A_TOKEN)

    async def _run(self, works: list[Work]) -> list[Result | Exception]:
        return await self.call_async(lambda: self._scored(works))

    def _scored(self, works: list[Work]) -> list[Result | Exception]:
        self.require_sound()  # golden requests may have failed since this was asked
        results = score_works(self.models, works)
        self._read_one(works[self._num_batches % len(works)])
        return results

    def _read_one(self, work: Work) -> None:
        """Learns from one text of a batch how many characters a token has."""
        model = self.models[work.model]
        assert model.predictor.rows is not None
        texts = sorted(_texts(work, model))
        self._num_batches += 1
        if not texts:
            return
        text = texts[self._num_batches % len(texts)]
        pieces = model.predictor.rows.tokenizer.tokenize(text)
        if pieces:
            known = self.chars_a_token(work.model)
            seen = min(max(len(text) / len(pieces), _FEWEST), _MOST)
            self._chars_a_token[work.model] = known + _LEARNED * (seen - known)


def num_tokens(work: Work, model: PackagedModel, *, chars_a_token: float) -> int:
    """About how many tokens work has, at least 1; each text is counted once, as it is encoded once.

    Args:
        work: of this model.
        model: whose limits cut the texts.
        chars_a_token: on average.

    Raises:
        DataError: the model lacks the task.
    """
    texts = _texts(work, model)
    assert model.predictor.rows is not None
    cut = model.predictor.rows.limits[work.task].max_length - _TOKENS_A_TEXT
    chars = sum(min(len(text), cut * chars_a_token) for text in texts)
    return 1 + _TOKENS_A_TEXT * len(texts) + round(chars / chars_a_token)


def _texts(work: Work, model: PackagedModel) -> set[str]:
    """The different texts of work that the model will read."""
    spec = model.predictor.spec(work.task)
    assert model.predictor.rows is not None
    limits = model.predictor.rows.limits[work.task]
    names = (*spec.query, *spec.item)
    texts: set[str] = set()
    for row in work.rows:
        for name in names:
            value = row.get(name)
            if isinstance(value, str):
                texts.add(value)
            elif value:
                texts.update(value[-limits.max_history :])
    return texts


def score_works(
    models: Mapping[str, PackagedModel], works: Sequence[Work]
) -> list[Result | Exception]:
    """Results of many works, those of one model and task in one call.

    Args:
        models: by name.
        works: in any order.

    Returns:
        For each work in its order: scores float64 [rows] (see `PackagedModel.predict`), or of a
        recommendation its items, best first; or the exception that it alone is to blame for.
    """
    outcome: dict[int, Result | Exception] = {}
    groups: dict[tuple[str, str, bool], list[int]] = {}
    for place, work in enumerate(works):
        groups.setdefault((work.model, work.task, work.k > 0), []).append(place)
    for (name, _, _), places in groups.items():
        results = _score_group(models[name], [works[place] for place in places])
        outcome.update(zip(places, results, strict=True))
    return [outcome[place] for place in range(len(works))]


def _score_group(model: PackagedModel, works: Sequence[Work]) -> list[Result | Exception]:
    try:
        return _recommend(model, works) if works[0].k else _predict(model, works)
    except Exception as error:
        # As a row that breaks a rule. Alone, each work finds out whether it is the one.
        if len(works) == 1:
            return [error]
        return [_score_group(model, [work])[0] for work in works]


def _predict(model: PackagedModel, works: Sequence[Work]) -> list[Result | Exception]:
    rows = [row for work in works for row in work.rows]
    scores = model.predict(works[0].task, rows)
    bounds = np.cumsum([len(work.rows) for work in works])[:-1]
    parts = np.split(scores, bounds)
    return [_checked(part, part, work) for part, work in zip(parts, works, strict=True)]


def _recommend(model: PackagedModel, works: Sequence[Work]) -> list[Result | Exception]:
    """Lists of items; what is asked alike is searched for together."""
    task = works[0].task
    outcome: dict[int, Result | Exception] = {}
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, work in enumerate(works):
        groups.setdefault((work.k, work.diversity, work.candidates), []).append(place)
    for (k, diversity, candidates), places in groups.items():
        lists = model.recommend(
            [works[place].rows[0] for place in places],
            k=k,
            task=task,
            diversity=diversity,
            out_of_stock=() if candidates is None else _all_but(candidates, model.index(task)),
        )
        for place, items in zip(places, lists, strict=True):
            scores = np.array([item.score for item in items])
            outcome[place] = _checked(items, scores, works[place])
    return [outcome[place] for place in range(len(works))]


def _all_but(candidates: Collection[str], index: ItemIndex) -> NDArray[np.bool_]:
    """bool [I], false for the candidates; ids that the catalogue lacks are passed over."""
    others = np.ones(len(index.ids), dtype=bool)
    others[[index.place[item] for item in candidates if item in index.place]] = False
    return others


def _checked(result: Result, scores: NDArray[np.float64], work: Work) -> Result | Exception:
    if np.isfinite(scores).all():
        return result
    return NoNumber(
        what=f"scores of {work.task}",
        got="one that is no finite number",
        rule="the values of a row must be of the size of the training data's",
        fix="check its vectors and numbers",
    )
