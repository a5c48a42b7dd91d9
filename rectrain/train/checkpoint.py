"""One checkpoint form for every world size and ZeRO stage: safetensors and JSON, no pickle.

    step-00000120/
        model-<rank>-<part>.safetensors       fp32 weights, and buffers, by parameter name
        optimizer-<rank>-<part>.safetensors   exp_avg/<name> and exp_avg_sq/<name>, fp32
                                              (Adafactor: exp_avg_sq_row, _col, or exp_avg_sq)
        meta.json                             step, score, and what the caller gives
        …                                     the caller's files (tokenizer/, encoder/)
        manifest.json                         size and SHA-256 of each file above
        COMPLETE                              SHA-256 of manifest.json; written last

Rank r writes a range of the parameters. All is written to a temporary folder, fsynced and renamed,
so a folder without COMPLETE is never read. Filesystems without rename are written in place, the
marker last. Random generators need no state: every forward is seeded (see step.dropout_seed).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from transformers.optimization import Adafactor

from rectrain.errors import CheckpointError, ConfigError
from rectrain.train.step import Engine
from rectrain.train.storage import Store

__all__ = [
    "MARKER",
    "Checkpoint",
    "discard",
    "load_weights",
    "manifest_sha256",
    "open_checkpoint",
    "restore_optimizer",
    "save_checkpoint",
    "verify",
]

MARKER = "COMPLETE"
_FORMAT = 1
_MANIFEST, _META = "manifest.json", "meta.json"
_MOMENTS = ("exp_avg", "exp_avg_sq")
_PART_BYTES = 1 << 28  # a part is serialised in memory before it is written


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on the local disk."""

    path: Path
    meta: dict[str, Any]
    files: tuple[str, ...]

    @property
    def step(self) -> int:
        """Updates made before it was written."""
        return int(self.meta["step"])

    @property
    def model_sha256(self) -> str:
        """SHA-256 of what decides the scores: the weights and the checkpoint's meta.json."""
        digest = hashlib.sha256()
        for name in sorted(self.files):
            if name == _META or name.startswith("model-"):
                with (self.path / name).open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def tensors(self, kind: str) -> Iterator[tuple[str, Tensor]]:
        """Name and fp32 tensor, one at a time; kind is model or optimizer."""
        for file in self.files:
            if file.startswith(f"{kind}-") and file.endswith(".safetensors"):
                with safe_open(self.path / file, framework="pt") as part:
                    for name in part.keys():  # noqa: SIM118 - not a mapping
                        yield name, part.get_tensor(name)


# --- writing ---------------------------------------------------------------------------------


def save_checkpoint(
    engine: Engine,
    run: Store,
    *,
    step: int,
    meta: Mapping[str, Any],
    attachments: Mapping[str, bytes],
    score: float | None = None,
) -> str | None:
    """Writes a checkpoint; every rank must call it at the same step, after at least one update.

    Args:
        engine: the engine to save.
        run: the folder of the run's checkpoints, the same for all ranks.
        step: updates made.
        meta: JSON-serialisable facts, the same on all ranks.
        attachments: further files by relative path (rank 0's are written).
        score: validation score, higher is better, if it was measured at this step.

    Returns:
        None, or on every rank the one-line reason why nothing was written (a full disk, say). Then
        nothing is left behind and training can go on.

    Raises:
        ConfigError: on every rank, a value that isn't finite: no checkpoint holds one.
    """
    name = f"step-{step:08d}"
    draft = name if run.local is None else f".draft-{name}"
    if _rank() == 0:
        run.remove(draft)
    _barrier()
    files, problem = _write_parts(engine, run.sub(draft))
    gathered: list[Any] = [None] * _world_size()
    torch.distributed.all_gather_object(gathered, (files, problem))
    problem = next((reason for _, reason in gathered if reason), None)
    if problem is None and _rank() == 0:
        merged = {file: facts for part, _ in gathered for file, facts in part.items()}
        problem = _complete(
            run,
            draft=draft,
            name=name,
            files=merged,
            texts={_META: _json({**meta, "step": step, "score": score}), **attachments},
        )
    outcome = [problem]
    torch.distributed.broadcast_object_list(outcome, src=0)
    if outcome[0] is not None and _rank() == 0:
        run.remove(draft)
    return outcome[0]


def _write_parts(engine: Engine, folder: Store) -> tuple[dict[str, Any], str | None]:
    """This rank's parts; after a failure goes on with the collectives, but writes no more."""
    files: dict[str, Any] = {}
    problem = None
    pending: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}}

    def flush(kind: str) -> None:
        file = f"{kind}-{_rank():05d}-{len(files):05d}.safetensors"
        files[file] = _write(folder, file, to_safetensors(pending[kind]))
        pending[kind] = {}

    for owner, kind, name, tensor in _owned_tensors(engine):
        if not torch.isfinite(tensor).all():  # whole, so that all ranks see the same
            raise ConfigError(
                what=f"{kind} state {name}",
                got="a value that isn't finite",
                rule="weights and moments must stay finite",
                fix="lower train.learning_rate, or clip by train.max_grad_norm",
            )
        if owner != _rank() or problem:
            continue
        pending[kind][name] = tensor.detach().cpu().contiguous().clone()
        try:
            if sum(held.nbytes for held in pending[kind].values()) >= _PART_BYTES:
                flush(kind)
        except OSError as error:
            problem = str(error)
    for kind in pending:
        try:
            if pending[kind] and not problem:
                flush(kind)
        except OSError as error:
            problem = str(error)
    return files, problem


