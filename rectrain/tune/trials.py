"""What a search has found so far: its trials, as Optuna's database file holds them.

The file is SQLite in Optuna's own form: `optuna-dashboard sqlite:///study.db` opens it, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rectrain.errors import StorageError
from rectrain.strict_json import number

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

__all__ = [
    "DIRECTIONS",
    "OBJECTIVES",
    "STUDY",
    "Objectives",
    "State",
    "StudyFacts",
    "Trial",
    "beyond",
    "chips_of",
    "open_study",
    "read_facts",
    "read_study",
    "study_url",
    "trials_of",
    "with_numbers",
]

State = Literal["complete", "failed", "pruned", "running"]
Direction = Literal["maximize", "minimize"]

#: Name of the study in its file.
STUDY = "rectrain"
#: The three objectives in the order of Optuna's values.
OBJECTIVES = ("mean_lift", "cost_per_1000", "p99_ms")
DIRECTIONS: tuple[Direction, ...] = ("maximize", "minimize", "minimize")

_NUMBERS = {"objectives", "promised", "constraints", "values"}  # name -> number, each of them
_STATES: Mapping[str, State] = {"COMPLETE": "complete", "FAIL": "failed", "PRUNED": "pruned"}


@dataclass(frozen=True)
class Objectives:
    """What a model is judged by.

    Attributes:
        mean_lift: mean over tasks of (metric − trivial) / (best known − trivial); higher is better.
        cost_per_1000: money for 1,000 requests, in the currency of the study's facts; lower.
        p99_ms: 99th percentile of a request's latency in milliseconds; lower.
    """

    mean_lift: float
    cost_per_1000: float
    p99_ms: float

    def values(self) -> tuple[float, float, float]:
        """In the order of `OBJECTIVES`."""
        return self.mean_lift, self.cost_per_1000, self.p99_ms


@dataclass(frozen=True)
class Trial:
    """One point of the space, and what came of it.

    Attributes:
        number: from 0, in the order in which the trials began.
        parameters: of the space: `layers`, `hidden`, `intermediate` and, where they are searched,
            settings of training.
        state: how it ended; "running" also of one whose process was killed.
        objectives: of a trial that ended well (pruned ones may have none).
        constraints: name -> what it is above its bound; all at most 0 where it is feasible.
        device_seconds: that it took: threads × seconds; 0.0 where unknown.
        started, finished: in UTC.
        error: one line, of a failed or pruned one.
        facts: whatever else was measured (metric by task, bytes, requests a second, …).
    """

    number: int
    parameters: Mapping[str, Any]
    state: State
    objectives: Objectives | None = None
    constraints: Mapping[str, float] | None = None
    device_seconds: float = 0.0
    started: datetime | None = None
    finished: datetime | None = None
    error: str | None = None
    facts: Mapping[str, Any] | None = None

    @property
    def is_feasible(self) -> bool:
        """Whether it has objectives and holds every constraint."""
        return self.objectives is not None and not beyond(self.constraints)


def beyond(constraints: Mapping[str, float] | None) -> list[str]:
    """The limits that are exceeded.

    Args:
        constraints: name -> what it is above its bound, as of `Trial`.
    """
    return [name for name, excess in (constraints or {}).items() if excess > 0]


def chips_of(trials: Iterable[Trial]) -> list[str]:
    """The processors that trials were timed on; of more than one, cost and p99 don't compare."""
    return sorted({one.facts["chip"] for one in trials if one.facts and "chip" in one.facts})


def with_numbers(stored: Mapping[str, Any]) -> dict[str, Any]:
    """What was written of a trial or a package, with NaN again where `strict_json` has null.

    Args:
        stored: with any of "objectives", "promised", "constraints" and "values", each by name, and
            "facts" that may have them, too.
    """
    found = dict(stored)
    for key in _NUMBERS & {key for key, value in stored.items() if value is not None}:
        found[key] = {name: number(value) for name, value in stored[key].items()}
    if stored.get("facts") is not None:
        found["facts"] = with_numbers(stored["facts"])
    return found


@dataclass(frozen=True)
class StudyFacts:
    """What all trials of a study share.

    Attributes:
        way: "elastic" or "separate".
        reference: the reference point of the hypervolume, in the order of `OBJECTIVES`.
        currency: of the money.
        preparation_seconds: device-seconds before the first trial (an elastic super-network's
            training); part of the search's budget.
        more: everything else that was noted.
    """

    way: str
    reference: tuple[float, float, float]
    currency: str
    preparation_seconds: float
    more: Mapping[str, Any]


def study_url(path: Path) -> str:
    """SQLAlchemy's URL of a study's file."""
    return f"sqlite:///{path.absolute()}"


def open_study(path: str | Path) -> Study:
    """The study of a file.

    Args:
        path: of the SQLite file, `study.db` in the search's folder.

    Raises:
        StorageError: no study is there.
    """
    path = Path(path)
    missing = StorageError(
        what="study", got=path, rule="must be the study.db of a search", fix="run jobs.tune first"
    )
    if not path.is_file():
        raise missing
    import optuna

    try:
        return optuna.load_study(study_name=STUDY, storage=study_url(path))
    except KeyError:
        raise missing from None


def read_study(path: str | Path) -> list[Trial]:
    """All trials of a study's file that have begun, by number.

    Args:
        path: as of `open_study`.

    Raises:
        StorageError: no study is there.
    """
    return trials_of(open_study(path).get_trials(deepcopy=False))


def read_facts(path: str | Path) -> StudyFacts:
    """What all trials of a study's file share.

    Args:
        path: as of `open_study`.

    Raises:
        StorageError: no study is there.
    """
    facts = dict(open_study(path).user_attrs)
    return StudyFacts(
        way=facts.pop("way", ""),
        reference=tuple(facts.pop("reference", (0.0, 0.0, 0.0))),
        currency=facts.pop("currency", ""),
        preparation_seconds=float(facts.pop("preparation_seconds", 0.0)),
        more=facts,
    )


def trials_of(found: Iterable[FrozenTrial]) -> list[Trial]:
    """Optuna's trials as ours, without those that only wait.

    A sampler also draws points that are already known; those are noted with `same_as`, the number
    of the trial that tried the point, and are no trials of ours.
    """
    return [
        _trial(one)
        for one in found
        if one.state.name != "WAITING" and "same_as" not in one.user_attrs
    ]


def _trial(found: FrozenTrial) -> Trial:
    facts = with_numbers(found.user_attrs)
    return Trial(
        number=found.number,
        parameters=dict(found.params),
        state=_STATES.get(found.state.name, "running"),
        objectives=_objectives(found, facts),
        constraints=dict(found.constraints),
        device_seconds=float(facts.pop("device_seconds", 0.0)),
        started=_utc(found.datetime_start),
        finished=_utc(found.datetime_complete),
        error=facts.pop("error", None),
        facts=facts,
    )


def _objectives(found: FrozenTrial, facts: dict[str, Any]) -> Objectives | None:
    """From the note of all three, since a study of one objective has one value only."""
    noted = facts.pop("objectives", None)
    return Objectives(**noted) if noted else None


def _utc(when: datetime | None) -> datetime | None:
    """Optuna notes local time without its zone."""
    return None if when is None else when.astimezone(UTC)
