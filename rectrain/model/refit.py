"""Fits what is left of a cut BERT to its parent's hidden states, in closed form.

Shapes: T tokens, D hidden size, H heads of size K, I inner size, N layers; a student has fewer.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertModel

from rectrain.data.batch import PackedTexts
from rectrain.model.encoder import token_states
from rectrain.model.shape import Shape, check_shape, head_size
from rectrain.model.slicing import AXES, Importance, Parts, check_texts, head_rows, kept_parts

__all__ = ["refit"]

_ROWS = 8192  # tokens that are turned to float64 together


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
    check_texts(texts)
    check_shape(shape, teacher.config)
    packed = PackedTexts(
        torch.cat([part.input_ids for part in texts]), torch.cat([part.lengths for part in texts])
    )
    targets = _targets(teacher, kept_parts(shape, importance), packed)
    with ExitStack() as hooks:
        hooks.callback(student.train, student.training)
        student.train(False)
        for module, fit in _fits(student, targets, ridge=ridge):
            hooks.callback(module.register_forward_pre_hook(fit).remove)
        token_states(student, packed)


def _targets(teacher: BertModel, parts: Parts, texts: PackedTexts) -> dict[str, Tensor]:
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

    size = head_size(teacher.config)
    with ExitStack() as hooks:
        hooks.callback(teacher.train, teacher.training)
        teacher.train(False)
        wanted = {"embeddings.LayerNorm": ("embeddings.LayerNorm", parts.hidden)}
        for new, old in enumerate(parts.layers):
            index = {"d": parts.hidden, "h": head_rows(parts.heads[new], size)}
            index["i"] = parts.intermediate[new]
            for module, axes in AXES.items():
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
