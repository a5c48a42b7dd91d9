"""From a request to its answer: the small model first, the large one where it pays.

What runs the models is passed in, so this knows neither HTTP nor Ray. A place is a candidate's
number in the small model's result, from 0.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import islice
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from rectrain.cascade import Budget, Calibrations, Policy, TaskPolicy, decide, merge
from rectrain.inference.packaged import PackagedModel, Recommended
from serve.batcher import DeadlinePassed
from serve.caches import AnswerCache
from serve.costs import AnswerCosts
from serve.schemas import ENDPOINTS, Answer, Item, Options, Reason, Timings, Versions, rows_of
from serve.scoring import Engine, Result, Work

__all__ = ["Answerer", "AskLarge", "LargeReply"]

Floats: TypeAlias = NDArray[np.float64]

# Why another request would be answered just so; the others hang on the load of the moment.
_LASTING = ("confident", "doubtful", "no_large", "no_policy", "asked", "not_asked")


# What the large model must leave of the time, so that small's answer is made and with the client if
# it says nothing: a share of what is left, and so many seconds at most.
_RESERVE, _MOST_RESERVE_S = 0.1, 0.05

# Share of kept answers from which on it pays to read what the model has no time for: to read a
# request takes about a tenth of what its answer takes.
_WORTH_READING = 0.1


class LargeReply(NamedTuple):
    """What the large model said: its result, or why there is none (None: it can't read this); and
    whether a replica meanwhile said that it is withdrawn, or has another version."""

    result: Result | None
    refused: Literal["overload", "deadline", "unavailable"] | None = None
    is_withdrawn: bool = False


AskLarge: TypeAlias = Callable[[Work, float], Awaitable[LargeReply]]
"""The large model's reply to work, within so many seconds."""


class _Choice(NamedTuple):
    """The places that go to the large model (none: it is not asked), why, how sure the small one
    was, and whether the budget left out some of the doubtful."""

    places: tuple[int, ...]
    reason: Reason
    confidence: float | None = None
    is_cut: bool = False

    @property
    def is_lasting(self) -> bool:
        """Whether the same request would get the same answer a moment later."""
        return self.reason in _LASTING and not self.is_cut


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
        large_s: with less time for it than this, the large model is not asked.
        cache: of answers; shared by pairs.
        costs: of answers; None where nobody says.
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
        costs: AnswerCosts | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.policy = policy
        self.large_version = large_version
        self._engine = engine
        self._ask_large = ask_large
        self._large_s = large_s
        self._cache = AnswerCache(0, ttl_s=0) if cache is None else cache
        self._costs = costs
        self._clock = clock
        tasks = policy.tasks if policy else {}
        self.budgets = {task: Budget(one) for task, one in tasks.items()}

    @property
    def small(self) -> PackagedModel:
        """The small model."""
        return self._engine.models[self.name]

    def require_room(self, path: str, *, deadline: float) -> None:
        """Raises what `answer` would at once for a request of the usual size, whatever is in it.

        Where enough are answered from before, any may be one of these.

        Raises:
            Overloaded, DeadlinePassed, ModelFault: see `answer`.
        """
        self._engine.require_sound()
        if self._cache.hit_share < _WORTH_READING:
            self._engine.require_room(ENDPOINTS[path], deadline=deadline)

    async def answer(self, path: str, request: BaseModel, *, deadline: float) -> Answer:
        """The answer to a request, with timings and cost whether asked for or not.

        Args:
            path: of its endpoint, see `schemas.ENDPOINTS`.
            request: of this endpoint.
            deadline: by the clock.

        Raises:
            Overloaded, DeadlinePassed: it can't be done in time, or was not.
            DataError: the model lacks the task, or a row breaks a rule.
            PackageError: the model lacks the item index.
            ModelFault: the model gives no numbers, or has been withdrawn.
        """
        self._engine.require_sound()  # what is kept is no better than what gave it
        begun = self._clock()
        options: Options = request.options  # type: ignore[attr-defined]
        key = self._cache.key(self._versions(large=True), path, request)
        known = self._cache.get(key)
        if known is None:
            known, is_lasting = await self._computed(path, request, options, deadline)
            if is_lasting:
                kept = {"cached": True, "timings": Timings()}
                self._cache.put(key, known.model_copy(update=kept))
        assert known.timings is not None
        if (now := self._clock()) > deadline:
            raise DeadlinePassed
        total = {"total_ms": 1000 * (now - begun)}
        cost = None if self._costs is None else self._costs.of(path, known)
        told = {"timings": known.timings.model_copy(update=total), "cost": cost}
        return known.model_copy(update=told)

    async def _computed(
        self, path: str, request: BaseModel, options: Options, deadline: float
    ) -> tuple[Answer, bool]:
        """The answer, and whether it may be kept."""
        task = ENDPOINTS[path]
        policy = self._policy(task, request)
        work = self._work(task, request, policy)
        done = await self._engine.submit(work, deadline=deadline)
        seen, begun = _seen(done.result), self._clock()
        left_s = _for_large(deadline - begun)
        choice = self._choose(seen.scores, options, policy, left_s)
        large: Result | None = None
        large_s = 0.0
        if choice.places:
            assert self._ask_large is not None
            is_whole = choice.reason == "asked" or not (policy and policy.head)
            deferred = _deferred(work, seen, choice.places, is_whole=is_whole)
            large, refused, is_withdrawn = await self._ask_large(deferred, left_s)
            large_s = self._clock() - begun
            if is_withdrawn and self.large_version:  # what is kept is no better than what gave it
                self._cache.forget(self.large_version)
            if large is None:
                choice = choice._replace(places=(), reason=refused or "unavailable")
        answer = Answer(
            items=self._items(work, request, seen, choice.places, large),
            model=self.name,
            versions=self._versions(large=large is not None),
            deferred=large is not None,
            reason=choice.reason,
            confidence=choice.confidence,
            timings=Timings(
                queue_ms=1000 * done.waited_s, small_ms=1000 * done.ran_s, large_ms=1000 * large_s
            ),
        )
        return answer, choice.is_lasting

    def _policy(self, task: str, request: BaseModel) -> TaskPolicy | None:
        """The task's; none for a diverse list: doubt is of lists that are in the scores' order."""
        is_diverse = getattr(request, "diversity", 0) > 0
        return None if self.policy is None or is_diverse else self.policy.tasks.get(task)

    def _versions(self, *, large: bool) -> Versions:
        return Versions(small=self.small.version, large=self.large_version if large else None)

    def _work(self, task: str, request: BaseModel, policy: TaskPolicy | None) -> Work:
        work = Work(self.name, task, rows_of(request))
        if not self.small.predictor.spec(task).has_catalogue:
            return work
        self.small.index(task)
        depth = policy.doubt.depth if policy and policy.doubt.kind == "margin" else 0
        return replace(
            work,
            k=max(request.k, policy.head if policy else 0, depth),  # type: ignore[attr-defined]
            diversity=request.diversity,  # type: ignore[attr-defined]
            candidates=request.candidates,  # type: ignore[attr-defined]
        )

    def _choose(
        self, scores: Floats, options: Options, policy: TaskPolicy | None, left_s: float
    ) -> _Choice:
        if options.route == "small":
            return _Choice((), "not_asked")
        if self._ask_large is None:
            return _Choice((), "no_large")
        if options.route == "large" and len(scores):  # none: of ids that the catalogue lacks
            every = tuple(range(len(scores)))
            return _Choice(every, "asked") if left_s > self._large_s else _Choice((), "deadline")
        if policy is None:
            return _Choice((), "no_policy")
        budget = self.budgets[policy.task]
        decision = decide(policy, scores, budget=budget.state)
        if decision.defer and left_s <= self._large_s:
            decision = decision.withheld("deadline")
        # Before the large model is awaited: others decide meanwhile, and must see what is spent.
        budget.feed(decision.confidences, deferred=decision.num_deferred)
        return _Choice(
            decision.candidates, decision.reason, decision.confidence, is_cut=decision.is_cut
        )

    def _items(
        self,
        work: Work,
        request: BaseModel,
        seen: _Seen,
        places: tuple[int, ...],
        large: Result | None,
    ) -> tuple[Item, ...]:
        """Of 0/1 tasks in the request's order; else what the large model ordered, then the rest."""
        if seen.ids is not None:
            found = large if isinstance(large, list) else []
            return _recommended(seen, found, k=request.k)  # type: ignore[attr-defined]
        gained = np.empty(0) if large is None else _seen(large).scores
        scores, by_large = seen.scores.copy(), np.zeros(len(seen.scores), dtype=bool)
        scores[list(places)], by_large[list(places)] = gained, True
        calibration = self._calibration(work.task)
        is_list = not self.small.predictor.spec(work.task).has_probabilities
        merged = scores  # of 0/1 tasks without a policy
        if is_list or calibration is not None:
            merged = merge(places, small=seen.scores, large=gained, calibration=calibration)
        order = np.argsort(-merged, kind="stable").tolist() if is_list else range(len(scores))
        return tuple(
            Item(
                index=place,
                item_id=work.rows[place].get("item_id"),
                score=float(scores[place]),
                probability=None if is_list else float(merged[place]),
                by="large" if by_large[place] else "small",
            )
            for place in order
        )

    def _calibration(self, task: str) -> Calibrations | None:
        policy = self.policy.tasks.get(task) if self.policy else None
        return None if policy is None else policy.calibration


def _for_large(left_s: float) -> float:
    """Seconds of those left that the large model may take."""
    return left_s - min(_RESERVE * left_s, _MOST_RESERVE_S)


def _seen(result: Result) -> _Seen:
    if isinstance(result, list):
        scores = np.array([item.score for item in result], dtype=np.float64)
        return _Seen(scores, tuple(item.item_id for item in result))
    return _Seen(result, None)


def _deferred(work: Work, seen: _Seen, places: tuple[int, ...], *, is_whole: bool) -> Work:
    """What the large model is asked: to score some rows, or to order what the small one found;
    where it orders the whole list, it finds the items itself."""
    if seen.ids is None:
        return replace(work, rows=tuple(work.rows[place] for place in places))
    if is_whole:
        return work
    ids = tuple(seen.ids[place] for place in places)
    return replace(work, k=len(ids), candidates=ids)


def _recommended(seen: _Seen, large: list[Recommended], *, k: int) -> tuple[Item, ...]:
    """What the large model found, then what else the small one did; k at most."""
    assert seen.ids is not None
    first = [Item(item_id=item, score=score, by="large") for item, score in large[:k]]
    found = {item.item_id for item in large}
    others = (
        Item(item_id=item, score=score, by="small")
        for item, score in zip(seen.ids, seen.scores.tolist(), strict=True)
        if item not in found
    )
    return (*first, *islice(others, k - len(first)))
