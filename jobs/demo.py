"""The whole line on the embedded data: prepare, train, evaluate, shrink, serve, search, price.

Training is two runs: first the encoder and all heads jointly (OUTPUT/NAME-joint), then the heads
alone on the vectors of that encoder (OUTPUT/NAME), which takes rows about a hundred times as fast.
OUTPUT/NAME-small/package is the small model, beside the large one in OUTPUT/NAME-small/summary.md;
the large one's package is OUTPUT/NAME/package. Both are served, and asked one request of each kind
over HTTP: OUTPUT/NAME/answers.txt; `make serve` serves the same packages. A short search tells
whether a still smaller shape would do: OUTPUT/NAME-tune/front.html. It ends with what both models
cost, and the search's front beside them: OUTPUT/NAME/cost/report.html.

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
from typing import Any

import psutil

from jobs import calibrate, compress, cost, evaluate, prepare, publish, train, tune
from jobs.ask import REQUESTS, Asked, ask, served
from jobs.cli import JobParser, output_folder, run
from rectrain.cascade import read_policy
from rectrain.data.shards import MANIFEST
from rectrain.data.simulate import SIZES
from rectrain.data.simulate.catalogue import make_catalogue
from rectrain.errors import DataError, PackageError
from rectrain.inference.golden import GOLDEN
from rectrain.package import open_package
from rectrain.report.evaluation import write_summary
from rectrain.report.search import FRONT_PAGE, knee_of, read_front
from rectrain.train.storage import Store

__all__ = ["main"]

#: Each has simulated data of its name and four configurations: NAME-joint, -heads, -small, -tune.
PRESETS = ("demo", "tiny")
_PARTS = ("joint", "heads", "small")
CONFIGS = Path(__file__).parent / "configs"
# What the folders of a run, of a small model and of a search have.
_RUN, _SMALL, _SEARCH = "config.yaml", "compress.yaml", "tune.yaml"
_PACKAGE, _ANSWERS, _LOG = "package", "answers.txt", "serve.log"
_COST, _REPORT = "cost", "report.html"
# Of a search, below OUTPUT: the small model, or where that has one layer, the large one.
_TEACHERS = {"demo": "demo-small/heads", "tiny": "tiny"}
_SEED = 0
# What the report takes for the shop's: a larger one, and answers that are worth something.
_SHOP = ("--traffic", str(CONFIGS / "shop.yaml"))
_BUDGET = 0.1  # no bound of the loss: the held-out rows are too few to prove one (docs/cascade.md)


def main(argv: list[str]) -> int:
    """Runs the jobs in turn, in this process and on one local cluster."""
    options = _parser().parse_args(argv)
    data = output_folder(options.data, checkpoint="", what="--data") / options.preset
    directory = output_folder(options.output, checkpoint="") / options.preset
    summary, steps = directory / "summary.json", _steps(data=data, directory=directory)
    if options.dry_run:
        _run_jobs(options, steps, data=data, directory=directory)
        for step in steps:
            _say(f"{step}: not looked at, needs what is made before")
        return 0
    account = directory.with_name(f"{directory.name}-spent.json")
    if options.overwrite:
        runs = {directory: _RUN, _beside(directory, "joint"): _RUN}
        made = {_beside(directory, "small"): _SMALL, _beside(directory, "tune"): _SEARCH}
        _discard({**runs, **made, data: MANIFEST})
        account.unlink(missing_ok=True)
    elif all(path.exists() for path in (summary, *_results(directory))):
        for report in (directory / "evaluation.md", _beside(directory, "small") / "summary.md"):
            print(report.read_text(encoding="utf-8").partition("\n## ")[0])
        print((directory / _ANSWERS).read_text(encoding="utf-8"))
        _say(f"already done: {summary} (--overwrite begins anew)")
        return 0
    with _counted(_Spent(account)) as spent:
        _run_jobs(options, steps, data=data, directory=directory)
        answers = _serve(options.preset, steps, data=data, directory=directory)
        searched = _search(options.preset, steps, directory)
        _price(steps, directory)
    write_summary(
        directory,
        wall_s=spent.wall_s,
        peak_rss_bytes=spent.peak_rss_bytes,
        served={one.path: one.facts for one in answers},
        searched=searched,
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


def _steps(*, data: Path, directory: Path) -> Iterator[str]:
    """The parts of the demo by number and name, in the order in which they are done."""
    small = _beside(directory, "small")
    names = (
        f"prepare {data}",
        f"train encoder and heads {_beside(directory, 'joint')}",
        f"train heads {directory}",
        f"evaluate {directory}",
        f"make a small model {small}",
        f"publish {directory / _PACKAGE}",
        f"calibrate {small / _PACKAGE}",
        "serve both models, and ask",
        f"search for a smaller shape {_beside(directory, 'tune')}",
        f"cost {_report(directory).parent}",
    )
    return iter([f"{number}/{len(names)} {name}" for number, name in enumerate(names, start=1)])


def _run_jobs(
    options: argparse.Namespace, steps: Iterator[str], *, data: Path, directory: Path
) -> None:
    """The first five parts, each of which goes on where it was; of a dry run the first that has
    work."""
    dry_run = ["--dry-run"] if options.dry_run else []
    common = [f"--data.paths={data}", f"--output={directory.parent}", *dry_run]
    config = {part: str(CONFIGS / f"{options.preset}-{part}.yaml") for part in _PARTS}
    joint, small = _beside(directory, "joint"), _beside(directory, "small")
    step = next(steps)
    if options.overwrite or not (data / MANIFEST).exists():
        _say(step)
        source = ["--source=simulated", f"--size={options.preset}", f"--seed={_SEED}"]
        prepare.main([*source, f"--output={data}", *dry_run])
        if dry_run:
            return  # the rest needs the data
    _say(next(steps))
    train.main(["--config", config["joint"], *common])
    if dry_run:
        return  # the rest needs the encoder
    _say(next(steps))
    train.main(["--config", config["heads"], f"--train.start_from={joint}", *common])
    _say(next(steps))
    evaluate.main(["--checkpoint", str(directory)])
    _say(next(steps))
    compress.main(["--config", config["small"], f"--teacher={directory}", f"--output={small}"])


def _serve(preset: str, steps: Iterator[str], *, data: Path, directory: Path) -> list[Asked]:
    """The next three parts: the large model as a package, when the small one asks it, and both of
    them served and asked, each time."""
    large, small = directory / _PACKAGE, _beside(directory, "small") / _PACKAGE
    _say(next(steps))
    if not (large / GOLDEN).exists():  # it comes last
        publish.main([f"--checkpoint={directory}", f"--output={large}", "--overwrite"])
    _say(next(steps))
    if not _is_calibrated(small, large):
        pair = [f"--small={small}", f"--large={large}", f"--budget={_BUDGET}"]
        calibrate.main([*pair, f"--data={data}"])
    _say(next(steps))
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


def _search(preset: str, steps: Iterator[str], directory: Path) -> dict[str, Any]:
    """The ninth part: a search that goes on where it was; where its page is, and what its knee is
    worth."""
    folder = _beside(directory, "tune")
    _say(next(steps))
    if not _is_searched(folder):
        teacher = directory.parent / _TEACHERS[preset]
        config = str(CONFIGS / f"{preset}-tune.yaml")
        tune.main(["--config", config, f"--teacher={teacher}", f"--output={folder}"])
    front = read_front(folder)
    knee = knee_of(front)
    if knee is not None:
        keys = ("parameters", "objectives", "engine", "package", "version")
        knee = {"currency": front["currency"], **{key: knee[key] for key in keys if key in knee}}
    return {"front": str(folder / FRONT_PAGE), "knee": knee}


def _price(steps: Iterator[str], directory: Path) -> None:
    """The last part: what both models, and what the search found, cost."""
    _say(next(steps))
    if not _report(directory).exists():
        packages = [str(path / _PACKAGE) for path in (directory, _beside(directory, "small"))]
        search = f"--search={_beside(directory, 'tune')}"
        output = f"--output={_report(directory).parent}"
        cost.main(["--models", *packages, search, output, *_SHOP])


def _report(directory: Path) -> Path:
    return directory / _COST / _REPORT


def _results(directory: Path) -> tuple[Path, ...]:
    """What is there of a demo that has come to its end, beside the summary."""
    front = _beside(directory, "tune") / FRONT_PAGE
    return directory / _ANSWERS, front, _report(directory)


def _is_calibrated(small: Path, large: Path) -> bool:
    try:
        return read_policy(open_package(small), large=open_package(large)) is not None
    except PackageError:  # of other versions: one of the packages is newer
        return False


def _is_searched(folder: Path) -> bool:
    try:
        return bool(read_front(folder))
    except DataError:
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
