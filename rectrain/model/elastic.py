"""A super-network: one BERT whose first parts are smaller ones, all trained together.

Shapes: U texts, D the encoder's hidden size, d ≤ D that of a sub-network.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from transformers import BertConfig, BertModel

from rectrain.data.batch import MicroBatch, PackedTexts
from rectrain.model.encoder import encode
from rectrain.model.multitask import Answers, Lesson, MultiTaskModel
from rectrain.model.objectives import Output
from rectrain.model.shape import Shape, check_shape, head_size, spread_layers
from rectrain.model.slicing import first_parts, narrowed

__all__ = ["Choices", "Elastic", "SuperNetwork", "sandwich", "sub_vectors"]

_TRIES = 100  # to find a shape that was not drawn yet


@dataclass(frozen=True)
class Choices:
    """What the sub-networks of an encoder may have; each tuple ascends and ends with the most.

    Attributes:
        layers: numbers of layers, spread over the encoder's with the last among them.
        heads: attention heads, which give the hidden size: heads keep their size.
        intermediate: inner sizes.
        num_layers: of the encoder.
        head_size: of the encoder.
    """

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    intermediate: tuple[int, ...]
    num_layers: int
    head_size: int

    @classmethod
    def of(
        cls,
        config: BertConfig,
        *,
        layers: Iterable[int] = (),
        heads: Iterable[int] = (),
        intermediate: Iterable[int] = (),
    ) -> Choices:
        """Choices within an encoder, whose own sizes are always among them.

        Raises:
            ConfigError: one of them doesn't fit.
        """
        found = cls(
            layers=tuple(sorted({*layers, config.num_hidden_layers})),
            heads=tuple(sorted({*heads, config.num_attention_heads})),
            intermediate=tuple(sorted({*intermediate, config.intermediate_size})),
            num_layers=config.num_hidden_layers,
            head_size=head_size(config),
        )
        for shape in (found.smallest, found.largest):
            check_shape(shape, config)
        return found

    def shape(self, *, layers: int, heads: int, intermediate: int) -> Shape:
        """The shape with so many layers, heads and neurons."""
        spread = spread_layers(self.num_layers, layers)
        return Shape(spread, heads * self.head_size, heads, intermediate)

    @property
    def smallest(self) -> Shape:
        """The least of everything."""
        return self.shape(
            layers=self.layers[0], heads=self.heads[0], intermediate=self.intermediate[0]
        )

    @property
    def largest(self) -> Shape:
        """The encoder itself."""
        return self.shape(
            layers=self.layers[-1], heads=self.heads[-1], intermediate=self.intermediate[-1]
        )

    @property
    def num_shapes(self) -> int:
        """How many there are."""
        return len(self.layers) * len(self.heads) * len(self.intermediate)


def sandwich(choices: Choices, *, num_random: int, seed: int) -> tuple[Shape, ...]:
    """The sub-networks that learn beside the largest in one step: the smallest, and random ones.

    The sandwich rule of Yu and Huang 2019, "Universally Slimmable Networks and Improved Training
    Techniques", section 3.2: what lies between improves where both ends do.

    Args:
        choices: of which they are.
        num_random: how many beside the smallest, as far as there are others.
        seed: decides everything.

    Returns:
        Different ones, without the largest; the smallest first.
    """
    generator = random.Random(seed)
    found = dict.fromkeys([choices.smallest])
    for _ in range(_TRIES * num_random):
        if len(found) > num_random:
            break
        found[
            choices.shape(
                layers=generator.choice(choices.layers),
                heads=generator.choice(choices.heads),
                intermediate=generator.choice(choices.intermediate),
            )
        ] = None
        found.pop(choices.largest, None)
    found.pop(choices.largest, None)
    return tuple(found)


def sub_vectors(
    bert: BertModel, shape: Shape, texts: PackedTexts, *, activation_checkpointing: bool = False
) -> Tensor:
    """Vectors of texts by the first parts of an encoder, whose gradients these parts get.

    Args:
        bert: in the order of falling importance (see `slicing.reorder`).
        shape: the sub-network.
        texts: as of `encoder.encode`.
        activation_checkpointing: as of `encoder.encode`.

    Returns:
        Float [U, D]: the sub-network's d dimensions in their places, zeros behind them. So heads of
        the whole encoder take them: their further columns meet zeros.
    """
    caller = _Encoding(_empty(narrowed(bert.config, shape)), activation_checkpointing)
    caller.train(bert.training)
    weights = {f"bert.{name}": tensor for name, tensor in first_parts(bert, shape).items()}
    vectors: Tensor = functional_call(caller, weights, (texts,))
    return F.pad(vectors, (0, int(bert.config.hidden_size) - shape.hidden))


class _Encoding(nn.Module):
    """`encode` as a module."""

    def __init__(self, bert: BertModel, activation_checkpointing: bool) -> None:
        super().__init__()
        self.bert = bert
        self._activation_checkpointing = activation_checkpointing

    def forward(self, texts: PackedTexts) -> Tensor:
        return encode(self.bert, texts, activation_checkpointing=self._activation_checkpointing)


def _empty(config: BertConfig) -> BertModel:
    """A BERT without weights: only what calls what."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return BertModel(config, add_pooling_layer=False)


