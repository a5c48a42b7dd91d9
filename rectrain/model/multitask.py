"""The joint model: one encoder, a sharing layer, and features and a head for each task.

Shapes: T tokens, U texts, B rows of a task, K ≥ B its items (negatives follow the rows' items; see
`batch.Slot`), D the encoder's hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from transformers import BertModel

from rectrain.data.batch import MicroBatch, PackedTexts, Slot
from rectrain.data.encoding import FeatureEncoder
from rectrain.errors import ConfigError
from rectrain.model.adapters import RankBudget
from rectrain.model.balancing import build_balancer
from rectrain.model.config import Balancer, GradientPlace, ModelConfig
from rectrain.model.distillation import relation
from rectrain.model.encoder import encode
from rectrain.model.features import FeatureLayer
from rectrain.model.heads import HeadSizes, ListPooling, TwoTowerHead, build_head
from rectrain.model.known import TextVectors
from rectrain.model.objectives import Output, hard_loss, soft_loss
from rectrain.model.sharing import build_sharing
from rectrain.model.spec import Loss, TaskSpec

__all__ = ["Answers", "Distillation", "Lesson", "Mode", "MultiTaskModel", "TaskModule"]

Mode = Literal["loss", "score", "embed"]
Answers = tuple[Tensor, Mapping[str, Output]]
"""Vectors [U, D] of a batch's texts, and outputs by task."""


class TaskModule(nn.Module):
    """What one task owns: list pooling of its sides, its features and its head.

    Args:
        spec: the task.
        features: how the task's features were encoded.
        width: D.
        config: the model's sizes.
    """

    def __init__(
        self, spec: TaskSpec, *, features: FeatureEncoder, width: int, config: ModelConfig
    ) -> None:
        super().__init__()
        self.spec = spec
        self.query = ListPooling(width) if spec.query else None
        self.item = ListPooling(width)
        self.features = FeatureLayer(
            bin_edges=list(features.numeric.values()),
            vocabulary_sizes=features.cardinalities,
            vector_sizes=features.vectors,
            width=config.feature_width,
        )
        self.head = build_head(
            spec.head,
            HeadSizes(
                width=width,
                feature_width=self.features.width,
                hidden=config.head_width,
                dropout=config.dropout,
                bias=not spec.has_lists,
            ),
        )

    def pool(self, vectors: Tensor, slot: Slot) -> list[Tensor]:
        """The sides of a slot: queries [B, D] if the task has them, then items [K, D]."""
        item = self.item(vectors, slot.item)
        return [item] if self.query is None else [self.query(vectors, slot.query), item]

    def forward(self, sides: list[Tensor], slot: Slot) -> Output:
        """Runs the head on the shared sides.

        Args:
            sides: as `pool` gives them, after sharing.
            slot: the rows.

        Returns:
            Float32 [B] scores or logits; for a two-tower head [B, D + 1] queries and [K, D + 1]
            items.
        """
        features = self.features(
            slot.numeric, slot.categorical, slot.vectors, dtype=sides[-1].dtype
        )
        extra = [slot.log_q] if isinstance(self.head, TwoTowerHead) else []
        return self.head(*sides, features, *extra)  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """How much is learnt of a teacher beside the rows' labels.

    Attributes:
        weight: share of the soft loss in each task's loss, 0 to 1; the rest is that of the labels.
        temperature: of the soft labels, above 0.
        relation: weight of the relation of the texts' vectors, at least 0.
        num_micro_batches: of a step; the relation is a mean over them.
    """

    weight: float
    temperature: float
    relation: float
    num_micro_batches: int

    def loss(self, kind: Loss, output: Output, taught: Output, slot: Slot) -> Tensor:
        """The summed loss of a task's rows, of labels and teacher together; float32 scalar."""
        soft = soft_loss(kind, output, taught, slot, temperature=self.temperature)
        return (1.0 - self.weight) * hard_loss(kind, output, slot) + self.weight * soft


@dataclass(frozen=True, kw_only=True)
class Distillation(Lesson):
    """What a model learns of a trained one.

    Attributes:
        teacher: of the same tasks and features, in evaluation mode, without gradients. It is no
            part of the student: neither its weights nor its state.
    """

    teacher: MultiTaskModel

    @torch.no_grad()
    def teach(self, batch: MicroBatch) -> Answers:
        """The teacher's."""
        with torch.autocast(batch.texts.input_ids.device.type, enabled=False):
            vectors = self.teacher.text_vectors(batch.texts)
            return vectors, self.teacher.outputs(batch, vectors)


