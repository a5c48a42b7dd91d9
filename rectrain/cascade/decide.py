"""The decision on one request: facts in, a frozen decision with its reason out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rectrain.cascade.budget import BudgetState
from rectrain.cascade.policy import Calibrations, TaskPolicy

__all__ = ["Decision", "Reason", "decide", "merge"]

Floats = NDArray[np.float64]
Reason = Literal[
    "confident", "doubtful", "over_budget", "no_large", "overload", "deadline", "not_asked"
]


@dataclass(frozen=True)
class Decision:
    """What becomes of a request.

    Attributes:
        defer: whether large is asked.
        reason: why, or why not.
        confidence: of its most doubtful unit, 0..1; 1 where it has none.
        candidates: which of its candidates large is to score: the doubtful rows, the most doubtful
            first, or a list's head, the best first. Empty unless `defer`.
        confidences: of its units, for `Budget.feed`.
        is_cut: whether the budget left out some doubtful rows: a moment later it may be others.
    """

    defer: bool
    reason: Reason
    confidence: float
    candidates: tuple[int, ...]
    confidences: tuple[float, ...]
    is_cut: bool = False

    @property
    def num_deferred(self) -> int:
        """Units that go to large, for `Budget.feed`."""
        return min(len(self.candidates), len(self.confidences)) if self.defer else 0

    def withheld(self, reason: Reason) -> Decision:
        """The same request answered by small after all, as it is where large can't be asked."""
        return replace(self, defer=False, reason=reason, candidates=(), is_cut=False)


def decide(
    policy: TaskPolicy, scores: NDArray[np.floating[Any]], *, budget: BudgetState
) -> Decision:
    """Whether a request's doubtful part goes to the large model.

    Of a 0/1 task, the rows below the threshold that stands, as far as the credit lasts, the most
    doubtful first; of lists, the list's head. What lies below the policy's own threshold is
    doubtful too: where the budget has steered below it, that is what it leaves out.

    Args:
        policy: of the task.
        scores: float [n], what the small model's package gives for the request's candidates.
        budget: what stands (`Budget.state`).
    """
    confidences = policy.confidences(scores)
    if not len(scores):
        confidences = confidences[:0]
    doubtful = confidences < max(budget.threshold, policy.threshold)
    within = np.flatnonzero(confidences < budget.threshold)
    known = tuple(confidences.tolist())
    lowest = min(known, default=1.0)
    if not doubtful.any():
        return Decision(False, "confident", lowest, (), known)
    if not len(within) or budget.credit < 1:
        return Decision(False, "over_budget", lowest, (), known)
    if policy.kind == "margin":
        chosen = np.argsort(-np.asarray(scores), kind="stable")[: policy.head or None]
        is_cut = False  # of a list large never orders more
    else:
        chosen = within[np.argsort(confidences[within], kind="stable")][: budget.credit]
        is_cut = len(chosen) < int(doubtful.sum())
    return Decision(True, "doubtful", lowest, tuple(chosen.tolist()), known, is_cut)


def merge(
    candidates: Sequence[int],
    *,
    small: NDArray[np.floating[Any]],
    large: NDArray[np.floating[Any]],
    calibration: Calibrations | None,
) -> Floats:
    """The answer's scores.

    Args:
        candidates: those that large scored (`Decision.candidates`); none where it was not asked.
        small: float [n], small's scores of the request's candidates.
        large: float [m], large's scores of `candidates`, in that order.
        calibration: of a 0/1 task; None: a list is to be ordered.

    Returns:
        float64 [n]. Of a 0/1 task, calibrated probabilities, of whichever model saw the row. Of a
        list, numbers that rank: small's own scores where large was not asked, else n - place + 1:
        the head in large's order, the others behind it in small's.
    """
    chosen = np.array(candidates, dtype=np.int64)
    assert len(large) == len(chosen), "one score a candidate that large was asked for"
    if calibration is not None:
        answer = calibration.small.probability(small)
        answer[chosen] = calibration.large.probability(large)
        return answer
    if not len(chosen):
        return np.asarray(small, dtype=np.float64)
    order = np.argsort(-np.asarray(small), kind="stable")
    behind = order[~np.isin(order, chosen)]
    best = chosen[np.argsort(-np.asarray(large), kind="stable")]
    answer = np.empty(len(order))
    answer[np.concatenate([best, behind])] = np.arange(len(order), 0, -1)
    return answer
