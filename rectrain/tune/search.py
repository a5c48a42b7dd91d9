"""The search on Ray Tune: trials side by side, questions and answers through our own study.

Ray's own OptunaSearch keeps what it knows in a pickle beside Tune's, which is behind by some
seconds after a kill, and can't tell constraints. So Tune only runs trials here; what is known is
in the study's file alone, and nothing of Tune's is ever restored.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search import Searcher
from ray.util.metrics import Gauge

from rectrain.strict_json import finite
from rectrain.train.storage import Store
from rectrain.tune.config import SearchConfig
from rectrain.tune.plan import num_concurrent, trial_resources
from rectrain.tune.study import Question, Result, SearchStudy, read_result
from rectrain.tune.trial import answer, noted_s

__all__ = ["run_search"]

_LIVES = 2
_DIED = f"its process ended without a word (killed, or out of memory), {_LIVES} times"
_FOLDER = "ray"


def run_search(config: SearchConfig, study: SearchStudy, *, told: Callable[[int], None]) -> None:
    """Runs trials on the connected Ray cluster until the study has enough of them.

    What separate trials leave that end early is the caller's; see `leftovers.removing_leftovers`.

    Args:
        config: of the search, with absolute paths.
        study: asks and is told; only this process writes it.
        told: is called with the number of each trial that has ended.

    Raises:
        ResourceError: the cluster can't hold one trial.
    """
    # Read by Tune as it starts: our own trackers write, our own lines are printed, and Ctrl-C ends
    # the driver as it should.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # A trial that failed reports no lift, and would end the whole search.
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it misses the files of its loggers
    have = ray.cluster_resources()  # type: ignore[no-untyped-call]
    at_once = num_concurrent(config, have)
    Store.open(config.output).remove(_FOLDER)
    any_tune: Any = tune
    trainable = any_tune.with_resources(
        any_tune.with_parameters(_trial, config=config), trial_resources(config)
    )
    left = config.num_trials - len(study.finished())
    tuner = any_tune.Tuner(
        trainable,
        tune_config=any_tune.TuneConfig(
            search_alg=_Questions(study, Path(config.output), told=told),
            scheduler=_scheduler(config),
            num_samples=_LIVES * max(1, left),  # the study says when there are enough
            max_concurrent_trials=at_once,
            # A process that has loaded the teacher and the rows answers the next question, too.
            reuse_actors=config.way == "elastic",
        ),
        run_config=any_tune.RunConfig(
            name="tune",
            storage_path=f"{config.output}/{_FOLDER}",
            verbose=0,
            # A process that dies while it is made ready for its next trial fails that for good,
            # whatever is said here; so the study asks again.
            failure_config=any_tune.FailureConfig(max_failures=0),
        ),
    )
    tuner.fit()


def _trial(given: Mapping[str, Any], *, config: SearchConfig) -> None:
    """What Tune runs in a process of its own."""
    question = Question(given["number"], given["parameters"])
    found = answer(config, question, report=lambda found: tune.report(dict(found)))
    # As text: of a mapping Tune makes an entry for each of its keys.
    # Numbers alone: Tune writes JSON of it, and schedulers compare.
    stored = finite(found.to_json())
    known = stored["objectives"] or {}
    told = {name: value for name, value in known.items() if value is not None}
    tune.report({"result": json.dumps(stored), **told})


def _scheduler(config: SearchConfig) -> Any:
    """ASHA by the lift at validations, where it is asked for; else every trial comes to its end.

    Trials are compared at the same steps, and not by how many reports they made: one that was
    killed goes on from a checkpoint. None is stopped for having come far enough: its last report is
    its result.
    """
    if not config.asha:
        return None
    interval = config.train.evaluate_interval
    assert interval is not None, "see SearchConfig"
    return AsyncHyperBandScheduler(
        time_attr="step", metric="mean_lift", mode="max",
        grace_period=interval, max_t=config.train.num_steps,
        reduction_factor=2, stop_last_trials=False,
    )  # fmt: skip


class _Questions(Searcher):
    """Our study in the place of one of Tune's searchers.

    Args:
        study: of the search.
        root: its folder.
        told: is called with the number of each trial that has ended.
    """

    def __init__(self, study: SearchStudy, root: Path, *, told: Callable[[int], None]) -> None:
        super().__init__(metric="mean_lift", mode="max")
        self._study, self._root, self._told = study, root, told
        self._asked: dict[str, Question] = {}  # Tune's name of a trial that runs -> its question
        self._deaths: Counter[int] = Counter()
        self._gauges = {
            name: Gauge(f"rectrain_tune_{name}", description=text)
            for name, text in (
                ("finished", "Trials that have ended"),
                ("device_seconds", "Device-seconds spent"),
            )
        }

    def suggest(self, trial_id: str) -> Any:
        """The next question's number and point; None while the last ones run, of which one may have
        to be asked again."""
        question = self._study.ask()
        if question is None:
            return None if self._asked else Searcher.FINISHED
        self._asked[trial_id] = question
        return {"number": question.number, "parameters": dict(question.parameters)}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tells the study; what was killed or ended early has no result, but took its time."""
        question = self._asked.pop(trial_id)
        number = question.number
        found = read_result(self._root, number)
        if found is None and result and "result" in result:
            found = Result.from_json(json.loads(result["result"]))  # of one that failed
        if found is None and error:
            self._deaths[number] += 1
            if self._deaths[number] < _LIVES:
                self._study.ask_again(question)
                return
        pruned = found is None and not error
        if found is None:
            why = _behind(result or {}) if pruned else _DIED
            found = Result(error=why, device_seconds=noted_s(self._root, number))
        self._study.tell(number, found, pruned=pruned)
        self._gauges["finished"].set(len(self._study.finished()))
        self._gauges["device_seconds"].set(self._study.spent_s())
        self._told(number)

    def __reduce__(self) -> tuple[Any, ...]:
        return Searcher, ()  # Tune stores itself with it, and is never restored

    def save(self, checkpoint_path: str) -> None:
        """The study's file has all of it."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the study is opened from its file."""


def _behind(last: Mapping[str, Any]) -> str:
    """Why ASHA ended a trial, by the last report of it."""
    if "mean_lift" not in last:
        return "ended early"
    return f"lift {last['mean_lift']:.3f} at step {last['step']}: behind others, ended early"
