"""A search from its beginning to its chosen models, on the driver; what is done is not done again.

The super-network is trained, the yardsticks are measured, trials run until there are enough, and
the chosen models are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from rectrain.config import dump_config, yaml_mapping
from rectrain.errors import ConfigError, StorageError, without_credentials
from rectrain.train.build import open_data
from rectrain.train.selection import newest_checkpoint
from rectrain.train.storage import LOCK, Store
from rectrain.tune.chosen import choose, finish
from rectrain.tune.config import SearchConfig
from rectrain.tune.elastic import train_supernet
from rectrain.tune.pareto import hypervolume, minimised
from rectrain.tune.plan import describe_search, num_concurrent, point_text
from rectrain.tune.runs import check_settings, separate_run, supernet_run
from rectrain.tune.study import SearchStudy
from rectrain.tune.tracking import TrialTracker
from rectrain.tune.trials import DIRECTIONS, Trial, beyond, chips_of, read_study
from rectrain.tune.workbench import Workbench

__all__ = ["Session", "resolve_search"]

Say = Callable[[str], None]

_CONFIG = "tune.yaml"
# What may change between calls: it decides how far a search goes, not what a trial finds.
_FREE = ("output", "num_trials", "budget_s", "max_concurrent", "finish", "tracking")
_FAR = 2.0  # the reference point, by default: of the largest shape's cost and latency


def resolve_search(config: SearchConfig) -> SearchConfig:
    """The same with absolute paths, and the checkpoint that the teacher's run has now.

    Raises:
        CheckpointError: the teacher's run has no complete checkpoint.
    """

    def absolute(path: str) -> str:
        return path if "://" in path else str(Path(path).expanduser().absolute())

    update = {
        "teacher": newest_checkpoint(absolute(config.teacher)),
        "output": absolute(config.output),
        "data": tuple(absolute(path) for path in config.data),
    }
    return config.model_copy(update=update)


class Session:
    """One life of a search's driver.

    Args:
        config: as the user gave it.
        say: is given the lines that a user should see.

    Raises:
        RectrainError: what the user must mend first.
    """

    def __init__(self, config: SearchConfig, *, say: Say) -> None:
        self.config, self._say = resolve_search(config), say
        self.root = Path(self.config.output)
        self._store = Store.open(self.config.output)
        self._check_folder()
        self.bench = Workbench(self.config)

    def _check_folder(self) -> None:
        if not self._store.exists(_CONFIG):
            if set(self._store.entries()) - {LOCK, f".{_CONFIG}.tmp"}:
                raise ConfigError(
                    what="output",
                    got=f"{self.root}, which holds other files and no {_CONFIG}",
                    rule="only a search's own folder is written",
                    fix="give another --output",
                )
            return
        before = yaml_mapping(self._store.read(_CONFIG), name=f"{self.root}/{_CONFIG}")
        now = yaml_mapping(self._settings(), name=_CONFIG)
        changed = [
            key
            for key in sorted({*before, *now})
            if key not in _FREE and before.get(key) != now.get(key)
        ]
        if changed:
            raise ConfigError(
                what=f"search {self.root}",
                got=f"a search with another {', '.join(changed[:5])}",
                rule="a search goes on with the settings that it began with",
                fix="give another --output, or the settings of its tune.yaml",
            )

    def _settings(self) -> bytes:
        return without_credentials(dump_config(self.config)).encode()

    # --- before ----------------------------------------------------------------------------------

    def plan(self) -> str:
        """What will be done, as text; writes nothing: another driver may be at work."""
        trials: list[Trial] = []
        with suppress(StorageError):  # no study, or that of a driver that has only just begun
            trials = read_study(self.root / "study.db")
        done = sum(one.state != "running" for one in trials)
        return describe_search(self.config, self.bench.space, num_finished=done)

    def check(self, have: Mapping[str, float]) -> int:
        """How many trials a cluster holds at a time.

        Raises:
            ConfigError: no run takes the search's settings, or a value of those that are searched.
            ResourceError: not one, or not the super-network's workers.
        """
        from rectrain.train.launch import check_resources

        bench = self.bench
        given = (bench.config, bench.teacher, bench.data)
        if self.config.way == "elastic":
            run = supernet_run(*given, space=bench.space)
        else:
            run = separate_run(*given, root=self.root, settings={})
        open_data(run)
        check_settings(*given)
        check_resources(run, have)
        return num_concurrent(self.config, have)

    @contextmanager
    def begun(self) -> Iterator[None]:
        """The folder with its settings, while no other process writes it.

        Raises:
            ResourceError: another one does.
        """
        self._store.make()
        with self._store.locked():
            self._store.replace(_CONFIG, self._settings())
            yield

    @cached_property
    def study(self) -> SearchStudy:
        """The study, which this process alone writes; only within `begun`."""
        return SearchStudy(self.root, self.config, self.bench.space)

    # --- the search ------------------------------------------------------------------------------

    def search(self) -> None:
        """Runs what is left of it."""
        from rectrain.tune.search import run_search

        prepared = 0.0
        if self.config.way == "elastic":
            prepared = train_supernet(self.bench, say=self._say)
        self._say_standards()
        self.study.note(
            way=self.config.way,
            currency=self.config.price.currency,
            preparation_seconds=prepared,
            reference=list(self._reference()),
        )
        tracker = TrialTracker(self.config, say=self._say)
        tracker.catch_up(self.study.trials(), volume=self.volume)

        def told(number: int) -> None:
            trials = self.study.trials()
            trial = next(one for one in trials if one.number == number)
            volume = self.volume(trials)
            tracker.record(trial, hypervolume=volume)
            self._say(self._line(trial, len(self.study.finished()), volume))

        if self.study.wants_more():
            run_search(self.config, self.study, told=told)
        if len(chips := chips_of(self.study.trials())) > 1:
            self._say(
                f"warning: trials were timed on {', '.join(chips)}: cost and p99 of one don't "
                "compare with those of another"
            )

    def _say_standards(self) -> None:
        for task, one in self.bench.standards.items():
            out = "" if one.tells else ": no better than chance by a standard error, left out"
            self._say(
                f"{task}: {one.metric} {one.trivial:.4f} of a random order, "
                f"{one.teacher:.4f} of the teacher{out}"
            )

    def _reference(self) -> tuple[float, ...]:
        """The reference point of the study: that of the configuration, or measured once."""
        if self.config.reference is not None:
            return self.config.reference
        noted = self.study.facts.get("reference")
        if noted:
            return tuple(noted)
        found = self.bench.latency(self.bench.space.largest)
        cost = self.bench.cost_per_1000(found)
        return (0.0, _FAR * cost, _FAR * found.p99_ms)

    def volume(self, trials: list[Trial]) -> float:
        """Hypervolume of the feasible trials so far."""
        signs = [one == "maximize" for one in DIRECTIONS]
        values = [one.objectives.values() for one in trials if one.objectives and one.is_feasible]
        reference = minimised([self.study.facts["reference"]], maximise=signs)[0]
        return hypervolume(minimised(values, maximise=signs), reference=reference)

    def _line(self, trial: Trial, done: int, volume: float) -> str:
        head = f"trial {done}/{self.config.num_trials} (number {trial.number}): "
        if trial.objectives is None:
            return f"{head}{point_text(trial.parameters)}: {trial.error or trial.state}"
        lift, cost, p99 = trial.objectives.values()
        broken = beyond(trial.constraints)
        return (
            f"{head}{point_text(trial.parameters)}: lift {lift:.3f}, cost {cost:.4g} "
            f"{self.config.price.currency}, p99 {p99:.1f} ms"
            + (f" (beyond {', '.join(broken)})" if broken else "")
            + f"; hypervolume {volume:.4g}"
        )

    # --- the end ---------------------------------------------------------------------------------

    def finish(self) -> dict[str, dict[str, Any]]:
        """Makes the chosen models; name -> what `chosen.finish` says of it."""
        chosen = choose(self.study.trials(), self.config.finish)
        if not chosen and self.config.finish.models:
            self._say("no trial ended well within the limits: there is nothing to package")
        return {name: finish(self.bench, trial, say=self._say) for name, trial in chosen.items()}
