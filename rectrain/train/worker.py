"""What Ray Train runs on each worker: restore, train, validate, save, report."""

from __future__ import annotations

import math
import re
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import torch

from rectrain.data.loader import Loader, catalogues
from rectrain.errors import ConfigError, RectrainError, StorageError, without_credentials
from rectrain.train.build import (
    Data,
    attachments,
    new_model,
    open_data,
)
from rectrain.train.checkpoint import (
    load_weights,
    open_checkpoint,
    restore_optimizer,
    save_checkpoint,
)
from rectrain.train.config import PretrainConfig, RunConfig
from rectrain.train.frozen import keep_vectors
from rectrain.train.history import (
    History,
    has_stopped,
    num_reductions,
    read_history,
    watched_value,
)
from rectrain.train.process import set_up_process
from rectrain.train.provenance import check_same_data, checkpoint_meta
from rectrain.train.run_plan import RunPlan, plan_run
from rectrain.train.selection import latest_complete, prune
from rectrain.train.step import (
    Engine,
    StepResult,
    build_engine,
    gradient_norm,
    join_deepspeed,
    learning_rate_share,
    num_accumulations,
    train_step,
    worker_device,
)
from rectrain.train.storage import Store
from rectrain.train.usage import recorded
from rectrain.train.validate import validate

__all__ = ["train_in_group", "train_worker"]

Event = dict[str, Any]
Send = Callable[[Event], None]
Report = Callable[[dict[str, Any]], None]

# What gloo says when another process has died: not an error of this one.
_LOST_PEER = re.compile(
    "closed by peer|reset by peer|timed out waiting|broken pipe|connectfullmesh failed", re.I
)


def train_worker(job: dict[str, Any]) -> None:
    """Trains until the end of the run, from its newest complete checkpoint if there is one.

    Args:
        job: "config" (RunConfig with absolute paths) and "channel" (actor, see launch.Channel).
    """
    channel = job["channel"]
    if ray.get(channel.failed.remote()):
        return  # a mistake repeats itself: restarting can't help, the driver reports it
    rank = torch.distributed.get_rank()
    try:
        train_in_group(
            job["config"],
            send=lambda event: channel.put.remote(event) if rank == 0 else None,
            report=ray.train.report,
        )
    except Exception as error:
        if not _lost_peer(error):
            ray.get(channel.fail.remote(_portable(error)))
        raise


def _lost_peer(error: Exception) -> bool:
    if isinstance(error, torch.distributed.DistError):  # NCCL, the store and its sockets
        return True
    return isinstance(error, RuntimeError) and _LOST_PEER.search(str(error)) is not None


def _portable(error: Exception) -> Exception:
    """The error itself if it is a user's mistake, else one that carries its traceback as text."""
    if isinstance(error, RectrainError):
        return error
    return RuntimeError(without_credentials(traceback.format_exc()))


def train_in_group(config: RunConfig, *, send: Send, report: Report) -> None:
    """Trains a run to its end as one of the processes of torch's default group; all call it.

    Args:
        config: with absolute paths; the run's folder is there.
        send: is given what happens.
        report: is called by every rank after each checkpoint.
    """
    with recorded(
        Store.open(f"{config.output}/{config.name}"),
        work="pretrain" if isinstance(config, PretrainConfig) else "train",
        label=config.name,
        num_threads=config.train.threads_per_worker,
        rank=torch.distributed.get_rank(),
        world_size=torch.distributed.get_world_size(),
    ):
        set_up_process(num_threads=config.train.threads_per_worker)
        join_deepspeed(timeout_s=config.train.collective_timeout_s)
        data = open_data(config)
        run = plan_run(config, data)
        _Session.open(config, data, run=run, send=send, report=report).finish()


@dataclass
class _Window:
    """Sums since the last log line."""

    losses: torch.Tensor
    weights: torch.Tensor
    num_steps: int = 0
    num_tokens: int = 0
    seconds: float = 0.0

    def add(self, result: StepResult, *, seconds: float) -> None:
        self.losses += result.losses
        self.weights += result.weights
        self.num_steps += 1
        self.num_tokens += result.num_tokens
        self.seconds += seconds


