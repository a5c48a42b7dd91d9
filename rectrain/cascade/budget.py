"""The budget: how many requests may be deferred, held whatever the traffic becomes.

A state machine without a clock: requests go in, the threshold that stands comes out.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from rectrain.cascade.policy import SURE, TaskPolicy

__all__ = ["Budget", "BudgetState"]

_WINDOW = 512  # units that the threshold is steered by
_WARM_UP = 10  # deferrals expected before a quantile is trusted
_MIN_SHARE = 1e-4  # of a decile, in the drift: it is a logarithm's argument


@dataclass(frozen=True)
class BudgetState:
    """What a decision needs to know.

    Attributes:
        threshold: units of a confidence below it are doubtful.
        credit: units that may be deferred now.
    """

    threshold: float
    credit: int


class Budget:
    """Steers one task's deferral rate. A unit is a row of a 0/1 task, a list of the others.

    Two parts, for a budget b (share of units) and a window of W units:

    - The threshold (feed-forward): once 10 / b confidences are known, at most W / 2, q is just
      above the b-quantile of the last W of them, so that the share b of such traffic lies below it
      or, where confidences are equal, more, of which the credit takes the first. It is at most 1:
      who is sure is not deferred to use a budget. Under a bound of the loss the threshold is
      min(policy's, q): harder traffic than the held-out rows is not deferred beyond the budget,
      easier traffic no more than the bound needs. Under a budget it is q: the budget is used.
    - The credit (a token bucket): each unit adds b, each deferral takes 1, at most B = max(1, b W)
      is saved. So after any T units, whatever they were, at most B + b T have been deferred.

    Args:
        policy: of the task.
        window: W.
    """

    def __init__(self, policy: TaskPolicy, *, window: int = _WINDOW) -> None:
        assert window >= 1
        self._policy = policy
        self._window = window
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []
        self._burst = max(1.0, policy.budget * window) if policy.budget > 0 else 0.0
        self._credit = self._burst

    @property
    def state(self) -> BudgetState:
        """What stands now."""
        return BudgetState(self._threshold(), math.floor(self._credit + 1e-9))

    def feed(self, confidences: Sequence[float], *, deferred: int) -> float:
        """Counts a request's units.

        Args:
            confidences: of its units (`Decision.confidences`).
            deferred: those of them that large was really asked for.

        Returns:
            The threshold from now on.
        """
        for value in confidences:
            self._recent.append(value)
            insort(self._sorted, value)
            if len(self._recent) > self._window:
                del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        earned = self._credit + self._policy.budget * len(confidences)
        self._credit = min(earned - deferred, self._burst)
        return self._threshold()

    @property
    def known(self) -> int:
        """Units in the window: what `rate` and `drift` rest on."""
        return len(self._sorted)

    @property
    def rate(self) -> float:
        """Share of the last W units that lie below the policy's own threshold, 0..1; NaN before the
        first. Its rise over `policy.rate` says that traffic has become harder."""
        if not self._sorted:
            return math.nan
        return bisect_left(self._sorted, self._policy.threshold) / len(self._sorted)

    @property
    def drift(self) -> float:
        """Population stability index of the last W confidences against the held-out ones: Σ over
        tenths of (share - 1/10) log(share / (1/10)), >= 0; by custom, 0.1 is some drift, 0.25
        much (Siddiqi 2006, Credit Risk Scorecards). NaN before the first."""
        if not self._sorted:
            return math.nan
        edges = [0, *(bisect_left(self._sorted, edge) for edge in self._policy.deciles)]
        counts = [b - a for a, b in zip(edges, [*edges[1:], len(self._sorted)], strict=True)]
        expected = 1 / len(counts)
        shares = [max(count / len(self._sorted), _MIN_SHARE) for count in counts]
        return sum((share - expected) * math.log(share / expected) for share in shares)

    def _threshold(self) -> float:
        policy, known = self._policy, len(self._sorted)
        if not 0 < policy.budget < 1:
            return policy.threshold
        if known < min(_WARM_UP / policy.budget, self._window / 2):
            return policy.threshold
        quantile = self._sorted[math.floor(policy.budget * known)]
        above = min(math.nextafter(quantile, math.inf), SURE)
        return above if policy.bound == "budget" else min(policy.threshold, above)
