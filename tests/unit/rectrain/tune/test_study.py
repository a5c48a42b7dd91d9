"""The study: what is asked next, and that nothing which has ended is lost."""

from __future__ import annotations

import json
import math
import sqlite3
from types import SimpleNamespace

import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from ray.tune.utils.util import flatten_dict
from transformers import BertConfig

from rectrain.errors import ConfigError
from rectrain.train.storage import Store
from rectrain.train.usage import recorded
from rectrain.tune import study as study_module
from rectrain.tune.config import SearchConfig, SpaceConfig
from rectrain.tune.search import _Questions, _scheduler
from rectrain.tune.space import Space
from rectrain.tune.study import Result, SearchStudy, read_result, write_result
from rectrain.tune.trials import Objectives, open_study, read_facts, read_study

PARENT = BertConfig(
    num_hidden_layers=4, hidden_size=64, num_attention_heads=4, intermediate_size=128
)
SPACE = {"layers": [1, 2, 4], "heads": [1, 2, 4]}


def result(lift: float = 0.5, **more) -> Result:
    return Result(Objectives(lift, 1.0 + lift, 10.0), device_seconds=2.0, **more)


@pytest.fixture
def open_again(tmp_path):
    """A study on the same file, as a driver opens it that was killed before."""

    def opened(*, values=SPACE, **more) -> SearchStudy:
        space = SpaceConfig.model_validate(values)
        config = SearchConfig.model_validate(
            {"teacher": "t", "output": str(tmp_path), "num_trials": 6, **more}
        )
        return SearchStudy(tmp_path, config, Space.of(space, PARENT))

    return opened


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random", "grid"])
def test_no_point_is_tried_twice_and_the_search_ends(open_again, sampler):
    study, seen = open_again(sampler=sampler, num_trials=20), []
    while (question := study.ask()) is not None:
        seen.append((question.parameters["layers"], question.parameters["heads"]))
        study.tell(question.number, result(question.parameters["layers"] / 4))
    assert len(seen) == len(set(seen)) == 9  # the whole space; 20 were wanted
    assert not study.wants_more()


def test_a_grid_goes_in_order(open_again):
    study = open_again(sampler="grid")
    points = [study.ask().parameters for _ in range(4)]
    assert [(one["layers"], one["heads"]) for one in points] == [(1, 1), (1, 2), (1, 4), (2, 1)]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_smallest_shape_is_tried_first_and_once(open_again, sampler, seed):
    open_again(sampler=sampler, seed=seed)  # a driver that was killed before its first trial
    study = open_again(sampler=sampler, seed=seed)
    tried = [study.ask().parameters for _ in range(4)]
    smallest = {"layers": 1, "heads": 1}
    assert [smallest.items() <= one.items() for one in tried] == [True, False, False, False]


def test_it_ends_after_enough_trials_failed_ones_among_them(open_again):
    study = open_again(num_trials=2)
    first, second = study.ask(), study.ask()
    study.tell(first.number, Result(error="ValueError: no"))
    study.tell(second.number, result())
    assert study.ask() is None and len(study.finished()) == 2
    assert [one.state for one in study.trials()] == ["failed", "complete"]
    assert study.trials()[0].error == "ValueError: no"


def test_it_ends_when_the_budget_is_spent(open_again):
    study = open_again(budget_s=7.0)
    study.note(preparation_seconds=4.0)
    study.tell(study.ask().number, result())
    study.tell(study.ask().number, result())
    assert study.spent_s() == 8.0 and study.ask() is None


def test_what_was_told_is_what_the_file_says(open_again, tmp_path):
    study = open_again()
    study.note(way="elastic", currency="EUR", preparation_seconds=3.0, reference=[0.0, 9.0, 9.0])
    question = study.ask()
    told = result(0.25, constraints={"p99_ms": 0.5}, facts={"num_bytes": 7})
    study.tell(question.number, told)
    (trial,) = read_study(tmp_path / "study.db")
    assert trial.parameters == question.parameters and trial.objectives == told.objectives
    assert trial.constraints == {"p99_ms": 0.5} and not trial.is_feasible
    assert trial.facts == {"num_bytes": 7} and trial.device_seconds == 2.0
    assert trial.started < trial.finished
    facts = read_facts(tmp_path / "study.db")
    assert (facts.way, facts.currency, facts.reference) == ("elastic", "EUR", (0.0, 9.0, 9.0))


