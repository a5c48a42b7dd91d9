from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable

import pytest
import torch

from rectrain.data.batch import MicroBatch
from rectrain.errors import ConfigError
from rectrain.model.balancing import (
    DynamicWeightAverage,
    GradientWeights,
    UncertaintyWeights,
    build_balancer,
    check_installed,
    dwa_window,
    task_gradients,
)
from rectrain.model.config import GRADIENT_BALANCERS
from rectrain.model.multitask import MultiTaskModel
from rectrain.tasks import TASKS


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


def test_dwa_weighs_by_the_ratio_of_the_last_two_windows() -> None:
    balancer = DynamicWeightAverage([1.0, 2.0, 1.0], window=2)
    ones = torch.ones(3)
    # Windows of mean loss (4, 1, 0), then (2, 1, 0): rates ½, 1, and 1 for what has no loss.
    for losses in ([3.0, 1.0, 0.0], [5.0, 1.0, 0.0], [2.0, 1.5, 0.0], [2.0, 0.5, 0.0]):
        balancer(ones, num_shares=1)
        assert balancer.applied.tolist() == [1.0, 2.0, 1.0]
        balancer.observe(torch.tensor(losses))
    loss = balancer(torch.tensor([1.0, 10.0, 100.0]), num_shares=4)
    slow, fast = math.exp(1 / 2), math.exp(1 / 4)
    total = 2 * slow + fast
    expected = [3 * fast / total, 2 * 3 * slow / total, 3 * slow / total]
    assert balancer.applied.tolist() == pytest.approx(expected)
    assert loss.item() == pytest.approx(expected[0] + 10 * expected[1] + 100 * expected[2])


def test_dwa_goes_on_from_its_saved_state() -> None:
    straight, other = (DynamicWeightAverage([1.0, 1.0], window=3) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    for _ in range(7):
        straight.observe(torch.rand(2, generator=generator))
    other.load_state_dict(straight.state_dict())
    for _ in range(4):
        losses = torch.rand(2, generator=generator)
        for balancer in (straight, other):
            balancer.observe(losses)
            balancer(losses, num_shares=1)
    assert torch.equal(straight.applied, other.applied)
    assert straight.applied.tolist() != [1.0, 1.0]


@pytest.mark.parametrize(("num_steps", "window"), [(3, 1), (19, 1), (100, 10), (5000, 50)])
def test_dwa_weighs_most_of_a_run_however_short(num_steps: int, window: int) -> None:
    assert dwa_window(num_steps) == window
    assert 2 * window < num_steps


def _gramian(*gradients: tuple[float, ...]) -> torch.Tensor:
    rows = torch.tensor(gradients, dtype=torch.float64)
    return rows @ rows.T


@pytest.mark.parametrize(
    ("method", "gradients", "expected"),
    [
        # g1 + ½·g2 and g2 + g1: what each has against the other is taken away.
        ("pcgrad", [(1.0, 0.0), (-1.0, 1.0)], (2.0, 1.5)),
        # With two tasks UPGrad projects onto the same half-spaces.
        ("upgrad", [(1.0, 0.0), (-1.0, 1.0)], (2.0, 1.5)),
        ("pcgrad", [(1.0, 0.0), (1.0, 1.0)], (1.0, 1.0)),
        ("upgrad", [(1.0, 0.0), (1.0, 1.0)], (1.0, 1.0)),
        # g0 = (½, ½) = g_w by symmetry: 2 · (½ + ½ · |g0| / |g_w| · ½).
        ("cagrad", [(1.0, 0.0), (0.0, 1.0)], (1.5, 1.5)),
    ],
)
@pytest.mark.parametrize("size", [1.0, 1e-6])
def test_gradient_weights_equal_hand_computed_ones(
    method: str, gradients: list[tuple[float, ...]], expected: tuple[float, ...], size: float
) -> None:
    balancer = build_balancer(method, tasks=["a", "b"], weights={})  # type: ignore[arg-type]
    assert isinstance(balancer, GradientWeights)
    found = balancer.solve(size**2 * _gramian(*gradients), seed=0)
    assert found.tolist() == pytest.approx(expected, rel=1e-3)


def test_upgrad_harms_no_task_and_static_weights_scale_the_gradients() -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        rows = torch.randn(4, 8, generator=generator, dtype=torch.float64)
        balancer = GradientWeights([1.0, 2.0, 0.5, 3.0], method="upgrad")
        found = balancer.solve(rows @ rows.T, seed=0)
        scaled = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)[:, None] * rows
        direction = found @ scaled
        assert (rows @ direction > -1e-2 * rows.norm(dim=1) * direction.norm()).all()
        plain = GradientWeights([1.0] * 4, method="upgrad").solve(scaled @ scaled.T, seed=0)
        torch.testing.assert_close(plain, found)


