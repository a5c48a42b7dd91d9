"""S1: the cascade beside its large model and beside single models, on test rows, in one process.

Everything is fitted on validation rows: calibration, the order of deferral, head and threshold.
Quality is judged on all test rows; speed on the first of them, in batches as the server makes
them, from texts to scores, with one thread and nothing cached.

Shapes: n rows, Q units (a row of a 0/1 task, a list or user of the others).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.table import Figure, paired_ratio
from rectrain.cascade import TaskPolicy, risk_coverage
from rectrain.cascade.fit import DEPTH, Aim, Fitted, ListScores, RowScores, fit_lists, fit_rows
from rectrain.cascade.heldout import ALL, HeldOut, HeldOutRows
from rectrain.cascade.scores import score_held_out
from rectrain.cascade.thresholds import Curve
from rectrain.data.shards import Prepared
from rectrain.inference.packaged import PackagedModel
from rectrain.inference.recommend import Shoppers
from rectrain.metrics import Examples, Interval, group_codes, metric, resample, summarise

__all__ = ["Cascade", "draw_curves", "measure_cascade"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_TOKENS = 4096  # of a batch, as in the server
_MAX_LOSS = 0.001
_LARGE, _SMALL, _BUDGET, _BOUND = "large", "small", "budget", "bound"


class Cascade:
    """One task of a pair of models: its policies, and what the test rows say of them.

    Args:
        task: its name.
        small, large: the models.
        prepared: data of the task.
        budget: share of units that one policy may defer; the other one has a bound on the loss.
        singles: name -> other single models.
    """

    def __init__(
        self,
        task: str,
        *,
        small: PackagedModel,
        large: PackagedModel,
        prepared: Prepared,
        budget: float,
        singles: Mapping[str, PackagedModel],
    ) -> None:
        self.task, self.metric = task, small.predictor.spec(task).primary
        self.models = {_SMALL: small, _LARGE: large, **singles}
        self._prepared = prepared
        self.budget = budget
        held = self._scores(small, "validation")
        self.fitted: dict[str, Fitted] = {
            _BUDGET: self._fit(held, Aim(budget=budget)),
            _BOUND: self._fit(held, Aim(max_loss=_MAX_LOSS)),
        }
        self._test = self._scores(small, "test")
        self._others = {name: self._scores(one, "test") for name, one in singles.items()}

    def _scores(self, model: PackagedModel, split: str) -> RowScores | ListScores:
        return score_held_out(
            model.predictor, self.models[_LARGE].predictor, self._prepared, task=self.task,
            split=split,
        )  # fmt: skip

    def _fit(self, held: RowScores | ListScores, aim: Aim) -> Fitted:
        if isinstance(held, RowScores):
            return fit_rows(self.task, held, metric=self.metric, aim=aim)
        return fit_lists(self.task, held, metric=self.metric, aim=aim)

    # --- quality -----------------------------------------------------------------------------

    def heldout(self, policy: TaskPolicy) -> HeldOut:
        """The test units as both models answer them."""
        return _answers(self._test, policy)

    def confidences(self, policy: TaskPolicy) -> Floats:
        """float64 [Q] of the test units."""
        if isinstance(self._test, RowScores):
            return policy.confidences(self._test.small)
        return _list_confidences(policy, self._test.small, self._test.lists)

    def deferred(self, name: str) -> Bools:
        """bool [Q]: the test units that a policy defers."""
        policy = self.fitted[name].policy
        return np.asarray(self.confidences(policy) < policy.threshold)

    def systems(self) -> dict[str, Examples]:
        """Every system's answers to the same test rows."""
        policy = self.fitted[_BUDGET].policy
        test, nothing = self.heldout(policy), np.zeros(self.heldout(policy).num_units, dtype=bool)
        found = {
            _LARGE: test.answered(~nothing, head=ALL),
            _SMALL: test.answered(nothing, head=ALL),
        }
        for name, fitted in self.fitted.items():
            held = self.heldout(fitted.policy)
            found[name] = held.answered(self.deferred(name), head=fitted.policy.head)
        for name, scores in self._others.items():
            found[name] = _answers(scores, policy).answered(nothing, head=ALL)
        return found

    def curve(self) -> Curve:
        """Quality on test rows against the share deferred, by the policy's order."""
        policy = self.fitted[_BUDGET].policy
        held, confidences = self.heldout(policy), self.confidences(policy)
        return risk_coverage(held, confidences, self.metric, head=policy.head)[0]

    # --- speed -------------------------------------------------------------------------------

    def seconds(self, *, rounds: int, num_tokens: int) -> tuple[dict[str, list[float]], int]:
        """Seconds of each round of each system, in turn, and the units that were scored.

        Args:
            rounds: of each.
            num_tokens: texts are taken up to so many.
        """
        stream = _Stream.of(self.task, self.models[_SMALL], self._prepared, num_tokens=num_tokens)
        runs: dict[str, Callable[[], None]] = {
            name: partial(stream.run, self.task, model) for name, model in self.models.items()
        }
        for name, fitted in self.fitted.items():
            runs[name] = partial(
                stream.cascade, fitted.policy, self.models[_SMALL], self.models[_LARGE]
            )
        for run in runs.values():
            run()  # the first sight of a shape costs engines
        found: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(rounds):
            for name in list(runs) if number % 2 == 0 else list(runs)[::-1]:
                begun = time.perf_counter()
                runs[name]()
                found[name].append(time.perf_counter() - begun)
        return found, stream.num_units


