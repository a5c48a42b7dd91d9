"""The tasks' losses: pure functions, one value an example, summed by the caller's reduction.

Shapes: B rows of a micro-batch, G lists.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["bce", "in_batch_softmax", "listwise_softmax"]


def bce(logit: Tensor, *, label: Tensor, weight: Tensor) -> Tensor:
    """Weighted binary cross-entropy: Σ_b w_b · [softplus(s_b) − y_b · s_b].

    Batch: independent rows with a label 0 or 1 (or a probability in between).
    Mask: none; a row of weight 0 adds nothing.
    Reduction: sum over rows, 0 for an empty batch.

    Args:
        logit: float [B], s.
        label: float [B], y in 0..1.
        weight: float [B], w, at least 0.

    Returns:
        Float32 scalar, in nats.
    """
    losses = F.binary_cross_entropy_with_logits(logit.float(), label, reduction="none")
    return (weight * losses).sum()


def listwise_softmax(
    score: Tensor, *, label: Tensor, weight: Tensor, list_offsets: Tensor
) -> Tensor:
    """List-wise softmax cross-entropy against the grades' gains (ListNet, top one).

    For list g with rows j: p_j = gain_j / Σ gain, gain = 2^label − 1, and the loss is
    w_g · −Σ_j p_j · log softmax(s)_j, w_g the mean weight of its rows (Cao et al. 2007, "Learning
    to Rank: From Pairwise Approach to Listwise Approach", with nDCG's gain as the target).

    Batch: whole lists, the rows of one list as neighbours.
    Mask: softmax runs inside a list alone; a list without a positive grade adds nothing.
    Reduction: sum over lists, 0 for an empty batch.

    Args:
        score: float [B], s.
        label: float [B], grades of at least 0.
        weight: float [B], at least 0.
        list_offsets: int64 [G + 1], list g has the rows list_offsets[g]:list_offsets[g + 1].

    Returns:
        Float32 scalar, in nats.
    """
    score = score.float()
    sizes = list_offsets.diff()
    num_lists = sizes.shape[0]
    number = torch.arange(num_lists, device=score.device).repeat_interleave(sizes)

    def total(values: Tensor) -> Tensor:
        return values.new_zeros(num_lists).index_add(0, number, values)

    top = score.new_full((num_lists,), -torch.inf)
    top = top.scatter_reduce(0, number, score.detach(), "amax")[number]
    log_softmax = score - top - total((score - top).exp()).log()[number]
    gain = torch.exp2(label) - 1
    target = gain / total(gain)[number].clamp(min=torch.finfo(gain.dtype).tiny)
    list_weight = total(weight) / sizes.clamp(min=1)
    return -(list_weight[number] * target * log_softmax).sum()


def in_batch_softmax(logits: Tensor, *, item_key: Tensor, log_q: Tensor, weight: Tensor) -> Tensor:
    """Softmax cross-entropy of each row's item against the micro-batch's other items.

    With s_ij the score of query i and item j and q_j the item's share of the training rows:
    loss_i = −log softmax_j(s_ij − log q_j)[i], the correction for items that are drawn as
    negatives in proportion to their popularity (Yi et al. 2019, "Sampling-Bias-Corrected Neural
    Modeling for Large Corpus Item Recommendations", section 3).

    Batch: row i has query i and its positive item i; the other rows' items are negatives.
    Mask: column j ≠ i with the item of row i is no negative.
    Reduction: weighted sum over rows, 0 for an empty batch.

    Args:
        logits: float [B, B], s.
        item_key: int64 [B], equal for the same item.
        log_q: float [B], log q, at most 0.
        weight: float [B], at least 0.

    Returns:
        Float32 scalar, in nats.
    """
    corrected = logits.float() - log_q
    same = item_key[:, None] == item_key[None, :]
    same.fill_diagonal_(False)
    log_softmax = corrected.masked_fill(same, -torch.inf).log_softmax(1)
    return -(weight * log_softmax.diagonal()).sum()
