"""Curves by hand, and that what is chosen keeps its promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rectrain.cascade import choose, risk_coverage
from rectrain.cascade.heldout import ALL, HeldOutLists, HeldOutRows, head_ranks
from rectrain.cascade.thresholds import defer_lowest, groups_to_prove
from rectrain.metrics import Examples, metric, rank_within_groups

SECOND = 1 / math.log2(3)


def lists_of(small, large, labels, *, heads=(ALL,)) -> HeldOutLists:
    """Lists of equal length, [Q, n] each."""
    size = np.full(len(small), small.shape[1])
    lists = np.repeat(np.arange(len(small)), size)
    places = rank_within_groups(small.ravel(), lists)
    ranks = {head: head_ranks(places, large.ravel(), lists, head=head) for head in heads}
    labels = labels.ravel().astype(float)
    return HeldOutLists(labels, np.ones(len(labels)), lists, places, ranks, size)


def drawn_lists(count: int, *, seed: int, noise: float = 0.6, size: int = 6, heads=(ALL,)):
    """Lists whose one relevant candidate large knows better than small; and small's margins."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 1.5, (count, size))
    large, small = (truth + rng.normal(0, sd, truth.shape) for sd in (0.2, noise))
    share = np.exp(truth)
    chosen = (rng.random(count)[:, None] > np.cumsum(share / share.sum(1, keepdims=True), 1)).sum(1)
    best = -np.sort(-small, axis=1)
    labels = np.eye(size)[np.minimum(chosen, size - 1)]
    return lists_of(small, large, labels, heads=heads), best[:, 0] - best[:, 1]


def test_a_curve_by_hand():
    """Two of four lists are wrong in small's order, and both are the least confident."""
    labels = np.array([[1, 0]] * 4)
    small = np.array([[0, 1], [0, 1], [1, 0], [1, 0]])
    held = lists_of(small, labels, labels)
    rates = (0, 0.25, 0.5, 0.75, 1)
    curve, own, large = risk_coverage(
        held, np.array([0.1, 0.2, 0.3, 0.4]), "ndcg@10", rates=rates, num_resamples=50
    )
    expected = [(2 * SECOND + 2) / 4, (SECOND + 3) / 4, 1, 1, 1]
    assert [one.value for one in curve.metrics] == pytest.approx(expected)
    assert curve.losses == pytest.approx(1 - np.array(expected))
    assert curve.work == pytest.approx([0, 0.5, 1, 1.5, 2])
    assert (own.value, large.value) == pytest.approx((expected[0], 1))
    assert curve.bounds[-1] == 0 and curve.bounds[0] >= curve.losses[0]


def test_a_head_by_hand():
    """Small's order is a b c d, large's d c b a: with a head of two it becomes b a c d."""
    places = np.array([1, 2, 3, 4])
    large = np.array([0.1, 0.2, 0.3, 0.4])
    one = np.zeros(4, dtype=np.int64)
    assert head_ranks(places, large, one, head=2).tolist() == [2, 1, 3, 4]
    assert head_ranks(places, large, one, head=ALL).tolist() == [4, 3, 2, 1]


@settings(max_examples=30)
@given(
    confidences=st.lists(st.floats(0, 1), min_size=1, max_size=50),
    rates=st.lists(st.floats(0, 1), min_size=2, max_size=2),
)
def test_more_deferral_defers_what_less_does_and_more(confidences, rates):
    less, more = (defer_lowest(np.array(confidences), rate) for rate in sorted(rates))
    assert not (less & ~more).any()
    assert less.sum() == round(min(rates) * len(confidences))


