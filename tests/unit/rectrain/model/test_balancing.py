from __future__ import annotations

import math

import pytest
import torch

from rectrain.model.balancing import UncertaintyWeights, build_balancer


def test_static_weights_default_to_one() -> None:
    balancer = build_balancer("static", tasks=["a", "b"], weights={"b": 0.5})
    assert balancer(torch.tensor([2.0, 6.0]), num_shares=3).item() == 5.0


def test_uncertainty_equals_a_hand_computed_value() -> None:
    balancer = UncertaintyWeights([1.0, 2.0])
    with torch.no_grad():
        balancer.log_variance.copy_(torch.tensor([0.0, math.log(4.0)]))
    # 1·[½·3 + 0] + 2·[½·¼·8 + ½·log 4]
    expected = 1.5 + 2 * (1 + math.log(2))
    assert balancer(torch.tensor([3.0, 8.0]), num_shares=1).item() == pytest.approx(expected)


def test_shares_of_a_step_sum_to_the_whole_step() -> None:
    balancer = UncertaintyWeights([1.0, 1.0])
    with torch.no_grad():
        balancer.log_variance.copy_(torch.tensor([0.7, -0.3]))
    shares = torch.rand(4, 2)
    found = sum(balancer(share, num_shares=4) for share in shares)
    torch.testing.assert_close(found, balancer(shares.sum(0), num_shares=1))


def test_the_log_variance_settles_at_the_log_of_the_loss() -> None:
    balancer = UncertaintyWeights([1.0])
    with torch.no_grad():
        balancer.log_variance.copy_(torch.tensor([math.log(5.0)]))
    balancer(torch.tensor([5.0]), num_shares=1).backward()
    assert balancer.log_variance.grad is not None
    assert balancer.log_variance.grad.item() == pytest.approx(0.0, abs=1e-6)
