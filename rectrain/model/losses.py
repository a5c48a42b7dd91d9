"""The tasks' losses: pure functions, one value an example, summed by the caller's reduction.

Shapes: B rows of a micro-batch, N drawn negatives, G lists.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["bce", "in_batch_softmax", "listwise_softmax", "pairwise_logistic"]


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


def pairwise_logistic(
    score: Tensor, *, label: Tensor, weight: Tensor, list_offsets: Tensor
) -> Tensor:
    """Logistic loss of the pairs of each list: the better row should score higher (RankNet).

    For list g with P_g = {(i, j): label_i > label_j}: w_g / |P_g| · Σ_{(i, j) ∈ P_g}
    softplus(s_j − s_i), w_g the mean weight of its rows (Burges et al. 2005, "Learning to Rank
    using Gradient Descent", section 3, with a target probability of 1; the mean over a list's
    pairs, not counted there, keeps a list of many rows from outweighing the others).

    Batch: whole lists, the rows of one list as neighbours.
    Mask: pairs inside a list alone; a list whose labels are all equal adds nothing.
    Reduction: sum over lists, 0 for an empty batch.

    Args:
        score: float [B], s.
        label: float [B]; only its order inside a list counts.
        weight: float [B], at least 0.
        list_offsets: int64 [G + 1], list g has the rows list_offsets[g]:list_offsets[g + 1].

    Returns:
        Float32 scalar, in nats.
    """
    score = score.float()
    sizes = list_offsets.diff()
    num_lists = sizes.shape[0]
    number = torch.arange(num_lists, device=score.device).repeat_interleave(sizes)
    partners = sizes[number]
    i = torch.arange(score.shape[0], device=score.device).repeat_interleave(partners)
    first = (partners.cumsum(0) - partners)[i]
    j = list_offsets[number[i]] + torch.arange(i.shape[0], device=score.device) - first
    is_pair = (label[i] > label[j]).float()

    def total(values: Tensor, numbers: Tensor) -> Tensor:
        return values.new_zeros(num_lists).index_add(0, numbers, values)

    losses = total(is_pair * F.softplus(score[j] - score[i]), number[i])
    list_weight = total(weight, number) / sizes.clamp(min=1)
    return (list_weight * losses / total(is_pair, number[i]).clamp(min=1)).sum()


def in_batch_softmax(
    logits: Tensor,
    *,
    item_key: Tensor,
    group_key: Tensor,
    bought: Tensor,
    log_q: Tensor,
    num_items: int,
    weight: Tensor,
) -> Tensor:
    """Softmax cross-entropy of each row's item against the other rows' items and N drawn ones.

    With s_ij the score of query i and item j: loss_i = −log softmax_j(s_ij − log q_j)[i], over the
    columns j that aren't masked (Yi et al. 2019, "Sampling-Bias-Corrected Neural Modeling for Large
    Corpus Item Recommendations", section 3; Yang et al. 2020, "Mixed Negative Sampling for Learning
    Two-tower Neural Networks in Recommendations", section 4).

    q_j is how often item j is a column. A softmax over all C items would sum exp(s_ij) over them;
    the sum over the B + N columns has the same expectation, up to a factor that cancels, when each
    is divided by the expected share of its item among them. The item of a row is j with the
    item's share p_j of the training rows, and a negative is j with 1/C, so the mean over both is

        q_j = (B · p_j + N / C) / (B + N).

    It is one value an item, whether a row or a draw brought it; N = 0 leaves q_j = p_j.

    Batch: row i has query i and its positive item i; columns from B on are the drawn negatives.
    Mask: column j ≠ i is no negative of row i if it holds the item of row i, belongs to a row of
    the same group (the user bought it too), or is `bought`.
    Reduction: weighted sum over rows, 0 for an empty batch.

    Args:
        logits: float [B, B + N], s.
        item_key: int64 [B + N], equal for the same item.
        group_key: int64 [B], equal for the same user.
        bought: bool [B, B + N], items that the row's user is known to have bought.
        log_q: float [B + N], log p, at most 0.
        num_items: C, at least 1 when N > 0.
        weight: float [B], at least 0.

    Returns:
        Float32 scalar, in nats.
    """
    num_rows, num_columns = logits.shape
    num_drawn = num_columns - num_rows
    expected = num_rows * log_q.exp() + num_drawn / max(num_items, 1)
    corrected = logits.float() - (expected / max(num_columns, 1)).log()
    masked = bought | (item_key[:num_rows, None] == item_key)
    masked[:, :num_rows] |= group_key[:, None] == group_key
    masked.fill_diagonal_(False)
    log_softmax = corrected.masked_fill(masked, -torch.inf).log_softmax(1)
    return -(weight * log_softmax.diagonal()).sum()