def _answers(scores: RowScores | ListScores, policy: TaskPolicy) -> HeldOut:
    if isinstance(scores, ListScores):
        return scores.judged
    assert policy.calibration is not None
    return HeldOutRows(
        policy.calibration.small.probability(scores.small),
        policy.calibration.large.probability(scores.large),
        scores.labels,
        scores.weights,
        scores.groups,
    )


def _list_confidences(policy: TaskPolicy, scores: Floats, lists: Ints) -> Floats:
    """float64 [Q]; the rows of a list are neighbours."""
    bounds = np.searchsorted(lists, np.arange(1, lists[-1] + 1))
    return np.array([policy.confidences(part)[0] for part in np.split(scores, bounds)])


@dataclass(frozen=True)
class _Stream:
    """Test rows as requests that come one after the other.

    Attributes:
        rows: prepared columns, the rows of a list side by side; of a catalogue one row a user.
        tokens: int64 [n], of each row.
        lists: int64 [n], equal for rows of one list; each its own where there are no lists.
        is_listed: whether a list is what is deferred.
        exclude: of a catalogue, ids that each user must not get.
    """

    rows: pa.Table
    tokens: Ints
    lists: Ints
    is_listed: bool
    exclude: Sequence[Sequence[str]] | None

    @classmethod
    def of(cls, task: str, model: PackagedModel, prepared: Prepared, *, num_tokens: int) -> _Stream:
        rows, spec = prepared.shards(task, "test").table(), model.predictor.spec(task)
        exclude = None
        if spec.has_catalogue:
            shoppers = Shoppers.of(rows, prepared.items(task).table()["item_id"].to_pylist())
            rows, exclude = shoppers.rows, shoppers.bought
        lists = np.arange(rows.num_rows)
        if spec.has_lists and not spec.has_catalogue:
            codes = group_codes(rows["group"].to_pylist())
            order = np.argsort(codes, kind="stable")
            rows, lists = rows.take(pa.array(order)), codes[order]
        tokens = rows["num_tokens"].to_numpy().astype(np.int64)
        end = int(np.searchsorted(np.cumsum(tokens), num_tokens))
        if end < len(lists):  # whole lists
            end = max(int(np.searchsorted(lists, lists[end])), 1)
        return cls(
            rows.slice(0, end), tokens[:end], lists[:end], spec.has_lists or spec.has_catalogue,
            exclude,
        )  # fmt: skip

    @property
    def num_units(self) -> int:
        """Q of these rows."""
        return len(np.unique(self.lists))

    def run(self, task: str, model: PackagedModel) -> None:
        """One model scores everything."""
        for part in self._parts():
            self._score(task, model, np.arange(part.start, part.stop))

    def cascade(self, policy: TaskPolicy, small: PackagedModel, large: PackagedModel) -> None:
        """The small model scores everything, the large one what is deferred, in batches too."""
        nothing = waiting = np.empty(0, dtype=np.int64)
        for part in self._parts():
            rows = np.arange(part.start, part.stop)
            doubtful = self._deferred(policy, rows, self._score(policy.task, small, rows))
            waiting = np.concatenate([waiting, doubtful])
            if self.tokens[waiting].sum() >= _TOKENS:
                self._score(policy.task, large, waiting)
                waiting = nothing
        if len(waiting):
            self._score(policy.task, large, waiting)

    def _parts(self) -> Iterator[slice]:
        """Neighbours of about as many tokens as a batch has; no list is parted."""
        ends, first = np.flatnonzero(np.diff(self.lists, append=-1)) + 1, 0
        total = np.concatenate([[0], np.cumsum(self.tokens)])
        for end, after in zip(ends, [*ends[1:], None], strict=True):
            if after is None or total[after] - total[first] > _TOKENS:
                yield slice(first, int(end))
                first = int(end)

    def _score(self, task: str, model: PackagedModel, rows: Ints) -> Floats:
        """float64 [n], or of a catalogue [n, k]."""
        part = model.predictor.tokenised(task, self.rows.take(pa.array(rows)))
        if self.exclude is None:
            return model.predictor.score(task, part)
        found = model.index(task).search(
            model.predictor.embed(task, part)[0], k=DEPTH,
            exclude=[self.exclude[row] for row in rows],
        )  # fmt: skip
        return found.scores.astype(np.float64)

    def _deferred(self, policy: TaskPolicy, rows: Ints, scores: Floats) -> Ints:
        """Those of the rows that go to the large model."""
        if self.exclude is not None:
            doubt = [policy.confidences(one[~np.isnan(one)])[0] for one in scores]
            return rows[np.array(doubt) < policy.threshold]
        if not self.is_listed:
            return rows[policy.confidences(scores) < policy.threshold]
        bounds = np.flatnonzero(np.diff(self.lists[rows])) + 1
        chosen = [np.empty(0, dtype=np.int64)]
        for own, said in zip(np.split(rows, bounds), np.split(scores, bounds), strict=True):
            if policy.confidences(said)[0] < policy.threshold:
                chosen.append(own[np.argsort(-said, kind="stable")[: policy.head or None]])
        return np.concatenate(chosen)


