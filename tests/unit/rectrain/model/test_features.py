from __future__ import annotations

import math

import torch
from torch import Tensor

from rectrain.model.features import FeatureLayer, piecewise_linear


def _layer(**changes: object) -> FeatureLayer:
    torch.manual_seed(0)
    settings: dict[str, object] = {
        "bin_edges": [(0.0, 1.0, 3.0), (-1.0, 1.0)],
        "vocabulary_sizes": (4, 3),
        "vector_sizes": {"image": 5},
        "width": 8,
    }
    return FeatureLayer(**(settings | changes))  # type: ignore[arg-type]


def _rows(count: int = 1) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    return (
        torch.zeros(count, 2),
        torch.ones(count, 2, dtype=torch.int64),
        {"image": torch.arange(5.0).repeat(count, 1)},
    )


def test_piecewise_linear_equals_hand_computed_values() -> None:
    left = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    width = torch.tensor([[1.0, 2.0], [2.0, math.inf]])
    values = torch.tensor([[0.5, 0.0], [2.0, math.nan], [99.0, -99.0]])
    found = piecewise_linear(values, left=left, width=width)
    expected = torch.tensor(
        [[0.5, 0, 0, 0.5, 0, 0], [1, 0.5, 0, 0, 0, 1], [1, 1, 0, 0, 0, 0]], dtype=torch.float32
    )
    torch.testing.assert_close(found, expected)


def test_missing_differs_from_every_value_and_stays_finite() -> None:
    layer = _layer()
    numeric, categorical, vectors = _rows(4)
    numeric[1, 0] = math.nan
    categorical[2, 1] = 0
    vectors["image"][3] = math.nan
    found = layer(numeric, categorical, vectors, dtype=torch.float32)
    assert found.shape == (4, 8)
    assert found.isfinite().all()
    assert all((found[row] - found[0]).abs().max() > 1e-4 for row in (1, 2, 3))
    found.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_equal_codes_of_two_fields_have_their_own_embeddings() -> None:
    layer = _layer()
    numeric, categorical, vectors = _rows(2)
    categorical[0], categorical[1] = torch.tensor([2, 1]), torch.tensor([1, 2])
    layer(numeric, categorical, vectors, dtype=torch.float32)[:, 0].sum().backward()
    assert layer.embedding.weight.grad is not None
    touched = layer.embedding.weight.grad.abs().sum(1).nonzero().flatten().tolist()
    assert touched == [1, 2, 5, 6]


def test_a_task_without_features_gives_a_vector_of_width_zero() -> None:
    layer = _layer(bin_edges=[], vocabulary_sizes=(), vector_sizes={})
    found = layer(torch.zeros(3, 0), torch.zeros(3, 0).long(), {}, dtype=torch.float32)
    assert found.shape == (3, 0)
    assert not list(layer.parameters())


def test_casting_the_model_to_bf16_leaves_the_bins_exact() -> None:
    edges = [(1000.0, 1001.0, 1002.0)]  # bf16 can't tell these apart
    layer = _layer(bin_edges=edges, vocabulary_sizes=(), vector_sizes={}).bfloat16()
    numeric = torch.tensor([[1000.0], [1001.0]])
    found = layer(numeric, torch.zeros(2, 0).long(), {}, dtype=torch.bfloat16)
    assert found.dtype == torch.bfloat16
    assert not torch.equal(found[0], found[1])


def test_a_vector_of_one_value_is_not_always_zero() -> None:
    layer = _layer(vector_sizes={"image": 1})
    numeric, categorical, _ = _rows(2)
    found = layer(
        numeric, categorical, {"image": torch.tensor([[0.5], [2.0]])}, dtype=torch.float32
    )
    assert (found[0] - found[1]).abs().max() > 1e-4