def test_a_killed_driver_loses_no_result_and_asks_again_what_was_unfinished(open_again, tmp_path):
    study = open_again()
    told, written, unfinished = study.ask(), study.ask(), study.ask()
    study.tell(told.number, result(0.1))
    write_result(tmp_path, written.number, result(0.2))  # its process ended after the driver
    again = open_again()
    assert [one.objectives.mean_lift for one in again.finished()] == [0.1, 0.2]
    assert again.ask() == unfinished
    fresh = again.ask()
    assert fresh.number not in (told.number, written.number, unfinished.number)
    assert len(again.trials()) == 4


class Killed(Exception):
    """The driver's end."""


@pytest.mark.parametrize(
    ("sampler", "owner", "reached"),
    [
        ("grid", SearchStudy, "_asked"),
        ("random", SearchStudy, "_asked"),
        ("tpe", SearchStudy, "_drop"),
        ("tpe", study_module, "_state"),
    ],
    ids=["next-enqueued", "any-enqueued", "known-drawn", "known-marked"],
)
def test_a_driver_that_is_killed_while_it_draws_repeats_no_point(
    open_again, tmp_path, monkeypatch, sampler, owner, reached
):
    """In `_drop`, the state comes after the mark."""
    asked = {}

    def ask_all(study) -> None:
        while (question := study.ask()) is not None:
            asked[question.number] = (question.parameters["layers"], question.parameters["heads"])

    def killed(*_, **__):
        raise Killed

    first = open_again(sampler=sampler, num_trials=20)
    with monkeypatch.context() as patch:
        patch.setattr(owner, reached, killed)
        with pytest.raises(Killed):
            ask_all(first)
    again = open_again(sampler=sampler, num_trials=20)
    ask_all(again)
    assert len(asked) == len(set(asked.values())) == 9
    assert asked.keys() == {one.number for one in again.trials()}
    for number in asked:
        again.tell(number, result())
    left = [one.state.name for one in open_study(tmp_path / "study.db").trials]
    assert not {"WAITING", "RUNNING"} & set(left)


def generations(root) -> dict[int, int | None]:
    """Number of a trial of ours -> its generation in NSGA-II."""
    drawn = open_study(root / "study.db").trials
    key = "NSGAIISampler:generation"
    return {
        one.number: one.system_attrs.get(key) for one in drawn if "same_as" not in one.user_attrs
    }


def ask_and_tell(study, root, *, up_to=100) -> None:
    """Tries points one after the other; the result is a function of the point."""
    while len(study.trials()) < up_to and (question := study.ask()) is not None:
        write_result(root, question.number, result(question.parameters["layers"] / 4))
        study.tell(question.number, read_result(root, question.number))


