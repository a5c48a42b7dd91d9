"""How much of a large model's lift is kept: hand-computed values, and the bootstrap's pairing."""

from __future__ import annotations

from math import log2

import numpy as np
import pytest

from benchmarks.lift import Lifts, trivial
from rectrain.errors import ConfigError
from rectrain.metrics import Examples, metric, summarise

LABEL = np.array([1, 1, 0, 0])


def scored(*score: float, label: np.ndarray = LABEL, **more: np.ndarray) -> Examples:
    return Examples(label=label, score=np.array(score), **more)


def test_the_share_of_auc() -> None:
    """Of 4 pairs the large model has all right and the other three: (3/4 - 1/2) / (1 - 1/2)."""
    systems = {
        "large": scored(4, 3, 2, 1),
        "small": scored(4, 2, 3, 1),
        "worse": scored(1, 2, 3, 4),
    }
    judged = Lifts("auc", systems, large="large")
    assert judged.chance == 0.5
    assert judged.value("small").value == pytest.approx(0.75)
    assert judged.share("small").value == pytest.approx(0.5)
    assert judged.share("worse").value == pytest.approx(-1.0)
    assert judged.share("large") == (1.0, 1.0, 1.0)
    assert judged.difference("small", "worse").value == pytest.approx(0.75)


def test_a_random_order_by_ndcg() -> None:
    """Lists of grades (2, 0, 0), @2, and (1, 0), and one without a relevant row, left out."""
    label = np.array([2, 0, 0, 1, 0, 0])
    examples = scored(*np.zeros(6), label=label, group=np.array([0, 0, 0, 1, 1, 2]))
    both = 1 + 1 / log2(3)
    first, second = 3 / 3 * both / 3, 1 / 2 * both / 1
    random = trivial("ndcg@2", examples)
    assert random(np.ones(6)) == pytest.approx((first + second) / 2)
    assert random(np.array([1, 1, 1, 3, 3, 9.0])) == pytest.approx((first + 3 * second) / 4)
    assert np.isnan(random(np.zeros(6)))


def test_a_random_order_of_a_catalogue() -> None:
    """One user wants 2 of 10 items, the other 1 of 4, of which each can stand at each place."""
    examples = Examples(
        label=np.ones(3), score=-np.array([3, 5, 1]), group=np.array([0, 0, 1]),
        rank=np.array([3, 5, 1]),
    )  # fmt: skip
    three = 1 + 1 / log2(3) + 1 / log2(4)
    both = 1 + 1 / log2(3)
    random = trivial("ndcg@3", examples, num_ranked=np.array([10, 4]))
    assert random(np.ones(3)) == pytest.approx((2 * three / 10 / both + three / 4 / 1) / 2)


def test_a_random_order_is_the_mean_over_random_scores() -> None:
    rows = np.random.default_rng(0)
    label, group = rows.integers(0, 4, 300), rows.integers(0, 30, 300)
    drawn = [
        metric("ndcg@5")(Examples(label=label, score=rows.normal(size=300), group=group))
        for _ in range(400)
    ]
    found = trivial("ndcg@5", Examples(label=label, score=label, group=group))(np.ones(300))
    assert found == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / 20)


def test_all_systems_are_judged_on_the_same_draws() -> None:
    """Shares of the large model itself, and of scores all alike, have no width; its metric has."""
    label = np.tile([1, 0], 40)
    group = np.repeat(np.arange(40), 2)
    noisy = np.where(np.arange(40) % 4, 1.0, -1.0)  # the large one has 3 of 4 pairs right
    large = np.repeat(noisy, 2) * (label - 0.5)
    systems = {
        "large": Examples(label=label, score=large, group=group),
        "same": Examples(label=label, score=large, group=group),
        "tied": Examples(label=label, score=np.zeros(80), group=group),
    }
    judged = Lifts("pairwise_accuracy", systems, large="large", num_resamples=200)
    assert judged.value("large").high > judged.value("large").low
    assert judged.share("same") == (1.0, 1.0, 1.0)
    assert judged.share("tied") == (0.0, 0.0, 0.0)
    expected = judged.difference("large", "tied")
    assert expected == pytest.approx(tuple(v - 0.5 for v in judged.value("large")))


def test_where_the_large_model_has_no_lift_there_is_no_share() -> None:
    systems = {"large": scored(1, 2, 3, 4), "small": scored(4, 3, 2, 1)}
    judged = Lifts("auc", systems, large="large", num_resamples=100)
    assert np.isnan(judged.share("small").value)
    assert judged.undefined > 0.5


def test_other_rows_and_unknown_metrics_are_refused() -> None:
    with pytest.raises(AssertionError, match="labels"):
        Lifts("auc", {"large": scored(4, 3, 2, 1), "small": scored(4, 3, 2, 1, label=1 - LABEL)},
               large="large")  # fmt: skip
    with pytest.raises(ConfigError, match="log_loss"):
        trivial("log_loss", scored(0, 0, 0, 0))
    assert summarise(1.0, np.array([np.nan, 1.0, 1.0])) == (1.0, 1.0, 1.0)
