"""The cascade: a small model answers, and a large one what is doubtful; docs/cascade.md.

    calibration   outputs of 0/1 tasks become probabilities that come true
    doubt         what large is expected to gain, from small's scores; a confidence is made of it
    decide        one request: facts in, a frozen decision out; and the answer of both
    budget        holds the deferral rate, whatever the traffic becomes
    policy        all of it as a file of the small model's package
    heldout, thresholds, fit, scores   how a policy comes about (jobs.calibrate)

What is imported here is numpy alone: no model runs, nothing is read.
"""

from rectrain.cascade.budget import Budget, BudgetState
from rectrain.cascade.calibration import Calibration, fit_calibration
from rectrain.cascade.decide import Decision, Reason, decide, merge
from rectrain.cascade.doubt import ListDoubt, RowDoubt
from rectrain.cascade.policy import POLICY, Calibrations, Policy, TaskPolicy, read_policy
from rectrain.cascade.thresholds import choose, risk_coverage

__all__ = [
    "POLICY",
    "Budget",
    "BudgetState",
    "Calibration",
    "Calibrations",
    "Decision",
    "ListDoubt",
    "Policy",
    "Reason",
    "RowDoubt",
    "TaskPolicy",
    "choose",
    "decide",
    "fit_calibration",
    "merge",
    "read_policy",
    "risk_coverage",
]
