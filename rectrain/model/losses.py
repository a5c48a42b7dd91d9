"""The tasks' losses: pure functions, one value an example, summed by the caller's reduction.

Shapes: B rows of a micro-batch, N drawn negatives, G lists.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "bce",
    "in_batch_logits",
    "in_batch_softmax",
    "list_log_softmax",
    "list_pairs",
    "list_weights",
    "listwise_softmax",
    "pairwise_logistic",
    "sum_in_lists",
]


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
    number = _list_numbers(list_offsets)
    log_softmax = list_log_softmax(score.float(), list_offsets=list_offsets)
    gain = torch.exp2(label) - 1
    total_gain = sum_in_lists(gain, list_offsets=list_offsets)
    target = gain / total_gain[number].clamp(min=torch.finfo(gain.dtype).tiny)
    list_weight = list_weights(weight, list_offsets=list_offsets)
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
    i, j, number = list_pairs(list_offsets)
    is_pair = (label[i] > label[j]).float()
    list_weight = list_weights(weight, list_offsets=list_offsets)

    def total(values: Tensor) -> Tensor:
        return values.new_zeros(list_weight.shape).index_add(0, number, values)

    losses = total(is_pair * F.softplus(score[j] - score[i]))
    return (list_weight * losses / total(is_pair).clamp(min=1)).sum()


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
    corrected = in_batch_logits(
        logits,
        item_key=item_key,
        group_key=group_key,
        bought=bought,
        log_q=log_q,
        num_items=num_items,
    )
    return -(weight * corrected.log_softmax(1).diagonal()).sum()


def in_batch_logits(
    logits: Tensor,
    *,
    item_key: Tensor,
    group_key: Tensor,
    bought: Tensor,
    log_q: Tensor,
    num_items: int,
) -> Tensor:
    """s_ij − log q_j float32 [B, B + N], -inf where masked; see `in_batch_softmax`."""
    num_rows, num_columns = logits.shape
    num_drawn = num_columns - num_rows
    expected = num_rows * log_q.exp() + num_drawn / max(num_items, 1)
    corrected = logits.float() - (expected / max(num_columns, 1)).log()
    masked = bought | (item_key[:num_rows, None] == item_key)
    masked[:, :num_rows] |= group_key[:, None] == group_key
    masked.fill_diagonal_(False)
    return corrected.masked_fill(masked, -torch.inf)


def list_log_softmax(score: Tensor, *, list_offsets: Tensor) -> Tensor:
    """log softmax of scores float32 [B] inside each list; see `listwise_softmax`."""
    number = _list_numbers(list_offsets)
    top = score.new_full((list_offsets.shape[0] - 1,), -torch.inf)
    top = top.scatter_reduce(0, number, score.detach(), "amax")[number]
    total = sum_in_lists((score - top).exp(), list_offsets=list_offsets)
    return score - top - total.log()[number]


def list_weights(weight: Tensor, *, list_offsets: Tensor) -> Tensor:
    """Mean weight float [G] of each list's rows."""
    sizes = list_offsets.diff().clamp(min=1)
    return sum_in_lists(weight, list_offsets=list_offsets) / sizes


def sum_in_lists(values: Tensor, *, list_offsets: Tensor) -> Tensor:
    """Sums float [G] of rows' values [B] over each list."""
    total = values.new_zeros(list_offsets.shape[0] - 1)
    return total.index_add(0, _list_numbers(list_offsets), values)


def list_pairs(list_offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All ordered pairs of rows of the same list, a row with itself too: first, second, list.

    Args:
        list_offsets: int64 [G + 1].

    Returns:
        int64 [P] each, P the sum of the lists' squared sizes: rows, rows, and their list's number.
    """
    number = _list_numbers(list_offsets)
    partners = list_offsets.diff()[number]
    i = torch.arange(number.shape[0], device=number.device).repeat_interleave(partners)
    before = (partners.cumsum(0) - partners)[i]
    j = list_offsets[number[i]] + torch.arange(i.shape[0], device=number.device) - before
    return i, j, number[i]


def _list_numbers(list_offsets: Tensor) -> Tensor:
    """The list int64 [B] of each row."""
    sizes = list_offsets.diff()
    return torch.arange(sizes.shape[0], device=sizes.device).repeat_interleave(sizes)