# --- figures -----------------------------------------------------------------------------------


def measure_cascade(cascade: Cascade, *, rounds: int, num_tokens: int) -> list[Figure]:
    """S1 of one task: how many times the large model's throughput, and what is lost for it."""
    seconds, num_units = cascade.seconds(rounds=rounds, num_tokens=num_tokens)
    values, drawn = _values(cascade)
    costs = {name: float(np.median(found)) for name, found in seconds.items()}
    figures = []
    for name in (_BUDGET, _BOUND, _SMALL):
        title = f"S1/{cascade.task}" + ("" if name == _BUDGET else f"/{name}")
        rates = [[num_units / s for s in seconds[one]] for one in (name, _LARGE)]
        figures.append(
            paired_ratio(
                title,
                ours=rates[0],
                peer=rates[1],
                unit=f"requests/s, {_said(cascade, name)}",
                peer_name="large model, int8",
            )
        )
        lost = (values[_LARGE] - values[name]) / values[_LARGE]
        spread = (drawn[_LARGE] - drawn[name]) / drawn[_LARGE]
        unit = f"of {cascade.metric} lost ({values[name]:.4f})"
        peer = f"large model, int8 ({values[_LARGE]:.4f})"
        figures.append(_interval(f"{title}/lost", summarise(lost, spread), unit, peer))
    singles = [
        name
        for name in cascade.models
        if name != _LARGE and (name == _SMALL or costs[name] <= costs[_BUDGET])
    ]
    best = max(singles, key=lambda name: values[name])
    ahead = summarise(values[_BUDGET] - values[best], drawn[_BUDGET] - drawn[best])
    peer = f"best single model of no higher cost: {best} ({values[best]:.4f})"
    figures.append(_interval(f"S1/{cascade.task}/ahead", ahead, cascade.metric, peer))
    return figures


def _said(cascade: Cascade, name: str) -> str:
    if name == _SMALL:
        return "small model alone"
    policy = cascade.fitted[name].policy
    aim = f"budget {cascade.budget:.0%}" if name == _BUDGET else f"loss ≤ {_MAX_LOSS:.1%} proven"
    return f"{aim}: {cascade.deferred(name).mean():.1%} deferred, head {policy.head or 'all'}"


def _values(cascade: Cascade) -> tuple[dict[str, float], dict[str, Floats]]:
    """The metric of every system, and on the same draws of the test groups."""
    systems, spec = cascade.systems(), metric(cascade.metric)
    first = systems[_LARGE]
    statistics = {name: spec.prepare(examples) for name, examples in systems.items()}
    drawn = resample(list(statistics.values()), unit=first.groups, weight=first.weights)
    return (
        {name: float(one(first.weights)) for name, one in statistics.items()},
        {name: drawn[:, place] for place, name in enumerate(statistics)},
    )


def _interval(title: str, found: Interval, unit: str, peer: str) -> Figure:
    return Figure(title, found.value, unit, peer, found.low, found.high, 1)


def draw_curves(path: Path, cascades: Sequence[Cascade]) -> None:
    """Draws each task's metric on test rows against the share that the large model answers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    drawing, axes = plt.subplots(
        1, len(cascades), figsize=(4.4 * len(cascades), 3.8), squeeze=False, layout="constrained"
    )
    for axis, cascade in zip(axes[0], cascades, strict=True):
        curve, values = cascade.curve(), _values(cascade)[0]
        axis.plot(curve.rates, [one.value for one in curve.metrics], color="C0")
        axis.fill_between(
            curve.rates, [one.low for one in curve.metrics], [one.high for one in curve.metrics],
            color="C0", alpha=0.15,
        )  # fmt: skip
        ends = values[_SMALL], values[_LARGE]
        axis.plot([0, 1], ends, color="0.6", linestyle="--", label="deferred at random")
        for name, marker in ((_BUDGET, "o"), (_BOUND, "s")):
            axis.plot(cascade.deferred(name).mean(), values[name], marker, label=name)
        axis.set_title(cascade.task)
        axis.set_xlabel("share that the large model answers")
        axis.set_ylabel(cascade.metric)
        axis.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=110)
    plt.close(drawing)
