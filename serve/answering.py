"""From a request to its answer: the small model first, the large one where it pays.

What runs the models is passed in, so this knows neither HTTP nor Ray. A place is a candidate's
number in the small model's result, from 0.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from rectrain.cascade import Budget, Policy, TaskPolicy, decide

from rectrain.inference.packaged import PackagedModel
from serve.caches import AnswerCache
from serve.schemas import ENDPOINTS, Answer, Item, Options, Reason, Timings, Versions, rows_of
from serve.scoring import Engine, Result, Work

__all__ = ["Answerer", "AskLarge", "LargeReply"]

Floats: TypeAlias = NDArray[np.float64]

# Answers that another request would get just so; the others hang on the load of the moment.
_KEPT = ("confident", "doubtful", "no_large", "no_policy", "asked", "not_asked")


class LargeReply(NamedTuple):
    """What the large model said: its result, or why there is none."""

    result: Result | None
    refused: Literal["overload", "deadline", "unavailable"] | None = None


AskLarge: TypeAlias = Callable[[Work, float], Awaitable[LargeReply]]
"""The large model's reply to work, within so many seconds."""


class _Choice(NamedTuple):
    """The places that go to the large model (none: it is not asked), why, and how sure the small
    one was."""

    places: tuple[int, ...]
    reason: Reason
    confidence: float | None = None


class _Seen(NamedTuple):
    """The small model's result: float64 [n], and item ids where it found the items itself."""

    scores: Floats
    ids: tuple[str, ...] | None


