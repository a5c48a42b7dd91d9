from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rectrain.model.losses import (
    bce,
    in_batch_softmax,
    listwise_softmax,
    pairwise_logistic,
)


def _naive_listwise(score: Tensor, label: Tensor, weight: Tensor, bounds: list[int]) -> float:
    total = 0.0
    for start, end in pairwise(bounds):
        s, y = score[start:end].tolist(), label[start:end].tolist()
        gains = [2**grade - 1 for grade in y]
        normaliser = math.log(sum(math.exp(value) for value in s))
        if sum(gains) > 0:
            mean_weight = sum(weight[start:end].tolist()) / (end - start)
            for value, gain in zip(s, gains, strict=True):
                total -= mean_weight * gain / sum(gains) * (value - normaliser)
    return total


def _naive_pairwise(score: Tensor, label: Tensor, weight: Tensor, bounds: list[int]) -> float:
    total = 0.0
    for start, end in pairwise(bounds):
        s, y = score[start:end].tolist(), label[start:end].tolist()
        losses = [
            math.log1p(math.exp(s[j] - s[i]))
            for i in range(len(s)) for j in range(len(s)) if y[i] > y[j]
        ]  # fmt: skip
        if losses:
            mean_weight = sum(weight[start:end].tolist()) / (end - start)
            total += mean_weight * sum(losses) / len(losses)
    return total


def _naive_in_batch(
    logits: Tensor,
    *,
    item_key: Tensor,
    group_key: Tensor,
    bought: Tensor,
    log_q: Tensor,
    num_items: int,
    weight: Tensor,
) -> float:
    rows, columns = logits.shape
    q = [
        (rows * math.exp(log_p) + (columns - rows) / num_items) / columns
        for log_p in log_q.tolist()
    ]
    total = 0.0
    for i in range(rows):
        kept = [i]
        for j in range(columns):
            same_user = j < rows and group_key[j] == group_key[i]
            if item_key[j] != item_key[i] and not same_user and not bought[i, j]:
                kept.append(j)
        corrected = {j: float(logits[i, j]) - math.log(q[j]) for j in kept}
        normaliser = math.log(sum(math.exp(value) for value in corrected.values()))
        total -= float(weight[i]) * (corrected[i] - normaliser)
    return total


def test_bce_equals_a_hand_computed_value() -> None:
    found = bce(
        torch.tensor([0.0, 2.0, -1.0]),
        label=torch.tensor([1.0, 0.0, 1.0]),
        weight=torch.tensor([1.0, 3.0, 0.0]),
    )
    assert found.item() == pytest.approx(math.log(2) + 3 * math.log(1 + math.exp(2)), rel=1e-6)


def test_listwise_equals_a_hand_computed_value() -> None:
    # Gains 3 and 1 -> targets 3/4 and 1/4; equal scores -> log 2. The second list has no grade.
    found = listwise_softmax(
        torch.zeros(4),
        label=torch.tensor([2.0, 1.0, 0.0, 0.0]),
        weight=torch.tensor([1.0, 3.0, 1.0, 1.0]),
        list_offsets=torch.tensor([0, 2, 4]),
    )
    assert found.item() == pytest.approx(2 * math.log(2), rel=1e-6)


