from __future__ import annotations

import math

import pytest
import torch

from rectrain.model.sharing import GatedExperts, SharedBottom, build_sharing


def test_shared_bottom_gives_every_task_its_rows_unchanged() -> None:
    x = torch.randn(5, 3)
    sharing = build_sharing(
        "shared_bottom", tasks=["a", "b"], width=3, num_experts=2, activation="identity"
    )
    assert isinstance(sharing, SharedBottom)
    first, second = sharing(x, [2, 3])
    assert torch.equal(first, x[:2])
    assert torch.equal(second, x[2:])


@pytest.mark.parametrize("activation", ["identity", "tanh", "gelu"])
def test_gated_experts_equal_the_formula(activation: str) -> None:
    torch.manual_seed(0)
    sharing = GatedExperts(["a", "b"], width=4, num_experts=3, activation=activation)
    for parameter in sharing.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(5, 4)
    with torch.no_grad():
        found = torch.cat(sharing(x, [2, 3]))
    functions = {
        "identity": lambda value: value,
        "tanh": math.tanh,
        "gelu": lambda value: 0.5 * value * (1 + math.erf(value / math.sqrt(2))),
    }
    experts = sharing.experts.weight.detach().view(3, 4, 4)
    for row in range(5):
        gate = sharing.gates["a" if row < 2 else "b"]
        scores = gate(x[row]).tolist()
        total = sum(math.exp(score) for score in scores)
        mixed = sharing.shared.weight.detach() @ x[row]
        for k in range(3):
            mixed = mixed + math.exp(scores[k]) / total * (experts[k] @ x[row])
        expected = torch.tensor([functions[activation](value) for value in mixed.tolist()])
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-5)


def test_gated_experts_start_near_the_identity() -> None:
    torch.manual_seed(0)
    sharing = GatedExperts(["a"], width=384, num_experts=4, activation="identity")
    x = torch.randn(20, 384)
    cosine = torch.nn.functional.cosine_similarity(sharing(x, [20])[0], x)
    assert cosine.min() > 0.99


def test_a_task_without_rows_leaves_its_gate_a_zero_gradient() -> None:
    sharing = GatedExperts(["a", "b"], width=4, num_experts=2, activation="identity")
    torch.cat(sharing(torch.randn(3, 4), [3, 0])).sum().backward()
    gradient = sharing.gates["b"].weight.grad
    assert isinstance(gradient, torch.Tensor)
    assert not gradient.any()
