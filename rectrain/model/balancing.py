"""How the tasks' losses become one number.

Every balancer gives Σ_i c_i · w_i · L_i: w_i are the user's fixed weights, c_i is what the balancer
makes of the losses or of their gradients. `static` is c = 1.

Shapes: K tasks, P shared parameters, U texts, D the encoder's hidden size.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rectrain.errors import ConfigError
from rectrain.model.config import GRADIENT_BALANCERS, Balancer, GradientBalancer

__all__ = [
    "DynamicWeightAverage",
    "GradientWeights",
    "StaticWeights",
    "UncertaintyWeights",
    "build_balancer",
    "check_installed",
    "dwa_window",
    "task_gradients",
]

_PACKAGES: Mapping[Balancer, tuple[str, ...]] = {
    "pcgrad": ("torchjd",),
    "cagrad": ("torchjd", "cvxpy", "clarabel"),
    "upgrad": ("torchjd",),
}
_TEMPERATURE = 2.0  # of DWA, as in the paper
_LONGEST_WINDOW = 50  # steps; the paper averages over an epoch, which may be a whole run here
_REGULAR = 1e-4  # torchjd's own, of a Gram matrix of size 1
_RADIUS = 0.5  # c of CAGrad; the paper uses 0.2 to 0.5


class StaticWeights(nn.Module):
    """Σ_i w_i · L_i with fixed weights w; the base of the other balancers.

    Attributes:
        applied: float32 [K], what the losses were multiplied by in the last forward.

    Args:
        weights: w, one a task, at least 0.
    """

    applied: Tensor

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        self.weights = tuple(weights)
        self.register_buffer("applied", torch.tensor(self.weights), persistent=False)

    def forward(self, losses: Tensor, *, num_shares: int) -> Tensor:
        """One scalar from this share of the tasks' losses.

        Args:
            losses: float32 [K], this forward's share of each task's loss.
            num_shares: forwards of the whole step, over all workers; terms that are no loss of
                rows are divided by it, so that the step's sum has them once.

        Returns:
            Float32 scalar.
        """
        return self.combine(losses, losses.new_tensor(self.weights))

    def split(self, vectors: Tensor) -> list[Tensor]:
        """Each task's view of the encoder's vectors [U, D]; here all are the vectors."""
        return [vectors] * len(self.weights)

    def combine(self, losses: Tensor, weights: Tensor) -> Tensor:
        """Σ_i of weights and losses, both float32 [K]; notes the weights in `applied`."""
        self.applied = weights.detach().clone()
        return (losses * weights).sum()


class UncertaintyWeights(StaticWeights):
    """Σ_i w_i · [½ exp(−s_i) · L_i + ½ s_i], s_i a learned log-variance of each task.

    Kendall, Gal and Cipolla 2018, "Multi-Task Learning Using Uncertainty to Weigh Losses",
    equation 7 in the regression form for every task. s starts at 0; at its optimum, log L_i, the
    weight is w_i / 2 L_i. It learns at a rate of its own (see train.step.parameter_groups).

    Args:
        weights: w, one a task, at least 0.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__(weights)
        self.log_variance = nn.Parameter(torch.zeros(len(self.weights)))

    def forward(self, losses: Tensor, *, num_shares: int) -> Tensor:
        """See StaticWeights; ½ s is the term that is no loss of rows."""
        s, w = self.log_variance.float(), losses.new_tensor(self.weights)
        return self.combine(losses, w * 0.5 * (-s).exp()) + (w * 0.5 * s / num_shares).sum()


