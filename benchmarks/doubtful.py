"""A policy that defers whatever a budget allows, of any two models: where what is asked is not
whether deferring pays, but what becomes of requests that are deferred."""

from __future__ import annotations

from collections.abc import Sequence

from rectrain.cascade import Calibration, Calibrations, ListDoubt, Policy, RowDoubt, TaskPolicy

__all__ = ["doubtful_policy"]

_ROWS = ("ad_ctr", "risk")
_AS_IT_IS = Calibration("temperature", 1.0, 0.0)
_BOTH_AS_THEY_ARE = Calibrations(small=_AS_IT_IS, large=_AS_IT_IS)


def doubtful_policy(
    small: str,
    large: str,
    *,
    tasks: Sequence[str],
    budget: float,
    head: int,
    calibration: Calibrations = _BOTH_AS_THEY_ARE,
) -> Policy:
    """Doubts everything, and defers as much as the budget gives.

    Args:
        small, large: versions of the models.
        tasks: of both.
        budget: the share of requests that may be deferred, 0 to 1.
        head: of a doubtful list, how many items the large model orders.
        calibration: of the tasks that give probabilities; by default it changes none.
    """
    common = {
        "threshold": 2.0,
        "bound": "budget",
        "budget": budget,
        "rate": 1.0,
        "deciles": tuple(n / 10 for n in range(1, 10)),
    }
    rows = RowDoubt(knots=((0.0, 1.0),), scale=1.0)
    lists = ListDoubt(temperature=1.0, noise=1.0, places=10, depth=20, scale=1.0)
    policies = {
        task: TaskPolicy(task=task, doubt=rows, calibration=calibration, **common)
        if task in _ROWS
        else TaskPolicy(task=task, doubt=lists, head=head, **common)
        for task in tasks
    }
    return Policy(small, large, policies)
