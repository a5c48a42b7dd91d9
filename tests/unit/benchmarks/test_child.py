"""Processes beside this one: answers, what they print, their end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.child import Child, Group

ADDS = """
import os, subprocess, sys
from benchmarks.child import parent
first, numbers, answer = parent()
answer(("ready", os.sched_getaffinity(0)))
for number in numbers:
    print("adding")
    subprocess.run(["echo", "below"])
    answer(first + number)
"""


def adds(log: Path, *, core: int | None = None) -> Child:
    return Child([sys.executable, "-c", ADDS], given=3, core=core, log=log)


def alive() -> set[int]:
    """All processes but those that have ended and wait for somebody to take note of it."""
    zombie = psutil.STATUS_ZOMBIE
    return {one.pid for one in psutil.process_iter(["status"]) if one.info["status"] != zombie}


def test_a_child_answers_whatever_it_prints(tmp_path):
    log, core = tmp_path / "new" / "log", max(os.sched_getaffinity(0))
    with adds(log, core=core) as child:
        assert child.opened == ("ready", {core})
        assert [child.ask(number) for number in (1, 2)] == [4, 5]
    assert sorted(log.read_text().split()) == ["adding"] * 2 + ["below"] * 2


def test_a_child_that_ends_says_where_its_words_are(tmp_path):
    log = tmp_path / "log"
    with adds(log) as child:
        with pytest.raises(RuntimeError, match=f"see {log}"):
            child.ask("no number")
        with pytest.raises(RuntimeError, match=f"see {log}"):
            child.ask(1)
    assert "TypeError" in log.read_text()


def test_a_child_that_never_gets_ready_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="ended"):
        Child(["false"], log=tmp_path / "log")


def test_all_that_a_group_started_ends_with_it(tmp_path):
    lines = tmp_path / "lines"
    os.mkfifo(lines)
    with Group(["sh", "-c", f"sleep 600 & echo $! > {lines}; wait"]) as group:
        below = int(lines.read_text())
        assert {group.pid, below} <= alive()
    assert not {group.pid, below} & alive()


BUSY = """
import os, sys, time
from benchmarks.child import parent
given, _, answer = parent()
answer(os.getpid())
time.sleep(600)
"""
KILLED = """
import os, signal, sys
from benchmarks.child import Child
child = Child([sys.executable, "-c", sys.argv[1]], given=None)
print(child.opened, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_child_that_is_busy_ends_with_a_parent_that_was_killed():
    command = [sys.executable, "-c", KILLED, BUSY]
    root = Path(__file__).parents[3]
    said = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert said.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 60
    while int(said.stdout) in alive():
        assert time.monotonic() < deadline, "it works on for nobody"
        time.sleep(0.2)
