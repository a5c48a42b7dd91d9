"""The policy: what decides which requests of a task go to the large model, as a file of a package.

policy.json     format, versions of both packages, and for each task its threshold, its budget,
                how many candidates large orders, the calibrations, and what doubt is
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from rectrain.cascade.calibration import STRICT, Calibration
from rectrain.cascade.doubt import ListDoubt, RowDoubt
from rectrain.errors import PackageError

if TYPE_CHECKING:
    from rectrain.package import Package

__all__ = [
    "ALWAYS",
    "NEVER",
    "POLICY",
    "SURE",
    "Calibrations",
    "Policy",
    "TaskPolicy",
    "read_policy",
]

POLICY = "policy.json"
NEVER, ALWAYS = 0.0, 2.0
"""Thresholds of confidences, which are in 0..1."""
SURE = 1.0
"""Confidence of a unit that large has nothing to add to."""

Floats = NDArray[np.float64]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Calibrations:
    """Of a 0/1 task's two models; without them, mixed probabilities could not be compared."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    small: Calibration
    large: Calibration


@dataclass(frozen=True)
class TaskPolicy:
    """How one task is deferred.

    Attributes:
        task: its name.
        doubt: from scores to a confidence.
        threshold: units of a lower confidence are doubtful; 0 defers none, 2 all. A unit is a row
            of a 0/1 task, a list of the others.
        bound: what the threshold was chosen under, a bound of the loss or a budget.
        budget: the share of units that may be deferred.
        rate: the share of held-out units below the threshold.
        deciles: the nine inner tenths of the held-out units' confidences, rising.
        head: of a deferred list, how many of small's best large orders, the others staying behind
            them as they are; 0: all.
        calibration: of a 0/1 task; None for lists.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    task: str
    doubt: Annotated[RowDoubt | ListDoubt, Field(discriminator="kind")]
    threshold: Annotated[float, Field(ge=NEVER, le=ALWAYS)]
    bound: Literal["loss", "budget"]
    budget: Share
    rate: Share
    deciles: Annotated[tuple[Share, ...], Field(min_length=9, max_length=9)]
    head: Annotated[int, Field(ge=0)] = 0
    calibration: Calibrations | None = None

    def __post_init__(self) -> None:
        if (self.calibration is None) != (self.kind == "margin"):
            raise ValueError("a 0/1 task has calibrations, lists have none")
        if self.kind == "probability" and self.head:
            raise ValueError("head is of lists")
        if list(self.deciles) != sorted(self.deciles):
            raise ValueError("deciles must rise")

    @property
    def kind(self) -> Literal["probability", "margin"]:
        """Whether its units are rows of a 0/1 task, or lists."""
        return self.doubt.kind

    @property
    def deferred(self) -> float:
        """The share of held-out units that large is asked for: of equal confidences more may lie
        below the threshold than the budget gives."""
        return min(self.rate, self.budget)

    def confidences(self, scores: NDArray[np.floating[Any]]) -> Floats:
        """Of the units of one request: float64 [n] of rows, [1] of a list.

        Args:
            scores: float [n], what the small model's package gives: probabilities, or scores that
                rank.
        """
        if isinstance(self.doubt, RowDoubt):
            assert self.calibration is not None
            return self.doubt.confidences(self.calibration.small.logits(scores))
        return np.array([self.doubt.confidence(np.asarray(scores, dtype=np.float64))])


@dataclass(frozen=True)
class Policy:
    """How the tasks of a small model are deferred to a large one.

    Attributes:
        small, large: versions of the packages that it was made for.
        tasks: name -> policy.
        format: of the file.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    small: str
    large: str
    tasks: Mapping[str, TaskPolicy]
    format: Literal[1] = 1

    def __post_init__(self) -> None:
        for name, task in self.tasks.items():
            if name != task.task:
                raise ValueError(f"the policy of {task.task} stands under {name}")

    def to_json(self) -> bytes:
        """The file."""
        return (json.dumps(_ADAPTER.dump_python(self, mode="json"), indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes | str, *, where: str = POLICY) -> Policy:
        """The inverse of `to_json`; unknown keys, wrong types and NaN are refused.

        Args:
            data: the file.
            where: its path, for errors.

        Raises:
            PackageError: it is none, or a newer one; the first mistake in it.
        """
        try:
            return _ADAPTER.validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise PackageError(
                what=f"policy {where}",
                got=f"{place}: {first['msg']}" if place else first["msg"],
                rule="must be as jobs.calibrate wrote it",
                fix="run python -m jobs.calibrate again",
            ) from error


_ADAPTER = TypeAdapter(Policy)


def read_policy(small: Package, *, large: Package | None = None) -> Policy | None:
    """The policy of a verified package; None where it has none.

    Args:
        small: the small model's package.
        large: the one that is to be asked; None: whichever it will be.

    Raises:
        PackageError: the file is none, or it was made for other versions of the models.
    """
    if POLICY not in small.files:
        return None
    path = small.path / POLICY
    policy = Policy.from_json(path.read_bytes(), where=str(path))
    for role, made_for, package in (("small", policy.small, small), ("large", policy.large, large)):
        if package is not None and made_for != package.version:
            raise PackageError(
                what=f"policy {path}",
                got=f"made for a {role} model of version {made_for[:12]}",
                rule=f"{package.path} is of version {package.version[:12]}",
                fix="run python -m jobs.calibrate on these two packages",
            )
    return policy