@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_all_deferred_is_large_and_nothing_deferred_is_small(seed):
    rng = np.random.default_rng(seed)
    small, large, labels = rng.random(80), rng.random(80), rng.integers(0, 2, 80).astype(float)
    labels[:2] = (0, 1)
    rows = HeldOutRows(small, large, labels, np.ones(80), np.arange(80) // 2)
    held, _ = drawn_lists(40, seed=seed)
    for units, name in ((rows, "auc"), (held, "ndcg@10")):
        curve, own, other = risk_coverage(
            units, rng.random(units.num_units), name, rates=(0.0, 0.4, 1.0), num_resamples=20
        )
        assert curve.metrics[0] == own and curve.metrics[-1] == other
        assert curve.losses[-1] == curve.bounds[-1] == 0
        assert (np.diff(curve.work) >= 0).all()
    plain = metric("auc")(Examples(label=labels, score=small))
    assert risk_coverage(rows, small, "auc", num_resamples=1)[1].value == pytest.approx(plain)


def test_where_both_models_agree_nothing_is_deferred():
    held, margin = drawn_lists(200, seed=0)
    same = HeldOutLists(
        held.labels, held.weights, held.lists, held.small, {ALL: held.small}, held.sizes
    )
    chosen = choose(same, margin, "ndcg@10", max_loss=0.0, num_resamples=50)
    assert chosen.rate == 0 and chosen.curve.losses[chosen.step] == 0


def test_what_can_not_be_shown_is_deferred():
    held, margin = drawn_lists(30, seed=0)
    assert choose(held, margin, "ndcg@10", max_loss=0.0, num_resamples=200).rate > 0.5


def test_nothing_is_deferred_where_small_is_the_better_one():
    """From all downwards the first step can't be shown to lose 0.1% at most; small alone can."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 800).astype(float)
    small, large = labels + rng.normal(0, 0.6, 800), labels + rng.normal(0, 1.2, 800)
    rows = HeldOutRows(small, large, labels, np.ones(800), np.arange(800))
    chosen = choose(rows, rng.random(800), "auc", max_loss=0.001, num_resamples=100)
    assert chosen.rate == 0 and chosen.curve.bounds[0] < 0
    assert chosen.curve.bounds[-2] > 0.001


def test_half_of_the_uncertainty_is_for_small_alone():
    held, margin = drawn_lists(300, seed=1, heads=(ALL, 3))
    chosen = choose(held, margin, "ndcg@10", max_loss=0.001, level=0.8, num_resamples=400)
    for head, level, step in ((ALL, 0.9, 0), (3, 0.95, 5)):
        curve = next(one for one in chosen.curves if one.head == head)
        alone, _, _ = risk_coverage(
            held, margin, "ndcg@10", head=head, rates=tuple(curve.rates), level=level,
            num_resamples=400,
        )  # fmt: skip
        assert curve.bounds[step] == alone.bounds[step]


def test_four_times_the_groups_prove_half_the_loss():
    held, margin = drawn_lists(400, seed=2)
    chosen = choose(held, margin, "ndcg@10", budget=0.1, num_resamples=200)
    curve, step = chosen.curve, chosen.step
    wanted = groups_to_prove(chosen, max_loss=0.02, num_groups=400)
    assert wanted == pytest.approx(400 * ((curve.bounds[step] - curve.losses[step]) / 0.02) ** 2)
    assert groups_to_prove(chosen, max_loss=0.01, num_groups=400) == pytest.approx(4 * wanted)
    assert groups_to_prove(chosen, max_loss=0.0, num_groups=400) == math.inf


def test_the_groups_that_are_named_do_prove_it():
    """Both models are equally good; what 300 lists promise is what that many lists show."""

    def width(count: int, seed: int) -> tuple[float, float]:
        rng = np.random.default_rng(seed)
        truth = rng.normal(0, 1.5, (count, 6))
        large, small = (truth + rng.normal(0, 0.5, truth.shape) for _ in range(2))
        held = lists_of(small, large, (truth == truth.max(axis=1, keepdims=True)))
        chosen = choose(held, rng.random(count), "ndcg@10", budget=0.1, num_resamples=400)
        wanted = groups_to_prove(chosen, max_loss=0.01, num_groups=count)
        return wanted, float(chosen.curve.bounds[chosen.step] - chosen.curve.losses[chosen.step])

    wanted, _ = width(300, 0)
    assert width(round(wanted), 1)[1] == pytest.approx(0.01, rel=0.25)


def test_a_wider_bound_defers_no_more():
    held, margin = drawn_lists(1500, seed=3)
    rates = [
        choose(held, margin, "ndcg@10", max_loss=bound, num_resamples=60).rate
        for bound in (0.0, 0.002, 0.01, 0.03, 1.0)
    ]
    assert rates == sorted(rates, reverse=True) and rates[-1] == 0 and 0 < rates[2] < 1


def test_the_bound_holds_on_lists_that_were_not_seen():
    """20 choices at 90%: about 2 may break it; 6 or more have a chance below 1.2%."""
    unseen, margin = drawn_lists(20_000, seed=10_000)
    order = np.argsort(margin, kind="stable")
    large = unseen.answered(np.ones(20_000, dtype=bool))
    best = metric("ndcg@10")(large)
    broken = 0
    for seed in range(20):
        held, own = drawn_lists(400, seed=seed)
        chosen = choose(held, own, "ndcg@10", max_loss=0.01, level=0.9, num_resamples=100)
        mask = np.zeros(20_000, dtype=bool)
        mask[order[: round(chosen.rate * 20_000)]] = True
        broken += 1 - metric("ndcg@10")(unseen.answered(mask)) / best > 0.01
        assert chosen.rate < 1
    assert broken < 6


def test_a_head_is_taken_where_it_costs_less():
    held, margin = drawn_lists(1000, seed=5, size=30, noise=0.6, heads=(ALL, 10))
    chosen = choose(held, margin, "ndcg@10", max_loss=0.04, num_resamples=60)
    assert chosen.head == 10
    assert chosen.curve.work[chosen.step] < 10 and chosen.curve.bounds[chosen.step] <= 0.04


def test_a_budget_is_the_rate_and_the_shortest_head_that_does_as_well():
    held, margin = drawn_lists(500, seed=5, size=30, noise=0.8, heads=(ALL, 20, 1))
    chosen = choose(held, margin, "ndcg@10", budget=0.13, num_resamples=20)
    assert chosen.rate == pytest.approx(0.13) and chosen.head == 20
    all_of_it = choose(held, margin, "ndcg@10", budget=0.0, num_resamples=20)
    assert all_of_it.rate == 0


def test_a_metric_that_falls_loses_when_it_rises():
    rng = np.random.default_rng(0)
    truth = rng.random(500)
    labels = (rng.random(500) < truth).astype(float)
    rows = HeldOutRows(np.full(500, 0.5), truth, labels, np.ones(500), np.arange(500))
    curve, _, _ = risk_coverage(rows, rng.random(500), "log_loss", num_resamples=20)
    assert curve.losses[0] > 0.2 and curve.losses[-1] == 0