@pytest.mark.parametrize("values", [SPACE, {"layers": [1, 2, 3, 4], "heads": [1, 2, 4]}])
def test_every_trial_of_nsga2_has_a_generation(open_again, tmp_path, values):
    """The smallest, which is enqueued, and those that are drawn in the place of known ones, too."""
    ask_and_tell(open_again(sampler="nsga2", num_trials=12, values=values), tmp_path)
    found = list(generations(tmp_path).values())
    assert found == [place // 4 for place in range(len(found))] and len(found) >= 9


@pytest.mark.parametrize("num_told", [1, 3, 4, 6])
def test_a_restored_search_by_nsga2_goes_on_with_its_generation(
    open_again, tmp_path, monkeypatch, num_told
):
    """Of a driver that was killed between the drawing of a point and its mark."""
    values = {"layers": [1, 2, 3, 4], "heads": [1, 2, 4]}

    def opened() -> SearchStudy:
        return open_again(sampler="nsga2", num_trials=12, values=values)

    def killed(*_, **__):
        raise Killed

    first = opened()
    ask_and_tell(first, tmp_path, up_to=num_told)
    number = len(open_study(tmp_path / "study.db").trials)
    with monkeypatch.context() as patch:
        patch.setattr(SearchStudy, "_mark_generation", killed)
        with pytest.raises(Killed):
            first._unseen()
    if num_told % 2:
        write_result(tmp_path, number, result(0.5))
    ask_and_tell(opened(), tmp_path)
    assert list(generations(tmp_path).values()) == [place // 4 for place in range(12)]


def test_a_point_whose_process_died_is_tried_once_more(open_again, tmp_path):
    study, told = open_again(num_trials=2), []
    questions = _Questions(study, tmp_path, told=told.append)
    first, second = questions.suggest("a"), questions.suggest("b")
    assert questions.suggest("c") is None  # not the end: one of these may have to be asked again
    questions.on_trial_complete("a", error=True)
    assert told == [] and questions.suggest("c") == first
    write_result(tmp_path, second["number"], result(0.3))
    questions.on_trial_complete("b", error=True)  # it died when it had written what it found
    questions.on_trial_complete("c", error=True)
    assert told == [second["number"], first["number"]]
    assert [one.state for one in study.trials()] == ["failed", "complete"]
    assert "2 times" in study.trials()[0].error
    assert questions.suggest("d") == Searcher.FINISHED


def note_life(root, number) -> None:
    """What a process of a trial leaves that was killed."""
    with recorded(Store.open(str(root)), work="tune", label=f"trial {number}", num_threads=1000,
                  on_gpu=False):  # fmt: skip
        pass


def test_a_trial_that_failed_says_why_and_what_it_took(open_again, tmp_path):
    study = open_again()
    questions = _Questions(study, tmp_path, told=[].append)
    number = questions.suggest("a")["number"]
    failed = Result(error="ValueError: no", device_seconds=3.0)
    last = {"result": json.dumps(failed.to_json()), "config": {"number": number}}
    questions.on_trial_complete("a", flatten_dict(last))  # as Tune hands it over
    (trial,) = study.finished()
    assert (trial.state, trial.error, trial.device_seconds) == ("failed", "ValueError: no", 3.0)


def test_trials_that_died_or_ended_early_count_what_their_processes_noted(open_again, tmp_path):
    study = open_again()
    questions = _Questions(study, tmp_path, told=[].append)
    pruned, died = (questions.suggest(name)["number"] for name in ("a", "b"))
    for number in (pruned, died):
        note_life(tmp_path, number)
    questions.on_trial_complete("a", {"mean_lift": 0.1234, "step": 30})
    questions.on_trial_complete("b", error=True)
    assert questions.suggest("c")["number"] == died
    questions.on_trial_complete("c", error=True)
    first, second = study.finished()
    assert (first.state, second.state) == ("pruned", "failed")
    assert first.error == "lift 0.123 at step 30: behind others, ended early"
    assert first.device_seconds > 0 and second.device_seconds > 0
    assert study.spent_s() == first.device_seconds + second.device_seconds


class Asha:
    """The scheduler of a search, as Tune asks it."""

    def __init__(self, *, num_steps: int, interval: int) -> None:
        train = {"num_steps": num_steps, "evaluate_interval": interval}
        self._scheduler = _scheduler(
            SearchConfig.model_validate(
                {"teacher": "t", "output": "o", "way": "separate", "objective": "mean_lift",
                 "asha": True, "train": train}
            )
        )  # fmt: skip

    def trial(self, name: str) -> SimpleNamespace:
        trial = SimpleNamespace(trial_id=name)
        self._scheduler.on_trial_add(None, trial)
        return trial

    def ends(self, trial: SimpleNamespace, **result) -> bool:
        return self._scheduler.on_trial_result(None, trial, result) == TrialScheduler.STOP


@pytest.mark.parametrize(("num_steps", "interval"), [(100, 30), (100, 50), (80, 10), (90, 30)])
def test_asha_ends_no_trial_that_is_ahead_nor_any_for_having_come_far(num_steps, interval):
    asha = Asha(num_steps=num_steps, interval=interval)
    on_the_way = range(interval, num_steps, interval)
    for lift in (0.1, 0.2, 0.3):
        trial = asha.trial(f"{lift}")
        for reports, step in enumerate(on_the_way, start=1):
            assert not asha.ends(trial, mean_lift=lift, step=step, training_iteration=reports)
        assert not asha.ends(trial, mean_lift=lift, training_iteration=reports + 1)  # its result


def test_asha_compares_trials_at_the_same_steps():
    asha = Asha(num_steps=80, interval=10)
    first = asha.trial("first")
    for step, lift in ((10, 0.1), (20, 0.2), (40, 0.4)):
        assert not asha.ends(first, mean_lift=lift, step=step, training_iteration=step // 10)
    restored = asha.trial("restored")  # its first report is that of a later step
    assert asha.ends(restored, mean_lift=0.3, step=40, training_iteration=1)
    behind = asha.trial("behind")
    assert asha.ends(behind, mean_lift=0.05, step=10, training_iteration=1)


def test_a_search_of_which_trials_end_early_goes_on(open_again):
    study = open_again(way="separate", objective="mean_lift", num_trials=9, limits={"p99_ms": 20})
    for place in range(9):
        question = study.ask()
        pruned = place % 3 == 2
        found = Result() if pruned else result(0.1, constraints={"p99_ms": -0.5})
        study.tell(question.number, found, pruned=pruned)
    assert [one.state for one in study.trials()].count("pruned") == 3
    assert study.ask() is None


def test_a_result_is_told_once(open_again):
    study = open_again()
    number = study.ask().number
    study.tell(number, result(0.1))
    study.tell(number, result(0.9))
    assert study.trials()[0].objectives.mean_lift == 0.1


def test_a_study_that_goes_on_does_not_repeat_its_first_draws(open_again, tmp_path):
    first = open_again().ask()
    study = open_again()
    assert study.ask() == first
    study.tell(first.number, result())
    for _ in range(3):
        study.ask()
    drawn = open_study(tmp_path / "study.db").trials
    assert first.number not in [one.user_attrs.get("same_as") for one in drawn]


def test_another_space_is_refused(open_again):
    open_again()
    with pytest.raises(ConfigError, match="space: got another one"):
        open_again(values={"layers": [1]})


def test_one_objective_has_one_value_and_the_file_still_has_all_three(open_again, tmp_path):
    study = open_again(way="separate", objective="mean_lift")
    study.tell(study.ask().number, result(0.5))
    assert open_study(tmp_path / "study.db").trials[0].values == [0.5]
    assert read_study(tmp_path / "study.db")[0].objectives == Objectives(0.5, 1.5, 10.0)


def test_a_trial_that_a_scheduler_ended_is_pruned(open_again):
    study = open_again(way="separate", objective="mean_lift")
    study.tell(study.ask().number, Result(), pruned=True)
    assert study.trials()[0].state == "pruned"


def test_a_written_result_is_read_back_and_an_unwritten_one_is_none(tmp_path):
    told = result(0.3, constraints={"a": -1.0}, facts={"values": {"risk": 0.5}})
    assert read_result(tmp_path, 3) is None
    write_result(tmp_path, 3, told)
    assert read_result(tmp_path, 3) == told


def test_what_is_no_number_is_null_for_others_and_nan_for_us(open_again, tmp_path):
    """As of a model whose training diverged."""
    study = open_again()
    number, nan = study.ask().number, math.nan
    told = Result(
        Objectives(nan, 1.0, 10.0), constraints={"p99_ms": nan},
        facts={"values": {"risk": nan, "ad_ctr": 0.5}},
    )  # fmt: skip
    write_result(tmp_path, number, told)
    (file,) = (tmp_path / "trials").glob("*.json")
    stored = json.loads(file.read_bytes(), parse_constant=pytest.fail)
    assert stored["facts"]["values"] == {"risk": None, "ad_ctr": 0.5}
    found = read_result(tmp_path, number)
    assert repr(found) == repr(told)  # NaN is not equal to itself
    study.tell(number, found)
    with sqlite3.connect(tmp_path / "study.db") as database:
        texts = [row[0] for row in database.execute("SELECT value_json FROM trial_user_attributes")]
    assert len(texts) >= 4
    for text in texts:
        json.loads(text, parse_constant=pytest.fail)
    (trial,) = read_study(tmp_path / "study.db")
    assert trial.state == "failed"  # Optuna takes none of it
    assert math.isnan(trial.objectives.mean_lift) and trial.objectives.p99_ms == 10.0
    assert math.isnan(trial.facts["values"]["risk"]) and trial.facts["values"]["ad_ctr"] == 0.5