class DynamicWeightAverage(StaticWeights):
    """c = K · softmax(r / 2), r_i = L_i(t − 1) / L_i(t − 2): more for what falls more slowly.

    Liu, Johns and Davison 2019, "End-to-End Multi-Task Learning with Attention", equation 7, with
    windows of steps in the place of epochs: L_i(t) is the mean loss of window t, and c = 1 in the
    first two. The state stands in buffers, so a checkpoint has it.

    Args:
        weights: w, one a task, at least 0.
        window: steps of a window, at least 1 (see `dwa_window`); the same in all lives of a run.
    """

    means: Tensor
    sums: Tensor
    num_steps: Tensor

    def __init__(self, weights: Sequence[float], *, window: int = _LONGEST_WINDOW) -> None:
        super().__init__(weights)
        self.window = window
        self.register_buffer("means", torch.zeros(2, len(self.weights)))  # of t - 2 and t - 1
        self.register_buffer("sums", torch.zeros(len(self.weights)))
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))

    def forward(self, losses: Tensor, *, num_shares: int) -> Tensor:
        """See StaticWeights."""
        return self.combine(losses, losses.new_tensor(self.weights) * self._coefficients())

    def observe(self, losses: Tensor) -> None:
        """Takes the loss of each task in the whole step, float32 [K], alike on all ranks."""
        self.sums = self.sums + losses
        self.num_steps = self.num_steps + 1
        if int(self.num_steps) % self.window == 0:
            self.means = torch.stack([self.means[1], self.sums / self.window])
            self.sums = torch.zeros_like(self.sums)

    def _coefficients(self) -> Tensor:
        before, last = self.means
        known = (before > 0) & (int(self.num_steps) >= 2 * self.window)
        rates = torch.where(known, last / before.where(known, torch.ones_like(before)), 1.0)
        return len(self.weights) * (rates / _TEMPERATURE).softmax(0)


