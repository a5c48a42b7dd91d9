"""Who tells whether an answer is right: requests with the scores that each model gives offline.

An answer names the versions that made it. Each of its scores must be the one that
`rectrain.load(package).predict` gives for the same row with the model of that version, each
probability what the policy's calibration of that model makes of the score, and a list must stand
in the order of its scores. What it says of itself (deferred, why, by which versions) must be so.
And each request must have one outcome: one at the client, and the same in the server's log.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.load import Outcome, Request
from rectrain.cascade import Policy
from rectrain.inference.golden import made_up
from rectrain.inference.packaged import PackagedModel
from serve.schemas import ENDPOINTS, field_names

__all__ = ["Oracle", "Verdict", "judge", "logged_outcomes", "make_bodies"]

Body = dict[str, Any]
Scores = dict[Any, float]  # of a candidate's place, or of an item's id

_TOLERANCE = 1e-4  # golden.tolerance: what is near enough for a replica to take traffic
_EXACT = 1e-9  # a probability is computed of the very score that the answer has
_BUSY = (429, 503)


def make_bodies(
    model: PackagedModel, *, count: int, candidates: int, seed: int = 0
) -> list[tuple[str, Body]]:
    """Requests that a model can answer: endpoint and body, the endpoints by turns.

    Rows are those of golden requests, with texts drawn anew out of their words, so that no two
    candidates are alike.

    Args:
        model: its endpoints and fields.
        count: requests.
        candidates: of each.
        seed: of the draws.
    """
    random = np.random.default_rng(seed)
    cases = {case.task: case.rows for case in made_up(model).cases}
    texts = [v for rows in cases.values() for row in rows for v in row.values()]
    words = sorted({word for text in texts if isinstance(text, str) for word in text.split()})
    paths = [path for path, task in ENDPOINTS.items() if task in cases]
    return [
        (path, _body(model, path, cases[ENDPOINTS[path]], words, candidates, random))
        for path in (paths[number % len(paths)] for number in range(count))
    ]


def _body(
    model: PackagedModel,
    path: str,
    rows: Sequence[Mapping[str, Any]],
    words: Sequence[str],
    candidates: int,
    random: np.random.Generator,
) -> Body:
    task = ENDPOINTS[path]
    spec, asked = model.predictor.spec(task), field_names(model.fields(task))
    kinds = {one.name: one.kind for one in model.fields(task).fields}

    def drawn(row: Mapping[str, Any], names: Iterable[str]) -> Body:
        given = {}
        for name in names:
            size = max(1, round(random.lognormal(1.5, 0.7)))
            if kinds[name] in ("text", "id", "group"):
                given[name] = " ".join(random.choice(words, size))
            elif kinds[name] == "text_list" and name in spec.query:
                given[name] = [" ".join(random.choice(words, size)) for _ in range(3)]
            elif name in row and kinds[name] != "text_list":
                given[name] = row[name]
        return given

    if spec.has_catalogue:
        return {**drawn(rows[0], asked), "k": 10}
    beside = [name for name in asked if name in spec.query or kinds[name] == "group"]
    within = [name for name in asked if name not in beside]
    listed = [drawn(rows[random.integers(len(rows))], within) for _ in range(candidates)]
    return {**drawn(rows[0], beside), "candidates": listed}


class Oracle:
    """Requests, and what each of the models may answer to them.

    Args:
        bodies: endpoint and body of each request.
        models: that may be named in answers, loaded with the backend that serves them.
        policies: of those of them that are small ones.
    """

    def __init__(
        self,
        bodies: Sequence[tuple[str, Body]],
        models: Sequence[PackagedModel],
        policies: Sequence[Policy],
    ) -> None:
        self.bodies = tuple(bodies)
        self._policies = {policy.small: policy for policy in policies}
        self._scores = {
            model.version: [_offline(model, path, body) for path, body in bodies]
            for model in models
        }

    def requests(self, *, deadline_ms: float) -> list[Request]:
        """To be sent in a load, in the order of their numbers."""
        headers = {"X-Deadline-Ms": f"{deadline_ms:g}"}
        return [
            Request(f"/v1/{path}", json.dumps(body).encode(), headers) for path, body in self.bodies
        ]

    def body(self, number: int) -> tuple[str, Body]:
        """Endpoint and body of a request of a load; they go by turns."""
        return self.bodies[number % len(self.bodies)]

    def problem(self, number: int, answer: bytes) -> str:
        """What is wrong with an answer; empty where nothing is.

        Args:
            number: of the load; requests go by turns.
            answer: a body with status 200.
        """
        try:
            return self._problem(number % len(self.bodies), json.loads(answer))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            return f"no answer: {type(error).__name__} {error}"

    def _problem(self, place: int, given: Body) -> str:
        path, body = self.bodies[place]
        versions, items = given["versions"], given["items"]
        if unknown := {one for one in versions.values() if one} - set(self._scores):
            return f"versions that were not deployed: {unknown}"
        wanted = body.get("k", 0) or len(body["candidates"])
        keys = [item["item_id"] if "k" in body else item["index"] for item in items]
        if len(set(keys)) != len(keys) or len(keys) != min(wanted, self._most(place, versions)):
            return f"{len(keys)} items, {len(set(keys))} of them different"
        if told := _contradiction(given):
            return f"{path}: {told}"
        probabilities = self._probabilities(versions["small"], ENDPOINTS[path], items)
        for key, item, expected in zip(keys, items, probabilities, strict=True):
            right = self._scores[versions[item["by"]]][place].get(key, np.nan)
            if not abs(item["score"] - right) <= _TOLERANCE:
                return f"{path} item {key}: {item['score']} by {item['by']}, offline {right}"
            if not _same(item["probability"], expected):
                return f"{path} item {key}: probability {item['probability']}, offline {expected}"
        return "" if _in_order(path, items) else f"{path}: not in order"

    def _probabilities(
        self, small: str, task: str, items: Sequence[Mapping[str, Any]]
    ) -> list[float | None]:
        """What the policy of a small version makes of items' scores; None of a list's."""
        both = self._policies[small].tasks[task].calibration
        if both is None:
            return [None] * len(items)
        scores = np.array([item["score"] for item in items])
        by_large = [item["by"] == "large" for item in items]
        chances = np.where(by_large, both.large.probability(scores), both.small.probability(scores))
        return list(chances.tolist())

    def _most(self, place: int, versions: Mapping[str, str | None]) -> int:
        return len(self._scores[str(versions["small"])][place])


def _offline(model: PackagedModel, path: str, body: Body) -> Scores:
    task = ENDPOINTS[path]
    shared = {key: value for key, value in body.items() if key not in ("candidates", "k")}
    if "k" in body:
        (found,) = model.recommend([shared], k=len(model.index(task).ids), task=task)
        return {item.item_id: item.score for item in found}
    scores = model.predict(task, [{**shared, **one} for one in body["candidates"]])
    return dict(enumerate(scores.tolist()))


def _contradiction(given: Body) -> str:
    """What an answer says of itself and does not keep; no request asks for a route."""
    by_large = any(item["by"] == "large" for item in given["items"])
    named = given["versions"]["large"] is not None
    told = given["deferred"], given["reason"] == "doubtful"
    if {named, *told} == {by_large}:
        return ""
    facts = {key: given[key] for key in ("deferred", "reason", "versions")}
    return f"{facts}, but the large model gave {'some' if by_large else 'none'} of the scores"


def _same(found: float | None, expected: float | None) -> bool:
    if found is None or expected is None:
        return found is expected
    return abs(found - expected) <= _EXACT


def _in_order(path: str, items: Sequence[Mapping[str, Any]]) -> bool:
    """Lists: what the large model scored first, each part by its score; else as asked."""
    if ENDPOINTS[path] in ("ad_ctr", "risk"):
        return [item["index"] for item in items] == list(range(len(items)))
    keys = [(item["by"] != "large", -item["score"]) for item in items]
    return keys == sorted(keys)


@dataclass
class Verdict:
    """What became of a load's requests.

    Attributes:
        num_requests: sent.
        num_ok: answered with 2xx and rightly, as far as checked.
        refused: 429 or 503 with a Retry-After.
        wrong: id -> what is wrong with a 2xx answer.
        lost: id -> any other end.
        unlogged: ids that have another number of outcomes in the server's log than one.
        reasons: of the answers.
        deferred: endpoint -> right answers with a score of the large model.
    """

    num_requests: int = 0
    num_ok: int = 0
    refused: int = 0
    wrong: dict[str, str] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    unlogged: dict[str, str] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    deferred: Counter[str] = field(default_factory=Counter)

    @property
    def undeferred(self) -> list[str]:
        """Endpoints of which the large model had a part in no right answer."""
        return sorted(path for path, count in self.deferred.items() if not count)

    def __str__(self) -> str:
        parts = [
            f"{self.num_requests} requests: {self.num_ok} right, {self.refused} refused with"
            f" Retry-After, {len(self.wrong)} wrong, {len(self.lost)} lost,"
            f" {len(self.unlogged)} without one outcome in the log"
        ]
        for name, found in (("wrong", self.wrong), ("lost", self.lost), ("log", self.unlogged)):
            parts += [f"  {name} {key}: {why[:200]}" for key, why in list(found.items())[:5]]
        return "\n".join(parts)


def judge(
    oracle: Oracle, outcomes: Sequence[Outcome], log: Mapping[str, list[int]] | None = None
) -> Verdict:
    """Sorts outcomes into right, wrong, refused and lost.

    Args:
        oracle: of the requests that were sent.
        outcomes: with the bytes of all answers.
        log: id -> statuses in the server's log; None: not compared.
    """
    none = Counter({path: 0 for path, _ in oracle.bodies})
    verdict = Verdict(num_requests=len(outcomes), deferred=none)
    for one in outcomes:
        if one.is_ok:
            assert one.answer is not None, "the oracle reads every answer"
            if problem := oracle.problem(one.number, one.answer):
                verdict.wrong[one.id] = problem
            else:
                verdict.num_ok += 1
                answer, (path, _) = json.loads(one.answer), oracle.body(one.number)
                verdict.reasons[answer["reason"]] += 1
                verdict.deferred[path] += any(item["by"] == "large" for item in answer["items"])
        elif one.status in _BUSY and one.retry_after.isdigit():
            verdict.refused += 1
        else:
            verdict.lost[one.id] = f"status {one.status} {one.error}"
        if log is not None and one.status and (found := log.get(one.id, [])) != [one.status]:
            verdict.unlogged[one.id] = f"{one.status} at the client, {found} in the log"
    return verdict


def logged_outcomes(folder: Path, *, prefix: str) -> dict[str, list[int]]:
    """What the server's log says became of each request: id -> statuses, one where all is well.

    What the proxy says stands, for it is outermost: it refuses what its deadline has passed for,
    and a replica may just then be done. A replica's line about work that was taken from it is no
    outcome; nor is a second line about a request that was sent once more, since its first answer
    died on the way.

    Args:
        folder: logs/serve of the session.
        prefix: of the ids.
    """
    statuses: dict[str, list[int]] = {}
    proxys: dict[str, list[int]] = {}
    resent: set[str] = set()
    for path in (*folder.glob("replica_*.log*"), *folder.glob("proxy_*.log*")):
        told = proxys if path.name.startswith("proxy_") else statuses
        for line in path.read_text(encoding="utf-8").splitlines():
            if prefix not in line:
                continue
            facts = json.loads(line)
            name = facts.get("request_id", "")
            if not name.startswith(prefix):
                continue
            if facts.get("event") == "resent":
                resent.add(name)
            elif facts.get("outcome", "left") != "left":
                told.setdefault(name, []).append(facts["status"])
    once = {name: found[-1:] if name in resent else found for name, found in statuses.items()}
    return once | proxys
