from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from rectrain.data.batch import TextLists
from rectrain.model.heads import BiEncoderHead, HeadSizes, ListPooling, TwoTowerHead, build_head


def _lists(*rows: list[int]) -> TextLists:
    offsets = torch.tensor([0, *[len(row) for row in rows]]).cumsum(0)
    return TextLists(torch.tensor([i for row in rows for i in row], dtype=torch.int64), offsets)


def test_pooling_starts_as_the_mean_with_one_text_unchanged() -> None:
    torch.manual_seed(0)
    vectors, pooling = torch.randn(4, 6), ListPooling(6)
    found = pooling(vectors, _lists([2], [0, 1, 3], [], [3, 3]))
    torch.testing.assert_close(found[0], vectors[2])
    torch.testing.assert_close(found[1], vectors[[0, 1, 3]].mean(0))
    torch.testing.assert_close(found[2], pooling.missing)
    torch.testing.assert_close(found[3], vectors[3])


def test_pooling_weighs_by_the_place_from_the_end() -> None:
    vectors, pooling = torch.eye(3), ListPooling(3)
    with torch.no_grad():
        pooling.recency[0], pooling.recency[1] = math.log(2.0), math.log(3.0)
    found = pooling(vectors, _lists([0, 1], [2], [0, 1, 2]))
    torch.testing.assert_close(found[0], torch.tensor([0.6, 0.4, 0.0]))
    torch.testing.assert_close(found[1], vectors[2])
    torch.testing.assert_close(found[2], torch.tensor([1.0, 3.0, 2.0]) / 6)


def test_pooling_takes_lists_longer_than_its_table() -> None:
    vectors = torch.randn(1, 3)
    torch.testing.assert_close(ListPooling(3)(vectors, _lists([0] * 40)), vectors)


def test_an_empty_list_has_a_bounded_gradient_through_normalisation() -> None:
    pooling = ListPooling(8)
    F.normalize(pooling(torch.randn(1, 8), _lists([])), dim=1).sum().backward()
    assert pooling.missing.grad is not None
    assert pooling.missing.grad.abs().max() < 1e3


def test_two_tower_starts_at_the_scaled_cosine_plus_log_popularity() -> None:
    head = TwoTowerHead(HeadSizes(6, feature_width=2, hidden=4, dropout=0.0))
    query, item, log_q = torch.randn(3, 6), torch.randn(3, 6), torch.tensor([-1.0, -2.0, -3.0])
    queries, items = head(query, item, torch.randn(3, 2), log_q)
    expected = 16 * F.cosine_similarity(query[:, None], item[None], dim=2) + log_q
    torch.testing.assert_close(queries @ items.T, expected, rtol=1e-5, atol=1e-4)


def test_bi_encoder_starts_at_the_scaled_cosine() -> None:
    head = BiEncoderHead(HeadSizes(6, feature_width=2, hidden=4, dropout=0.0))
    query, item = torch.randn(3, 6), torch.randn(3, 6)
    expected = 16 * F.cosine_similarity(query, item)
    torch.testing.assert_close(head(query, item, torch.randn(3, 2)), expected)


@pytest.mark.parametrize("kind", ["two_tower", "bi_encoder", "pair", "single"])
def test_every_input_and_parameter_reaches_the_score(kind: str) -> None:
    torch.manual_seed(0)
    head = build_head(kind, HeadSizes(6, feature_width=2, hidden=4, dropout=0.0, bias=True))  # type: ignore[arg-type]
    for parameter in head.parameters():  # away from the zeros it starts with
        torch.nn.init.normal_(parameter, std=0.5)
    names = ["item", "features"] if kind == "single" else ["query", "item", "features"]
    inputs = [torch.randn(5, 2 if name == "features" else 6, requires_grad=True) for name in names]
    extra = [torch.full((5,), -1.0)] if kind == "two_tower" else []
    found = head(*inputs, *extra)
    score = (found[0] * found[1]).sum(1) if isinstance(found, tuple) else found
    assert score.shape == (5,)
    assert score.dtype == torch.float32
    score.sum().backward()
    for tensor in (*inputs, *head.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.any()


def test_scores_do_not_depend_on_the_size_of_the_encoders_vectors() -> None:
    head = build_head("pair", HeadSizes(6, feature_width=0, hidden=4, dropout=0.0, bias=True))
    query, item = torch.randn(3, 6), torch.randn(3, 6)
    none = torch.zeros(3, 0)
    torch.testing.assert_close(head(query, item, none), head(100 * query, 0.01 * item, none))


@pytest.mark.parametrize("kind", ["pair", "single"])
@pytest.mark.parametrize("feature_width", [0, 3])
def test_a_score_that_is_only_compared_has_no_bias(kind: str, feature_width: int) -> None:
    torch.manual_seed(0)
    sides = [torch.randn(5, 6) for _ in range(2 if kind == "pair" else 1)]
    for bias in (True, False):
        sizes = HeadSizes(6, feature_width=feature_width, hidden=4, dropout=0.0, bias=bias)
        head = build_head(kind, sizes)  # type: ignore[arg-type]
        with torch.no_grad():  # the same for all rows but for what the last layers add
            for name, parameter in head.named_parameters():
                if name.endswith("weight"):
                    parameter.zero_()
        assert bool(head(*sides, torch.randn(5, feature_width)).abs().sum()) == bias


@pytest.mark.parametrize("kind", ["pair", "single"])
def test_features_have_a_path_that_texts_do_not_pass(kind: str) -> None:
    torch.manual_seed(0)
    head = build_head(kind, HeadSizes(6, feature_width=3, hidden=4, dropout=0.0))  # type: ignore[arg-type]
    sides = [torch.randn(1, 6).expand(5, 6) for _ in range(2 if kind == "pair" else 1)]
    with torch.no_grad():
        for parameter in head.logit.deep.parameters():  # type: ignore[union-attr, operator]
            parameter.zero_()
    scores = head(*sides, torch.randn(5, 3))
    assert scores.unique().numel() == 5
