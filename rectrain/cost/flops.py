"""FLOPs and bytes in closed form: what a model takes before it is run.

A multiplication with its addition counts as two. What is counted are matrix products: linear
layers and attention. Left out everywhere: look-ups, biases, norms, activation functions, softmax,
dropout, pooling, the optimizer. They are a few in a hundred of the operations at the sizes of BERT
and more of the time of small models: device-seconds come from measurement (`measure.py`), FLOPs
compare shapes. Bytes of a worker in training are those of `rectrain.train.memory`.

Shapes: U texts, L_u tokens of a text, T = Σ_u L_u real tokens, D hidden size, I inner size, B rows
of a task, K >= B its items (drawn negatives follow the rows').
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import BertConfig

from rectrain.data.batch import MicroBatch
from rectrain.data.loader import Loader, catalogues
from rectrain.data.shards import Prepared
from rectrain.model.heads import TwoTowerHead
from rectrain.model.multitask import MultiTaskModel, TaskModule
from rectrain.model.sharing import ProgressiveExtraction, SharedBottom
from rectrain.train.run_plan import RunPlan

__all__ = [
    "Flops",
    "Rows",
    "RunFlops",
    "Work",
    "complexity",
    "encoder_flops",
    "encoder_parameters",
    "forward_flops",
    "run_flops",
    "training_flops",
    "weight_bytes",
    "work_of",
]

Lengths = Sequence[int] | NDArray[np.integer[Any]] | Tensor

_SAMPLED_STEPS = 50


class Rows(NamedTuple):
    """rows: B of a task; items: K."""

    rows: int
    items: int


@dataclass(frozen=True)
class Work:
    """What one forward reads.

    Attributes:
        lengths: int64 [U], real tokens of each different text.
        rows: task -> its rows.
    """

    lengths: NDArray[np.int64]
    rows: Mapping[str, Rows]

    @property
    def num_tokens(self) -> int:
        """T."""
        return int(self.lengths.sum())


class Flops(NamedTuple):
    """encoder: of all texts; heads: of features, sharing and heads; loss: of two towers' logits."""

    encoder: int
    heads: int
    loss: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.encoder + self.heads + self.loss


def work_of(batch: MicroBatch) -> Work:
    """The work of a micro-batch."""
    rows = {s.task: Rows(s.num_rows, s.num_rows + s.num_negatives) for s in batch.slots}
    return Work(batch.texts.lengths.cpu().numpy().astype(np.int64), rows)


def encoder_flops(bert: BertConfig, lengths: Lengths) -> int:
    """Forward of the encoder over ragged texts, without padding.

        N · Σ_u [ L_u (8 D² + 4 D I) + 4 L_u² D ]

    of N layers: four D × D projections and two of D × I a token, and the two products of attention
    a pair of tokens of one text (Kaplan et al. 2020, "Scaling Laws for Neural Language Models",
    section 2.1 and table 1, which leaves out what grows with the pairs; Hoffmann et al. 2022,
    "Training Compute-Optimal Large Language Models", appendix F, which has it). Padding would
    count the longest text for each. Not counted: see the module; the pooler, which we don't use.

    Args:
        bert: sizes of the encoder.
        lengths: real tokens of each text.
    """
    tokens = np.asarray(lengths, dtype=object)  # Python's integers: sums of squares grow large
    hidden, inner = bert.hidden_size, bert.intermediate_size
    per_token = 8 * hidden**2 + 4 * hidden * inner
    total = per_token * int(tokens.sum()) + 4 * hidden * int((tokens * tokens).sum())
    return int(bert.num_hidden_layers) * total


def complexity(bert: BertConfig, lengths: Lengths) -> float:
    """C of the linear cost model: forward GFLOP of the encoder per 1,000 real tokens.

    Args:
        bert: sizes of the encoder.
        lengths: of texts as they come; attention makes long ones dearer a token.
    """
    return encoder_flops(bert, lengths) / int(np.asarray(lengths).sum()) / 1e6