@dataclass(frozen=True, kw_only=True)
class Elastic(Lesson):
    """How the sub-networks of a super-network learn of its largest.

    Attributes:
        choices: of shapes.
        num_random: random shapes of a step.
    """

    choices: Choices
    num_random: int


class SuperNetwork(MultiTaskModel):
    """A multi-task model that is trained together with the sub-networks of its encoder.

    In a step the largest learns as the multi-task model does, and the smallest and some random
    ones (`sandwich`) learn of its outputs of the same forward: in-place distillation (Yu and Huang
    2019, section 3.3). All share the heads, and so one backward pass. Every parameter has a
    gradient on every rank, since the largest uses all. But weights are read in parts outside of
    their modules, so ZeRO's stage 3, which gathers them module by module, is out.

    In every mode but "loss" it is the largest alone; its state is that of a multi-task model.

    Attributes:
        elastic: must be set before the first forward for a loss.
    """

    elastic: Elastic

    _drawn: tuple[Shape, ...] = ()

    def draw(self, seed: int) -> None:
        """Chooses the sub-networks of the next forwards, alike on all ranks.

        Args:
            seed: of the step.
        """
        elastic = self.elastic
        self._drawn = sandwich(elastic.choices, num_random=elastic.num_random, seed=seed)

    def _losses(
        self, batch: MicroBatch, outputs: Mapping[str, Output], vectors: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Tensor | float]:
        """The largest's losses are told; the mean over it and what was drawn is minimised."""
        shares, losses, extra = super()._losses(batch, outputs, vectors)
        taught = vectors.detach(), {task: _detached(output) for task, output in outputs.items()}
        for shape in self._drawn:
            own, own_extra = self._sub_losses(shape, batch, taught)
            losses, extra = losses + own, extra + own_extra
        count = 1 + len(self._drawn)
        return shares, losses / count, extra / count

    def _sub_losses(
        self, shape: Shape, batch: MicroBatch, taught: Answers
    ) -> tuple[Tensor, Tensor | float]:
        """This forward's share of a sub-network's losses [K], and of what belongs to no task."""
        checkpointing = self.activation_checkpointing
        own = sub_vectors(self.encoder, shape, batch.texts, activation_checkpointing=checkpointing)
        answers = own, self.outputs(batch, own)
        shares, extra = self._taught(self.elastic, batch, answers, taught)
        return torch.stack(list(shares.values())), extra


def _detached(output: Output) -> Output:
    if isinstance(output, tuple):
        queries, items = output
        return queries.detach(), items.detach()
    return output.detach()
