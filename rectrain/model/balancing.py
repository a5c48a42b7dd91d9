"""How the tasks' losses become one number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["Balancer", "StaticWeights", "UncertaintyWeights", "build_balancer"]

Balancer = Literal["static", "uncertainty"]


class StaticWeights(nn.Module):
    """Σ_i w_i · L_i with fixed weights w.

    Args:
        weights: w, one a task, at least 0.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        self.weights = tuple(weights)

    def forward(self, losses: Tensor, *, num_shares: int) -> Tensor:
        """One scalar from the tasks' losses, float32 [K]; `num_shares` is not needed."""
        return (losses * losses.new_tensor(self.weights)).sum()


class UncertaintyWeights(nn.Module):
    """Σ_i w_i · [½ exp(−s_i) · L_i + ½ s_i], s_i a learned log-variance of each task.

    Kendall, Gal and Cipolla 2018, "Multi-Task Learning Using Uncertainty to Weigh Losses",
    equation 7 in the regression form for every task. s starts at 0.

    Args:
        weights: w, one a task, at least 0.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        self.weights = tuple(weights)
        self.log_variance = nn.Parameter(torch.zeros(len(self.weights)))

    def forward(self, losses: Tensor, *, num_shares: int) -> Tensor:
        """One scalar from this share of the tasks' losses.

        Args:
            losses: float32 [K], this forward's share of each task's loss.
            num_shares: forwards of the whole step, over all workers; each carries this part of
                the term ½ s, so that the step's sum has it once.

        Returns:
            Float32 scalar.
        """
        s = self.log_variance.float()
        terms = 0.5 * (-s).exp() * losses + 0.5 * s / num_shares
        return (terms * losses.new_tensor(self.weights)).sum()


def build_balancer(
    name: Balancer, *, tasks: Sequence[str], weights: Mapping[str, float]
) -> StaticWeights | UncertaintyWeights:
    """The balancer of a run.

    Args:
        name: "static" or "uncertainty".
        tasks: in the run's order.
        weights: task -> w; a task without one gets 1.
    """
    values = [float(weights.get(task, 1.0)) for task in tasks]
    return StaticWeights(values) if name == "static" else UncertaintyWeights(values)
