"""A policy from scores: that it serves what was judged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rectrain.cascade import Budget, BudgetState, Policy, decide, merge
from rectrain.cascade.fit import Aim, ListScores, RowScores, fit_lists, fit_rows
from rectrain.cascade.heldout import ALL, HeldOutLists, head_ranks
from rectrain.metrics import Examples, metric, rank_within_groups
from rectrain.report.calibration import calibration_table


def sigmoid(z):
    return 1 / (1 + np.exp(-np.asarray(z, dtype=float)))


def true_logits(rng: np.random.Generator, count: int):
    return rng.normal(-1, 1.5, count)


def drawn_rows(count: int, *, seed: int = 0) -> RowScores:
    """Rows of a true logit that large knows well, and both say twice too sharply."""
    rng = np.random.default_rng(seed)
    truth = true_logits(rng, count)
    labels = (rng.random(count) < sigmoid(truth)).astype(float)
    small, large = (sigmoid(2 * (truth + rng.normal(0, sd, count)) + 1) for sd in (0.5, 0.1))
    return RowScores(small, large, labels, np.ones(count), np.arange(count) // 3)


def drawn_scores(count: int, *, size: int = 12, seed: int = 0) -> ListScores:
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 1.5, (count, size))
    small, large = ((truth + rng.normal(0, sd, truth.shape)).ravel() for sd in (0.6, 0.1))
    labels = np.round(np.clip(truth, 0, 3)).ravel()
    lists = np.repeat(np.arange(count), size)
    places = rank_within_groups(small, lists)
    ranks = {head: head_ranks(places, large, lists, head=head) for head in (ALL, 5)}
    judged = HeldOutLists(labels, np.ones(len(labels)), lists, places, ranks, np.full(count, size))
    return ListScores(small, large, np.exp2(labels) - 1, lists, judged)


def test_rows_are_calibrated_and_the_served_rate_is_the_chosen_one():
    scores = drawn_rows(3000)
    found = fit_rows("risk", scores, metric="auc", aim=Aim(max_loss=0.003, num_resamples=40))
    for before, after in found.calibration.values():
        assert after.error < 0.04 < before.error
    policy = found.policy
    assert 0 < found.choice.rate < 0.9
    assert policy.rate == pytest.approx(found.choice.rate, abs=1e-3)
    assert policy.budget == pytest.approx(min(1, 1.5 * policy.rate))
    assert Policy.from_json(Policy("s", "l", {"risk": policy}).to_json()).tasks["risk"] == policy
    everything = BudgetState(policy.threshold, 10_000)
    decision = decide(policy, scores.small, budget=everything)
    chosen = list(decision.candidates)
    assert len(chosen) / 3000 == pytest.approx(policy.rate)
    answer = merge(
        decision.candidates,
        calibration=policy.calibration,
        small=scores.small,
        large=scores.large[chosen],
    )
    served = metric("auc")(Examples(label=scores.labels, score=answer))
    judged = found.choice.curve.metrics[found.choice.step].value
    assert served == pytest.approx(judged, abs=2e-3)  # judged by curves of the other half


def tied_rows(count: int) -> RowScores:
    """As `drawn_rows`, but small tells only some ten kinds of rows apart."""
    scores = drawn_rows(count)
    kinds = sigmoid(np.round(np.log(scores.small / (1 - scores.small)) / 2))
    return replace(scores, small=kinds)


@pytest.mark.parametrize("aim", [Aim(max_loss=0.003, num_resamples=40),
                                 Aim(budget=0.01, num_resamples=2)])  # fmt: skip
def test_of_equal_confidences_none_is_left_below_the_chosen_rate(aim):
    scores = tied_rows(3000)
    found = fit_rows("risk", scores, metric="auc", aim=aim)
    policy, chosen = found.policy, found.choice.rate
    confidences = policy.confidences(scores.small)
    lowest = confidences[confidences < policy.threshold]
    assert 0 < chosen < 1 and len(lowest) / 3000 == policy.rate > chosen + 0.005
    assert (lowest < lowest.max()).sum() < chosen * 3000, "no kind more than the rate asks for"
    assert Budget(policy).state.threshold == policy.threshold
    told = calibration_table({"risk": found}).splitlines()[-1]
    if aim.budget is None:
        assert policy.budget == pytest.approx(min(1, 1.5 * policy.rate))
        assert found.choice.curve.rates[found.step] == pytest.approx(policy.rate, abs=0.0125)
        assert found.choice.curve.bounds[found.step] <= aim.max_loss
        assert f" {policy.rate:.1%} " in told
    else:  # the token bucket gives no more
        assert (policy.deferred, found.step) == (0.01, found.choice.step)
        assert " 1.0% " in told


def test_a_budget_is_not_used_for_rows_that_large_adds_nothing_to():
    scores = drawn_rows(300)
    same = replace(scores, small=scores.large)
    found = fit_rows("risk", same, metric="auc", aim=Aim(budget=0.1, num_resamples=2))
    assert (found.policy.rate, found.policy.deferred, found.step) == (0, 0, 0)


def test_deferral_by_doubt_beats_deferral_at_random_and_by_the_distance_from_a_half():
    """At 20%: what large adds to the expected AUC, as a share of all that it could."""
    scores = drawn_rows(20_000, seed=1)
    truth = sigmoid(true_logits(np.random.default_rng(1), 20_000))
    found = fit_rows("risk", scores, metric="auc", aim=Aim(budget=0.2, num_resamples=2))
    calibration = found.policy.calibration
    small = calibration.small.probability(scores.small)
    large = calibration.large.probability(scores.large)

    def gained(order) -> float:
        mask = np.zeros(len(small), dtype=bool)
        mask[np.argsort(order)[:4000]] = True
        ends = [
            metric("auc")(
                Examples(
                    label=np.repeat([1.0, 0.0], len(truth)),
                    score=np.tile(values, 2),
                    weight=np.concatenate([truth, 1 - truth]),
                )
            )
            for values in (small, np.where(mask, large, small), large)
        ]
        return (ends[1] - ends[0]) / (ends[2] - ends[0])

    doubt = gained(found.policy.confidences(scores.small))
    assert doubt > 1.25 * gained(np.random.default_rng(0).random(len(small)))
    assert doubt > gained(np.abs(small - 0.5))


@pytest.mark.parametrize("aim", [Aim(max_loss=0.01, num_resamples=30),
                                 Aim(budget=0.3, num_resamples=10)])  # fmt: skip
def test_lists_are_served_as_they_were_judged(aim):
    scores = drawn_scores(400)
    found = fit_lists("search_ranking", scores, metric="ndcg@10", aim=aim)
    policy, choice = found.policy, found.choice
    assert policy.rate == pytest.approx(choice.rate, abs=0.003) and policy.head == choice.head
    assert (policy.bound, policy.kind) == ("loss" if aim.budget is None else "budget", "margin")
    places, deferred = np.empty(len(scores.lists), dtype=np.int64), np.zeros(400, dtype=bool)
    for one in range(400):
        rows = np.flatnonzero(scores.lists == one)
        decision = decide(policy, scores.small[rows], budget=BudgetState(policy.threshold, 1))
        deferred[one] = decision.defer
        asked = scores.large[rows][list(decision.candidates)]
        answer = merge(
            decision.candidates,
            calibration=policy.calibration,
            small=scores.small[rows],
            large=asked,
        )
        places[rows] = rank_within_groups(answer, np.zeros(len(rows), dtype=np.int64))
    judged = scores.judged.answered(deferred, head=policy.head)
    np.testing.assert_array_equal(places, judged.rank)
    assert metric("ndcg@10")(judged) == pytest.approx(
        choice.curve.metrics[choice.step].value, abs=0.005
    )


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_lists_give_a_policy(count):
    scores = drawn_scores(count)
    found = fit_lists(
        "search_ranking", scores, metric="ndcg@10", aim=Aim(max_loss=0, num_resamples=50)
    )
    policy = found.policy
    assert Policy.from_json(Policy("s", "l", {"search_ranking": policy}).to_json())
    assert policy.rate * count == pytest.approx(round(policy.rate * count))
    assert found.choice.curve.losses[found.choice.step] <= 0


@pytest.mark.parametrize("count", [1, 2, 20])
def test_rows_of_one_class_give_a_policy(count):
    rows = drawn_rows(count)
    rows = RowScores(rows.small, rows.large, np.zeros(count), rows.weights, rows.groups)
    found = fit_rows("risk", rows, metric="auc", aim=Aim(max_loss=0.001, num_resamples=20))
    assert found.policy.rate == 1.0  # nothing can be shown of an AUC that is undefined