def dwa_window(num_steps: int) -> int:
    """Steps of a window of DWA in a run of so many: a tenth, so that eight tenths are weighted."""
    return max(1, min(_LONGEST_WINDOW, num_steps // 10))


class GradientWeights(StaticWeights):
    """c from the inner products of the tasks' gradients at the shared parameters.

    "pcgrad": Yu et al. 2020, "Gradient Surgery for Multi-Task Learning", algorithm 1: a gradient
    loses its part against each other one, in a random order.
    "cagrad": Liu et al. 2021, "Conflict-Averse Gradient Descent for Multi-task Learning",
    algorithm 1 with c = 0.5, times K.
    "upgrad": Quinton and Rey 2024, "Jacobian Descent for Multi-Objective Optimization", section 3,
    times K: each gradient is projected onto the cone of directions that harm no task.

    Without conflicts, pcgrad and upgrad are `static`. c ≥ 0 acts where the tasks meet, on what
    their views of the encoder's vectors give back in the backward pass: as in the papers, the
    encoder gets the gradient of Σ c_i · w_i · L_i, and all that comes after it that of Σ w_i · L_i.
    c is 1 until `use` says otherwise; `train.balance` does, from each step's gradients.

    Args:
        weights: w, one a task, at least 0; gradients are those of w_i · L_i.
        method: a name above.
    """

    def __init__(self, weights: Sequence[float], *, method: GradientBalancer) -> None:
        super().__init__(weights)
        self._method = method
        self._factors = [1.0] * len(self.weights)

    def forward(self, losses: Tensor, *, num_shares: int) -> Tensor:
        """Σ_i w_i · L_i; see StaticWeights."""
        return (losses * losses.new_tensor(self.weights)).sum()

    def split(self, vectors: Tensor) -> list[Tensor]:
        """Each task's view of the encoder's vectors [U, D], whose gradient is multiplied by c_i."""
        views = [vectors.view_as(vectors) for _ in self.weights]
        for place, view in enumerate(views):
            if view.requires_grad:
                view.register_hook(partial(self._scale, place))  # type: ignore[no-untyped-call]
        return views

    def _scale(self, place: int, gradient: Tensor) -> Tensor:
        return gradient * self._factors[place]  # of the moment: c is known only after the forward

    def use(self, coefficients: Tensor | None) -> None:
        """Sets c, [K], for the backward passes to come; None sets it to 1."""
        w = torch.tensor(self.weights)
        self._factors = [1.0] * len(w) if coefficients is None else coefficients.tolist()
        self.applied = (w * torch.tensor(self._factors)).to(self.applied.device)

    def solve(self, gramian: Tensor, *, seed: int) -> Tensor:
        """c of a step.

        Args:
            gramian: float64 [K, K], inner products of the gradients of L_i in the whole step.
            seed: of PCGrad's orders; the caller's random state is left alone.

        Returns:
            Float64 [K] on the CPU.
        """
        w = torch.tensor(self.weights, dtype=torch.float64)
        scaled = gramian.detach().double().cpu() * w[:, None] * w
        size = scaled.diagonal().mean()
        if size == 0 or not size.isfinite():  # a loss that isn't finite is told when it is logged
            return torch.ones_like(w)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # The solvers take small gradients for none: c does not depend on their size.
            return self._coefficients(scaled / size)

    def _coefficients(self, gramian: Tensor) -> Tensor:
        from torchjd import aggregation

        num_tasks = len(self.weights)
        if self._method == "pcgrad":
            return aggregation.PCGradWeighting()(gramian)
        if self._method == "cagrad":
            return num_tasks * aggregation.CAGradWeighting(c=_RADIUS)(gramian)
        ones = torch.ones(num_tasks, dtype=gramian.dtype)
        projector: Any = _project  # in the place of torchjd's, which needs two more packages
        return aggregation.UPGradWeighting(pref_vector=ones, projector=projector)(gramian)


def _project(targets: Tensor, gramian: Tensor) -> Tensor:
    """Rows v of least vᵀGv with v ≥ u, for the rows u of targets: the projection of UPGrad.

    With G = RᵀR and v = u + t it is the non-negative least-squares problem min |R·t + R·u|, t ≥ 0.

    Args:
        targets: float64 [K, K], u.
        gramian: float64 [K, K], G, of a size near 1; a little is added to its diagonal, since
            gradients may depend on one another.
    """
    from scipy.optimize import nnls  # type: ignore[import-untyped]

    regular = gramian + _REGULAR * torch.eye(len(gramian), dtype=gramian.dtype)
    root = torch.linalg.cholesky(regular, upper=True).numpy()
    rows = [u + nnls(root, -root @ u)[0] for u in targets.numpy()]
    return torch.from_numpy(np.stack(rows))


def task_gradients(losses: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Each loss's gradient at some parameters, end to end; the graph stays as it is.

    Args:
        losses: float32 [K], with their graph.
        parameters: P numbers in all; those that a loss does not reach get 0.

    Returns:
        Float32 [K, P].
    """
    size = sum(parameter.numel() for parameter in parameters)
    gradients = losses.new_empty(len(losses), size, dtype=torch.float32)
    with torch.autocast(losses.device.type, enabled=False):  # a forward may be around
        for loss, row in zip(losses, gradients, strict=True):
            parts = torch.autograd.grad(
                loss, parameters, retain_graph=True, materialize_grads=True, allow_unused=True
            )
            torch.cat([part.float().flatten() for part in parts], out=row)
    return gradients


def check_installed(balancer: Balancer) -> None:
    """Refuses a balancer whose packages are missing, before any training starts.

    Raises:
        ConfigError: names the packages.
    """
    absent = [n for n in _PACKAGES.get(balancer, ()) if importlib.util.find_spec(n) is None]
    if absent:
        raise ConfigError(
            what="train.balancer",
            got=f"{balancer} without {', '.join(absent)}",
            rule="gradient balancers need packages of an extra",
            fix="pip install 'rectrain[balancing]', or choose static, uncertainty or dwa",
        )


def build_balancer(
    name: Balancer, *, tasks: Sequence[str], weights: Mapping[str, float]
) -> StaticWeights:
    """The balancer of a run.

    Args:
        name: which one.
        tasks: in the run's order.
        weights: task -> w; a task without one gets 1.
    """
    values = [float(weights.get(task, 1.0)) for task in tasks]
    if name in GRADIENT_BALANCERS:
        return GradientWeights(values, method=name)
    kinds: dict[str, Any] = {"uncertainty": UncertaintyWeights, "dwa": DynamicWeightAverage}
    return kinds.get(name, StaticWeights)(values)  # type: ignore[no-any-return]
