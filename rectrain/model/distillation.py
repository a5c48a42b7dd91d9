"""What a student learns of a teacher: pure losses, zero with zero gradient where both agree.

Each is a Kullback-Leibler divergence KL(teacher ‖ student) of softened outputs, times T², so that
its gradient keeps its size at any temperature T (Hinton, Vinyals and Dean 2015, "Distilling the
Knowledge in a Neural Network", section 2). Up to the teacher's entropy, which has no gradient, that
is the cross-entropy with the teacher's probabilities as labels. Teachers' outputs are data: no
gradient flows into them.

Shapes: B rows of a micro-batch, N drawn negatives, G lists, U texts, D and E widths of the
student's and the teacher's text vectors.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from rectrain.model.losses import (
    in_batch_logits,
    list_log_softmax,
    list_pairs,
    list_weights,
    sum_in_lists,
)

__all__ = ["relation", "soft_bce", "soft_in_batch", "soft_listwise", "soft_pairwise"]

_SHARPNESS = 16.0  # of cosines: the scale at which two-tower and bi-encoder heads start


def soft_bce(logit: Tensor, *, teacher: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """Soft labels of independent rows: T² · Σ_b w_b · KL(σ(t_b / T) ‖ σ(s_b / T)).

    Batch: independent rows.
    Mask: none; a row of weight 0 adds nothing.
    Reduction: sum over rows, 0 for an empty batch.

    Args:
        logit: float [B], s.
        teacher: float [B], t, the teacher's logits.
        weight: float [B], w, at least 0.
        temperature: T, above 0.

    Returns:
        Float32 scalar, in nats.
    """
    divergence = _bernoulli(teacher.float() / temperature, logit.float() / temperature)
    return temperature**2 * (weight * divergence).sum()


def soft_listwise(
    score: Tensor, *, teacher: Tensor, weight: Tensor, list_offsets: Tensor, temperature: float
) -> Tensor:
    """Soft labels of lists: T² · Σ_g w_g · KL(softmax(t / T) ‖ softmax(s / T)) inside list g.

    ListNet's top-one distributions (Cao et al. 2007) with the teacher's in the place of the
    grades'; a list whose grades are all equal teaches too.

    Batch: whole lists, the rows of one list as neighbours.
    Mask: softmax runs inside a list alone.
    Reduction: sum over lists, w_g the mean weight of its rows; 0 for an empty batch.

    Args:
        score: float [B], s.
        teacher: float [B], t, the teacher's scores.
        weight: float [B], at least 0.
        list_offsets: int64 [G + 1], list g has the rows list_offsets[g]:list_offsets[g + 1].
        temperature: T, above 0.

    Returns:
        Float32 scalar, in nats.
    """
    own = list_log_softmax(score.float() / temperature, list_offsets=list_offsets)
    given = list_log_softmax(teacher.float() / temperature, list_offsets=list_offsets)
    divergence = sum_in_lists(given.exp() * (given - own), list_offsets=list_offsets)
    return temperature**2 * (list_weights(weight, list_offsets=list_offsets) * divergence).sum()


def soft_pairwise(
    score: Tensor, *, teacher: Tensor, weight: Tensor, list_offsets: Tensor, temperature: float
) -> Tensor:
    """Soft labels of the pairs of lists: how probably row i is better than row j.

    For list g with the pairs P_g = {i < j}: T² · w_g / |P_g| · Σ_{(i, j) ∈ P_g}
    KL(σ((t_i − t_j) / T) ‖ σ((s_i − s_j) / T)), RankNet (Burges et al. 2005, section 3) with the
    teacher's probability of a pair as its target; pairs of equal labels teach too.

    Batch: whole lists, the rows of one list as neighbours.
    Mask: pairs inside a list alone; a list of one row adds nothing.
    Reduction: sum over lists, w_g the mean weight of its rows; 0 for an empty batch.

    Args:
        score: float [B], s.
        teacher: float [B], t, the teacher's scores.
        weight: float [B], at least 0.
        list_offsets: int64 [G + 1], list g has the rows list_offsets[g]:list_offsets[g + 1].
        temperature: T, above 0.

    Returns:
        Float32 scalar, in nats.
    """
    first, second, number = list_pairs(list_offsets)
    once = first < second
    first, second, number = first[once], second[once], number[once]
    s, t = score.float() / temperature, teacher.float() / temperature
    divergence = _bernoulli(t[first] - t[second], s[first] - s[second])
    own_weights = list_weights(weight, list_offsets=list_offsets)
    num_pairs = own_weights.new_zeros(own_weights.shape).index_add(
        0, number, torch.ones_like(divergence)
    )
    return temperature**2 * ((own_weights / num_pairs.clamp(min=1))[number] * divergence).sum()


def soft_in_batch(
    logits: Tensor,
    *,
    teacher: Tensor,
    item_key: Tensor,
    group_key: Tensor,
    bought: Tensor,
    log_q: Tensor,
    num_items: int,
    weight: Tensor,
    temperature: float,
) -> Tensor:
    """Soft labels of two-tower rows: KL of each query's distribution over the micro-batch's items.

    T² · Σ_i w_i · KL(softmax_j(t_ij / T − log q_j) ‖ softmax_j(s_ij / T − log q_j)) over the same
    columns j with the same correction as `losses.in_batch_softmax`: both are estimates of the
    softened distributions over the whole catalogue, whose items are columns with frequency q.

    Batch: row i has query i and its positive item i; columns from B on are the drawn negatives.
    Mask: as `losses.in_batch_softmax`; what the user bought is not ranked.
    Reduction: weighted sum over rows, 0 for an empty batch.

    Args:
        logits: float [B, B + N], s.
        teacher: float [B, B + N], t, the teacher's.
        item_key: int64 [B + N], equal for the same item.
        group_key: int64 [B], equal for the same user.
        bought: bool [B, B + N], items that the row's user is known to have bought.
        log_q: float [B + N], log of an item's share of the training rows, at most 0.
        num_items: of the catalogue that the negatives are drawn from, at least 1 when N > 0.
        weight: float [B], at least 0.
        temperature: T, above 0.

    Returns:
        Float32 scalar, in nats.
    """
    corrected = partial(
        in_batch_logits,
        item_key=item_key,
        group_key=group_key,
        bought=bought,
        log_q=log_q,
        num_items=num_items,
    )
    own, given = (corrected(s.float() / temperature).log_softmax(1) for s in (logits, teacher))
    return temperature**2 * (weight * _divergence(given, own)).sum()


def relation(vectors: Tensor, *, teacher: Tensor) -> Tensor:
    """How differently student and teacher see which texts are alike, whatever their widths.

    1/U · Σ_i KL(softmax_j(16 · cos(t_i, t_j)) ‖ softmax_j(16 · cos(s_i, s_j))) over j ≠ i. It is
    MiniLM's relation distillation (Wang et al. 2020, "MiniLM: Deep Self-Attention Distillation",
    section 3.2: KL of softmaxed scaled dot-products, which frees the student's width) between
    the pooled vectors of a batch's texts in the place of the tokens of one text, as relational
    distillation compares examples (Park et al. 2019, "Relational Knowledge Distillation").

    Batch: different texts.
    Mask: no text is compared with itself.
    Reduction: mean over texts; 0 with fewer than two.

    Args:
        vectors: float [U, D], the student's.
        teacher: float [U, E], the teacher's of the same texts.

    Returns:
        Float32 scalar, in nats.
    """
    num_texts = vectors.shape[0]
    if num_texts < 2:
        return vectors.float().sum() * 0.0
    return _divergence(_neighbours(teacher), _neighbours(vectors)).mean()


def _neighbours(vectors: Tensor) -> Tensor:
    """Log-probabilities [U, U] of the other texts by cosine; -inf on the diagonal."""
    unit = F.normalize(vectors.float(), dim=1)
    cosine: Tensor = _SHARPNESS * (unit @ unit.T)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    return cosine.masked_fill(itself, -torch.inf).log_softmax(1)


def _divergence(given: Tensor, own: Tensor) -> Tensor:
    """KL of each row of log-probabilities [R, C] that are -inf at the same places: float [R]."""
    gap = (given - own).masked_fill(given == -torch.inf, 0.0)
    return (given.exp() * gap).sum(1)


def _bernoulli(given: Tensor, own: Tensor) -> Tensor:
    """KL(σ(given) ‖ σ(own)) of logits, elementwise."""
    p = given.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(given, p, reduction="none")
    return F.binary_cross_entropy_with_logits(own, p, reduction="none") - entropy