@pytest.mark.parametrize("method", GRADIENT_BALANCERS)
def test_gradient_weights_with_a_task_without_gradient(method: str) -> None:
    balancer = GradientWeights([1.0, 2.0], method=method)  # type: ignore[arg-type]
    for value in (0.0, math.nan):
        assert balancer.solve(torch.full((2, 2), value), seed=0).tolist() == [1.0, 1.0]
    assert balancer.solve(_gramian((1.0, 2.0), (0.0, 0.0)), seed=0).isfinite().all()


def test_the_order_of_pcgrad_is_seeded_and_leaves_the_callers_random_state_alone() -> None:
    gramian = _gramian((1.0, 0.0), (-1.0, 1.0), (-1.0, -2.0), (0.3, -1.0))
    balancer = GradientWeights([1.0] * 4, method="pcgrad")
    state = torch.get_rng_state()
    found = [tuple(balancer.solve(gramian, seed=seed).tolist()) for seed in (0, 0, 1, 2, 3)]
    assert found[0] == found[1] and len(set(found)) > 1
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_tasks_inside_a_forward_sum_to_the_backward_pass(
    checkpointing: bool,
    make_model: Callable[..., MultiTaskModel],
    make_batch: Callable[..., MicroBatch],
) -> None:
    model = make_model(balancer="pcgrad", activation_checkpointing=checkpointing)
    for place in ("last_layer", "encoder"):
        model.zero_grad()
        shared = model.shared_parameters(place)  # type: ignore[arg-type]
        found: list[torch.Tensor] = []

        def balance(losses: torch.Tensor) -> torch.Tensor:
            found.append(task_gradients(losses, shared))  # noqa: B023 - called in this round
            return losses.sum()

        rows = dict(zip(TASKS, [5, 6, 3, 0, 6, 2], strict=True))
        model(make_batch(rows), balance=balance)[0].backward()
        whole = torch.cat([p.grad.flatten() for p in shared if p.grad is not None])
        torch.testing.assert_close(found[0].sum(0), whole, rtol=1e-4, atol=1e-6)
        assert [bool(row.any()) for row in found[0]] == [n > 0 for n in rows.values()]
    assert len(shared) == len(list(model.encoder.parameters()))


def test_coefficients_weigh_the_encoder_and_leave_the_rest_alone(
    make_model: Callable[..., MultiTaskModel], make_batch: Callable[..., MicroBatch]
) -> None:
    batch = make_batch(dict(zip(TASKS, [5, 6, 3, 2, 6, 4], strict=True)))

    def gradients(balancer: str, weights: list[float], factors: list[float] | None) -> dict:
        model = make_model(
            balancer=balancer, sharing="mmoe", loss_weights=dict(zip(TASKS, weights, strict=True))
        )
        if factors is not None:
            model.balancer.use(torch.tensor(factors))
            assert model.balancer.applied.tolist() == [4.0, 2.0, 0.0, 1.5, 1.0, 2.0]
        model(batch)[0].backward()
        return {name: p.grad for name, p in model.named_parameters()}

    found = gradients("upgrad", [2.0, 1.0, 1.0, 0.5, 1.0, 1.0], [2.0, 2.0, 0.0, 3.0, 1.0, 2.0])
    weighted = gradients("static", [4.0, 2.0, 0.0, 1.5, 1.0, 2.0], None)
    plain = gradients("static", [2.0, 1.0, 1.0, 0.5, 1.0, 1.0], None)
    for name, gradient in found.items():
        expected = (weighted if name.startswith("encoder.") else plain)[name]
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6, msg=name)


def test_a_frozen_layer_is_no_place_of_gradients(
    make_model: Callable[..., MultiTaskModel],
) -> None:
    model = make_model(specs={"risk": TASKS["risk"]})
    last = model.encoder.encoder.layer[-1]
    assert len(model.shared_parameters("last_layer")) == 4  # two of the linear layer and the norm
    last.output.requires_grad_(False)
    assert {id(p) for p in model.shared_parameters("last_layer")} == {
        id(p) for p in last.parameters() if p.requires_grad
    }
    model.encoder.requires_grad_(False)
    with pytest.raises(ConfigError, match="frozen"):
        model.shared_parameters("last_layer")


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_installed("dwa")
    with pytest.raises(ConfigError, match=r"rectrain\[balancing\]"):
        check_installed("upgrad")
