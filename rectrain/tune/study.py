"""The study: which point comes next, and what came of those that were tried. All of it is a file.

Optuna's database holds every trial; a trial's own file, which its process writes, holds what it
found before the study knows. So a kill of any process at any moment loses no finished trial.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rectrain.errors import ConfigError
from rectrain.strict_json import finite, strict_json
from rectrain.train.storage import Store
from rectrain.tune.config import SearchConfig
from rectrain.tune.space import Point, Space
from rectrain.tune.trials import (
    DIRECTIONS,
    STUDY,
    Objectives,
    Trial,
    study_url,
    trials_of,
    with_numbers,
)

if TYPE_CHECKING:
    import optuna

__all__ = ["Question", "Result", "SearchStudy", "read_result", "write_result"]

_FOLDER = "trials"
_TRIES = 10  # points that are already known, before an unknown one is drawn
_SPACE = "space"  # what the study was begun with


@dataclass(frozen=True)
class Question:
    """A point to try, as the trial of this number."""

    number: int
    parameters: Point


@dataclass(frozen=True)
class Result:
    """What came of a trial, as its process writes it.

    Attributes:
        objectives: of one that ended well.
        constraints: name -> by what share it is exceeded.
        device_seconds: threads × seconds.
        facts: further, JSON-serialisable.
        error: one line, of one that failed or was ended early.
    """

    objectives: Objectives | None = None
    constraints: Mapping[str, float] = field(default_factory=dict)
    device_seconds: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON-serialisable; see `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        stored = with_numbers(stored)
        given = stored["objectives"]
        return cls(**{**stored, "objectives": Objectives(**given) if given else None})


def write_result(root: Path, number: int, result: Result) -> None:
    """Writes what came of a trial, at once and lastingly."""
    store = Store.open(str(root / _FOLDER))
    store.replace(f"{number:04d}.json", strict_json(result.to_json()).encode())


def read_result(root: Path, number: int) -> Result | None:
    """What came of a trial; None while nothing is written."""
    path = root / _FOLDER / f"{number:04d}.json"
    return Result.from_json(json.loads(path.read_bytes())) if path.exists() else None


class SearchStudy:
    """The study of a search.

    Args:
        root: the search's folder; study.db is there.
        config: of the search.
        space: its points.

    Raises:
        ConfigError: the folder's study is of another space.
    """

    def __init__(self, root: Path, config: SearchConfig, space: Space) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._root, self._config, self._space = root, config, space
        self._study = optuna.create_study(
            study_name=STUDY,
            storage=study_url(root / "study.db"),
            directions=list(DIRECTIONS if config.objective == "all" else DIRECTIONS[:1]),
            load_if_exists=True,
        )
        self._check_space()
        self._study.sampler = self._sampler(len(self._study.get_trials(deepcopy=False)))
        self._unfinished = self._adopted()

    def _check_space(self) -> None:
        values = {name: list(v) for name, v in self._space.values.items()}
        begun = self._study.user_attrs.get(_SPACE)
        if begun is None:
            self._study.set_user_attr(_SPACE, values)
        elif begun != values:
            raise ConfigError(
                what="space",
                got=f"another one than {self._root}/study.db was begun with",
                rule="a study's trials are of one space",
                fix="give another --output, or the space that it began with",
            )

    def _sampler(self, num_known: int) -> optuna.samplers.BaseSampler:
        """Of a study that goes on it doesn't draw again what it drew at first."""
        import optuna

        config, seed = self._config, self._config.seed + num_known
        startup = max(4, min(10, config.num_trials // 4))
        if config.sampler == "tpe":
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
        if config.sampler == "nsga2":
            population = max(4, min(50, config.num_trials // 4))
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=population)
        return optuna.samplers.RandomSampler(seed=seed)

    def _adopted(self) -> list[Question]:
        """Tells what trials wrote before their driver died; returns those that didn't finish.

        What it was drawing as it died is dropped: rows that wait or have half a point, and points
        that another trial tries, whether it had marked them or not.
        """
        left: list[Question] = []
        begun: dict[str, int] = {}  # point -> number of the first trial of it
        for trial in self._study.get_trials(deepcopy=False):
            is_whole = trial.params.keys() == self._space.values.keys()
            first = begun.setdefault(_key(trial.params), trial.number) if is_whole else -1
            if trial.state.is_finished():
                continue
            if is_whole and trial.state.name == "RUNNING":
                self._mark_generation(trial._trial_id)
            found = read_result(self._root, trial.number)
            if found is not None:
                self.tell(trial.number, found)
            elif first == trial.number:
                left.append(Question(trial.number, dict(trial.params)))
            else:
                self._drop(trial.number, known=first)
        return left

    # --- questions -------------------------------------------------------------------------------

    def ask(self) -> Question | None:
        """The next point to try; None where enough were tried, or all."""
        if self._unfinished:
            return self._unfinished.pop(0)
        if not self.wants_more():
            return None
        if self._config.sampler in ("random", "grid"):
            return self._unseen()
        if self._config.objective == "all" and not self.trials():
            self._study.enqueue_trial(self._space.smallest)  # no front is without the cheapest
        for _ in range(_TRIES):
            question = self._asked()
            known = self._numbers(but=question.number).get(_key(question.parameters))
            if known is None:
                return question
            self._drop(question.number, known=known)
        return self._unseen()

    def ask_again(self, question: Question) -> None:
        """Gives a question back whose process died: it is the next to be asked."""
        self._unfinished.append(question)

    def _asked(self) -> Question:
        trial = self._study.ask(self._space.distributions())
        self._mark_generation(trial._trial_id)
        return Question(trial.number, dict(trial.params))

    def _mark_generation(self, trial_id: int) -> None:
        """Counts a trial in NSGA-II's generation of now, where it has none; nothing is drawn.

        Optuna marks a trial as it draws a parameter of it, and breeds of marked trials alone. A
        point that was enqueued, or has one value for each parameter, has nothing to draw; nor has
        one whose driver died before the mark.
        """
        if self._config.sampler == "nsga2":
            sampler: Any = self._study.sampler
            sampler.get_trial_generation(self._study, self._study._storage.get_trial(trial_id))

    def _drop(self, number: int, *, known: int) -> None:
        """Makes no trial of a point that trial `known` tries; see `trials.trials_of`."""
        self._note(number, {"same_as": known})  # first: what has ended can't be noted of
        # Optuna is told of running trials alone, and this one may still wait.
        self._study._storage.set_trial_state_values(self._trial_id(number), _state("FAIL"))

    def _unseen(self) -> Question | None:
        """A point that was not tried: of a grid the next, else any."""
        known = self._numbers()
        points = [point for point in self._space.points() if _key(point) not in known]
        if not points:
            return None
        generator = random.Random(f"{self._config.seed} {len(known)}")
        chosen = points[0] if self._config.sampler == "grid" else generator.choice(points)
        self._study.enqueue_trial(chosen)
        return self._asked()

    def _numbers(self, *, but: int = -1) -> dict[str, int]:
        """Point -> number of its trial."""
        return {_key(one.parameters): one.number for one in self.trials() if one.number != but}

    def wants_more(self) -> bool:
        """Whether a trial is left to be run."""
        if self._unfinished:
            return True
        enough = len(self.trials()) >= self._config.num_trials or self._is_spent()
        return not enough and len(self._numbers()) < self._space.size

    def _is_spent(self) -> bool:
        return self._config.budget_s is not None and self.spent_s() >= self._config.budget_s

    # --- answers ---------------------------------------------------------------------------------

    def tell(self, number: int, result: Result, *, pruned: bool = False) -> None:
        """Says what came of a trial; once it is known, a second time changes nothing."""
        trial = next(one for one in self._study.get_trials(deepcopy=False) if one.number == number)
        if trial.state.is_finished():
            return
        found = result.objectives
        if found is not None and result.error is None and not _is_told(found, result.constraints):
            result = replace(result, error="an objective, or what it exceeds, is no number")
        notes = {"device_seconds": result.device_seconds, **result.facts}
        if result.error is not None:
            notes["error"] = result.error
        if found is not None:
            notes["objectives"] = asdict(found)
        self._note(number, notes)
        if found is None or result.error is not None:
            self._study.tell(number, state=_state("PRUNED" if pruned else "FAIL"))
            return
        import optuna

        told = optuna.trial.Trial(self._study, trial._trial_id)
        for name, excess in result.constraints.items():
            told.set_constraint(name, excess)
        values = found.values() if self._config.objective == "all" else found.values()[:1]
        self._study.tell(told, list(values))

    def _note(self, number: int, notes: Mapping[str, Any]) -> None:
        trial_id = self._trial_id(number)
        for key, value in notes.items():
            self._study._storage.set_trial_user_attr(trial_id, key, finite(value))

    def _trial_id(self, number: int) -> int:
        trials = self._study.get_trials(deepcopy=False)
        return next(one._trial_id for one in trials if one.number == number)

    def note(self, **facts: Any) -> None:
        """Notes facts of the whole study, as of `trials.StudyFacts`."""
        for key, value in facts.items():
            if self._study.user_attrs.get(key) != value:
                self._study.set_user_attr(key, value)

    @property
    def facts(self) -> dict[str, Any]:
        """What was noted."""
        return dict(self._study.user_attrs)

    # --- what is known ---------------------------------------------------------------------------

    def trials(self) -> list[Trial]:
        """All trials that have begun."""
        return trials_of(self._study.get_trials(deepcopy=False))

    def finished(self) -> list[Trial]:
        """Those that have ended, well or not."""
        return [one for one in self.trials() if one.state != "running"]

    def spent_s(self) -> float:
        """Device-seconds of the preparation and of all trials."""
        prepared = float(self._study.user_attrs.get("preparation_seconds", 0.0))
        return prepared + sum(one.device_seconds for one in self.trials())


def _is_told(found: Objectives, constraints: Mapping[str, float]) -> bool:
    """Whether Optuna takes them: it refuses NaN."""
    return all(map(math.isfinite, (*found.values(), *constraints.values())))


def _key(point: Point) -> str:
    return json.dumps(dict(sorted(point.items())))


def _state(name: str) -> Any:
    import optuna

    return optuna.trial.TrialState[name]
