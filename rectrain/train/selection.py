"""Which of a run's checkpoints counts: the newest, the best, its result; and which may go."""

from __future__ import annotations

import json
import re
import warnings

from rectrain.errors import CheckpointError
from rectrain.train.checkpoint import MARKER, discard, verify
from rectrain.train.config import TrainConfig
from rectrain.train.history import has_stopped, read_history
from rectrain.train.storage import Store

__all__ = [
    "best_complete",
    "checkpoint_steps",
    "find_checkpoint",
    "finished_checkpoint",
    "latest_complete",
    "newest_checkpoint",
    "prune",
    "result_checkpoint",
]

_NAME = re.compile(r"^step-(\d{8,})$")


def checkpoint_steps(run: Store) -> list[int]:
    """Steps that have a checkpoint folder, ascending; verified or not."""
    found = (_NAME.match(folder) for folder in run.folders())
    return sorted(int(match.group(1)) for match in found if match)


def latest_complete(run: Store) -> Store | None:
    """The newest checkpoint that passes `verify`, or None; warns about each that does not."""
    for step in reversed(checkpoint_steps(run)):
        folder = run.sub(f"step-{step:08d}")
        try:
            verify(folder)
        except CheckpointError as error:
            warnings.warn(f"skipped: {error}", stacklevel=2)
        else:
            return folder
    return None


def best_complete(run: Store) -> Store | None:
    """The checkpoint of the highest score that passes `verify`, of equals the newest, or None."""
    scored = [(score, name) for name, score in _complete_ones(run) if score is not None]
    for _, name in sorted(scored, reverse=True):
        try:
            verify(run.sub(name))
        except CheckpointError as error:
            warnings.warn(f"skipped: {error}", stacklevel=2)
        else:
            return run.sub(name)
    return None


def result_checkpoint(run: Store) -> Store | None:
    """What a run has come to so far: with early stopping its best complete checkpoint, else its
    newest; None if there is none.
    """
    checkpoints = run.sub("checkpoints")
    newest = latest_complete(checkpoints)
    if newest is None:
        return None
    train = json.loads(newest.read("meta.json"))["config"]["train"]
    return newest if train.get("early_stopping") is None else best_complete(checkpoints) or newest


def finished_checkpoint(run: Store, *, train: TrainConfig, num_steps: int) -> Store | None:
    """The checkpoint that a run of `num_steps` has come to; None while work is left."""
    newest = latest_complete(run.sub("checkpoints"))
    if newest is None:
        return None
    is_last = newest == run.sub(f"checkpoints/step-{num_steps:08d}")
    if train.early_stopping is None:
        return newest if is_last else None
    history = read_history(json.loads(newest.read("meta.json")))
    return result_checkpoint(run) if is_last or has_stopped(history, train=train) else None


def newest_checkpoint(location: str) -> str:
    """The one checkpoint that a run's folder, or a checkpoint's own, stands for now; path or URI.

    Raises:
        CheckpointError: nothing complete is there.
    """
    folder = Store.open(location)
    found = find_checkpoint(folder)
    name = found.root.rpartition("/")[2]
    return location if found is folder else f"{location.rstrip('/')}/checkpoints/{name}"


def find_checkpoint(folder: Store) -> Store:
    """The checkpoint that a folder is, or that a run's folder stands for.

    Raises:
        CheckpointError: nothing complete is there.
    """
    if folder.exists("heads.safetensors"):
        raise CheckpointError(
            what="checkpoint",
            got=f"{folder.root}, which is a package",
            rule="a package holds a model, and nothing of its training",
            fix="give the run or checkpoint that it was made of",
        )
    if folder.exists(MARKER) or folder.exists("manifest.json"):
        return folder
    found = result_checkpoint(folder)
    if found is None:
        raise CheckpointError(
            what="checkpoint",
            got=f"{folder.root} without one that is complete",
            rule="give a checkpoint, or the folder of a run that has written one",
            fix="train first, or correct the path",
        )
    return found


def prune(run: Store, *, keep_last: int) -> None:
    """Removes all but the newest `keep_last` complete checkpoints and the one of the best score.

    Folders without a marker are left-overs of a death and go too.
    """
    complete = _complete_ones(run)
    for step in checkpoint_steps(run):
        if not run.exists(f"step-{step:08d}/{MARKER}"):
            run.remove(f"step-{step:08d}")
    scored = [(score, name) for name, score in complete if score is not None]
    kept = {name for name, _ in complete[-keep_last:]} | ({max(scored)[1]} if scored else set())
    for name, _ in complete:
        if name not in kept:
            discard(run, name)
    for folder in run.folders():
        if folder.startswith(".draft-"):
            run.remove(folder)


def _complete_ones(run: Store) -> list[tuple[str, float | None]]:
    """Name and score of each checkpoint with a marker, by step; not verified."""
    names = (f"step-{step:08d}" for step in checkpoint_steps(run))
    return [(name, _score(run.sub(name))) for name in names if run.exists(f"{name}/{MARKER}")]


def _score(folder: Store) -> float | None:
    try:
        score: float | None = json.loads(folder.read("meta.json"))["score"]
    except (OSError, ValueError, KeyError) as error:
        warnings.warn(f"{folder.root} is damaged: {error}", stacklevel=2)
        return None
    return score
