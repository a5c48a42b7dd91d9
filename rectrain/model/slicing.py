"""Cuts a BERT to a smaller ordinary BERT: what matters least goes, what is left is refitted.

    importance = measure_importance(teacher, texts)
    student = cut(teacher, shape=preset_shape("small", teacher.config), importance=importance)
    refit(student, teacher, importance=importance, shape=..., texts=texts)

Shapes: T tokens, D hidden size, H heads of size K, I inner size, N layers; a student has fewer.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from rectrain.data.batch import PackedTexts
from rectrain.errors import ConfigError
from rectrain.model.encoder import token_states

__all__ = [
    "SHAPE_PRESETS",
    "Importance",
    "Shape",
    "cut",
    "measure_importance",
    "preset_shape",
    "refit",
    "reorder",
    "spread_layers",
    "with_weights",
]

#: Name -> shares of the parent's (layers, heads and hidden size, inner size). Of a parent with 6
#: layers, hidden 384, 12 heads and inner size 1536, "small" is (1, 3, 5) × 192 × 6 heads × 384.
SHAPE_PRESETS = {
    "small": (Fraction(1, 2), Fraction(1, 2), Fraction(1, 4)),
    "medium": (Fraction(1, 2), Fraction(2, 3), Fraction(1, 2)),
}

_ROWS = 8192  # tokens that are turned to float64 together


@dataclass(frozen=True)
class Shape:
    """The size of a cut BERT. Heads keep their size, so hidden and heads go together.

    Attributes:
        layers: which of the parent's layers stay, counted from 0, ascending.
        hidden: hidden size, heads × the parent's head size.
        heads: attention heads a layer.
        intermediate: inner size of the feed-forward blocks.
    """

    layers: tuple[int, ...]
    hidden: int
    heads: int
    intermediate: int


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


def spread_layers(num_layers: int, num_kept: int) -> tuple[int, ...]:
    """Evenly spread layers with the last among them: 3 of 6 are (1, 3, 5).

    Args:
        num_layers: the parent's, at least num_kept.
        num_kept: at least 1.
    """
    return tuple((place + 1) * num_layers // num_kept - 1 for place in range(num_kept))


def preset_shape(name: str, config: BertConfig) -> Shape:
    """The shape of a preset for a parent.

    Args:
        name: of `SHAPE_PRESETS`.
        config: the parent's.

    Raises:
        ConfigError: no such preset.
    """
    if name not in SHAPE_PRESETS:
        raise ConfigError(
            what="preset", got=name, rule=f"must be one of {', '.join(SHAPE_PRESETS)}",
            fix="name one of these",
        )  # fmt: skip
    depth, width, inner = SHAPE_PRESETS[name]
    heads = _share(config.num_attention_heads, width)
    return Shape(
        layers=spread_layers(config.num_hidden_layers, _share(config.num_hidden_layers, depth)),
        hidden=heads * _head_size(config),
        heads=heads,
        intermediate=_share(config.intermediate_size, inner),
    )


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
    _check_texts(texts)
    layers: Any = bert.encoder.layer
    blocks: dict[str, nn.Module] = {
        "embeddings": bert.embeddings.LayerNorm,
        **{f"inner.{n}": layer.output.dense for n, layer in enumerate(layers)},
        **{f"heads.{n}": layer.attention.output.dense for n, layer in enumerate(layers)},
        **{f"layer.{n}": layer.output.LayerNorm for n, layer in enumerate(layers)},
    }
    head_size = _head_size(bert.config)
    moments = {name: _Moments(head_size if name.startswith("heads") else 1) for name in blocks}
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
    _check_shape(shape, bert.config)
    return _select(bert, _kept(shape, importance))


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
    return _select(bert, _Parts(layers, _order(importance.hidden), falling[0], falling[1]))


@torch.no_grad()
def refit(
    student: BertModel,
    teacher: BertModel,
    *,
    shape: Shape,
    importance: Importance,
    texts: Sequence[PackedTexts],
    ridge: float = 1e-3,
) -> None:
    """Fits a cut BERT's weights to its parent's hidden states, in closed form, front to back.

    Each linear layer gets the weights W that minimise |X W − Y|² + λ |W − W₀|², and each
    LayerNorm its affine part likewise, where X is what the already refitted part before it gives,
    Y what the parent has in the same place and dimensions, and W₀ the cut weights. So a part makes
    up for what those before it lost, and nothing changes where nothing was cut. Fitted to: queries,
    keys and values; attention's sum before LayerNorm; LayerNorm's output; the neurons' inputs; the
    layer's sum before LayerNorm; LayerNorm's output. Where layers were left out, the next one that
    stayed is fitted to its own parent, across the gap. Holds about T × N × (7 D + I)
    floats of the student's sizes at once.

    Args:
        student: from `cut`; changed in place.
        teacher: the parent that it was cut from; left as it is.
        shape: as given to `cut`.
        importance: as given to `cut`.
        texts: some hundred texts of all tasks, tens of thousands of tokens. No more distinct tokens
            than the student's inner size would fit these alone.
        ridge: λ as a share of the mean square of X's columns, above 0.

    Raises:
        ConfigError: no texts, or the shape doesn't fit the parent.
    """
    _check_texts(texts)
    _check_shape(shape, teacher.config)
    packed = PackedTexts(
        torch.cat([part.input_ids for part in texts]), torch.cat([part.lengths for part in texts])
    )
    targets = _targets(teacher, _kept(shape, importance), packed)
    with ExitStack() as hooks:
        hooks.callback(student.train, student.training)
        student.train(False)
        for module, fit in _fits(student, targets, ridge=ridge):
            hooks.callback(module.register_forward_pre_hook(fit).remove)
        token_states(student, packed)


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
class _Parts:
    """Which of the parent's parts stay, in which order: int64 indices."""

    layers: tuple[int, ...]
    hidden: Tensor
    heads: Sequence[Tensor]  # of each layer that stays
    intermediate: Sequence[Tensor]