def encoder_parameters(bert: BertConfig) -> int:
    """Parameters of the encoder, without pooler.

    (V + positions + types + 2) D of the embeddings and their norm, and N layers of
    4 (D² + D) + 2 D I + I + D + 4 D (Devlin et al. 2019, "BERT", section 3 and its code).
    """
    hidden, inner = bert.hidden_size, bert.intermediate_size
    embedded = bert.vocab_size + bert.max_position_embeddings + bert.type_vocab_size + 2
    layer = 4 * (hidden**2 + hidden) + 2 * hidden * inner + inner + 5 * hidden
    return int(embedded * hidden + bert.num_hidden_layers * layer)


def weight_bytes(num_parameters: int, *, bits: int = 32) -> int:
    """Bytes of weights; scales of integers and a file's header are not counted.

    Args:
        num_parameters: of the model.
        bits: of each: 32 of float, 8 of int8.
    """
    return -(-num_parameters * bits // 8)


def forward_flops(model: MultiTaskModel, work: Work, *, with_loss: bool = False) -> Flops:
    """Forward of encoder, sharing, features and heads.

    A linear layer of i inputs and o outputs takes 2 i o a row. Two-tower training compares every
    query with every item: 2 B K (D + 1). Not counted: see the module; pooling of lists, cosines.

    Args:
        model: of the tasks; a frozen encoder counts as any other.
        work: a task without rows takes nothing.
        with_loss: whether two towers' logits are made, as in training.
    """
    heads = loss = 0
    sizes: dict[str, int] = {}
    for task, (rows, items) in work.rows.items():
        module: Any = model.tasks[task]
        sizes[task] = items + (rows if module.query is not None else 0)
        heads += _task_flops(module, rows, items)
        if with_loss and isinstance(module.head, TwoTowerHead):
            loss += 2 * rows * items * (int(model.encoder.config.hidden_size) + 1)
    heads += _sharing_flops(model.sharing, sizes)
    tokens = work.num_tokens
    encoder = encoder_flops(model.encoder.config, work.lengths)
    return Flops(encoder + 2 * tokens * _adapter_weights(model.encoder), heads, loss)


def training_flops(model: MultiTaskModel, work: Work) -> Flops:
    """Forward and backward pass of one micro-batch.

    A backward pass takes two products for each of the forward, for the gradients of inputs and of
    weights (Kaplan et al. 2020, section 2.1): 3 forwards in all, 4 of the encoder with activation
    checkpointing. An encoder under adapters makes no gradients of its weights: 2 forwards, and 3 of
    the adapters. A frozen one is looked up: none here, once a text before (`RunFlops.before`). A
    teacher adds its heads, forward. Not counted: see the module; the second product of scores that
    fused attention makes in its backward pass; gradients that balancers compare. Counted although
    it is not made: the gradient of features' inputs, and under adapters of the first layer's.

    Args:
        model: as it trains.
        work: of the micro-batch.
    """
    forward = forward_flops(model, work, with_loss=True)
    adapters = 2 * work.num_tokens * _adapter_weights(model.encoder)
    base = forward.encoder - adapters
    trained = [p.requires_grad for p in model.encoder.parameters()]
    if not any(trained):
        encoder = 0
    else:
        passes = (2 if adapters else 3) + int(model.activation_checkpointing)
        encoder = passes * base + (3 + int(model.activation_checkpointing)) * adapters
    heads = 3 * forward.heads
    if model.distillation is not None:
        taught = forward_flops(model.distillation.teacher, work, with_loss=True)
        heads += taught.heads + taught.loss
    return Flops(encoder, heads, 3 * forward.loss)


@dataclass(frozen=True)
class RunFlops:
    """A run.

    Attributes:
        steps: of all steps of all workers.
        before: of the texts that a frozen encoder, and a teacher's, see once.
        tokens: real tokens of all steps, each different text of a micro-batch once.
    """

    steps: int
    before: int
    tokens: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.steps + self.before


def run_flops(
    data: Mapping[str, Prepared],
    *,
    model: MultiTaskModel,
    run: RunPlan,
    cached_lengths: Lengths = (),
    sampled_steps: int = _SAMPLED_STEPS,
) -> RunFlops:
    """Training of a whole run, from the rows that its first steps really take.

    The plan shuffles, so the first steps are a sample of all; with `sampled_steps` at least the
    run's it is no estimate. Not counted: see `training_flops`; validation, saving, starting.

    Args:
        data: task -> its prepared data.
        model: whole, as the run starts it.
        run: its plan.
        cached_lengths: of the texts that a fixed encoder sees once, of the student or the teacher.
        sampled_steps: at least 1.
    """
    steps = min(sampled_steps, run.num_steps)
    flops = tokens = 0
    with Loader(
        run.shards,
        plan=run.plan,
        items=catalogues(data),
        rank=0,
        world_size=1,
        start_step=0,
        num_steps=steps,
    ) as loader:
        for _, micro_batches in loader:
            for work in map(work_of, micro_batches):
                flops += training_flops(model, work).total
                tokens += work.num_tokens
    fixed = [] if any(p.requires_grad for p in model.encoder.parameters()) else [model]
    if model.distillation is not None:
        fixed.append(model.distillation.teacher)
    before = sum(encoder_flops(one.encoder.config, cached_lengths) for one in fixed)
    return RunFlops(
        round(flops * run.num_steps / steps), before, round(tokens * run.num_steps / steps)
    )


def _matrices(module: nn.Module) -> int:
    """Weights of its linear layers: products of a row."""
    layers = (one for one in module.modules() if isinstance(one, nn.Linear))
    return sum(layer.weight.numel() for layer in layers)


def _adapter_weights(encoder: nn.Module) -> int:
    """Weights of the small matrices A and B beside its layers, by peft's names."""
    named = encoder.named_parameters()
    return sum(p.numel() for name, p in named if "lora_A" in name or "lora_B" in name)


def _task_flops(module: TaskModule, rows: int, items: int) -> int:
    head: Any = module.head
    products = items * _matrices(module.features)
    if isinstance(head, TwoTowerHead):
        products += rows * _matrices(head.query) + items * _matrices(head.item)
    else:
        products += rows * _matrices(head)
    return 2 * products


def _sharing_flops(sharing: Any, sizes: Mapping[str, int]) -> int:
    """See `rectrain.model.sharing`; every row passes all experts, and the gate of its own task.

    PLE: every row passes all paths of a level.
    """
    if isinstance(sharing, SharedBottom):
        return 0
    num_rows = sum(sizes.values())
    if isinstance(sharing, ProgressiveExtraction):
        products = 0
        for level in sharing.levels:
            found: Any = level
            gates = [*found.gates.values(), *([found.shared_gate] if found.shared_gate else [])]
            mixed = sum(gate.weight.numel() + _width(gate) * gate.in_features for gate in gates)
            experts = [*found.experts.values(), found.shared]
            products += mixed + sum(_expert_weights(one) for one in experts)
        return 2 * num_rows * products
    of_all = _expert_weights(sharing) - _matrices(sharing.gates)
    own = sum(
        sizes[task] * (gate.weight.numel() + _width(gate) * gate.in_features)
        for task, gate in sharing.gates.items()
        if task in sizes
    )
    return int(2 * (num_rows * of_all + own))


def _width(gate: nn.Linear) -> int:
    return int(gate.out_features)


def _expert_weights(module: nn.Module) -> int:
    """Its linear layers, and the stacked second layers of experts [E, H, D]."""
    stacked = (p.numel() for p in module.parameters() if p.ndim == 3)
    return _matrices(module) + sum(stacked)
