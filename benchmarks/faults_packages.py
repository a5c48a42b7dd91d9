"""The packages of the fault benchmark: a pair, a second version of its small model, broken ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.numpy import save

from benchmarks.doubtful import doubtful_policy
from rectrain.cascade import POLICY
from rectrain.inference.golden import GOLDEN, publish_golden
from rectrain.inference.index import ItemIndex
from rectrain.package import Package, open_package, update_package
from rectrain.package.folder import ITEMS, entry, version_of, write_folder
from rectrain.package.parts import HEADS

__all__ = ["Packages", "broken", "deviate", "prepare"]

Scores = dict[str, list[float]]  # of a golden request, by backend
_FACTOR = 1.1  # of the second version's heads: its scores are others
_HEAD = 5  # items of a list that the large model orders


@dataclass(frozen=True)
class Packages:
    """first, second: versions of the small model; large: the one that both ask."""

    first: Path
    second: Path
    large: Path


def prepare(folder: Path, *, small: str, large: str, deferred: float) -> Packages:
    """Copies of two packages with golden requests, and a policy that defers a share of all requests
    whatever they are: what is asked here is not whether deferring pays.

    Args:
        folder: for them; is emptied first.
        small, large: packages.
        deferred: the share.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    copy = publish_golden(_copy(open_package(large), folder / "large"))
    paths = []
    for name, factor in (("first", 1.0), ("second", _FACTOR)):
        package = _copy(open_package(small), folder / name, factor=factor)
        policy = doubtful_policy(
            package.version, copy.version, tasks=package.tasks, budget=deferred, head=_HEAD
        )
        paths.append(publish_golden(update_package(package, {POLICY: policy.to_json()})).path)
    return Packages(*paths, large=copy.path)


def _copy(package: Package, output: Path, *, factor: float = 1.0) -> Package:
    """A package without its policy and golden requests, its heads multiplied but those that the
    item index is made with."""
    names = [name for name in package.files if name not in (POLICY, GOLDEN)]
    files = {name: (package.path / name).read_bytes() for name in names}
    with safe_open(package.path / HEADS, framework="numpy") as heads:
        tensors = {name: heads.get_tensor(name) for name in heads.keys()}  # noqa: SIM118
        metadata = heads.metadata()
    for name, values in tensors.items():
        if ".head." in name and values.dtype == "float32" and "recommendation" not in name:
            tensors[name] = values * values.dtype.type(factor)
    files[HEADS] = save(tensors, metadata=metadata)
    version = version_of({name: entry(data) for name, data in files.items()})
    for task in package.indexes:
        index = ItemIndex.open(package.indexes[task], task=task, model=package.version)
        index.model = version
        files[f"{ITEMS}{task}.safetensors"] = index.to_bytes()
    listed = {name: entry(data) for name, data in files.items()}
    facts = {key: package.manifest[key] for key in ("source", "tasks", "made", "facts")}
    return write_folder(output, {**facts, "version": version, "files": listed}, files)


def broken(package: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Copies of a package, each broken in a way of its own: what is wrong, and the folder.

    The first is one that only its replicas can refuse: the quick form tries no other.
    """

    def copy(name: str) -> Path:
        shutil.rmtree(folder / name, ignore_errors=True)
        return shutil.copytree(package, folder / name)

    path = copy("deviating")
    deviate(path)
    yield "other answers than its golden requests", path

    path = copy("altered")
    data = bytearray((path / HEADS).read_bytes())
    data[-1] ^= 1
    (path / HEADS).write_bytes(data)
    yield "one bit of its weights altered", path

    path = copy("incomplete")
    (path / "tasks.json").unlink()
    yield "a file missing", path

    path = copy("unasked")
    _rescore(path, lambda scores: {})
    yield "golden requests without answers", path

    path = copy("foreign")
    policy = json.loads((path / POLICY).read_bytes())
    update_package(open_package(path), {POLICY: json.dumps({**policy, "large": "0" * 64}).encode()})
    yield "the policy of another pair", path


def deviate(package: Path) -> None:
    """Changes what a package's golden requests expect, so that its own model deviates from it."""
    _rescore(package, lambda scores: {name: [one + 1 for one in of] for name, of in scores.items()})


def _rescore(package: Path, change: Callable[[Scores], Scores]) -> None:
    """Changes the scores of all golden requests of a package."""
    golden = json.loads((package / GOLDEN).read_bytes())
    for case in golden["cases"]:
        case["scores"] = change(case["scores"])
    update_package(open_package(package), {GOLDEN: json.dumps(golden).encode()})