def _kept(shape: Shape, importance: Importance) -> _Parts:
    def top(scores: Tensor, count: int) -> Tensor:
        return _order(scores)[:count].sort().values

    return _Parts(
        shape.layers,
        top(importance.hidden, shape.hidden),
        [top(importance.heads[n], shape.heads) for n in shape.layers],
        [top(importance.intermediate[n], shape.intermediate) for n in shape.layers],
    )


def _order(scores: Tensor) -> Tensor:
    return scores.argsort(descending=True, stable=True)


def _head_rows(heads: Tensor, head_size: int) -> Tensor:
    """Places of the heads' dimensions in the projections: [h] -> [h × K]."""
    return (heads[:, None] * head_size + torch.arange(head_size)).flatten()


# Parameter of a layer -> what its axes index: hidden dimensions (d), heads' (h), neurons (i).
_AXES = {
    "attention.self.query": "hd",
    "attention.self.key": "hd",
    "attention.self.value": "hd",
    "attention.output.dense": "dh",
    "attention.output.LayerNorm": "d",
    "intermediate.dense": "id",
    "output.dense": "di",
    "output.LayerNorm": "d",
}


def _select(bert: BertModel, parts: _Parts) -> BertModel:
    """The BERT of these parts."""
    state = bert.state_dict()
    hidden = parts.hidden
    weights = {
        name: tensor.index_select(tensor.dim() - 1, hidden.to(tensor.device))
        for name, tensor in state.items()
        if name.startswith("embeddings.")
    }
    head_size = _head_size(bert.config)
    for new, old in enumerate(parts.layers):
        index = {"d": hidden, "h": _head_rows(parts.heads[new], head_size)}
        index["i"] = parts.intermediate[new]
        for module, axes in _AXES.items():
            for kind in ("weight", "bias"):
                tensor = state[f"encoder.layer.{old}.{module}.{kind}"]
                chosen = [index[axis] for axis in axes[: tensor.dim()]]
                weights[f"encoder.layer.{new}.{module}.{kind}"] = _take(tensor, chosen)
    config = copy.deepcopy(bert.config)
    config.num_hidden_layers = len(parts.layers)
    config.hidden_size = len(hidden)
    config.num_attention_heads = len(parts.heads[0])
    config.intermediate_size = len(parts.intermediate[0])
    return with_weights(config, weights)


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


def _targets(teacher: BertModel, parts: _Parts, texts: PackedTexts) -> dict[str, Tensor]:
    """What the teacher has in the places that the student's modules are fitted to.

    Returns:
        Module of the student -> float [T, what stays]; of a LayerNorm its output, and under
        "<name>.input" its input.
    """
    targets: dict[str, Tensor] = {}

    def keep(name: str, index: Tensor) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            chosen = index.to(output.device)
            targets[name] = _rows(output).index_select(1, chosen)
            if isinstance(module, nn.LayerNorm):
                targets[f"{name}.input"] = _rows(inputs[0]).index_select(1, chosen)

        return hook

    head_size = _head_size(teacher.config)
    with ExitStack() as hooks:
        hooks.callback(teacher.train, teacher.training)
        teacher.train(False)
        wanted = {"embeddings.LayerNorm": ("embeddings.LayerNorm", parts.hidden)}
        for new, old in enumerate(parts.layers):
            index = {"d": parts.hidden, "h": _head_rows(parts.heads[new], head_size)}
            index["i"] = parts.intermediate[new]
            for module, axes in _AXES.items():
                name = f"encoder.layer.{new}.{module}"
                wanted[f"encoder.layer.{old}.{module}"] = (name, index[axes[0]])
        for source, (name, chosen) in wanted.items():
            place = teacher.get_submodule(source)
            hooks.callback(place.register_forward_hook(keep(name, chosen)).remove)
        token_states(teacher, texts)
    return targets