class Answerer:
    """Answers requests by one pair of models.

    Args:
        name: the pair's.
        engine: runs the small model, which is loaded there under this name.
        policy: when the large model is asked; None: only where a request asks for it.
        ask_large: None where there is no large model.
        large_version: SHA-256 of the large model.
        large_s: with less time left than this, the large model is not asked.
        cache: of answers; shared by pairs.
        clock: as of the engine's batcher; deadlines are in its time.
    """

    def __init__(
        self,
        name: str,
        *,
        engine: Engine,
        policy: Policy | None = None,
        ask_large: AskLarge | None = None,
        large_version: str | None = None,
        large_s: float = 0.0,
        cache: AnswerCache | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.policy = policy
        self.large_version = large_version
        self._engine = engine
        self._ask_large = ask_large
        self._large_s = large_s
        self._cache = cache or AnswerCache(0, ttl_s=0)
        self._clock = clock
        tasks = policy.tasks if policy else {}
        self.budgets = {task: Budget(one) for task, one in tasks.items()}

    @property
    def small(self) -> PackagedModel:
        """The small model."""
        return self._engine.models[self.name]

    async def answer(self, path: str, request: BaseModel, *, deadline: float) -> Answer:
        """The answer to a request, with timings whether asked for or not.

        Args:
            path: of its endpoint, see `schemas.ENDPOINTS`.
            request: of this endpoint.
            deadline: by the clock.

        Raises:
            Overloaded, DeadlinePassed: the small model can't do it in time.
            DataError: the model lacks the task, or a row breaks a rule.
            PackageError: the model lacks the item index.
            ModelFault: the model gives no numbers, or has been withdrawn.
        """
        begun = self._clock()
        options: Options = request.options  # type: ignore[attr-defined]
        key = self._cache.key(self._versions(large=True), path, request)
        known = self._cache.get(key)
        if known is None:
            known = await self._computed(path, request, options, deadline)
            if known.reason in _KEPT:
                kept = {"cached": True, "timings": Timings()}
                self._cache.put(key, known.model_copy(update=kept))
        assert known.timings is not None
        total = {"total_ms": 1000 * (self._clock() - begun)}
        return known.model_copy(update={"timings": known.timings.model_copy(update=total)})

    async def _computed(
        self, path: str, request: BaseModel, options: Options, deadline: float
    ) -> Answer:
        task = ENDPOINTS[path]
        policy = self.policy.tasks.get(task) if self.policy else None
        work = self._work(task, request, policy)
        done = await self._engine.submit(work, deadline=deadline)
        seen, asked = _seen(done.result), self._clock()
        choice = self._choose(work.task, seen.scores, options, deadline - asked)
        large: Mapping[int, float] = {}
        if choice.places:
            assert self._ask_large is not None
            reply = await self._ask_large(_deferred(work, seen, choice.places), deadline - asked)
            if reply.result is None:
                choice = choice._replace(places=(), reason=reply.refused or "unavailable")
            else:
                large = _by_place(choice.places, seen, reply.result)
        return Answer(
            items=self._items(work, request, seen.scores, seen.ids, large, policy),
            model=self.name,
            versions=self._versions(large=bool(large)),
            deferred=bool(large),
            reason=choice.reason,
            confidence=choice.confidence,
            timings=Timings(
                queue_ms=1000 * done.waited_s,
                small_ms=1000 * done.ran_s,
                large_ms=1000 * (self._clock() - asked),
            ),
        )

    def _versions(self, *, large: bool) -> Versions:
        return Versions(small=self.small.version, large=self.large_version if large else None)

    def _work(self, task: str, request: BaseModel, policy: TaskPolicy | None) -> Work:
        work = Work(self.name, task, rows_of(request))
        if not self.small.predictor.spec(task).has_catalogue:
            return work
        self.small.index(task)
        head = policy.head if policy else 0
        return replace(
            work,
            k=max(request.k, head),  # type: ignore[attr-defined]
            diversity=request.diversity,  # type: ignore[attr-defined]
            candidates=request.candidates,  # type: ignore[attr-defined]
        )

    def _choose(self, task: str, scores: Floats, options: Options, left_s: float) -> _Choice:
        if options.route == "small":
            return _Choice((), "not_asked")
        if self._ask_large is None or not len(scores):
            return _Choice((), "no_large")
        if options.route == "large":
            every = tuple(range(len(scores)))
            return _Choice(every, "asked") if left_s > self._large_s else _Choice((), "deadline")
        if self.policy is None or task not in self.policy.tasks:
            return _Choice((), "no_policy")
        budget = self.budgets[task]
        decision = decide(self.policy.tasks[task], scores, budget=budget.state)
        if decision.defer and left_s <= self._large_s:
            decision = decision.withheld("deadline")
        # Before the large model is awaited: others decide meanwhile, and must see what is spent.
        budget.feed(decision.confidences, deferred=decision.num_deferred)
        return _Choice(decision.candidates, decision.reason, decision.confidence)

    def _items(
        self,
        work: Work,
        request: BaseModel,
        small: Floats,
        ids: tuple[str, ...] | None,
        large: Mapping[int, float],
        policy: TaskPolicy | None,
    ) -> tuple[Item, ...]:
        """Of 0/1 tasks in the request's order; else what the large model ordered, then the rest."""
        places = list(range(len(small)))
        scores = [large.get(place, float(small[place])) for place in places]
        chances: list[float | None] = [None] * len(places)
        if self.small.predictor.spec(work.task).has_probabilities:
            chances = [*_probabilities(np.array(scores), large, policy)]
        else:
            places.sort(key=lambda place: (place not in large, -scores[place]))
        items = [
            Item(
                index=place if ids is None else None,
                item_id=ids[place] if ids is not None else work.rows[place].get("item_id"),
                score=scores[place],
                probability=chances[place],
                by="large" if place in large else "small",
            )
            for place in places
        ]
        return tuple(items if ids is None else items[: request.k])  # type: ignore[attr-defined]


def _seen(result: Result) -> _Seen:
    if isinstance(result, list):
        scores = np.array([item.score for item in result], dtype=np.float64)
        return _Seen(scores, tuple(item.item_id for item in result))
    return _Seen(result, None)


def _deferred(work: Work, seen: _Seen, places: tuple[int, ...]) -> Work:
    """What the large model is asked: to score some rows, or to order what the small one found."""
    if seen.ids is None:
        return replace(work, rows=tuple(work.rows[place] for place in places))
    ids = tuple(seen.ids[place] for place in places)
    return replace(work, k=len(ids), candidates=ids)


def _by_place(places: tuple[int, ...], seen: _Seen, result: Result) -> dict[int, float]:
    """place -> the large model's score; an item that its catalogue lacks has none."""
    if not isinstance(result, list):
        return dict(zip(places, result.tolist(), strict=True))
    assert seen.ids is not None
    place_of = {seen.ids[place]: place for place in places}
    return {place_of[item.item_id]: item.score for item in result}


def _probabilities(
    scores: Floats, large: Mapping[int, float], policy: TaskPolicy | None
) -> list[float]:
    """Calibrated probabilities of scores float64 [n], each by the model that gave the score."""
    if policy is None or policy.calibration is None:
        return [float(score) for score in scores]
    by_small = policy.calibration.small.probability(scores).tolist()
    by_large = policy.calibration.large.probability(scores).tolist()
    return [by_large[place] if place in large else by_small[place] for place in range(len(scores))]