def test_pairwise_equals_a_hand_computed_value() -> None:
    # List 0: one pair, the better row 1 lower -> log(1 + e), mean weight 2. List 1: labels
    # 3 > 2 > 1 and equal scores -> the mean of three log 2. List 2: equal labels, no pair.
    found = pairwise_logistic(
        torch.tensor([0.0, 1.0, 4.0, 4.0, 4.0, 9.0, 0.0]),
        label=torch.tensor([1.0, 0.0, 2.0, 1.0, 3.0, 0.5, 0.5]),
        weight=torch.tensor([1.0, 3.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        list_offsets=torch.tensor([0, 2, 5, 7]),
    )
    assert found.item() == pytest.approx(2 * math.log(1 + math.e) + math.log(2), rel=1e-6)


@settings(max_examples=50)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 10**6))
def test_pairwise_equals_a_naive_loop(sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    bounds = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    score = torch.randn(bounds[-1], generator=generator) * 5
    label = torch.randint(0, 3, (bounds[-1],), generator=generator).float()
    weight = torch.rand(bounds[-1], generator=generator)
    found = pairwise_logistic(score, label=label, weight=weight, list_offsets=torch.tensor(bounds))
    expected = _naive_pairwise(score, label, weight, bounds)
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_in_batch_equals_a_hand_computed_value() -> None:
    # Rows 0 and 1 hold one item, so only item 2 is their negative; log q shifts the columns.
    found = in_batch_softmax(
        torch.zeros(3, 3),
        item_key=torch.tensor([5, 5, 9]),
        group_key=torch.arange(3),
        bought=torch.zeros(3, 3, dtype=torch.bool),
        num_items=0,
        log_q=torch.tensor([0.5, 0.5, 0.25]).log(),
        weight=torch.ones(3),
    )
    # 1/q is 2, 2, 4: rows 0 and 1 have 2/(2+4), row 2 has 4/(2+2+4).
    assert found.item() == pytest.approx(2 * math.log(3) + math.log(2), rel=1e-6)


@settings(max_examples=50)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 10**6))
def test_listwise_equals_a_naive_loop(sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    bounds = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    score = torch.randn(bounds[-1], generator=generator) * 5
    label = torch.randint(0, 4, (bounds[-1],), generator=generator).float()
    weight = torch.rand(bounds[-1], generator=generator)
    found = listwise_softmax(score, label=label, weight=weight, list_offsets=torch.tensor(bounds))
    expected = _naive_listwise(score, label, weight, bounds)
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@settings(max_examples=50)
@given(st.integers(1, 8), st.integers(0, 6), st.integers(0, 10**6))
def test_in_batch_equals_a_naive_loop(rows: int, negatives: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    columns = rows + negatives
    logits = torch.randn(rows, columns, generator=generator) * 5
    values = {
        "item_key": torch.randint(0, 9, (columns,), generator=generator),
        "group_key": torch.randint(0, 6, (rows,), generator=generator),
        "bought": torch.rand(rows, columns, generator=generator) < 0.2,
        "log_q": torch.rand(columns, generator=generator).log(),
        "num_items": 50,
        "weight": torch.rand(rows, generator=generator),
    }
    found = in_batch_softmax(logits, **values)
    assert found.item() == pytest.approx(_naive_in_batch(logits, **values), rel=1e-4, abs=1e-5)


def test_in_batch_masks_what_the_user_bought_and_corrects_by_the_mixture() -> None:
    # Rows 0 and 1 are one user; row 2 has bought the first negative, row 0 has the second's item.
    found = in_batch_softmax(
        torch.zeros(3, 5),
        item_key=torch.tensor([1, 2, 3, 4, 1]),
        group_key=torch.tensor([7, 7, 8]),
        bought=torch.tensor([[False] * 5, [False] * 5, [False, False, True, True, False]]),
        log_q=torch.tensor([0.2, 0.1, 0.1, 0.3, 0.2]).log(),
        num_items=20,
        weight=torch.ones(3),
    )
    # 5q = 3p + 2/20 = 0.7, 0.4, 0.4, 1.0, 0.7; a column weighs 1/q.
    a, b, c, d = 1 / 0.7, 1 / 0.4, 1 / 0.4, 1 / 1.0
    expected = math.log((a + c + d) / a) + math.log((b + c + d + a) / b)
    expected += math.log((c + a + b + a) / c)
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_mixed_negatives_estimate_the_softmax_over_the_catalogue() -> None:
    # Σ_j exp(s_j) / q_j over many columns of a popular half and a uniform half, over (B + N), is
    # Σ exp(s) over the catalogue: so one row's loss nears the full softmax's.
    generator = torch.Generator().manual_seed(0)
    num_items, rows, negatives = 20, 3000, 3000
    share = torch.rand(num_items, generator=generator).softmax(0)
    score = torch.randn(num_items, generator=generator)
    item = torch.multinomial(share, rows, replacement=True, generator=generator)
    item = torch.cat([item, torch.randint(num_items, (negatives,), generator=generator)])
    weight = torch.zeros(rows)
    weight[0] = 1
    found = in_batch_softmax(
        score[item].expand(rows, -1),
        item_key=torch.arange(rows + negatives),
        group_key=torch.arange(rows),
        bought=torch.zeros(rows, rows + negatives, dtype=torch.bool),
        log_q=share.log()[item],
        num_items=num_items,
        weight=weight,
    )
    q = (rows * share + negatives / num_items) / (rows + negatives)
    full = score.logsumexp(0) + math.log(rows + negatives) - (score - q.log())[item[0]]
    assert found.item() == pytest.approx(full.item(), abs=0.03)


def test_large_scores_stay_finite() -> None:
    score = torch.tensor([900.0, -900.0, 0.0], requires_grad=True)
    loss = listwise_softmax(
        score,
        label=torch.tensor([0.0, 1.0, 1.0]),
        weight=torch.ones(3),
        list_offsets=torch.tensor([0, 2, 3]),
    )
    loss.backward()
    assert loss.item() == pytest.approx(1800.0)
    assert score.grad is not None
    torch.testing.assert_close(score.grad, torch.tensor([1.0, -1.0, 0.0]))


def test_empty_batches_give_zero_with_a_gradient() -> None:
    none = torch.zeros(0, requires_grad=True)
    empty = torch.zeros(0)
    key = torch.zeros(0, dtype=torch.int64)
    losses = [
        bce(none, label=empty, weight=empty),
        listwise_softmax(none, label=empty, weight=empty, list_offsets=torch.zeros(1).long()),
        in_batch_softmax(
            none[:, None] @ none[None],
            item_key=key,
            group_key=key,
            bought=torch.zeros(0, 0, dtype=torch.bool),
            log_q=empty,
            num_items=0,
            weight=empty,
        ),
    ]
    for loss in losses:
        assert loss.item() == 0
        loss.backward()


def test_a_lone_list_mask_makes_scores_of_other_lists_irrelevant() -> None:
    score = torch.randn(4, requires_grad=True)
    listwise_softmax(
        score,
        label=torch.tensor([1.0, 0.0, 0.0, 0.0]),
        weight=torch.ones(4),
        list_offsets=torch.tensor([0, 2, 4]),
    ).backward()
    assert score.grad is not None
    assert score.grad[:2].abs().min() > 0
    assert not score.grad[2:].any()
