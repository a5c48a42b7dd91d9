"""Cuts a BERT to a smaller ordinary BERT: what matters least goes; `refit` mends what is left.

    importance = measure_importance(teacher, texts)
    student = cut(teacher, shape=preset_shape("small", teacher.config), importance=importance)
    refit(student, teacher, importance=importance, shape=..., texts=texts)

Shapes: T tokens, D hidden size, H heads of size K, I inner size, N layers; a student has fewer.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from rectrain.data.batch import PackedTexts
from rectrain.errors import ConfigError
from rectrain.model.encoder import token_states
from rectrain.model.shape import Shape, check_shape, head_size

__all__ = [
    "AXES",
    "Importance",
    "Parts",
    "check_texts",
    "cut",
    "first_parts",
    "head_rows",
    "kept_parts",
    "measure_importance",
    "narrowed",
    "ordered",
    "reorder",
    "with_weights",
]

_ROWS = 8192  # tokens that are turned to float64 together


@dataclass(frozen=True)
class Importance:
    """How much each part of a BERT does; comparable within a row only. All float64, CPU.

    Attributes:
        hidden: [D], dimensions of the hidden states.
        heads: [N, H].
        intermediate: [N, I], neurons of the feed-forward blocks.
    """

    hidden: Tensor
    heads: Tensor
    intermediate: Tensor


@torch.no_grad()
def measure_importance(bert: BertModel, texts: Sequence[PackedTexts]) -> Importance:
    """Measures what each part adds to the hidden states of texts, besides a constant.

    A part's importance is the variance over tokens of what it adds: a constant is left out because
    the refit puts it into a bias. A neuron i with activations g and output weights w_i adds
    Var(g) |w_i|²; a head with context c and its columns W of the output projection adds
    tr(W Cov(c) Wᵀ); a hidden dimension has the sum of its variances behind the embeddings and every
    layer.

    Args:
        bert: the BERT to cut; left as it is.
        texts: texts of all tasks, a few hundred or more.

    Raises:
        ConfigError: no texts.
    """
    check_texts(texts)
    layers: Any = bert.encoder.layer
    blocks: dict[str, nn.Module] = {
        "embeddings": bert.embeddings.LayerNorm,
        **{f"inner.{n}": layer.output.dense for n, layer in enumerate(layers)},
        **{f"heads.{n}": layer.attention.output.dense for n, layer in enumerate(layers)},
        **{f"layer.{n}": layer.output.LayerNorm for n, layer in enumerate(layers)},
    }
    size = head_size(bert.config)
    moments = {name: _Moments(size if name.startswith("heads") else 1) for name in blocks}
    with ExitStack() as hooks:
        hooks.callback(bert.train, bert.training)
        bert.train(False)
        for name, module in blocks.items():
            is_state = isinstance(module, nn.LayerNorm)
            hook = moments[name].add_output if is_state else moments[name].add_input
            hooks.callback(module.register_forward_hook(hook).remove)
        for part in texts:
            token_states(bert, part)
    inner, heads = [], []
    for n, layer in enumerate(layers):
        inner.append(_added(layer.output.dense, moments[f"inner.{n}"].covariance()))
        heads.append(_added(layer.attention.output.dense, moments[f"heads.{n}"].covariance()))
    states = [moments[name] for name, module in blocks.items() if isinstance(module, nn.LayerNorm)]
    hidden = torch.stack([state.covariance().flatten() for state in states]).sum(0)
    return Importance(hidden=hidden, heads=torch.stack(heads), intermediate=torch.stack(inner))


def cut(bert: BertModel, *, shape: Shape, importance: Importance) -> BertModel:
    """A smaller BERT of the most important parts; those that stay keep their order.

    Args:
        bert: the parent; left as it is. Its pooler, if any, doesn't come along.
        shape: what is left; the parent's own shape gives its exact copy.
        importance: the parent's.

    Returns:
        An ordinary BertModel in the parent's dtype, in evaluation mode, without pooler.

    Raises:
        ConfigError: the shape doesn't fit the parent.
    """
    check_shape(shape, bert.config)
    return _select(bert, kept_parts(shape, importance))


def reorder(bert: BertModel, importance: Importance) -> BertModel:
    """The same function with its parts in the order of falling importance.

    Then the first heads and neurons of each layer, and the first hidden dimensions, are those that
    `cut` keeps. The dimensions of the resulting hidden states stand in the new order, too.

    Args:
        bert: left as it is; its pooler, if any, doesn't come along.
        importance: its.
    """
    falling = [
        [_order(row) for row in rows] for rows in (importance.heads, importance.intermediate)
    ]
    layers = tuple(range(len(falling[0])))
    return _select(bert, Parts(layers, _order(importance.hidden), falling[0], falling[1]))


def ordered(config: BertConfig) -> Importance:
    """The importance that a reordered BERT's parts are taken to have: the first are the most.

    Args:
        config: of the BERT.
    """

    def falling(count: int) -> Tensor:
        return -torch.arange(count, dtype=torch.float64)

    layers = config.num_hidden_layers
    return Importance(
        hidden=falling(config.hidden_size),
        heads=falling(config.num_attention_heads).expand(layers, -1),
        intermediate=falling(config.intermediate_size).expand(layers, -1),
    )


def first_parts(bert: BertModel, shape: Shape) -> dict[str, Tensor]:
    """Weights and buffers of the first parts of a BERT, as views: gradients flow into it.

    Of a reordered BERT these are what `cut` takes with the importance of `ordered`.

    Args:
        bert: the parent.
        shape: which fits it.

    Returns:
        State dictionary of a BERT of this shape.
    """
    sizes = {"d": shape.hidden, "h": shape.hidden, "i": shape.intermediate}
    state = dict(bert.named_parameters()) | dict(bert.named_buffers())
    found = {
        name: tensor[..., : shape.hidden] if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
        if name.startswith("embeddings.")
    }
    for new, old in enumerate(shape.layers):
        for module, axes in AXES.items():
            for kind in ("weight", "bias"):
                tensor = state[f"encoder.layer.{old}.{module}.{kind}"]
                place = tuple(slice(sizes[axis]) for axis in axes[: tensor.dim()])
                found[f"encoder.layer.{new}.{module}.{kind}"] = tensor[place]
    return found


def narrowed(config: BertConfig, shape: Shape) -> BertConfig:
    """The configuration of a BERT cut to a shape."""
    found = copy.deepcopy(config)
    found.num_hidden_layers = len(shape.layers)
    found.hidden_size = shape.hidden
    found.num_attention_heads = shape.heads
    found.intermediate_size = shape.intermediate
    return found


def with_weights(config: BertConfig, weights: Mapping[str, Tensor]) -> BertModel:
    """A BERT with these weights, without pooler, in evaluation mode.

    Args:
        config: of the result.
        weights: its state dictionary, copied; a pooler's are left out.
    """
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler.")}
    with torch.random.fork_rng(devices=[]):  # the caller's random state is left alone
        bert: Any = BertModel(config, add_pooling_layer=False)
    first = next(iter(kept.values()))
    bert.to(device=first.device, dtype=first.dtype).load_state_dict(kept)
    return bert.eval()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Parts:
    """Which of the parent's parts stay, in which order: int64 indices."""

    layers: tuple[int, ...]
    hidden: Tensor
    heads: Sequence[Tensor]  # of each layer that stays
    intermediate: Sequence[Tensor]


