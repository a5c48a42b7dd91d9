"""A step's balance, from the tasks' gradients or losses over all its micro-batches and workers.

Shapes: K tasks, P shared parameters; A forwards of one worker in a step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rectrain.model.balancing import (
    DynamicWeightAverage,
    GradientWeights,
    StaticWeights,
    task_gradients,
)
from rectrain.model.config import GradientPlace

__all__ = ["Balance", "balance_of_step", "observe_step"]

Balance = Callable[[Tensor], Tensor]

_PART = 1 << 20


def balance_of_step(
    model: nn.Module,
    forward: Callable[[int, Balance], object],
    *,
    num_forwards: int,
    place: GradientPlace,
    seed: int,
) -> Balance | None:
    """Readies a gradient balancer for the forwards of a step; every rank must call it.

    The coefficients are those of this step's own gradients: task i's gradient is summed over all
    micro-batches and workers, then come the inner products, then the coefficients, alike on all
    ranks. So they depend neither on N nor on A. With A = 1 all of that happens inside the one
    forward; with more, each micro-batch first runs forward once without the backward pass, since
    they must be known before the first one (keeping A graphs would undo what accumulation saves).

    Args:
        model: unsplit weights (ZeRO stage 0, 1 or 2).
        forward: runs the micro-batch at a place, 0 to A - 1, with this in the balancer's place.
        num_forwards: A, the same on all ranks.
        place: which parameters (see `MultiTaskModel.shared_parameters`).
        seed: of random choices in this step.

    Returns:
        What the step's forward takes in the balancer's place; None for the balancer itself.
    """
    balancer = model.balancer
    if not isinstance(balancer, GradientWeights):
        return None
    parameters = model.shared_parameters(place)  # type: ignore[operator]
    balancer.use(None)  # the gradients that are compared are not weighted

    def solve(gradients: Tensor) -> None:
        torch.distributed.all_reduce(gradients)
        found = balancer.solve(_gramian(gradients), seed=seed).to(gradients)
        torch.distributed.broadcast(found, src=0)  # solvers may round differently on other CPUs
        balancer.use(found)

    def balance(losses: Tensor) -> Tensor:
        solve(task_gradients(losses, parameters))
        return balancer(losses, num_shares=1)  # type: ignore[no-any-return]

    if num_forwards == 1:
        return balance
    solve(_summed(forward, parameters, num_forwards=num_forwards))
    return None


def _summed(
    forward: Callable[[int, Balance], object],
    parameters: list[nn.Parameter],
    *,
    num_forwards: int,
) -> Tensor:
    """Each task's gradient over this worker's micro-batches, float32 [K, P]."""
    found: list[Tensor] = []

    def take(losses: Tensor) -> Tensor:
        gradients = task_gradients(losses, parameters)
        found[:] = [found[0].add_(gradients)] if found else [gradients]
        return losses.detach().sum()

    for place in range(num_forwards):
        forward(place, take)
    return found[0]


def _gramian(gradients: Tensor) -> Tensor:
    """Inner products of rows [K, P], float64 [K, K]; in parts, or a copy of twice the size."""
    parts = (part.double() for part in torch.split(gradients, _PART, dim=1))
    return torch.stack([part @ part.T for part in parts]).sum(0)


def observe_step(model: nn.Module, losses: Tensor) -> Tensor:
    """Shows a balancer that watches losses those of the whole step; every rank must call it.

    Args:
        model: with its balancer.
        losses: float32 [K], this worker's part of each task's loss.

    Returns:
        Float32 [K], what the losses were multiplied by.
    """
    balancer = model.balancer
    assert isinstance(balancer, StaticWeights)
    if isinstance(balancer, DynamicWeightAverage):
        total = losses.clone()
        torch.distributed.all_reduce(total)
        balancer.observe(total)
    return balancer.applied
