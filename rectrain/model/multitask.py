"""The joint model: one encoder, a sharing layer, and features and a head for each task.

Shapes: T tokens, U texts, B rows of a task, D the encoder's hidden size, K tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import BertModel

from rectrain.data.batch import MicroBatch, Slot
from rectrain.data.encoding import FeatureEncoder
from rectrain.model.balancing import Balancer, build_balancer
from rectrain.model.config import ModelConfig
from rectrain.model.encoder import encode
from rectrain.model.features import FeatureLayer
from rectrain.model.heads import ListPooling, TwoTowerHead, build_head
from rectrain.model.losses import bce, in_batch_softmax, listwise_softmax
from rectrain.model.sharing import build_sharing
from rectrain.model.spec import TaskSpec

__all__ = ["Mode", "MultiTaskModel", "TaskModule"]

Mode = Literal["loss", "score", "embed"]


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
            width=width,
            feature_width=self.features.width,
            hidden=config.head_width,
            dropout=config.dropout,
        )

    def pool(self, vectors: Tensor, slot: Slot) -> list[Tensor]:
        """The sides of the rows, [B, D] each: the query if the task has one, then the item."""
        item = self.item(vectors, slot.item)
        return [item] if self.query is None else [self.query(vectors, slot.query), item]

    def forward(self, sides: list[Tensor], slot: Slot) -> Tensor | tuple[Tensor, Tensor]:
        """Runs the head on the shared sides.

        Args:
            sides: as `pool` gives them, after sharing.
            slot: the rows.

        Returns:
            Float32 [B] scores or logits; for a two-tower head queries and items, [B, D + 1] each.
        """
        features = self.features(
            slot.numeric, slot.categorical, slot.vectors, dtype=sides[-1].dtype
        )
        extra = [slot.log_q] if isinstance(self.head, TwoTowerHead) else []
        return self.head(*sides, features, *extra)  # type: ignore[no-any-return]

    def loss(self, output: Tensor | tuple[Tensor, Tensor], slot: Slot) -> Tensor:
        """The summed loss of the rows, a float32 scalar."""
        if isinstance(output, tuple):
            logits = output[0] @ output[1].T
            return in_batch_softmax(
                logits, item_key=slot.item_key, log_q=slot.log_q, weight=slot.weight
            )
        if self.spec.loss == "listwise_softmax":
            return listwise_softmax(
                output, label=slot.label, weight=slot.weight, list_offsets=slot.list_offsets
            )
        return bce(output, label=slot.label, weight=slot.weight)


class MultiTaskModel(nn.Module):
    """One shared BERT with a head for each task: min over θ of Σ_i w_i · L_i.

    Every forward calls every module with parameters once and in the same order, whatever the
    micro-batch holds, so that parameters may be sharded over ranks (ZeRO stage 3); a task
    without rows gets zero gradients.

    Args:
        encoder: the shared encoder.
        tasks: name -> task, in the run's order.
        features: name -> how the task's features were encoded.
        config: the model's sizes and sharing.
        loss_weights: task -> w; 1 where absent.
        balancer: "static" or "uncertainty".
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
            self.sharing = build_sharing(
                config.sharing,
                tasks=list(tasks),
                width=width,
                num_experts=config.num_experts,
                activation=config.expert_activation,
            )
            self.tasks = nn.ModuleDict(
                {
                    name: TaskModule(spec, features=features[name], width=width, config=config)
                    for name, spec in tasks.items()
                }
            )
        self.balancer = build_balancer(balancer, tasks=list(tasks), weights=loss_weights or {})

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
    ) -> Any:
        """Runs all tasks of a micro-batch.

        Args:
            batch: a slot of every task, in the run's order.
            mode: what to return.
            scale: factor of the loss (to undo an average over ranks).
            num_shares: forwards of the whole step, over all workers.
            vectors: [U, D] of the batch's texts where they are already encoded (inference).

        Returns:
            mode "loss": (scale · the balanced loss, {task: Σ_b w_b · l_b / count, detached}),
                float32 scalars; sums over a step's micro-batches are the step's loss.
            mode "score": {task: float32 [B]}, scores or logits; higher is more relevant, likely.
            mode "embed": {task: (float32 [B, D + 1] of queries, the same of items)} of two-tower
                tasks; the inner product is the score.
        """
        outputs = self._outputs(batch, vectors)
        slots = {slot.task: slot for slot in batch.slots}
        if mode == "embed":
            return {task: output for task, output in outputs.items() if isinstance(output, tuple)}
        if mode == "score":
            return {
                task: (output[0] * output[1]).sum(1) if isinstance(output, tuple) else output
                for task, output in outputs.items()
            }
        shares = {
            task: self._module(task).loss(output, slots[task]) / max(slots[task].count, 1.0)
            for task, output in outputs.items()
        }
        loss = self.balancer(torch.stack(list(shares.values())), num_shares=num_shares)
        return scale * loss, {task: share.detach() for task, share in shares.items()}

    def _outputs(
        self, batch: MicroBatch, vectors: Tensor | None
    ) -> dict[str, Tensor | tuple[Tensor, Tensor]]:
        assert self.task_names == tuple(slot.task for slot in batch.slots), "one slot a task"
        if vectors is None:
            vectors = encode(
                self.encoder, batch.texts, activation_checkpointing=self.activation_checkpointing
            )
        sides = [self._module(slot.task).pool(vectors, slot) for slot in batch.slots]
        num_rows = [
            len(parts) * slot.num_rows for parts, slot in zip(sides, batch.slots, strict=True)
        ]
        shared = self.sharing(torch.cat([side for parts in sides for side in parts]), num_rows)
        return {
            slot.task: self._module(slot.task)(list(rows.tensor_split(len(parts))), slot)
            for slot, rows, parts in zip(batch.slots, shared, sides, strict=True)
        }

    def _module(self, task: str) -> TaskModule:
        module = self.tasks[task]
        assert isinstance(module, TaskModule)
        return module