def _fits(
    student: BertModel, targets: Mapping[str, Tensor], *, ridge: float
) -> list[tuple[nn.Module, Callable[..., None]]]:
    """Modules of the student, and the hooks that fit them just before they run."""

    def linear(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: tuple[Tensor, ...]) -> None:
            _fit_linear(module, _rows(inputs[0]), targets[name], ridge=ridge)

        return hook

    def projection(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: tuple[Tensor, ...]) -> None:
            added = targets[f"{name}.LayerNorm.input"] - _rows(inputs[1])
            _fit_linear(module.dense, _rows(inputs[0]), added, ridge=ridge)

        return hook

    def norm(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: tuple[Tensor, ...]) -> None:
            _fit_norm(module, _rows(inputs[0]), targets[name], ridge=ridge)

        return hook

    found: list[tuple[nn.Module, Callable[..., None]]] = []
    for name, module in student.named_modules():
        if name.endswith("LayerNorm"):
            found.append((module, norm(name)))
        elif name.endswith(("self.query", "self.key", "self.value", "intermediate.dense")):
            found.append((module, linear(name)))
        elif name.startswith("encoder.layer.") and name.endswith("output"):
            found.append((module, projection(name)))
    return found


def _fit_linear(dense: nn.Linear, inputs: Tensor, target: Tensor, *, ridge: float) -> None:
    """Moves weights and bias to the ridge solution around what they are.

    With residuals R of the centred target, ΔW = (XᵀX + λ tr(XᵀX) / n · 1)⁻¹ Xᵀ R for centred X of
    n columns; the bias takes the means and isn't shrunk.
    """
    parts = list(zip(torch.split(inputs, _ROWS), torch.split(target, _ROWS), strict=True))
    weight, bias = dense.weight.double(), dense.bias.double()
    residuals = [(x.double(), y.double() - F.linear(x.double(), weight, bias)) for x, y in parts]
    count = len(inputs)
    mean_x = _total(x.sum(0) for x, _ in residuals) / count
    mean_r = _total(r.sum(0) for _, r in residuals) / count
    gram = _total((x - mean_x).T @ (x - mean_x) for x, _ in residuals)
    cross = _total((x - mean_x).T @ (r - mean_r) for x, r in residuals)
    gram.diagonal().add_(ridge * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny)
    change = torch.linalg.solve(gram, cross).T
    dense.weight.add_(change.to(dense.weight.dtype))
    dense.bias.add_((mean_r - change @ mean_x).to(dense.bias.dtype))


def _fit_norm(norm: nn.LayerNorm, inputs: Tensor, target: Tensor, *, ridge: float) -> None:
    """Moves the affine part to the ridge solution, each dimension by itself."""
    normal = F.layer_norm(inputs, norm.normalized_shape, eps=norm.eps).double()
    residual = target.double() - (normal * norm.weight + norm.bias)
    centred = normal - normal.mean(0)
    square = centred.square().sum(0)
    change = (centred * residual).sum(0) / (square + ridge * len(inputs))
    norm.weight.add_(change.to(norm.weight.dtype))
    norm.bias.add_((residual.mean(0) - change * normal.mean(0)).to(norm.bias.dtype))


def _total(parts: Iterable[Tensor]) -> Tensor:
    total: Tensor = reduce(operator.add, parts)
    return total


def _rows(values: Tensor) -> Tensor:
    """[1, T, D] or [T, D] -> [T, D]."""
    return values.reshape(-1, values.shape[-1])


def _share(size: int, share: Fraction) -> int:
    return max(1, round(size * share))


def _head_size(config: BertConfig) -> int:
    return int(config.hidden_size // config.num_attention_heads)


def _check_texts(texts: Sequence[PackedTexts]) -> None:
    if not sum(part.lengths.shape[0] for part in texts):
        raise ConfigError(
            what="texts to measure on", got="none", rule="cutting needs some hundred texts",
            fix="give texts of the prepared data",
        )  # fmt: skip


def _check_shape(shape: Shape, config: BertConfig) -> None:
    size, num_layers = _head_size(config), config.num_hidden_layers
    ascending = list(shape.layers) == sorted(set(shape.layers))
    inside = all(0 <= layer < num_layers for layer in shape.layers)
    rules = [
        (
            bool(shape.layers) and ascending and inside,
            "layers", shape.layers, f"must ascend within 0 to {num_layers - 1}",
        ),
        (
            1 <= shape.heads <= config.num_attention_heads,
            "heads", shape.heads, f"must be within 1 to {config.num_attention_heads}",
        ),
        (
            shape.hidden == shape.heads * size,
            "hidden", shape.hidden, f"must be {shape.heads} heads × {size} (a head keeps its size)",
        ),
        (
            1 <= shape.intermediate <= config.intermediate_size,
            "intermediate", shape.intermediate, f"must be within 1 to {config.intermediate_size}",
        ),
    ]  # fmt: skip
    for holds, name, got, rule in rules:
        if not holds:
            raise ConfigError(
                what=f"{name} of the shape", got=got, rule=rule, fix="change the shape or preset"
            )
