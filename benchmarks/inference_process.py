"""A measured system in a process of its own: its threads and settings disturb no other."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

from benchmarks.child import Child, parent
from benchmarks.inference_peers import Setup, Unavailable, make

__all__ = ["Pass", "System"]

Pass = Literal["raw", "sorted"]


class System(Child):
    """A process that has one system open and encodes all texts of a kind when asked.

    Args:
        name: `OURS`, or a key of `PEERS`.
        setup: what all systems get.
        python: runs it; that of this process by default.

    Attributes:
        reason: why the system can't run here; empty if it can.
        passes: what it can be measured on.
        choices: what it chose by itself.
    """

    def __init__(self, name: str, setup: Setup, *, python: Path | str = sys.executable) -> None:
        self.name = name
        command = [str(python), "-m", __name__, name]
        super().__init__(command, given=setup, environment={"OMP_NUM_THREADS": str(setup.threads)})
        opened: tuple[str, list[Pass], str] = self.opened
        self.reason, self.passes, self.choices = opened
        if self.reason:
            self.close()

    def measure(self, which: Pass, kind: str) -> float:
        """Real tokens a second of one pass over the kind's texts."""
        rate: float = self.ask((which, kind))
        return rate

    @staticmethod
    def matrix_rate(setup: Setup) -> float:
        """fp32 operations a second of torch's matrix product at the feed-forward's sizes."""
        code = f"from {__name__} import print_matrix_rate; print_matrix_rate({setup.threads})"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        return float(done.stdout)


def print_matrix_rate(threads: int) -> None:
    """Prints what `matrix_rate` returns: the best of ten products."""
    import torch

    torch.set_num_threads(threads)
    left, right = torch.randn(4096, 384), torch.randn(384, 1536)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - start)
    print(2 * left.shape[0] * right.numel() / min(seconds))


def _main(name: str) -> None:
    setup, questions, answer = parent()
    try:
        system = make(name, setup)
    except Unavailable as error:
        answer((str(error), [], ""))
        return
    answer(("", sorted(system.passes), system.choices))
    for which, kind in questions:
        run, inputs = system.passes[which][kind]
        start = time.perf_counter()
        vectors = run(inputs)
        seconds = time.perf_counter() - start
        assert vectors.shape[0] == len(setup.texts[kind]), f"{name} left texts out"
        answer(setup.num_tokens(kind) / seconds)


if __name__ == "__main__":
    _main(sys.argv[1])
