"""What answers cost, as `python -m jobs.cost` found it, read from its cost.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rectrain.errors import PackageError
from serve.schemas import ENDPOINTS, Answer, AnswerCost

__all__ = ["AnswerCosts", "read_costs"]

_Amount = Annotated[float, Field(ge=0)]
_Tasks = Mapping[str, tuple[_Amount, _Amount]]
"""Task -> what 1,000 requests cost of a model: fixed, and for each candidate."""


class AnswerCosts(BaseModel):
    """What answers of the packages that are served cost.

    Attributes:
        currency: of the amounts.
        small, large: task -> what 1,000 requests cost: fixed, and for each candidate that the model
            scores.
    """

    model_config = ConfigDict(frozen=True)

    currency: str
    small: _Tasks = {}
    large: _Tasks = {}

    def of(self, path: str, answer: Answer) -> AnswerCost | None:
        """What an answer cost; None where its task was not priced.

        Args:
            path: of its endpoint.
            answer: to a request there.
        """
        if answer.cached:
            return AnswerCost(currency=self.currency, per_1000=0.0)
        task = ENDPOINTS[path]
        counts = [(self.small, len(answer.items))]  # the small model answers first, whatever comes
        if answer.deferred:
            counts.append((self.large, sum(item.by == "large" for item in answer.items)))
        if any(task not in costs for costs, _ in counts):
            return None
        amount = sum(costs[task][0] + count * costs[task][1] for costs, count in counts)
        return AnswerCost(currency=self.currency, per_1000=amount)


class _File(BaseModel):
    """The part of a cost.json that is about single answers.

    Attributes:
        currency: of the amounts.
        versions: "large", "small" -> version of the package that was priced.
        answers: "large", "small", "pair" -> what 1,000 requests cost of each model, where it is
            served alone, or beside the other.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    currency: str
    versions: Mapping[str, str]
    answers: Mapping[str, Mapping[str, _Tasks]]


def read_costs(path: str, *, small: str, large: str | None) -> AnswerCosts:
    """Reads a cost.json.

    Args:
        path: of the file.
        small, large: versions of the packages that are served.

    Raises:
        PackageError: no such file, another form, or of other packages.
    """
    fix = "run python -m jobs.cost on the packages that are served"
    try:
        found = _File.model_validate(json.loads(Path(path).read_bytes()))
    except (OSError, ValidationError, ValueError) as error:
        raise PackageError(
            what=f"costs {path}",
            got=str(error).splitlines()[0],
            rule="must be a cost.json",
            fix=fix,
        ) from error
    # A model that serves alone is small there, for it answers first; priced alone it is large.
    roles = {version: role for role, version in found.versions.items()}
    if large is None and small in roles:
        alone = found.answers.get(roles[small], {})
        return AnswerCosts(currency=found.currency, small=alone.get(roles[small], {}))
    for role, version in (("small", small), ("large", large)):
        if version is not None and found.versions.get(role) != version:
            raise PackageError(
                what=f"costs {path}",
                got=f"of a {role} model of version {found.versions.get(role, 'none')[:12]}",
                rule=f"{version[:12]} is served",
                fix=fix,
            )
    return AnswerCosts(currency=found.currency, **found.answers.get("pair", {}))
