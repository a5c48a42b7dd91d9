"""Who computes, trains and is timed: none beside another's clock, none overtaken, none for ever."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest

from rectrain.errors import StorageError
from rectrain.tune import stopwatch
from rectrain.tune.stopwatch import alone, busy, training

PATIENCE_S = 600.0
SPAWN = multiprocessing.get_context("spawn")


def test_who_waits_long_says_for_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stopwatch, "_SILENT_S", 0.05)
    with busy(), busy():
        time.sleep(0.2)
    assert capsys.readouterr().out == ""
    entered, leave = threading.Event(), threading.Event()

    def compute() -> None:
        with busy():
            entered.set()
            leave.wait(20)

    first = threading.Thread(target=compute)
    first.start()
    entered.wait(20)
    release = threading.Timer(0.5, leave.set)
    release.start()
    with alone(tmp_path):
        pass
    first.join()
    assert capsys.readouterr().out.startswith("tune: waits for another trial or search")


def test_who_measures_waits_for_all_who_compute_and_they_for_it(tmp_path: Path) -> None:
    order: list[str] = []
    entered, leave = threading.Event(), threading.Event()

    def compute() -> None:
        with busy():
            entered.set()
            leave.wait(20)
            order.append("computed")

    def measure() -> None:
        with alone(tmp_path):
            order.append("measured")

    first = threading.Thread(target=compute)
    first.start()
    assert entered.wait(20)
    with busy():  # beside the other one
        order.append("computed")
    second = threading.Thread(target=measure)
    second.start()
    second.join(0.2)
    assert order == ["computed"] and second.is_alive()
    leave.set()
    first.join(20)
    second.join(20)
    assert order == ["computed", "computed", "measured"]


def test_the_lock_is_a_file_of_this_user_alone(tmp_path: Path) -> None:
    with busy():
        (lock,) = (tmp_path / "locks").glob("*.stopwatch")
    assert lock.stat().st_mode & 0o777 == 0o600
    lock.unlink()
    (tmp_path / "mine").write_text("kept")
    lock.symlink_to(tmp_path / "mine")
    with (
        pytest.raises(StorageError, match=r"lock file: got .*stopwatch \(a symbolic link\)"),
        busy(),
    ):
        pass
    assert (tmp_path / "mine").read_text() == "kept"


def test_a_search_is_not_timed_beside_its_training_and_another_search_is(tmp_path: Path) -> None:
    order: list[str] = []

    def measure() -> None:
        with alone(tmp_path / "one"):
            order.append("timed")

    waiting = threading.Thread(target=measure)
    with training(tmp_path / "one"):
        waiting.start()
        waiting.join(0.3)
        with busy():  # what waits for the training keeps nobody from computing
            order.append("computed")
        with alone(tmp_path / "other"):
            order.append("another was timed")
        order.append("trained")
    waiting.join(PATIENCE_S)
    assert order == ["computed", "another was timed", "trained", "timed"]


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        (lambda root: busy(), alone),
        (lambda root: busy(), training),
        (training, alone),
        (alone, training),
        (alone, alone),
    ],
    ids=["busy-alone", "busy-training", "training-alone", "alone-training", "alone-alone"],
)
def test_who_would_wait_for_itself_is_told(
    tmp_path: Path, outer: Callable[[Path], Any], inner: Callable[[Path], Any]
) -> None:
    with (
        outer(tmp_path),
        pytest.raises(RuntimeError, match="it would wait for itself"),
        inner(tmp_path),
    ):
        pass
    with alone(tmp_path):  # all was let go of
        pass


def test_what_waits_for_nothing_is_within_anything(tmp_path: Path) -> None:
    """Also where another waits already to be alone."""
    asked = threading.Event()

    def measure() -> None:
        asked.set()
        with alone(tmp_path):
            pass

    waiting = threading.Thread(target=measure)
    with busy():
        waiting.start()
        asked.wait(PATIENCE_S)
        time.sleep(0.3)
        with busy():
            pass
    waiting.join(PATIENCE_S)
    with alone(tmp_path), busy():
        pass
    with training(tmp_path), training(tmp_path), busy():
        pass
    assert not waiting.is_alive()


# --- processes -----------------------------------------------------------------------------------

ROUNDS = 40


def relay(entered: Any, asked: Event, ahead: Any) -> None:
    """Computes again and again, and lets go only when another has come (or none comes)."""
    while ahead.value > 0:
        with busy():
            with entered.get_lock():
                entered.value += 1
                mine = entered.value
            until = time.monotonic() + 0.5
            while entered.value == mine and time.monotonic() < until:
                time.sleep(0.005)
        if asked.is_set():
            with ahead.get_lock():
                ahead.value -= 1


def measure_beside(entered: Any, asked: Event, ahead: Any, left: Any) -> None:
    while entered.value < 3:
        time.sleep(0.01)
    asked.set()
    with alone(Path("search")):
        left.value = ahead.value


def test_who_wants_to_be_alone_is_not_overtaken_for_ever() -> None:
    """By two who are never both away."""
    entered, asked = SPAWN.Value("i", 0), SPAWN.Event()
    ahead, left = SPAWN.Value("i", ROUNDS), SPAWN.Value("i", -1)
    relays = [(relay, entered, asked, ahead)] * 2
    run(*relays, (measure_beside, entered, asked, ahead, left))
    assert left.value > ROUNDS // 2


def run(*calls: tuple[Any, ...]) -> None:
    """Each call in a process of its own; all come to their end."""
    processes = [SPAWN.Process(target=call, args=given, daemon=True) for call, *given in calls]
    for one in processes:
        one.start()
    for one in processes:
        one.join(PATIENCE_S)
    stuck = [one.name for one in processes if one.is_alive()]
    for one in processes:
        one.kill()
    assert not stuck
    assert [one.exitcode for one in processes] == [0] * len(processes)


def train(root: str, cpus: Any, holds: Event, trained: Event, free: Event) -> None:
    """Waits for CPUs once it has said that it trains."""
    with training(Path(root)):
        holds.set()
        free.wait(PATIENCE_S)
        with cpus:
            time.sleep(0.2)
        trained.set()


def judge(root: str, cpus: Any, holds: Event, held: Event) -> None:
    """A trial that has a CPU, computes and is timed."""
    with cpus:
        held.set()
        holds.wait(PATIENCE_S)
        with busy():
            pass
        with alone(Path(root)):
            pass


def test_a_training_that_waits_for_the_cpu_of_another_search_s_trial_gets_it() -> None:
    """On a machine with one."""
    cpus, holds, held, trained = SPAWN.Semaphore(1), SPAWN.Event(), SPAWN.Event(), SPAWN.Event()
    run((judge, "elastic", cpus, holds, held), (train, "other", cpus, holds, trained, held))
    assert trained.is_set()


def be_timed(root: str, holds: Event, asked: Event) -> None:
    """A separate trial that has trained, and has no CPU any more."""
    holds.wait(PATIENCE_S)
    asked.set()
    with alone(Path(root)):
        pass


def test_trials_of_one_search_train_and_are_timed_on_one_cpu() -> None:
    """One trains, one waits to be timed, one comes behind it and needs the same CPU."""
    cpus, trained = SPAWN.Semaphore(1), SPAWN.Event()
    holds, asked = SPAWN.Event(), SPAWN.Event()
    run(
        (train, "search", cpus, holds, trained, asked),
        (be_timed, "search", holds, asked),
        (train_behind, "search", cpus, asked),
    )
    assert trained.is_set()


def train_behind(root: str, cpus: Any, asked: Event) -> None:
    asked.wait(PATIENCE_S)
    with training(Path(root)), cpus:
        pass
