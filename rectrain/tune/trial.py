"""What one trial does, in a process of its own: from a question to its result."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from rectrain.compress.runs import train_run
from rectrain.config import dump_config, parse_yaml
from rectrain.errors import without_credentials
from rectrain.train.storage import Store
from rectrain.train.usage import read_usage, recorded
from rectrain.tune.config import SearchConfig
from rectrain.tune.objective import lifts
from rectrain.tune.runs import separate_run
from rectrain.tune.stopwatch import busy, training
from rectrain.tune.study import Question, Result, read_result, write_result
from rectrain.tune.workbench import Workbench

__all__ = ["answer", "noted_s"]

Report = Callable[[Mapping[str, Any]], None]


def answer(config: SearchConfig, question: Question, *, report: Report) -> Result:
    """Tries a point, and writes what came of it before anybody is told.

    What fails becomes a result with an error: one trial's failure is no failure of the search. It
    is told and not written: a process that is ended with its driver sees errors, too, and its trial
    is to be run again.

    Args:
        config: of the search, with absolute paths.
        question: the point.
        report: is given {"mean_lift": …, "step": …} at validations on the way, of a separate trial
            with ASHA. Not at the last one: what has trained to its end is judged.

    Returns:
        The result; that of an earlier life of this trial, if it had come so far.
    """
    root = Path(config.output)
    found = read_result(root, question.number)
    if found is None:
        before_s = _own_s(root, question.number)  # of a life that was killed
        try:
            found = _tried(config, question, report=report)
        except Exception as error:
            spent_s = noted_s(root, question.number)
            return Result(error=_line(error), device_seconds=spent_s)
        found = replace(found, device_seconds=found.device_seconds + before_s)
        write_result(root, question.number, found)
    return found


def noted_s(root: Path, number: int) -> float:
    """Device-seconds that all processes of a trial have noted so far; those of a killed life lack
    its last two seconds at most.

    Args:
        root: the search's folder.
        number: the trial's.
    """
    return _own_s(root, number) + _run_s(_folder(root, number) / "run")


def _own_s(root: Path, number: int) -> float:
    """Of a trial's own processes, without its training's workers."""
    lives = read_usage(Store.open(str(root)))
    return sum(life.device_seconds for life in lives if life.label == _label(number))


def _run_s(run: Path) -> float:
    return sum(life.device_seconds for life in read_usage(Store.open(str(run))))


def _label(number: int) -> str:
    return f"trial {number}"


def _folder(root: Path, number: int) -> Path:
    """Of a separate trial."""
    return root / "trials" / f"{number:04d}"


def _tried(config: SearchConfig, question: Question, *, report: Report) -> Result:
    bench = _bench(dump_config(config))
    torch.set_num_threads(config.threads_per_trial)
    if config.way == "elastic":
        with _noted(config, question):
            return _elastic(bench, question)
    return _separate(bench, question, report)


def _noted(config: SearchConfig, question: Question) -> AbstractContextManager[None]:
    """Notes what this process computes for a trial."""
    return recorded(
        Store.open(config.output),
        work="tune",
        label=_label(question.number),
        num_threads=config.threads_per_trial,
        on_gpu=False,
    )


@lru_cache(maxsize=1)
def _bench(config: str) -> Workbench:
    """Kept by a process, which answers many questions of one search."""
    return Workbench(parse_yaml(SearchConfig, config.encode(), name="the search's settings"))


def _elastic(bench: Workbench, question: Question) -> Result:
    with busy():
        began = time.monotonic()
        values = bench.sub_values(question.parameters)
        seconds = bench.config.threads_per_trial * (time.monotonic() - began)
    return bench.judged(question.parameters, values, device_seconds=seconds)


def _separate(bench: Workbench, question: Question, report: Report) -> Result:
    """Trains through Ray Train, whose workers note their own time while this process waits."""
    config, point = bench.config, question.parameters
    folder = _folder(bench.root, question.number)

    def listen(event: Mapping[str, Any]) -> None:
        if event["kind"] != "validation" or event["step"] == event["num_steps"]:
            return
        if _telling(bench) <= event["validation"].keys():
            shares = lifts(event["validation"], bench.standards)
            report({"mean_lift": sum(shares.values()) / len(shares), "step": event["step"]})

    with busy():
        began = time.monotonic()
        with _noted(config, question):
            bench.cut_encoder(bench.space.shape(point), folder / "cut")
        settings = bench.space.settings(point)
        run = separate_run(config, bench.teacher, bench.data, root=folder, settings=settings)
        seconds = time.monotonic() - began
    with training(bench.root):
        train_run(run, say=_log, listen=listen if config.asha else None)
    with busy():
        began = time.monotonic()
        with _noted(config, question):
            values = bench.run_values(folder / "run")
        seconds = config.threads_per_trial * (seconds + time.monotonic() - began)
    seconds += _run_s(folder / "run")
    noted = partial(_noted, config, question)  # not while it waits to be alone: it holds no CPU
    return bench.judged(point, values, device_seconds=seconds, noted=noted)


def _telling(bench: Workbench) -> set[str]:
    """The tasks that a lift is of."""
    return {task for task, one in bench.standards.items() if one.tells}


def _log(text: str) -> None:
    print(without_credentials(text), flush=True)  # into the trial's log, in Ray's dashboard


def _line(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}".strip()
    return " ".join(without_credentials(text).split())[:500]