@dataclass
class _Session:
    """One life of one worker, between a restore and the end or a death."""

    config: RunConfig
    data: Data
    run: RunPlan
    send: Send
    report: Report
    engine: Engine
    checkpoints: Store
    files: dict[str, bytes]
    start_step: int
    history: History

    @classmethod
    def open(
        cls, config: RunConfig, data: Data, *, run: RunPlan, send: Send, report: Report
    ) -> _Session:
        checkpoints = Store.open(f"{config.output}/{config.name}/checkpoints")
        found = _agree_on_checkpoint(checkpoints, send)
        checkpoint = None if found is None else open_checkpoint(found)
        model = new_model(config, data, checkpoint=checkpoint)
        if checkpoint is not None:
            check_same_data(checkpoint, config, data)
            load_weights(model, checkpoint)
        keep_vectors(model, config, data, device=worker_device())
        engine = build_engine(
            model,
            train=config.train,
            hidden_size=int(model.encoder.config.hidden_size),
            num_accumulations=num_accumulations(
                config.train.micro_batches, world_size=torch.distributed.get_world_size()
            ),
        )
        if checkpoint is not None:
            restore_optimizer(engine, checkpoint)
        return cls(
            config=config,
            data=data,
            run=run,
            send=send,
            report=report,
            engine=engine,
            checkpoints=checkpoints,
            files=attachments(model, data),
            start_step=0 if checkpoint is None else checkpoint.step,
            history=() if checkpoint is None else read_history(checkpoint.meta),
        )

    def finish(self) -> None:
        """Trains the steps that are left, or until early stopping ends the run."""
        self.send(self._event("start", self.start_step))
        if self._stops(self.start_step):
            return
        window = self._window()
        with Loader(
            self.run.shards,
            plan=self.run.plan,
            items=catalogues(self.data),
            rank=torch.distributed.get_rank(),
            world_size=torch.distributed.get_world_size(),
            start_step=self.start_step,
            num_steps=self.run.num_steps,
            prefetch=self.config.data.prefetch,
            pin_memory=self.engine.device.type == "cuda",
        ) as loader:
            began = time.monotonic()
            for step, micro_batches in loader:
                result = self._update(step, micro_batches)
                now = time.monotonic()
                window.add(result, seconds=now - began)
                began = now
                if self._due(step + 1, self.config.train.log_interval):
                    self._log(step, window)
                    window = self._window()
                elif step == 0:  # a first sign of life; the next line's mean holds it, too
                    self._log(step, window)
                elif self._saves(step + 1):
                    self._means(step, window)  # a loss that isn't finite must not be saved
                if self._between_steps(step + 1):
                    began = time.monotonic()  # validation and saving are no training time
                    if self._stops(step + 1):
                        return

    def _update(self, step: int, micro_batches: list[Any]) -> StepResult:
        return train_step(
            self.engine,
            micro_batches,
            step=step,
            seed=self.config.seed,
            learning_rate_share=self._rate_share(step),
            tasks=list(self.data),
            gradient_place=self.config.train.balancer_gradients,
        )

    def _between_steps(self, done: int) -> bool:
        """Validates and saves when it is time; every validated step is saved with its score."""
        if not self._saves(done):
            return False
        validated = self._due(done, self.config.train.evaluate_interval)
        score = self._validate(done) if validated else None
        if self._save(done, score):
            self.report({"step": done, "validation": score})
        return True

    def _saves(self, done: int) -> bool:
        train = self.config.train
        return self._due(done, train.checkpoint_interval) or self._due(
            done, train.evaluate_interval
        )

    def _due(self, done: int, interval: int | None) -> bool:
        return done == self.run.num_steps or (interval is not None and done % interval == 0)

    def _rate_share(self, step: int) -> float:
        train = self.config.train
        reductions = num_reductions(
            [value for _, value in self.history],
            patience=train.plateau_patience,
            min_delta=train.min_delta,
        )
        return learning_rate_share(
            step,
            num_steps=self.run.num_steps,
            warmup_share=train.warmup_share,
            schedule=train.schedule,
            plateau_share=train.plateau_factor**reductions if train.schedule == "plateau" else 1.0,
        )

    def _stops(self, done: int) -> bool:
        """Whether early stopping ends the run here; says so."""
        train = self.config.train
        if not has_stopped(self.history, train=train):
            return False
        _, best = max((value, step) for step, value in self.history)
        self.send(
            self._event("stop", done)
            | {
                "text": f"stopped early at step {done}: {train.early_stopping} validations in a "
                f"row without a gain of {train.watch}; the best is that of step {best}"
            }
        )
        return True

    def _window(self) -> _Window:
        zeros = torch.zeros(2, len(self.data), device=self.engine.device)
        return _Window(losses=zeros[0], weights=zeros[1])

    def _log(self, step: int, window: _Window) -> None:
        """Sends a window's means over the ranks."""
        means, num_tokens = self._means(step, window)
        norm = gradient_norm(self.engine)
        rate = self.config.train.encoder_rate * self._rate_share(step)
        encoder: Any = self.engine.module.encoder
        weights = (window.weights / window.num_steps).tolist()  # alike on all ranks
        self.send(
            self._event("log", step + 1)
            | {
                "loss": means,
                "loss_weight": dict(zip(self.data, weights, strict=True)),
                "tokens_per_second": num_tokens / max(window.seconds, 1e-9),
                **({"learning_rate": rate} if _learns(encoder) else {}),  # it is the encoder's
                **({"gradient_norm": norm} if math.isfinite(norm) else {}),
            }
        )

    def _means(self, step: int, window: _Window) -> tuple[dict[str, float], float]:
        """A window's mean loss of each task, and its tokens, over the ranks; collective.

        Raises:
            ConfigError: a loss that isn't finite.
        """
        tokens = torch.tensor([float(window.num_tokens)], device=self.engine.device)
        sums = torch.cat([window.losses, tokens])
        torch.distributed.all_reduce(sums)
        *losses, num_tokens = sums.tolist()
        means = {
            task: total / window.num_steps for task, total in zip(self.data, losses, strict=True)
        }
        bad = [task for task, value in means.items() if not math.isfinite(value)]
        if bad:
            raise ConfigError(
                what=f"loss of {', '.join(bad)} before step {step + 1}",
                got=means[bad[0]],
                rule="losses must stay finite",
                fix="lower train.learning_rate, or clip by train.max_grad_norm",
            )
        return means, num_tokens

    def _validate(self, done: int) -> float | None:
        values = validate(
            self.engine,
            self.data,
            tokens_per_micro_batch=self.config.data.micro_batch_tokens,
            max_rows=self.config.train.evaluate_rows,
        )
        known = {task: value for task, value in values.items() if math.isfinite(value)}
        if known:
            self.send(self._event("validation", done) | {"validation": known})
        watched = [watched_value(known, watch=self.config.train.watch)]
        torch.distributed.broadcast_object_list(watched, src=0)  # rank 0 alone knows the values
        score = watched[0]
        if score is not None:
            self.history = (*self.history, (done, score))
        elif self.config.train.follows_validation:
            raise ConfigError(
                what=f"train.watch at step {done}",
                got=f"no value of {self.config.train.watch}",
                rule="early stopping and plateau need a value at every validation",
                fix="give validation rows with both labels, or watch another task",
            )
        return score

    def _save(self, done: int, score: float | None) -> bool:
        problem = save_checkpoint(
            self.engine,
            self.checkpoints,
            step=done,
            meta=checkpoint_meta(self.config, self.data) | {"history": self.history},
            attachments=self.files,
            score=score,
        )
        if problem is None:
            if torch.distributed.get_rank() == 0:
                prune(self.checkpoints, keep_last=self.config.train.keep_last)
            return True
        if done == self.run.num_steps or has_stopped(self.history, train=self.config.train):
            raise StorageError(
                what=f"last checkpoint in {self.checkpoints.root}",
                got=problem,
                rule="it must be written",
                fix="make room, and run the same command again: it goes on from the one before",
            )
        if score is not None and self.config.train.early_stopping is not None:
            self.history = self.history[:-1]  # what was not written can't be the best
        self.send(
            self._event("note", done)
            | {"text": f"checkpoint of step {done} not written: {problem}; training goes on"}
        )
        return False

    def _event(self, kind: str, step: int) -> Event:
        return {
            "kind": kind,
            "step": step,
            "num_steps": self.run.num_steps,
            "num_workers": torch.distributed.get_world_size(),
        }


def _learns(module: torch.nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _agree_on_checkpoint(checkpoints: Store, send: Send) -> Store | None:
    """Rank 0 verifies and chooses; all restore from the same."""
    name: list[str | None] = [None]
    if torch.distributed.get_rank() == 0:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = latest_complete(checkpoints)
        for warning in caught:
            send({"kind": "note", "text": str(warning.message)})
        name = [None if found is None else found.root.rpartition("/")[2]]
    torch.distributed.broadcast_object_list(name, src=0)
    return None if name[0] is None else checkpoints.sub(name[0])
