"""The models behind the search's benchmark, and what each took; all kept on disk.

FOLDER/shapes.json              of each shape: latency, and seconds to measure it
FOLDER/standards.json           what a random order and the teacher earn
FOLDER/vectors/                 the teacher's, of all texts
FOLDER/seed-S/alone/*.json      of each shape trained alone: metrics, seconds
FOLDER/seed-S/supernet/         one super-network
FOLDER/seed-S/supernet.json     its seconds
FOLDER/seed-S/sub/*.json        of each of its sub-networks: metrics, seconds to judge it
FOLDER/seed-S/finished/*.json   of each with heads of its own: metrics, seconds to train and judge

Seconds are those of a process of one thread that it spent on a core: device-seconds that don't
depend on what else the machine does. All runs share the teacher's vectors, as those of one search
do; their seconds are `Shapes.teacher_s`.
"""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.one_process import in_processes, train_run
from rectrain.compress.cutting import write_encoder
from rectrain.config import dump_config, parse_yaml
from rectrain.train.build import new_model, open_data
from rectrain.train.config import RunConfig
from rectrain.train.frozen import keep_vectors
from rectrain.train.storage import Store
from rectrain.tune.config import SearchConfig
from rectrain.tune.latency import Latency
from rectrain.tune.objective import Standard
from rectrain.tune.runs import VECTORS, heads_run, separate_run, supernet_run
from rectrain.tune.space import Point
from rectrain.tune.workbench import Workbench

__all__ = ["SearchRuns", "Shape", "Shapes", "Trained", "point_name"]

_NUM_PROCESSES = 2
_SUPERNET = "supernet"


@dataclass(frozen=True)
class Shape:
    """A shape whatever its weights: latency, and seconds to measure it."""

    latency: Latency
    seconds: float


@dataclass(frozen=True)
class Shapes:
    """What all runs share.

    Attributes:
        teacher_s: seconds for the teacher's vectors of all texts.
        shapes: name of a point -> its shape.
        standards: task -> a random order and the teacher.
    """

    teacher_s: float
    shapes: Mapping[str, Shape]
    standards: Mapping[str, Standard]


@dataclass(frozen=True)
class Trained:
    """A model: task -> metric on validation rows, and its seconds."""

    values: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class _Work:
    """What one process does.

    Attributes:
        kind: measure all shapes; train a super-network, judge its parts and train their heads on;
            train shapes alone.
        config: of the search, as YAML.
        points: names of shapes.
    """

    kind: Literal["shapes", "supernet", "alone"]
    config: str
    points: tuple[str, ...] = ()


def point_name(point: Point) -> str:
    """A point as a file's name: "2x6x192"."""
    return "x".join(str(value) for value in point.values())


class SearchRuns:
    """Makes what is not yet there.

    Args:
        folder: of all that is made.
        separate: the search whose trials train alone, with absolute paths; its output and seed are
            set here.
        elastic: the one with a super-network, of the same teacher and space.
        seeds: of the trainings.
    """

    def __init__(
        self,
        folder: Path,
        *,
        separate: SearchConfig,
        elastic: SearchConfig,
        seeds: Sequence[int],
    ) -> None:
        self._folder, self._seeds = folder, seeds
        self._separate, self._elastic = separate, elastic

    def make(self) -> None:
        """Measures shapes alone on the machine, then trains two runs at a time."""
        in_processes(_do, [_Work("shapes", self._yaml(self._separate))], processes=1)
        supernets = [_Work("supernet", self._yaml(self._elastic, seed)) for seed in self._seeds]
        alone = [
            _Work("alone", self._yaml(self._separate, seed), part)
            for seed in self._seeds
            for part in self._parts()
        ]
        in_processes(_do, [*supernets, *alone], processes=_NUM_PROCESSES)

    def shapes(self) -> Shapes:
        """What all runs share."""
        found = json.loads((self._folder / "shapes.json").read_bytes())
        standards = json.loads((self._folder / "standards.json").read_bytes())
        return Shapes(
            teacher_s=found["teacher_s"],
            shapes={
                name: Shape(Latency(**one["latency"]), one["seconds"])
                for name, one in found["shapes"].items()
            },
            standards={task: Standard.from_json(one) for task, one in standards.items()},
        )

    def alone(self, seed: int) -> dict[str, Trained]:
        """Name of a point -> the model of its shape that was trained alone."""
        return self._trained(seed, "alone")

    def sub_networks(self, seed: int) -> dict[str, Trained]:
        """Name of a point -> the sub-network of its shape, as it is."""
        return self._trained(seed, "sub")

    def finished(self, seed: int) -> dict[str, Trained]:
        """Name of a point -> its sub-network with heads of its own, as a search finishes it."""
        return self._trained(seed, "finished")

    def supernet_s(self, seed: int) -> float:
        """Seconds of the super-network's training."""
        path = _root(self._folder, seed) / f"{_SUPERNET}.json"
        return float(json.loads(path.read_bytes())["seconds"])

    def _trained(self, seed: int, kind: str) -> dict[str, Trained]:
        folder = _root(self._folder, seed) / kind
        names = self.shapes().shapes
        return {
            name: Trained(**json.loads((folder / f"{name}.json").read_bytes())) for name in names
        }

    def _yaml(self, config: SearchConfig, seed: int | None = None) -> str:
        changes: dict[str, Any] = {"output": str(self._folder)}
        if seed is not None:
            changes = {"output": str(_root(self._folder, seed)), "seed": seed}
        return dump_config(config.model_copy(update=changes))

    def _parts(self) -> list[tuple[str, ...]]:
        """Names of shapes, those of a depth for each process, the deepest first."""
        space = self._separate.space
        points = itertools.product(space.layers, space.heads, space.intermediate)
        names = ["x".join(map(str, point)) for point in points]
        size = len(names) // len(space.layers)
        return [tuple(names[at : at + size]) for at in range(0, len(names), size)][::-1]