def kept_parts(shape: Shape, importance: Importance) -> Parts:
    """The most important parts that fit a shape, in their own order."""

    def top(scores: Tensor, count: int) -> Tensor:
        return _order(scores)[:count].sort().values

    return Parts(
        shape.layers,
        top(importance.hidden, shape.hidden),
        [top(importance.heads[n], shape.heads) for n in shape.layers],
        [top(importance.intermediate[n], shape.intermediate) for n in shape.layers],
    )


def _order(scores: Tensor) -> Tensor:
    return scores.argsort(descending=True, stable=True)


def head_rows(heads: Tensor, size: int) -> Tensor:
    """Places of the heads' dimensions in the projections: [h] -> [h × K]."""
    return (heads[:, None] * size + torch.arange(size)).flatten()


#: Parameter of a layer -> what its axes index: hidden dimensions (d), heads' (h), neurons (i).
AXES = {
    "attention.self.query": "hd",
    "attention.self.key": "hd",
    "attention.self.value": "hd",
    "attention.output.dense": "dh",
    "attention.output.LayerNorm": "d",
    "intermediate.dense": "id",
    "output.dense": "di",
    "output.LayerNorm": "d",
}


def _select(bert: BertModel, parts: Parts) -> BertModel:
    """The BERT of these parts."""
    state = bert.state_dict()
    hidden = parts.hidden
    weights = {
        name: tensor.index_select(tensor.dim() - 1, hidden.to(tensor.device))
        for name, tensor in state.items()
        if name.startswith("embeddings.")
    }
    size = head_size(bert.config)
    for new, old in enumerate(parts.layers):
        index = {"d": hidden, "h": head_rows(parts.heads[new], size)}
        index["i"] = parts.intermediate[new]
        for module, axes in AXES.items():
            for kind in ("weight", "bias"):
                tensor = state[f"encoder.layer.{old}.{module}.{kind}"]
                chosen = [index[axis] for axis in axes[: tensor.dim()]]
                weights[f"encoder.layer.{new}.{module}.{kind}"] = _take(tensor, chosen)
    shape = Shape(parts.layers, len(hidden), len(parts.heads[0]), len(parts.intermediate[0]))
    return with_weights(narrowed(bert.config, shape), weights)


