"""A checkpoint is whole or is not there: kills, full disks, altered bytes, other filesystems.

One process, no process group: the few collectives of saving are stood in for, so that a hundred
saves take seconds and a child can be forked and killed at any point.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import fs
from train_toy import TASKS, ToyModel, toy_micro_batch

from rectrain.errors import CheckpointError, ConfigError
from rectrain.train.checkpoint import MARKER, load_weights, open_checkpoint, save_checkpoint, verify
from rectrain.train.selection import checkpoint_steps, latest_complete, prune
from rectrain.train.storage import Store

NEED_ROOM = ("write", "fsync", "replace")
HOOKED = (*NEED_ROOM, "rename", "mkdir", "unlink", "rmdir")
ATTACHMENTS = {"tokenizer/tokenizer.json": b"{}\n", "encoder/config.json": b"{}\n"}


class OneProcess:
    """A stage-0 engine without DeepSpeed."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = ToyModel()
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=0.1)

    def zero_optimization_stage(self) -> int:
        return 0

    def update(self) -> None:
        loss, _ = self.module(toy_micro_batch(1, 0, num_micro_batches=1))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(outputs: list[Any], value: Any) -> None:
        outputs[0] = value

    group = torch.distributed
    monkeypatch.setattr(group, "get_rank", lambda: 0)
    monkeypatch.setattr(group, "get_world_size", lambda: 1)
    monkeypatch.setattr(group, "barrier", lambda: None)
    monkeypatch.setattr(group, "all_gather_object", gather)
    monkeypatch.setattr(group, "broadcast_object_list", lambda values, src: None)


@pytest.fixture
def engine() -> OneProcess:
    engine = OneProcess()
    engine.update()
    return engine


def save(engine: OneProcess, run: Store, step: int, score: float | None = None) -> str | None:
    return save_checkpoint(
        engine,  # type: ignore[arg-type]
        run,
        step=step,
        meta={"config": {}},
        attachments=ATTACHMENTS,
        score=score,
    )


def save_and_prune(engine: OneProcess, run: Store, step: int) -> None:
    assert save(engine, run, step) is None
    prune(run, keep_last=1)


def weights(folder: Store) -> dict[str, torch.Tensor]:
    model = ToyModel()
    load_weights(model, open_checkpoint(folder))
    return model.state_dict()


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


