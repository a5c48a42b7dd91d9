"""Processes beside this one: each a process group on a core of its own, ended with all it started.

    with Child([sys.executable, "-m", "benchmarks.x"], given=settings, core=1, log=log) as child:
        answer = child.ask(question)

The child says `given, questions, answer = parent()`, and answers what it was given once it is
ready.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import psutil

__all__ = ["Child", "Group", "parent"]

_STOP_S, _KILLED_S = 60.0, 5.0
_LOOK_S = 1.0  # between looks whether the parent is there
_ROOT = Path(__file__).parents[1]
S = TypeVar("S", bound="Group")


class Group:
    """A process group.

    Args:
        command: of its first process, which finds `benchmarks` and the product.
        core: the only one that all of it runs on; None: any.
        environment: beside this process's.
        log: takes what it prints; None: goes where this process's goes.
    """

    _reads_stdin = False

    def __init__(
        self,
        command: Sequence[str],
        *,
        core: int | None = None,
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> None:
        self._log = log
        path = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])
        own = {"PYTHONPATH": path.rstrip(os.pathsep), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
        with nullcontext() if log is None else log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if self._reads_stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE if self._reads_stdin else output,
                stderr=output,
                env={**os.environ, **own, **(environment or {})},
                preexec_fn=None if core is None else lambda: os.sched_setaffinity(0, {core}),
                process_group=0,
            )

    def __enter__(self: S) -> S:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Its first process."""
        return self._process.pid

    def close(self) -> None:
        """Ends it: asks, waits, then kills what is left of it."""
        found = [self.pid]
        with suppress(psutil.NoSuchProcess):  # it has ended by itself
            found += [one.pid for one in psutil.Process(self.pid).children(recursive=True)]
        self._ask_to_end()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        left = [psutil.Process(pid) for pid in found if psutil.pid_exists(pid)]
        _, left = psutil.wait_procs(left, timeout=_KILLED_S)
        for one in left:
            with suppress(psutil.NoSuchProcess):  # it ended meanwhile
                one.send_signal(signal.SIGKILL)
        psutil.wait_procs(left, timeout=_KILLED_S)

    def _ask_to_end(self) -> None:
        self._process.terminate()

    def _ended(self) -> RuntimeError:
        """What to raise where it should still run."""
        return RuntimeError(f"{self._process.args} ended; see {self._log or 'its output above'}")


class Child(Group):
    """One that answers what it is asked, in its language (pickle), until nobody can ask any more.

    Args:
        given: told first; the child answers it when it is ready, which is waited for.
        command, core, environment, log: see `Group`.

    Attributes:
        opened: its answer to what was given.

    Raises:
        RuntimeError: it ended before it was ready.
    """

    _reads_stdin = True

    def __init__(self, command: Sequence[str], *, given: object = None, **options: Any) -> None:
        super().__init__(command, **options)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._questions, self._answers = self._process.stdin, self._process.stdout
        try:
            self.opened = self.ask(given)
        except BaseException:
            self.close()
            raise

    def ask(self, question: object) -> Any:
        """The answer to a question."""
        self.tell(question)
        return self.hear()

    def tell(self, question: object) -> None:
        """Asks, and does not wait for the answer.

        Raises:
            RuntimeError: it ended.
        """
        try:
            _write(self._questions, question)
        except BrokenPipeError:
            raise self._ended() from None

    def hear(self) -> Any:
        """Waits for the answer to what was told.

        Raises:
            RuntimeError: it ended.
        """
        try:
            return pickle.load(self._answers)
        except (EOFError, pickle.UnpicklingError):
            raise self._ended() from None

    def close(self) -> None:
        """Ends it, as any group."""
        super().close()
        self._answers.close()

    def _ask_to_end(self) -> None:
        with suppress(BrokenPipeError):  # it has ended by itself
            self._questions.close()


def parent() -> tuple[Any, Iterator[Any], Callable[[object], None]]:
    """For a child: what it was given, the questions, and how to answer.

    What is printed from here on, by anything in the process or below it, goes to stderr: it must
    not stand between the answers.
    """
    threading.Thread(target=_end_with, args=[os.getppid()], daemon=True).start()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    questions = _read(sys.stdin.buffer)
    given = next(questions)

    def answer(value: object) -> None:
        _write(answers, value)

    return given, questions, answer


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone: what it does for nobody, such as a load on a
    server, would disturb the next measurement."""
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)


def _write(pipe: IO[bytes], message: object) -> None:
    pickle.dump(message, pipe)
    pipe.flush()


def _read(pipe: IO[bytes]) -> Iterator[Any]:
    while True:
        try:
            yield pickle.load(pipe)
        except EOFError:  # nobody asks any more
            return
