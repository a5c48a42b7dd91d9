"""Metrics against hand-computed values, scikit-learn, and one process against two."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference
from torch import multiprocessing

from rectrain.errors import ConfigError, DataError
from rectrain.metrics import (
    Examples,
    bootstrap_interval,
    catalogue_coverage,
    catalogue_ranks,
    compute,
    gather_arrays,
    graded_groups,
    group_codes,
    intra_list_dissimilarity,
    metric,
    num_one_class_groups,
    paired_difference,
    rank_within_groups,
)


@st.composite
def weighted_rows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    size = draw(st.integers(4, 40))
    seed = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    label = generator.integers(0, 2, size).astype(float)
    label[:2] = 0.0, 1.0
    score = generator.integers(0, draw(st.integers(2, 30)), size) / 30  # many ties
    return label, score, generator.integers(1, 4, size).astype(float)


@settings(max_examples=60)
@given(weighted_rows())
def test_curves_and_losses_equal_scikit_learn_with_ties_and_weights(rows):
    label, score, weight = rows
    examples = Examples(label=label, score=score, weight=weight)
    values = compute(["auc", "pr_auc", "log_loss", "accuracy", "recall@fpr0.25"], examples)
    false_rate, true_rate, _ = reference.roc_curve(
        label, score, sample_weight=weight, drop_intermediate=False
    )
    expected = {
        "auc": reference.roc_auc_score(label, score, sample_weight=weight),
        "pr_auc": reference.average_precision_score(label, score, sample_weight=weight),
        "log_loss": reference.log_loss(label, np.clip(score, 1e-7, 1), sample_weight=weight),
        "accuracy": reference.accuracy_score(label, score >= 0.5, sample_weight=weight),
        "recall@fpr0.25": true_rate[false_rate <= 0.25].max(),
    }
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, abs=1e-9), name


@settings(max_examples=30)
@given(weighted_rows())
def test_a_weight_of_two_is_the_row_written_twice(rows):
    label, score, weight = rows
    group = np.arange(len(label)) // 4
    # A list's weight is a whole list's, so weights are constant within a group here.
    weight = weight[group]
    times = weight.astype(int)
    copies = np.concatenate([np.arange(count) for count in times])
    twice = Examples(
        label=np.repeat(label, times),
        score=np.repeat(score, times),
        group=np.repeat(group, times) * 10 + copies,
        rank=np.repeat(rank_within_groups(score, group), times),
    )
    once = Examples(label=label, score=score, group=group, weight=weight)
    for name in ("gauc", "auc", "ctr", "ndcg@2", "hr@1", "recall@2", "precision@2", "mrr"):
        expected = metric(name)(twice)
        assert metric(name)(once) == pytest.approx(expected, nan_ok=True), name


def test_gauc_weighs_groups_by_impressions_and_leaves_out_one_class():
    examples = Examples(
        label=np.array([1, 0, 1, 0, 0, 1, 1.0]),
        score=np.array([0.9, 0.1, 0.2, 0.8, 0.1, 0.5, 0.6]),
        group=np.array([7, 7, 3, 3, 3, 5, 5]),
    )
    # Group 7: AUC 1 of 2 rows; group 3: AUC 1/2 of 3 rows; group 5 has positives alone.
    assert metric("gauc")(examples) == pytest.approx((2 * 1 + 3 * 0.5) / 5)
    assert num_one_class_groups(examples) == 1


def test_calibration_by_hand():
    label = np.array([0, 1, 0, 1.0])
    score = np.array([0.25, 0.25, 0.75, 0.75])
    values = compute(
        ["ece", "calibration_ratio", "ctr", "predicted_rate"], Examples(label=label, score=score)
    )
    assert values["ece"] == pytest.approx(0.25)
    assert values["calibration_ratio"] == pytest.approx(1.0)
    assert values["ctr"] == values["predicted_rate"] == 0.5


def test_precision_and_recall_at_one_half():
    examples = Examples(label=np.array([1, 1, 0, 0.0]), score=np.array([0.9, 0.1, 0.5, 0.2]))
    assert metric("precision")(examples) == 0.5
    assert metric("recall")(examples) == 0.5


def test_ranked_lists_by_hand():
    examples = Examples(
        label=np.array([3, 0, 1, 0, 1, 0.0]),
        score=np.array([0.1, 0.9, 0.5, 0.9, 0.5, 0.1]),
        group=np.array([0, 0, 0, 1, 1, 1]),
    )
    first = (1 / math.log2(3) + 7 / 2) / (7 + 1 / math.log2(3))
    second = 1 / math.log2(3)
    values = compute(["ndcg@10", "ndcg@1", "mrr", "hr@1", "recall@2", "precision@2"], examples)
    assert values["ndcg@10"] == pytest.approx((first + second) / 2)
    assert values["ndcg@1"] == 0
    assert values["mrr"] == pytest.approx(0.5)
    assert values["hr@1"] == 0
    assert values["recall@2"] == pytest.approx((0.5 + 1) / 2)
    assert values["precision@2"] == 0.5


def test_ndcg_equals_scikit_learn():
    generator = np.random.default_rng(0)
    grades, scores = generator.integers(0, 4, (20, 15)), generator.random((20, 15))
    grades[:, 0] = 3
    examples = Examples(
        label=grades.ravel(), score=scores.ravel(), group=np.repeat(np.arange(20), 15)
    )
    expected = reference.ndcg_score(2.0**grades - 1, scores, k=10)
    assert metric("ndcg@10")(examples) == pytest.approx(expected)


def test_equal_scores_earn_a_random_order_even_when_the_file_lists_relevant_rows_first():
    num_groups, size = 4000, 10
    label = np.tile(np.arange(size) < 2, num_groups).astype(float)
    examples = Examples(
        label=label, score=np.zeros_like(label), group=np.repeat(np.arange(num_groups), size)
    )
    assert metric("recall@5")(examples) == pytest.approx(0.5, abs=0.02)


def test_catalogue_ranks_exclude_and_give_the_same_metrics_as_full_lists():
    generator = np.random.default_rng(1)
    scores = generator.integers(0, 50, (6, 40)).astype(np.float32)
    scores[:, 3] = -np.inf
    ranks = catalogue_ranks(scores, rows=np.arange(6), columns=np.full(6, 3))
    assert (ranks == 40).all()
    rows, columns = np.repeat(np.arange(6), 2), np.tile([5, 8], 6)
    ranks = catalogue_ranks(scores, rows=rows, columns=columns)
    own = scores[rows, columns]
    assert (ranks > (scores[rows] > own[:, None]).sum(1)).all()
    assert (ranks <= (scores[rows] >= own[:, None]).sum(1)).all()
    assert len(set(zip(rows, ranks, strict=True))) == len(rows)
    targets = Examples(label=np.ones(12), score=own, group=rows, rank=ranks)
    label = np.zeros_like(scores)
    label[:, [5, 8]] = 1
    best_first = np.full(scores.shape, 1000.0)
    best_first[rows, columns] = ranks
    others = best_first == 1000
    # The other items fill the places that the targets leave.
    for row in range(6):
        free = sorted(set(range(1, 41)) - set(best_first[row][~others[row]].astype(int)))
        best_first[row][others[row]] = free
    full = Examples(
        label=label.ravel(), score=-best_first.ravel(), group=np.repeat(np.arange(6), 40)
    )
    names = ["ndcg@10", "hr@10", "recall@10", "precision@10", "mrr"]
    assert compute(names, targets) == pytest.approx(compute(names, full))


def test_diversity_by_hand():
    lists = np.array([[0, 1], [0, 2]])
    vectors = np.array([[1, 0], [0, 2], [3, 0], [1, 1]], dtype=np.float32)
    assert catalogue_coverage(lists, num_items=4) == 0.75
    assert intra_list_dissimilarity(lists, vectors=vectors) == pytest.approx([1.0, 0.0])
    categories = np.array([4, 4, 5, 5])
    assert intra_list_dissimilarity(lists, categories=categories) == pytest.approx([0.0, 1.0])


def test_graded_groups_and_codes():
    group = group_codes(["b", "a", "b", None, None])
    assert group[0] == group[2] and len(set(group.tolist())) == 4
    assert graded_groups(np.array([1, 2, 0, 1, 1.0]), group).tolist() == [
        True,
        False,
        True,
        False,
        False,
    ]


def test_undefined_values_are_nan():
    positives = Examples(label=np.ones(3), score=np.full(3, 0.5))
    values = compute(["auc", "gauc", "recall@fpr0.01"], positives)
    assert all(math.isnan(value) for value in values.values())
    empty = Examples(label=np.zeros(0), score=np.zeros(0))
    names = ["auc", "gauc", "pr_auc", "log_loss", "ece", "ctr", "ndcg@10", "hr@10", "mrr"]
    assert all(math.isnan(value) for value in compute(names, empty).values())


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match=r"ndgc@10.*ndcg@10"):
        metric("ndgc@10")
    with pytest.raises(DataError, match="1 of 2 NaN"):
        Examples(label=np.zeros(2), score=np.array([0.1, np.nan]))
    with pytest.raises(DataError, match=r"0\.\.1"):
        metric("log_loss")(Examples(label=np.zeros(2), score=np.array([-3.0, 3.0])))


def test_bootstrap_draws_groups_not_rows():
    # 25 groups of 40 equal rows: by rows the interval would be √40 times too narrow.
    value = (np.arange(25) % 2).astype(float)
    label, group = np.repeat(value, 40), np.repeat(np.arange(25), 40)
    interval = bootstrap_interval("ctr", Examples(label=label, score=label, group=group))
    assert interval.value == pytest.approx(0.48)
    deviation = math.sqrt(0.48 * 0.52 / 25)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * deviation, rel=0.15)


def test_a_paired_difference_is_narrower_than_two_intervals_and_finds_the_sign():
    generator = np.random.default_rng(3)
    group = np.repeat(np.arange(200), 5)
    label = generator.integers(0, 2, 1000).astype(float)
    noise = generator.normal(size=1000)
    a = Examples(label=label, score=label * 0.6 + noise, group=group)
    b = Examples(label=label, score=label * 0.4 + noise, group=group)
    difference = paired_difference("auc", a, b, num_resamples=300)
    alone = bootstrap_interval("auc", a, num_resamples=300)
    assert difference.low > 0
    assert difference.high - difference.low < 0.3 * (alone.high - alone.low)
    assert paired_difference("auc", a, a) == pytest.approx((0, 0, 0))


def _rows() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(5)
    return {
        "index": np.arange(101),
        "label": generator.integers(0, 2, 101).astype(np.float32),
        "score": generator.random(101).astype(np.float32),
        "vector": generator.random((101, 3)),
    }


def _rank(rank: int, directory: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2
    )
    chosen = np.arange(101) % 3 == 0 if rank else np.arange(101) % 3 != 0
    chosen[50] = True  # both ranks hold one row
    mine = {name: values[chosen][::-1] for name, values in _rows().items()}
    gathered = gather_arrays(mine)
    nothing = gather_arrays({"index": np.arange(3 * rank)})
    torch.save(
        {**{k: torch.from_numpy(v) for k, v in gathered.items()}, "n": len(nothing["index"])},
        f"{directory}/{rank}.pt",
    )
    dist.destroy_process_group()


def test_two_ranks_gather_exactly_what_one_process_has(tmp_path: Path):
    multiprocessing.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        gathered = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert gathered.pop("n") == 3
        for name, values in _rows().items():
            assert gathered[name].numpy().dtype == values.dtype
            assert np.array_equal(gathered[name].numpy(), values), name


def test_pairwise_accuracy_by_hand():
    examples = Examples(
        # Group 0: 3 > 1 right, 3 > 2 wrong, 2 > 1 right -> 2/3. Group 1: a tie -> 1/2. Group 2 has
        # no pair. Group 3: right; weight 3.
        group=np.array([0, 1, 0, 0, 1, 2, 2, 3, 3]),
        label=np.array([3, 1, 1, 2, 0, 1, 1, 0.2, 0.3]),
        score=np.array([0.5, 7, 0.1, 0.9, 7, 1, 2, -1, 0]),
        weight=np.array([1, 1, 1, 1, 1, 1, 1, 3, 3]),
    )
    expected = (2 / 3 + 1 / 2 + 3 * 1) / 5
    assert metric("pairwise_accuracy")(examples) == pytest.approx(expected)
    assert metric("pairwise_accuracy").higher_is_better


@settings(max_examples=30)
@given(weighted_rows())
def test_pairwise_accuracy_of_one_group_of_two_classes_is_its_auc(rows):
    label, score, _ = rows
    examples = Examples(label=label, score=score, group=np.zeros(len(label), dtype=np.int64))
    assert metric("pairwise_accuracy")(examples) == pytest.approx(
        reference.roc_auc_score(label, score)
    )
