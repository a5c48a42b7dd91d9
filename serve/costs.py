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


class AnswerCosts(BaseModel):
    """The part of a cost.json that is about single answers.

    Attributes:
        currency: of the amounts.
        versions: "large", "small" -> version of the package that was priced.
        answers_per_1000: task -> "large", "small", "deferred" -> what 1,000 such answers cost.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    currency: str
    versions: Mapping[str, str]
    answers_per_1000: Mapping[str, Mapping[str, _Amount]]

    def alone(self, role: str) -> dict[str, dict[str, float]]:
        """task -> "small" -> what 1,000 answers cost, of one of the models as the only one."""
        return {task: {"small": costs[role]} for task, costs in self.answers_per_1000.items()}

    def of(self, path: str, answer: Answer) -> AnswerCost | None:
        """What an answer cost; None where its task or its way was not priced.

        Args:
            path: of its endpoint.
            answer: to a request there.
        """
        costs = self.answers_per_1000.get(ENDPOINTS[path], {})
        if answer.cached:
            return AnswerCost(currency=self.currency, per_1000=0.0)
        amount = costs.get("small")
        if answer.deferred and answer.reason == "doubtful":
            amount = costs.get("deferred")
        elif answer.deferred:  # the small model answers first, whatever is asked
            amount = None if "large" not in costs else costs.get("small", 0.0) + costs["large"]
        return None if amount is None else AnswerCost(currency=self.currency, per_1000=amount)


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
        found = AnswerCosts.model_validate(json.loads(Path(path).read_bytes()))
    except (OSError, ValidationError, ValueError) as error:
        raise PackageError(
            what=f"costs {path}",
            got=str(error).splitlines()[0],
            rule="must be a cost.json",
            fix=fix,
        ) from error
    served = {"small": small, **({} if large is None else {"large": large})}
    # A model that is priced alone is called large there, and small here: it answers first.
    if large is None and set(found.versions.values()) == {small}:
        return found.model_copy(update={"answers_per_1000": found.alone("large")})
    for role, version in served.items():
        if found.versions.get(role) != version:
            raise PackageError(
                what=f"costs {path}",
                got=f"of a {role} model of version {found.versions.get(role, 'none')[:12]}",
                rule=f"{version[:12]} is served",
                fix=fix,
            )
    return found
