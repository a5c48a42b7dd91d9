"""A policy that defers whatever a budget allows, of any two models: where what is asked is not
whether deferring pays, but what becomes of requests that are deferred."""

from __future__ import annotations

from collections.abc import Sequence

from rectrain.cascade import Calibration, Calibrations, ListDoubt, Policy, RowDoubt, TaskPolicy

__all__ = ["doubtful_policy"]

_ROWS = ("ad_ctr", "risk")
_CALIBRATIONS = Calibrations(  # two that differ: a probability tells whose it is
    small=Calibration("temperature", 2.0, 0.0), large=Calibration("temperature", 4.0, 0.0)
)


def doubtful_policy(
    small: str, large: str, *, tasks: Sequence[str], budget: float, head: int
) -> Policy:
    """Doubts everything, and defers as much as the budget gives. Of tasks that give probabilities,
    the small model's temperature is 2, the large one's 4.

    Args:
        small, large: versions of the models.
        tasks: of both.
        budget: the share of requests that may be deferred, 0 to 1.
        head: of a doubtful list, how many items the large model orders.
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
        task: TaskPolicy(task=task, doubt=rows, calibration=_CALIBRATIONS, **common)
        if task in _ROWS
        else TaskPolicy(task=task, doubt=lists, head=head, **common)
        for task in tasks
    }
    return Policy(small, large, policies)