class Hook:
    """Counts the calls that change a disk, and acts before the n-th."""

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        act: Callable[[str, Any], None],
        *,
        at: int,
        names: tuple[str, ...] = HOOKED,
    ) -> None:
        self.calls = 0
        self._act, self._at = act, at
        for name in names:
            patch.setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self._at:
                if name == "write":  # half of it reaches the disk
                    original(args[0], bytes(args[1])[: len(args[1]) // 2])
                self._act(name, args)
            return original(*args, **kwargs)

        return call


def kill(name: str, args: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def disk_full(name: str, args: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", str(args[0]))


def in_child(action: Callable[[], None]) -> int:
    """Runs in a forked child; its wait status."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def count_calls(
    engine: OneProcess, run: Store, action: Callable[..., Any], *, names: tuple[str, ...] = HOOKED
) -> int:
    with pytest.MonkeyPatch.context() as patch:
        hook = Hook(patch, kill, at=0, names=names)
        action(engine, run, 2)
    return hook.calls


@pytest.fixture
def first(engine: OneProcess, tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A run with one checkpoint at step 1, and its weights; the engine is an update further."""
    run = Store.open(str(tmp_path / "first"))
    assert save(engine, run, 1) is None
    return tmp_path / "first", weights(run.sub("step-00000001"))


def test_a_kill_at_every_change_of_the_disk_leaves_a_checkpoint(
    engine: OneProcess, first: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    source, before = first
    engine.update()
    after = engine.module.state_dict()
    shutil.copytree(source, tmp_path / "counted")
    calls = count_calls(engine, Store.open(str(tmp_path / "counted")), save_and_prune)
    assert calls > 25
    survivors = set()
    for at in range(1, calls + 1):
        folder = tmp_path / f"killed-{at}"
        shutil.copytree(source, folder)
        run = Store.open(str(folder))

        def die(run: Store = run, at: int = at) -> None:
            with pytest.MonkeyPatch.context() as patch:
                Hook(patch, kill, at=at)
                save_and_prune(engine, run, 2)

        status = in_child(die)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *args, **kwargs: None)
            found = latest_complete(run)
            assert found is not None, f"nothing left after a kill at call {at}"
            step = open_checkpoint(found).step
            assert same(weights(found), before if step == 1 else after)
            survivors.add(step)
            save_and_prune(engine, run, 2)  # what the restarted group does
        assert same(weights(run.sub("step-00000002")), after)
        assert run.folders() == ["step-00000002"]
        shutil.rmtree(folder)
    assert survivors == {1, 2}


def test_a_full_disk_is_reported_and_the_next_save_works(
    engine: OneProcess, first: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    source, before = first
    shutil.copytree(source, tmp_path / "counted")
    calls = count_calls(engine, Store.open(str(tmp_path / "counted")), save, names=NEED_ROOM)
    engine.update()
    run = Store.open(str(source))
    for at in range(1, calls + 1):
        with pytest.MonkeyPatch.context() as patch:
            Hook(patch, disk_full, at=at, names=NEED_ROOM)
            problem = save(engine, run, 2)
        assert problem is not None and "No space left" in problem and "\n" not in problem
        assert run.folders() == ["step-00000001"], f"left over after call {at}"
        assert same(weights(run.sub("step-00000001")), before)
    assert save(engine, run, 2) is None
    assert checkpoint_steps(run) == [1, 2]


def test_every_truncation_and_bit_flip_is_detected(engine: OneProcess, tmp_path: Path) -> None:
    run = Store.open(str(tmp_path))
    for step in (1, 2):
        assert save(engine, run, step) is None
    folder = tmp_path / "step-00000002"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert {path.name for path in files} >= {MARKER, "manifest.json", "meta.json"}
    draw = random.Random(0)
    for number in range(100):
        path = files[number % len(files)]
        whole = path.read_bytes()
        if number % 2:
            path.write_bytes(whole[: draw.randrange(len(whole))])
        else:
            altered = bytearray(whole)
            altered[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            path.write_bytes(altered)
        with pytest.raises(CheckpointError) as caught:
            verify(run.sub("step-00000002"))
        assert "\n" not in str(caught.value) and "step-00000002" in str(caught.value)
        with pytest.warns(UserWarning, match="skipped: checkpoint .*step-00000002"):
            found = latest_complete(run)
        assert found is not None and found.root.endswith("step-00000001")
        path.write_bytes(whole)
    verify(run.sub("step-00000002"))


@pytest.mark.parametrize("missing", ["meta.json", MARKER, "manifest.json"])
def test_a_missing_file_is_detected(engine: OneProcess, tmp_path: Path, missing: str) -> None:
    run = Store.open(str(tmp_path))
    assert save(engine, run, 1) is None
    (tmp_path / "step-00000001" / missing).unlink()
    with pytest.raises(CheckpointError, match=missing.replace(".", r"\.")):
        open_checkpoint(run.sub("step-00000001"))


def test_weights_of_another_model_are_refused(engine: OneProcess, tmp_path: Path) -> None:
    run = Store.open(str(tmp_path))
    assert save(engine, run, 1) is None
    with pytest.raises(CheckpointError, match="other tensors"):
        load_weights(ToyModel(hidden=38), open_checkpoint(run.sub("step-00000001")))


def test_the_newest_and_the_best_are_kept(engine: OneProcess, tmp_path: Path) -> None:
    run = Store.open(str(tmp_path))
    for step, score in enumerate([0.3, 0.9, None, 0.5, None], start=1):
        assert save(engine, run, step, score) is None
        prune(run, keep_last=2)
    assert checkpoint_steps(run) == [2, 4, 5]


def test_a_filesystem_without_rename_gets_its_marker_last(
    engine: OneProcess, tmp_path: Path
) -> None:
    run = Store(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "runs/a/checkpoints")
    assert run.local is None
    for step in (1, 2):
        engine.update()
        assert save(engine, run, step) is None
    found = latest_complete(run)
    assert found is not None
    checkpoint = open_checkpoint(found)
    assert checkpoint.step == 2
    assert same(weights(found), engine.module.state_dict())
    assert (checkpoint.path / "tokenizer" / "tokenizer.json").read_bytes() == b"{}\n"
    found.filesystem.delete_file(f"{found.root}/{MARKER}")
    with pytest.warns(UserWarning, match="no COMPLETE"):
        before = latest_complete(run)
    assert before is not None and before.root.endswith("step-00000001")
    prune(run, keep_last=1)
    assert checkpoint_steps(run) == [1]


def test_moments_and_weights_stand_once_each(engine: OneProcess, tmp_path: Path) -> None:
    run = Store.open(str(tmp_path))
    assert save(engine, run, 1) is None
    checkpoint = open_checkpoint(run.sub("step-00000001"))
    names = {name for name, _ in engine.module.named_parameters()}
    assert {name for name, _ in checkpoint.tensors("model")} == names
    moments = dict(checkpoint.tensors("optimizer"))
    assert moments.keys() == {f"{m}/{name}" for m in ("exp_avg", "exp_avg_sq") for name in names}
    head = engine.module.heads[TASKS[0]].weight
    assert torch.equal(
        moments[f"exp_avg/heads.{TASKS[0]}.weight"], engine.optimizer.state[head]["exp_avg"]
    )
    assert not list(tmp_path.rglob("*.pt")) and not list(tmp_path.rglob("*.bin"))


@pytest.mark.parametrize("kind", ["model", "optimizer"])
def test_a_value_that_is_not_finite_is_never_saved(
    engine: OneProcess, tmp_path: Path, kind: str
) -> None:
    weight = engine.module.heads[TASKS[0]].weight
    held = weight.data if kind == "model" else engine.optimizer.state[weight]["exp_avg_sq"]
    held[0, 0] = float("nan")
    run = Store.open(str(tmp_path))
    with pytest.raises(ConfigError, match=rf"{kind} state .*heads\.{TASKS[0]}\.weight"):
        save(engine, run, 1)
    assert checkpoint_steps(run) == []
