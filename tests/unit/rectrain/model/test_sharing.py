from __future__ import annotations

import math

import pytest
import torch

from rectrain.model.config import ModelConfig
from rectrain.model.sharing import (
    GatedExperts,
    MixtureOfExperts,
    ProgressiveExtraction,
    ResidualExperts,
    SharedBottom,
    build_sharing,
)


def test_shared_bottom_gives_every_task_its_rows_unchanged() -> None:
    x = torch.randn(5, 3)
    sharing = build_sharing(ModelConfig(), tasks=["a", "b"], width=3)
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


def _random(module: torch.nn.Module) -> None:
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)


def _expert(experts: ResidualExperts, number: int, x: torch.Tensor) -> torch.Tensor:
    """One expert of one row [D]."""
    _, hidden, _ = experts.up.weight.shape
    part = slice(number * hidden, (number + 1) * hidden)
    inner = torch.nn.functional.gelu(experts.down.weight[part] @ x + experts.down.bias[part])
    return x + inner @ experts.up.weight[number]


def _mixed(gate: torch.nn.Linear, x: torch.Tensor, outputs: list[torch.Tensor]) -> torch.Tensor:
    shares = [math.exp(score) for score in gate(x).tolist()]
    return sum(s / sum(shares) * y for s, y in zip(shares, outputs, strict=True))  # type: ignore[return-value]


def test_mmoe_equals_its_formula_row_by_row() -> None:
    sharing = MixtureOfExperts(["a", "b"], width=4, num_experts=3, hidden=5)
    _random(sharing)
    x = torch.randn(5, 4)
    with torch.no_grad():
        found = torch.cat(sharing(x, [2, 3]))
        for row in range(5):
            gate = sharing.gates["a" if row < 2 else "b"]
            outputs = [_expert(sharing.experts, number, x[row]) for number in range(3)]
            torch.testing.assert_close(found[row], _mixed(gate, x[row], outputs))


def test_ple_equals_its_formula_row_by_row() -> None:
    sharing = ProgressiveExtraction(
        ["a", "b"], width=3, num_experts=2, num_task_experts=1, num_levels=2, hidden=4
    )
    _random(sharing)
    x = torch.randn(3, 3)
    with torch.no_grad():
        found = torch.cat(sharing(x, [1, 2]))
        for row, task in enumerate("abb"):
            paths = {"a": x[row], "b": x[row], "shared": x[row]}
            for level in sharing.levels:
                own = {t: [_expert(level.experts[t], 0, paths[t])] for t in "ab"}
                common = [_expert(level.shared, number, paths["shared"]) for number in range(2)]
                after = {t: _mixed(level.gates[t], paths[t], own[t] + common) for t in "ab"}
                if level.shared_gate is not None:
                    everything = own["a"] + own["b"] + common
                    after["shared"] = _mixed(level.shared_gate, paths["shared"], everything)
                paths = after
            torch.testing.assert_close(found[row], paths[task], rtol=1e-4, atol=1e-5)
    assert sharing.levels[1].shared_gate is None


@pytest.mark.parametrize("name", ["mmoe", "ple"])
def test_residual_experts_start_as_the_identity_and_then_part(name: str) -> None:
    torch.manual_seed(0)
    config = ModelConfig.model_validate({"sharing": name})
    sharing = build_sharing(config, tasks=["a", "b"], width=8)
    x = torch.randn(6, 8)
    torch.testing.assert_close(torch.cat(sharing(x, [2, 4])), x)
    optimizer = torch.optim.SGD(sharing.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        (torch.cat(sharing(x, [2, 4])) - x.flip(1)).square().mean().backward()
        optimizer.step()
    assert isinstance(sharing, MixtureOfExperts | ProgressiveExtraction)
    gates = sharing.gates if name == "mmoe" else sharing.levels[0].gates
    assert all(gate.weight.abs().max() > 0 for gate in gates.values())
    first, second = sharing(x[:1], [1, 0])[0], sharing(x[:1], [0, 1])[1]
    assert not torch.allclose(first, second)
