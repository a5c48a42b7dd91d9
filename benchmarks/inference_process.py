"""A measured system in a process of its own: its threads and settings disturb no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from benchmarks.inference_peers import Setup, Unavailable, make

__all__ = ["Pass", "System"]

Pass = Literal["raw", "sorted"]


class System:
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
        threads = str(setup.threads)
        self._process = subprocess.Popen(
            [str(python), "-m", __name__, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"},
        )
        opened = self._ask(asdict(setup))
        self.reason: str = opened["reason"]
        self.passes: list[Pass] = opened["passes"]
        self.choices: str = opened["choices"]
        if self.reason:
            self.close()

    def measure(self, which: Pass, kind: str) -> float:
        """Real tokens a second of one pass over the kind's texts."""
        return float(self._ask([which, kind])["tokens_per_s"])

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    @staticmethod
    def matrix_rate(setup: Setup) -> float:
        """fp32 operations a second of torch's matrix product at the feed-forward's sizes."""
        code = f"from {__name__} import print_matrix_rate; print_matrix_rate({setup.threads})"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        return float(done.stdout)

    def _ask(self, question: object) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.name} failed; its output is above")
        return json.loads(answer)


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
    # What libraries print must not stand between the answers.
    answers, sys.stdout = sys.stdout, sys.stderr

    def answer(value: object) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    setup = Setup(**json.loads(sys.stdin.readline()))
    try:
        system = make(name, setup)
    except Unavailable as error:
        answer({"reason": str(error), "passes": [], "choices": ""})
        return
    answer({"reason": "", "passes": sorted(system.passes), "choices": system.choices})
    for line in sys.stdin:
        which, kind = json.loads(line)
        run, inputs = system.passes[which][kind]
        start = time.perf_counter()
        vectors = run(inputs)
        seconds = time.perf_counter() - start
        assert vectors.shape[0] == len(setup.texts[kind]), f"{name} left texts out"
        answer({"tokens_per_s": setup.num_tokens(kind) / seconds})


if __name__ == "__main__":
    _main(sys.argv[1])