def _owned_tensors(engine: Engine) -> Iterator[tuple[int, str, str, Tensor]]:
    """(owner rank, kind, name, whole fp32 tensor) in one order on all ranks; collective."""
    _link_states(engine)
    parameters = dict(engine.module.named_parameters())
    sizes = {name: getattr(p, "ds_numel", p.numel()) for name, p in parameters.items()}
    total, before = sum(sizes.values()), 0
    for name, parameter in parameters.items():
        owner = before * _world_size() // total
        before += sizes[name]
        yield owner, "model", name, _whole_weight(parameter)
        if parameter.requires_grad:
            for moment, whole in _whole_moments(engine, parameter):
                yield owner, "optimizer", f"{moment}/{name}", whole
    kept = engine.module.state_dict().keys() - parameters.keys()
    for name, buffer in engine.module.named_buffers():
        if name in kept:
            yield 0, "model", name, buffer


def _whole_weight(parameter: nn.Parameter) -> Tensor:
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    if not parameter.requires_grad:
        with GatheredParameters([parameter]):
            return parameter.detach().float().clone()
    whole = safe_get_full_fp32_param(parameter)
    return parameter.float() if whole is None else whole


def _whole_moments(engine: Engine, parameter: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
    if engine.zero_optimization_stage() == 0:  # the optimizer holds them as they are
        held = engine.optimizer.state[parameter]
        yield from ((key, held[key]) for key in held if key.startswith("exp_avg"))
        return
    from deepspeed.utils import safe_get_full_optimizer_state

    for moment in _MOMENTS:
        whole = safe_get_full_optimizer_state(parameter, moment)
        assert isinstance(whole, Tensor)
        yield moment, whole


def _write(folder: Store, file: str, data: bytes) -> dict[str, Any]:
    folder.write(file, data)
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _complete(
    run: Store, *, draft: str, name: str, files: dict[str, Any], texts: Mapping[str, bytes]
) -> str | None:
    """Adds the small files and the manifest, renames, marks; returns what went wrong."""
    folder = run.sub(draft)
    try:
        for file, data in texts.items():
            files[file] = _write(folder, file, data)
        manifest = _json({"format": _FORMAT, "files": dict(sorted(files.items()))})
        folder.write(_MANIFEST, manifest)
        for parent in {Path(file).parent.as_posix() for file in files}:
            folder.sync(parent)
        if run.local is not None:
            discard(run, name)  # damaged, or it would have been resumed from
            run.rename(draft, name)
        run.sub(name).write(MARKER, hashlib.sha256(manifest).hexdigest().encode())
        run.sync(name)
    except OSError as error:
        discard(run, name)
        return str(error)
    return None


def discard(run: Store, name: str) -> None:
    """Removes a checkpoint, its marker first: what a death leaves is not taken for complete."""
    run.remove_file(f"{name}/{MARKER}")
    run.remove(name)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()  # keys unsorted: tasks have an order


# --- reading ---------------------------------------------------------------------------------


def verify(folder: Store) -> tuple[str, ...]:
    """Checks a checkpoint's marker, manifest and every file's size and SHA-256.

    Returns:
        The paths of its files.

    Raises:
        CheckpointError: it is incomplete, damaged, or not a checkpoint of this library.
    """
    if not folder.exists(_MANIFEST):
        raise _damaged(folder, "no manifest.json", rule="a checkpoint has a manifest and a marker")
    manifest = folder.read(_MANIFEST)
    if not folder.exists(MARKER):
        raise _damaged(folder, "no COMPLETE marker", rule="the marker is written last")
    if folder.read(MARKER).strip() != hashlib.sha256(manifest).hexdigest().encode():
        raise _damaged(folder, "altered manifest.json", rule="COMPLETE holds its SHA-256")
    listed = json.loads(manifest)
    if listed.get("format") != _FORMAT:
        raise _damaged(
            folder, f"format {listed.get('format')}", rule=f"this version reads format {_FORMAT}"
        )
    for file, facts in listed["files"].items():
        _verify_file(folder, file, facts)
    return tuple(listed["files"])


def manifest_sha256(folder: Store) -> str:
    """SHA-256 of a checkpoint's manifest, and so of all that is in it.

    Raises:
        CheckpointError: there is no manifest.
    """
    if not folder.exists(_MANIFEST):
        raise _damaged(folder, "no manifest.json", rule="a checkpoint has a manifest and a marker")
    return hashlib.sha256(folder.read(_MANIFEST)).hexdigest()


def _verify_file(folder: Store, file: str, facts: Mapping[str, Any]) -> None:
    if not folder.exists(file):
        raise _damaged(folder, f"{file} is missing", rule="every file of the manifest is there")
    digest, size = hashlib.sha256(), 0
    for piece in folder.chunks(file):
        digest.update(piece)
        size += len(piece)
    if size != facts["bytes"]:
        raise _damaged(folder, f"{file} of {size} bytes", rule=f"{facts['bytes']} were written")
    if digest.hexdigest() != facts["sha256"]:
        raise _damaged(folder, f"{file} altered", rule="its SHA-256 stands in manifest.json")


def _damaged(folder: Store, got: str, *, rule: str) -> CheckpointError:
    return CheckpointError(
        what=f"checkpoint {folder.root}",
        got=got,
        rule=rule,
        fix="use another checkpoint of the run",
    )


def open_checkpoint(folder: Store) -> Checkpoint:
    """Verifies a checkpoint and brings it to the local disk where it is not there yet.

    Raises:
        CheckpointError: see `verify`.
    """
    files = verify(folder)
    path = folder.local
    if path is None:
        path = Path(tempfile.mkdtemp(prefix="rectrain-checkpoint-"))
        for file in files:
            target = path / file
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as copy:
                copy.writelines(folder.chunks(file))
    checkpoint = Checkpoint(path, json.loads((path / _META).read_bytes()), files)
    if folder.local is None:
        weakref.finalize(checkpoint, shutil.rmtree, path, ignore_errors=True)
    return checkpoint


def load_weights(model: nn.Module, checkpoint: Checkpoint, *, prefix: str = "") -> None:
    """Copies a checkpoint's weights and buffers into a model that is not split.

    Args:
        model: is changed.
        checkpoint: of a run.
        prefix: of the names that the model's tensors have there; others are left out.

    Raises:
        CheckpointError: names or shapes differ.
    """
    state = {
        name.removeprefix(prefix): tensor
        for name, tensor in checkpoint.tensors("model")
        if name.startswith(prefix)
    }
    own = model.state_dict()
    wrong = sorted(own.keys() ^ state.keys()) + sorted(
        name for name in own.keys() & state.keys() if own[name].shape != state[name].shape
    )
    if wrong:
        raise CheckpointError(
            what=f"checkpoint {checkpoint.path}",
            got=f"other tensors: {', '.join(wrong[:3])} ({len(wrong)} in all)",
            rule="its model has the run's shape",
            fix="use the configuration that wrote it",
        )
    model.load_state_dict(state)


def restore_optimizer(engine: Engine, checkpoint: Checkpoint) -> None:
    """Gives a fresh engine the moments and the step of a checkpoint; every rank must call it.

    The engine must have been built on a model that already holds the checkpoint's weights: its
    master copy is then right, since both are fp32.
    """
    _make_states(engine, step=checkpoint.step)
    parameters = dict(engine.module.named_parameters())
    for key, value in checkpoint.tensors("optimizer"):
        moment, _, name = key.partition("/")
        _set_moment(engine, parameters[name], moment, value)


def _make_states(engine: Engine, *, step: int) -> None:
    """The states as they would stand after `step` updates: Adam's with zero moments, no others."""
    wrapper = engine.optimizer
    stage = engine.zero_optimization_stage()
    if stage == 0:
        inner = wrapper
        held = [p for group in wrapper.param_groups for p in group["params"]]
    else:
        inner = wrapper.optimizer
        held = list(
            wrapper.fp32_partitioned_groups_flat
            if stage == 3
            else wrapper.single_partition_of_fp32_groups
        )
    in_torch = isinstance(inner, torch.optim.Adam)  # AdamW is one
    for tensor in held:
        if isinstance(inner, Adafactor):
            inner.state[tensor] = {"step": step, "RMS": 0}
            continue
        inner.state[tensor] = {
            # torch counts in a tensor beside the weights, DeepSpeedCPUAdam in a number.
            "step": torch.tensor(float(step), device=tensor.device) if in_torch else step,
            **{moment: torch.zeros_like(tensor, requires_grad=False) for moment in _MOMENTS},
        }
    _link_states(engine)


def _link_states(engine: Engine) -> None:
    """Lets DeepSpeed's accessors see the moments of every parameter group at stages 1 and 2.

    DeepSpeed links them once, after the update of the first group, when the others have none yet.
    """
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _set_moment(engine: Engine, parameter: nn.Parameter, moment: str, value: Tensor) -> None:
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    stage = engine.zero_optimization_stage()
    if stage == 0:
        engine.optimizer.state[parameter][moment] = value.to(engine.device, copy=True)
    elif stage == 3:
        # The whole-tensor setter breaks on sizes that N does not divide.
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        padded = torch.zeros(size * _world_size())
        padded[: value.numel()] = value.flatten()
        safe_set_local_optimizer_state(parameter, padded[size * _rank() :][:size], moment)
    else:
        safe_set_full_optimizer_state(parameter, value.to(engine.device), moment)


def _rank() -> int:
    return torch.distributed.get_rank()


def _world_size() -> int:
    return torch.distributed.get_world_size()


def _barrier() -> None:
    torch.distributed.barrier()