def _inner(queries: Tensor, items: Tensor) -> Tensor:
    """Scores [B] of the rows' own items."""
    return (queries * items[: queries.shape[0]]).sum(1)


class MultiTaskModel(nn.Module):
    """One shared BERT with a head for each task: min over θ of Σ_i w_i · L_i.

    Every forward for a loss calls every module with parameters once and in the same order, whatever
    the micro-batch holds, so that parameters may be sharded over ranks (ZeRO stage 3); a task
    without rows gets zero gradients.

    Attributes:
        rank_budget: decides about the ranks of AdaLoRA's adapters, where the encoder has them.
        distillation: what it learns of a teacher, where it has one.

    Args:
        encoder: the shared encoder.
        tasks: name -> task, in the run's order.
        features: name -> how the task's features were encoded.
        config: the model's sizes and sharing.
        loss_weights: task -> w; 1 where absent.
        balancer: what makes one number of the tasks' losses.
        activation_checkpointing: recompute the encoder's layers in the backward pass.
        seed: of the fresh weights; the caller's random state is left alone.
    """

    def __init__(
        self,
        encoder: BertModel,
        *,
        tasks: Mapping[str, TaskSpec],
        features: Mapping[str, FeatureEncoder],
        config: ModelConfig,
        loss_weights: Mapping[str, float] | None = None,
        balancer: Balancer = "static",
        activation_checkpointing: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.activation_checkpointing = activation_checkpointing
        width = int(encoder.config.hidden_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.sharing = build_sharing(config, tasks=list(tasks), width=width)
            self.tasks = nn.ModuleDict(
                {
                    name: TaskModule(spec, features=features[name], width=width, config=config)
                    for name, spec in tasks.items()
                }
            )
        self.balancer = build_balancer(balancer, tasks=list(tasks), weights=loss_weights or {})
        self.rank_budget: RankBudget | None = None
        self.distillation: Distillation | None = None
        self._known: TextVectors | None = None

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks in the run's order."""
        return tuple(self.tasks)

    def forward(
        self,
        batch: MicroBatch,
        *,
        mode: Mode = "loss",
        scale: float = 1.0,
        num_shares: int = 1,
        vectors: Tensor | None = None,
        balance: Callable[[Tensor], Tensor] | None = None,
    ) -> Any:
        """Runs the tasks of a micro-batch.

        Args:
            batch: a slot of every task, in the run's order; of those wanted alone, in any mode but
                "loss".
            mode: what to return.
            scale: factor of the loss (to undo an average over ranks).
            num_shares: forwards of the whole step, over all workers.
            vectors: [U, D] of the batch's texts where they are already encoded (inference).
            balance: in the place of the balancer, makes one number of the losses float32 [K],
                which still have their graph (gradients of outputs are out of reach under ZeRO).

        Returns:
            mode "loss": (scale · the balanced loss, {task: Σ_b w_b · l_b / count, detached}),
                float32 scalars; sums over a step's micro-batches are the step's loss. With a
                teacher, l_b is of labels and teacher (see `Distillation`), and the relation of the
                texts' vectors joins the balanced loss.
            mode "score": {task: float32 [B]}, scores or logits; higher is more relevant, likely.
            mode "embed": {task: (float32 [B, D + 1] of queries, [K, D + 1] of items)} of two-tower
                tasks; the inner product is the score.
        """
        if vectors is None:
            vectors = self.text_vectors(batch.texts)
        outputs = self.outputs(batch, vectors)
        if mode == "embed":
            return {task: output for task, output in outputs.items() if isinstance(output, tuple)}
        if mode == "score":
            return {
                task: _inner(*output) if isinstance(output, tuple) else output
                for task, output in outputs.items()
            }
        assert self.task_names == tuple(slot.task for slot in batch.slots), "one slot a task"
        shares, losses, extra = self._losses(batch, outputs, vectors)
        loss = self.balancer(losses, num_shares=num_shares) if balance is None else balance(losses)
        if self.rank_budget is not None:
            loss = loss + self.rank_budget.penalty(self.encoder) / num_shares
        return scale * (loss + extra), {task: share.detach() for task, share in shares.items()}

    def _losses(
        self, batch: MicroBatch, outputs: Mapping[str, Output], vectors: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Tensor | float]:
        """This forward's share of each task's loss, to be told; of what is minimised: the tasks'
        losses [K], and what belongs to no task."""
        extra: Tensor | float = 0.0
        if self.distillation is None:
            shares = {}
            for slot in batch.slots:
                loss = hard_loss(self._module(slot.task).spec.loss, outputs[slot.task], slot)
                shares[slot.task] = loss / max(slot.count, 1.0)
        else:
            taught = self.distillation.teach(batch)
            shares, extra = self._taught(self.distillation, batch, (vectors, outputs), taught)
        return shares, torch.stack(list(shares.values())), extra

    def _taught(
        self, lesson: Lesson, batch: MicroBatch, own: Answers, taught: Answers
    ) -> tuple[dict[str, Tensor], Tensor | float]:
        """The same with a teacher: each task's loss, and what belongs to no task."""
        shares = {}
        for slot in batch.slots:
            kind, task = self._module(slot.task).spec.loss, slot.task
            loss = lesson.loss(kind, own[1][task], taught[1][task], slot)
            shares[task] = loss / max(slot.count, 1.0)
        if lesson.relation <= 0:
            return shares, 0.0
        share = lesson.relation / lesson.num_micro_batches
        return shares, share * relation(own[0], teacher=taught[0])

    def shared_parameters(self, place: GradientPlace) -> list[nn.Parameter]:
        """Trainable parameters that all tasks share, where their gradients are compared.

        Args:
            place: "last_layer", the output block (second linear layer and norm) of the encoder's
                last layer, the last that all tokens pass; or "encoder", all of it. Where the
                former are frozen (adapters), the nearest larger part that is not.

        Raises:
            ConfigError: the whole encoder is frozen.
        """
        last: Any = self.encoder.encoder.layer[-1]
        parts = [last.output, last] if place == "last_layer" else []
        for part in (*parts, self.encoder):
            found = [parameter for parameter in part.parameters() if parameter.requires_grad]
            if found:
                return found
        raise ConfigError(
            what="train.balancer",
            got="gradients of a frozen encoder",
            rule="tasks conflict only in parameters that they share and train",
            fix="choose static, uncertainty or dwa",
        )

    def freeze_encoder(self, known: TextVectors) -> None:
        """From now on the encoder does not learn, has no dropout, and runs for unknown texts only.

        Args:
            known: vectors of texts by this encoder.
        """
        self.encoder.requires_grad_(False).train(False)
        self._known = known

    def train(self, mode: bool = True) -> Self:
        """Sets training or evaluation mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self._known is not None:
            self.encoder.train(False)
        return self

    def text_vectors(self, texts: PackedTexts) -> Tensor:
        """Vectors [U, D] of texts: encoded, or looked up where the encoder is frozen."""
        if self._known is None:
            return encode(
                self.encoder, texts, activation_checkpointing=self.activation_checkpointing
            )
        # In one precision: the known vectors were made before there was an engine's autocast.
        with torch.no_grad(), torch.autocast(texts.input_ids.device.type, enabled=False):
            return self._known.of(texts, encode=partial(encode, self.encoder))

    def outputs(self, batch: MicroBatch, vectors: Tensor) -> dict[str, Output]:
        """The output of each task in a batch, for vectors [U, D] of its texts; see
        `TaskModule.forward`.
        """
        views = dict(zip(self.task_names, self.balancer.split(vectors), strict=True))
        sides = {
            slot.task: self._module(slot.task).pool(views[slot.task], slot) for slot in batch.slots
        }
        sizes = {task: [len(side) for side in parts] for task, parts in sides.items()}
        shared = self.sharing(
            torch.cat([side for parts in sides.values() for side in parts]),
            [sum(sizes.get(task, [])) for task in self.task_names],
        )
        rows = dict(zip(self.task_names, shared, strict=True))
        return {
            slot.task: self._module(slot.task)(list(rows[slot.task].split(sizes[slot.task])), slot)
            for slot in batch.slots
        }

    def _module(self, task: str) -> TaskModule:
        module = self.tasks[task]
        assert isinstance(module, TaskModule)
        return module