def _root(folder: Path, seed: int) -> Path:
    return folder / f"seed-{seed}"


# ── in a process of its own ──────────────────────────────────────────────────────────────────────


def _do(work: _Work) -> None:
    config = parse_yaml(SearchConfig, work.config.encode(), name="the benchmark's settings")
    Path(config.output).mkdir(parents=True, exist_ok=True)
    actions: dict[str, Callable[[SearchConfig, _Work], None]] = {
        "shapes": _measure_shapes, "supernet": _train_supernet, "alone": _train_alone,
    }  # fmt: skip
    actions[work.kind](config, work)


def _measure_shapes(config: SearchConfig, work: _Work) -> None:
    root = Path(config.output)
    if (root / "shapes.json").exists():
        return
    bench = Workbench(config)
    bench.standards  # noqa: B018  (kept on disk)
    shapes = {}
    for point in bench.space.points():
        shutil.rmtree(root / "latency", ignore_errors=True)  # or its seconds would be none
        latency, seconds = _timed(lambda point=point: bench.latency(point))
        shapes[point_name(point)] = asdict(Shape(latency, seconds))
        print(f"{point_name(point)}: {1000 * latency.request_s:.1f} ms a request", flush=True)
    _write(root / "shapes.json", {"teacher_s": _teacher_s(bench), "shapes": shapes})


def _teacher_s(bench: Workbench) -> float:
    """Makes the teacher's vectors for all runs; the seconds that it took."""
    _discard(bench.root, VECTORS, "cut")
    bench.cut_encoder(bench.space.shape(bench.space.smallest), bench.root / "cut")
    run = separate_run(bench.config, bench.teacher, bench.data, root=bench.root, settings={})
    data = open_data(run)
    model = new_model(run, data)
    return _timed(lambda: keep_vectors(model, run, data, device=torch.device("cpu")))[1]


def _train(run: RunConfig, root: Path) -> None:
    """Trains a run with the vectors that are there."""
    folder = root.parent / VECTORS
    train = run.train.model_copy(update={"vector_cache": str(folder)})
    train_run(run.model_copy(update={"train": train}))


def _train_supernet(config: SearchConfig, work: _Work) -> None:
    root = Path(config.output)
    bench = Workbench(config)
    if not (root / f"{_SUPERNET}.json").exists():
        _discard(root, "start", _SUPERNET)  # of a life that was killed: its seconds aren't known

        def train() -> None:
            bench.start()
            _train(supernet_run(config, bench.teacher, bench.data, space=bench.space), root)

        _, seconds = _timed(train)
        _write(root / f"{_SUPERNET}.json", {"seconds": seconds})
    for point in bench.space.points():
        path = root / "sub" / f"{point_name(point)}.json"
        if not path.exists():
            values, seconds = _timed(lambda point=point: bench.sub_values(point))
            _write(path, asdict(Trained(values, seconds)))
    print(f"judged: sub-networks of {root.name}", flush=True)
    for point in bench.space.points():
        _finish(bench, point)


def _finish(bench: Workbench, point: Point) -> None:
    """What a search does with a sub-network that it chooses, once: heads of its own."""
    name = point_name(point)
    parent = bench.root / "finished"
    if (parent / f"{name}.json").exists():
        return

    def finished() -> dict[str, float]:
        (parent / name / "cut").mkdir(parents=True)
        tokenizer = Path(bench.teacher.tokenizer_path)
        write_encoder(bench.sub_network(point), parent / name / "cut", tokenizer=tokenizer)
        run = heads_run(bench.config, bench.teacher, bench.data, root=parent / name)
        _train(run, bench.root)
        return bench.run_values(parent / name / "heads")

    _discard(parent, name)
    values, seconds = _timed(finished)
    _write(parent / f"{name}.json", asdict(Trained(values, seconds)))
    _discard(parent, name)
    print(f"{bench.root.name}/finished/{name}: {seconds:.0f} s", flush=True)


def _train_alone(config: SearchConfig, work: _Work) -> None:
    root = Path(config.output)
    names = [name for name in work.points if not (root / "alone" / f"{name}.json").exists()]
    if not names:
        return
    bench = Workbench(config)
    points = {point_name(point): point for point in bench.space.points()}
    for name in names:
        folder = root / "alone" / name
        _discard(folder.parent, name)
        values, seconds = _timed(
            lambda name=name, folder=folder: _alone(bench, points[name], folder)
        )
        _write(root / "alone" / f"{name}.json", asdict(Trained(values, seconds)))
        _discard(folder.parent, name)
        print(f"{root.name}/alone/{name}: {seconds:.0f} s", flush=True)


def _alone(bench: Workbench, point: Point, folder: Path) -> dict[str, float]:
    """What a separate trial does: cut, refit, train, judge."""
    bench.cut_encoder(bench.space.shape(point), folder / "cut")
    run = separate_run(bench.config, bench.teacher, bench.data, root=folder, settings={})
    _train(run, bench.root)
    return bench.run_values(folder / "run")


def _timed(action: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and the seconds that this process spent on cores."""
    began = time.process_time()
    return action(), time.process_time() - began


def _discard(parent: Path, *names: str) -> None:
    for name in names:
        shutil.rmtree(parent / name, ignore_errors=True)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Store.open(str(path.parent)).replace(path.name, (json.dumps(content, indent=1) + "\n").encode())
