"""A task's loss from its head's output and a slot of rows: of the labels, and of a teacher.

Shapes: B rows of a slot, K ≥ B its items, D the encoder's hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rectrain.data.batch import Slot
from rectrain.model.distillation import soft_bce, soft_in_batch, soft_listwise, soft_pairwise
from rectrain.model.losses import bce, in_batch_softmax, listwise_softmax, pairwise_logistic
from rectrain.model.spec import Loss

__all__ = ["Output", "hard_loss", "soft_loss"]

Output = Tensor | tuple[Tensor, Tensor]
"""Scores or logits [B]; of a two-tower head queries [B, D + 1] and items [K, D + 1]."""


def hard_loss(kind: Loss, output: Output, slot: Slot) -> Tensor:
    """The loss of the rows against their labels, summed over rows or lists; float32 scalar."""
    scores, columns = _scores(output), _columns(kind, slot)
    if kind != "in_batch_softmax":
        columns["label"] = slot.label
    return _HARD[kind](scores, weight=slot.weight, **columns)


def soft_loss(
    kind: Loss, output: Output, taught: Output, slot: Slot, *, temperature: float
) -> Tensor:
    """The loss of the rows against a teacher's output for them, summed; float32 scalar.

    Args:
        kind: the task's loss.
        output: the student's.
        taught: the teacher's, without gradient; it may be wider.
        slot: the rows.
        temperature: of both, above 0.
    """
    return _SOFT[kind](
        _scores(output),
        teacher=_scores(taught),
        weight=slot.weight,
        temperature=temperature,
        **_columns(kind, slot),
    )


def _scores(output: Output) -> Tensor:
    """One score a row [B]; of two towers, of each query with each item [B, K]."""
    return output[0] @ output[1].T if isinstance(output, tuple) else output


def _columns(kind: Loss, slot: Slot) -> dict[str, Any]:
    """What a kind of loss reads of a slot beside scores, labels and weights."""
    if kind == "bce":
        return {}
    if kind != "in_batch_softmax":
        return {"list_offsets": slot.list_offsets}
    return {
        "item_key": slot.item_key,
        "group_key": slot.group_key,
        "bought": _in_query(slot),
        "log_q": slot.log_q,
        "num_items": slot.num_items,
    }


_HARD: Mapping[Loss, Callable[..., Tensor]] = {
    "in_batch_softmax": in_batch_softmax,
    "listwise_softmax": listwise_softmax,
    "pairwise_logistic": pairwise_logistic,
    "bce": bce,
}
_SOFT: Mapping[Loss, Callable[..., Tensor]] = {
    "in_batch_softmax": soft_in_batch,
    "listwise_softmax": soft_listwise,
    "pairwise_logistic": soft_pairwise,
    "bce": soft_bce,
}


def _in_query(slot: Slot) -> Tensor:
    """bool [B, K]: whether the row's query (its history) holds the item's text.

    A text is kept once in a micro-batch, so equal texts have equal positions. Items of several
    texts, or of none, are never found.
    """
    num_texts = slot.item.offsets.diff()
    position = slot.item.index.new_full((num_texts.shape[0],), -1)
    position[num_texts == 1] = slot.item.index[slot.item.offsets[:-1][num_texts == 1]]
    sizes = slot.query.offsets.diff()
    row = torch.arange(sizes.shape[0], device=sizes.device).repeat_interleave(sizes)
    # A column for each text of either side, and a last one, which no query holds, for -1.
    last = torch.cat([slot.query.index, position, position.new_zeros(1)]).max() + 1
    held = torch.zeros(sizes.shape[0], int(last) + 1, dtype=torch.bool, device=sizes.device)
    held[row, slot.query.index] = True
    return held[:, position]