def _take(tensor: Tensor, index: Sequence[Tensor]) -> Tensor:
    for axis, chosen in enumerate(index):
        tensor = tensor.index_select(axis, chosen.to(tensor.device))
    return tensor


class _Moments:
    """Covariances of groups of neighbouring columns, summed up over calls.

    Args:
        size: columns of a group.
    """

    def __init__(self, size: int) -> None:
        self._size, self._count = size, 0
        self._sum: Tensor | float = 0.0
        self._products: Tensor | float = 0.0

    def add_input(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """A forward hook that counts what the module reads."""
        self._add(inputs[0])

    def add_output(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """A forward hook that counts what the module gives."""
        self._add(output)

    def _add(self, values: Tensor) -> None:
        for rows in torch.split(values.reshape(-1, values.shape[-1]), _ROWS):
            groups = torch.unflatten(rows.double(), -1, (-1, self._size))  # [T, G, size]
            groups = groups.transpose(0, 1)
            self._sum = self._sum + groups.sum(1)
            self._products = self._products + groups.transpose(1, 2) @ groups
            self._count += len(rows)

    def covariance(self) -> Tensor:
        """Float64 [G, size, size], CPU."""
        assert isinstance(self._sum, Tensor) and isinstance(self._products, Tensor)
        mean = self._sum / self._count
        return (self._products / self._count - mean[:, :, None] * mean[:, None, :]).cpu()


def _added(dense: nn.Linear, covariance: Tensor) -> Tensor:
    """Variance [G] that each group of a projection's inputs adds to its output."""
    weight = dense.weight.detach().cpu().double()
    columns = torch.unflatten(weight, 1, covariance.shape[:2])  # [D, G, k]
    return torch.einsum("dgi,gij,dgj->g", columns, covariance, columns)


def check_texts(texts: Sequence[PackedTexts]) -> None:
    """Refuses to measure on nothing.

    Raises:
        ConfigError: no texts.
    """
    if not sum(part.lengths.shape[0] for part in texts):
        raise ConfigError(
            what="texts to measure on", got="none", rule="cutting needs some hundred texts",
            fix="give texts of the prepared data",
        )  # fmt: skip
