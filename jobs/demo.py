"""The whole line on the embedded data: prepare, train, evaluate, make a small model of it, serve.

Training is two runs: first the encoder and all heads jointly (OUTPUT/NAME-joint), then the heads
alone on the vectors of that encoder (OUTPUT/NAME), which takes rows about a hundred times as fast.
OUTPUT/NAME-small/package is the small model, beside the large one in OUTPUT/NAME-small/summary.md;
the large one's package is OUTPUT/NAME/package. Both are served, and asked one request of each kind
over HTTP: OUTPUT/NAME/answers.txt; `make serve` serves the same packages. It ends with what both
models cost: OUTPUT/NAME/cost/report.html.

    python -m jobs.demo [--preset demo|tiny] [--output runs] [--overwrite] [--dry-run]

Interrupted and run again, it goes on where it was. It ends with OUTPUT/NAME/summary.json: `wall_s`
counts all calls that it took, `peak_rss_bytes` is the most that its processes held at one time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from jobs import calibrate, compress, cost, evaluate, prepare, publish, train
from jobs.ask import REQUESTS, Asked, ask, served
from jobs.cli import JobParser, lasting, run
from rectrain.cascade import read_policy
from rectrain.data.shards import MANIFEST
from rectrain.data.simulate import SIZES
from rectrain.data.simulate.catalogue import make_catalogue
from rectrain.errors import PackageError
from rectrain.inference.golden import GOLDEN
from rectrain.package import open_package
from rectrain.report.evaluation import write_summary
from rectrain.train.storage import Store

__all__ = ["main"]

#: Each has simulated data of its name and three configurations, NAME-joint, -heads and -small.
PRESETS = ("demo", "tiny")
_PARTS = ("joint", "heads", "small")
CONFIGS = Path(__file__).parent / "configs"
_RUN, _SMALL = "config.yaml", "compress.yaml"  # what the folders of a run and of a small model have
_PACKAGE, _ANSWERS, _LOG = "package", "answers.txt", "serve.log"
_COST, _REPORT = "cost", "report.html"
_SEED = 0
# What the report takes for the shop's: a larger one, and answers that are worth something.
_SHOP = ("--traffic", str(CONFIGS / "shop.yaml"))
_BUDGET = 0.1  # no bound of the loss: the held-out rows are too few to prove one (docs/cascade.md)


def main(argv: list[str]) -> int:
    """Runs the jobs in turn, in this process and on one local cluster."""
    options = _parser().parse_args(argv)
    data = Path(lasting(options.data, what="--data")) / options.preset
    directory = Path(lasting(options.output)) / options.preset
    summary = directory / "summary.json"
    if options.dry_run:
        _run_jobs(options, data=data, directory=directory)
        return 0
    account = directory.with_name(f"{directory.name}-spent.json")
    if options.overwrite:
        runs = {directory: _RUN, _beside(directory, "joint"): _RUN}
        _discard({**runs, _beside(directory, "small"): _SMALL, data: MANIFEST})
        account.unlink(missing_ok=True)
    elif all(path.exists() for path in (summary, directory / _ANSWERS, _report(directory))):
        for report in (directory / "evaluation.md", _beside(directory, "small") / "summary.md"):
            print(report.read_text(encoding="utf-8").partition("\n## ")[0])
        print((directory / _ANSWERS).read_text(encoding="utf-8"))
        _say(f"already done: {summary} (--overwrite begins anew)")
        return 0
    with _counted(_Spent(account)) as spent:
        _run_jobs(options, data=data, directory=directory)
        answers = _serve(options.preset, data=data, directory=directory)
        _price(directory)
    write_summary(
        directory,
        wall_s=spent.wall_s,
        peak_rss_bytes=spent.peak_rss_bytes,
        served={one.path: one.facts for one in answers},
    )
    account.unlink()
    gib = spent.peak_rss_bytes / 2**30
    _say(f"{spent.wall_s / 60:.1f} minutes, {gib:.1f} GiB at most; see {summary}")
    return 0


def _parser() -> JobParser:
    parser = JobParser(__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="demo", help="size")
    parser.add_argument("--output", default="runs", help="where runs lie")
    parser.add_argument("--data", default="data", help="where prepared data lies")
    parser.add_argument("--overwrite", action="store_true", help="begin anew")
    return parser


def _run_jobs(options: argparse.Namespace, *, data: Path, directory: Path) -> None:
    """The first five parts, each of which goes on where it was; of a dry run the first that has
    work."""
    dry_run = ["--dry-run"] if options.dry_run else []
    common = [f"--data.paths={data}", f"--output={directory.parent}", *dry_run]
    config = {part: str(CONFIGS / f"{options.preset}-{part}.yaml") for part in _PARTS}
    joint, small = _beside(directory, "joint"), _beside(directory, "small")
    if options.overwrite or not (data / MANIFEST).exists():
        _say(f"1/9 prepare {data}")
        source = ["--source=simulated", f"--size={options.preset}", f"--seed={_SEED}"]
        prepare.main([*source, f"--output={data}", *dry_run])
        if dry_run:
            return  # the rest needs the data
    _say(f"2/9 train encoder and heads {joint}")
    train.main(["--config", config["joint"], *common])
    if dry_run:
        return  # the rest needs the encoder
    _say(f"3/9 train heads {directory}")
    train.main(["--config", config["heads"], f"--train.start_from={joint}", *common])
    _say(f"4/9 evaluate {directory}")
    evaluate.main(["--checkpoint", str(directory)])
    _say(f"5/9 make a small model {small}")
    compress.main(["--config", config["small"], f"--teacher={directory}", f"--output={small}"])


def _serve(preset: str, *, data: Path, directory: Path) -> list[Asked]:
    """The next three parts: the large model as a package, when the small one asks it, and both of
    them served and asked, each time."""
    large, small = directory / _PACKAGE, _beside(directory, "small") / _PACKAGE
    _say(f"6/9 publish {large}")
    if not (large / GOLDEN).exists():  # it comes last
        publish.main([f"--checkpoint={directory}", f"--output={large}", "--overwrite"])
    _say(f"7/9 calibrate {small}")
    if not _is_calibrated(small, large):
        pair = [f"--small={small}", f"--large={large}", f"--budget={_BUDGET}"]
        calibrate.main([*pair, f"--data={data}"])
    _say("8/9 serve both models, and ask")
    requests = json.loads(REQUESTS.read_text(encoding="utf-8"))
    with served(small=small, large=large, log=directory / _LOG) as address:
        answers = ask(address, requests)
    catalogue = make_catalogue(SIZES[preset].num_items, seed=_SEED)
    ids, names = catalogue.item_id.to_pylist(), catalogue.text.to_pylist()
    texts = dict(zip(ids, names, strict=True))
    report = "".join(f"{one.lines(texts)}\n" for one in answers)
    (directory / _ANSWERS).write_text(report, encoding="utf-8")
    print(report, flush=True)
    return answers


def _price(directory: Path) -> None:
    """The last part: what both models cost."""
    _say(f"9/9 cost {_report(directory).parent}")
    if not _report(directory).exists():
        packages = [str(path / _PACKAGE) for path in (directory, _beside(directory, "small"))]
        output = f"--output={_report(directory).parent}"
        cost.main(["--models", *packages, output, *_SHOP])


def _report(directory: Path) -> Path:
    return directory / _COST / _REPORT


def _is_calibrated(small: Path, large: Path) -> bool:
    try:
        return read_policy(open_package(small), large=open_package(large)) is not None
    except PackageError:  # of other versions: one of the packages is newer
        return False


def _beside(directory: Path, part: str) -> Path:
    return directory.with_name(f"{directory.name}-{part}")


def _discard(marks: Mapping[Path, str]) -> None:
    """Removes what an earlier demo made, all at once: what a kill left would be gone on with.

    Args:
        marks: folder -> the file that it has if it is ours.

    Raises:
        ResourceError: another process writes one of them.
    """
    aside = {folder: folder.with_name(f".{folder.name}.old") for folder in marks}
    for folder in marks:
        if aside[folder].exists():  # a kill came before its removal
            shutil.rmtree(aside[folder])
    with ExitStack() as locks:
        ours = [folder for folder, mark in marks.items() if (folder / mark).exists()]
        for folder in ours:
            locks.enter_context(Store.open(str(folder)).locked())
        for folder in ours:
            folder.rename(aside[folder])
    for folder in ours:
        shutil.rmtree(aside[folder])


def _say(text: str) -> None:
    print(f"── {text}", flush=True)


class _Spent:
    """What all calls of a demo took, this one included; kept in a file, so that a kill loses none.

    Args:
        account: the file, which holds what earlier calls took, if there were any.
    """

    def __init__(self, account: Path) -> None:
        self._account, self._began = account, time.monotonic()
        before = json.loads(account.read_text()) if account.exists() else {}
        self._before_s: float = before.get("wall_s", 0.0)
        self.wall_s = self._before_s
        self.peak_rss_bytes: int = before.get("peak_rss_bytes", 0)

    def sample(self) -> None:
        """Looks at the clock and at the memory of this process and of all below it.

        Of memory it adds up what each process holds alone, and the largest shared part once.
        """
        private, shared = 0, 0
        processes = psutil.Process().children(recursive=True)
        for process in [psutil.Process(), *processes]:
            with suppress(psutil.Error):  # it ended meanwhile
                memory = process.memory_info()
                private += memory.rss - memory.shared
                shared = max(shared, memory.shared)
        self.peak_rss_bytes = max(self.peak_rss_bytes, private + shared)
        self.wall_s = self._before_s + time.monotonic() - self._began
        self._save()

    def _save(self) -> None:
        self._account.parent.mkdir(parents=True, exist_ok=True)
        draft = self._account.with_name(f".{self._account.name}.tmp")
        draft.write_text(json.dumps({"wall_s": self.wall_s, "peak_rss_bytes": self.peak_rss_bytes}))
        draft.replace(self._account)


@contextmanager
def _counted(spent: _Spent, *, interval_s: float = 1.0) -> Iterator[_Spent]:
    done = threading.Event()

    def watch() -> None:
        while not done.wait(interval_s):
            spent.sample()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield spent
    finally:
        done.set()
        thread.join()
        spent.sample()


if __name__ == "__main__":
    run(main)
