"""The whole line on the embedded data: prepare, train, evaluate, and say where all of it lies.

Training is two runs: first the encoder and all heads jointly (OUTPUT/NAME-joint), then the heads
alone on the vectors of that encoder (OUTPUT/NAME), which takes rows about a hundred times as fast.

    python -m jobs.demo [--preset demo|tiny] [--output runs] [--overwrite] [--dry-run]

Interrupted and run again, it goes on where it was. It ends with OUTPUT/NAME/summary.json.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from jobs import evaluate, prepare, train
from jobs.cli import JobParser, run
from rectrain.report.evaluation import write_summary

__all__ = ["main"]

#: Each has simulated data of its name and two configurations, NAME-joint and NAME-heads.
PRESETS = ("demo", "tiny")
CONFIGS = Path(__file__).parent / "configs"


def main(argv: list[str]) -> int:
    """Runs the jobs in turn, in this process and on one local cluster."""
    parser = JobParser(__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="demo", help="size (default: demo)")
    parser.add_argument("--output", default="runs", help="where runs lie (default: runs)")
    parser.add_argument("--data", default="data", help="where prepared data lies (default: data)")
    parser.add_argument("--overwrite", action="store_true", help="begin anew")
    options = parser.parse_args(argv)
    data, directory = f"{options.data}/{options.preset}", Path(options.output) / options.preset
    dry_run = ["--dry-run"] if options.dry_run else []
    overwrite = ["--overwrite"] if options.overwrite else []
    common = [f"--data.paths={data}", f"--output={options.output}", *overwrite, *dry_run]
    joint, heads = (CONFIGS / f"{options.preset}-{part}.yaml" for part in ("joint", "heads"))
    summary = directory / "summary.json"
    if summary.exists() and not overwrite and not dry_run:
        print((directory / "evaluation.md").read_text(encoding="utf-8").partition("\n## ")[0])
        _say(f"already done: {summary} (--overwrite begins anew)")
        return 0
    if overwrite and not dry_run and (directory / "config.yaml").exists():
        shutil.rmtree(directory)  # or it would count as done if the run before it is interrupted
    began = time.monotonic()
    with _peak_memory() as peak:
        if overwrite or not (Path(data) / "manifest.json").exists():
            _say(f"1/4 prepare {data}")
            source = ["--source=simulated", f"--size={options.preset}", f"--output={data}"]
            prepare.main([*source, *overwrite, *dry_run])
            if dry_run:
                return 0  # the rest needs the data
        _say(f"2/4 train encoder and heads {directory}-joint")
        train.main(["--config", str(joint), *common])
        if dry_run:
            return 0  # the rest needs the encoder
        _say(f"3/4 train heads {directory}")
        train.main(["--config", str(heads), f"--train.start_from={directory}-joint", *common])
        _say(f"4/4 evaluate {directory}")
        evaluate.main(["--checkpoint", str(directory)])
    wall_s = time.monotonic() - began
    write_summary(directory, wall_s=wall_s, peak_rss_bytes=peak.rss_bytes)
    _say(f"{wall_s / 60:.1f} minutes, {peak.rss_bytes / 2**30:.1f} GiB at most; see {summary}")
    return 0


def _say(text: str) -> None:
    print(f"── {text}", flush=True)


class _Peak:
    """The most memory that this process and all below it held at one time."""

    rss_bytes = 0

    def sample(self) -> None:
        """Adds up what each process holds alone, and the largest shared part once."""
        private, shared = 0, 0
        processes = psutil.Process().children(recursive=True)
        for process in [psutil.Process(), *processes]:
            with suppress(psutil.Error):  # it ended meanwhile
                memory = process.memory_info()
                private += memory.rss - memory.shared
                shared = max(shared, memory.shared)
        self.rss_bytes = max(self.rss_bytes, private + shared)


@contextmanager
def _peak_memory(interval_s: float = 1.0) -> Iterator[_Peak]:
    peak, done = _Peak(), threading.Event()

    def watch() -> None:
        while not done.wait(interval_s):
            peak.sample()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    run(main)
