"""How the tasks share the encoder's vector.

Each row belongs to one task. Every module is called once a forward, whatever the rows are, and all
but "tanh" and "gelu" experts start at or near the identity: a pretrained vector is not destroyed.

Shapes: N rows of all tasks, D the encoder's hidden size, E experts, H their hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rectrain.model.config import ModelConfig

__all__ = [
    "GatedExperts",
    "MixtureOfExperts",
    "ProgressiveExtraction",
    "ResidualExperts",
    "SharedBottom",
    "build_sharing",
]

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "tanh": torch.tanh,
    "gelu": F.gelu,
}


class SharedBottom(nn.Module):
    """Every task gets the encoder's vector itself (Caruana 1997)."""

    def forward(self, x: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Splits [N, D] by task: a list of [sizes[i], D]."""
        return list(torch.split(x, list(sizes)))


class GatedExperts(nn.Module):
    """y = f(W_out·x + Σ_k a_k·W_k·x), a = softmax(W_att·x + b): one gate a task.

    Linear experts mixed by a gate of each task, beside a path that all tasks share. W_out starts
    as the identity, the experts small and the gates even, so that with f = identity a pretrained
    vector passes almost unchanged; tanh bends it, gelu cuts its negative half.

    Args:
        tasks: names, in the run's order.
        width: D.
        num_experts: E.
        activation: f, a name in "identity", "tanh", "gelu".
    """

    def __init__(
        self, tasks: Sequence[str], *, width: int, num_experts: int, activation: str
    ) -> None:
        super().__init__()
        self.shared = nn.Linear(width, width, bias=False)
        self.experts = nn.Linear(width, num_experts * width, bias=False)
        self.gates = _gates(tasks, width=width, num_experts=num_experts)
        self._num_experts = num_experts
        self.activation = activation
        nn.init.eye_(self.shared.weight)
        nn.init.normal_(self.experts.weight, std=0.1 * width**-0.5)

    def forward(self, x: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Each task's own view of its rows.

        Args:
            x: [N, D], the tasks' rows one after the other.
            sizes: rows of each task, N in all.

        Returns:
            A list of [sizes[i], D].
        """
        experts = self.experts(x).view(x.shape[0], self._num_experts, x.shape[1])
        mixed = torch.cat(_mix_by_task(self.gates, x, experts, sizes))
        return list(torch.split(_ACTIVATIONS[self.activation](self.shared(x) + mixed), list(sizes)))


class ResidualExperts(nn.Module):
    """E small networks side by side, e(x) = x + V_e · gelu(U_e · x + b_e).

    V starts at zero, so each starts as the identity; the random U make them differ from the first
    update on. An expert costs 2·D·H weights, of D² for a full layer.

    Args:
        width: D.
        num_experts: E.
        hidden: H.
    """

    def __init__(self, width: int, *, num_experts: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, num_experts * hidden)
        self.up = _Up(num_experts, hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, E, D]."""
        return x[:, None] + self.up(F.gelu(self.down(x)))  # type: ignore[no-any-return]


class _Up(nn.Module):
    """The experts' second layers, without bias."""

    def __init__(self, num_experts: int, hidden: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_experts, hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """[N, E·H] -> [N, E, D]."""
        num_experts, hidden, _ = self.weight.shape
        parts = x.view(x.shape[0], num_experts, hidden)
        return torch.einsum("neh,ehd->ned", parts, self.weight)


class MixtureOfExperts(nn.Module):
    """MMoE: y_k = Σ_e a_e^k(x) · e(x), a^k = softmax(W_k · x + b_k), one gate a task.

    Ma et al. 2018, "Modeling Task Relationships in Multi-task Learning with Multi-gate
    Mixture-of-Experts", section 4.2, with residual experts: it starts as the identity.

    Args:
        tasks: names, in the run's order.
        width: D.
        num_experts: E.
        hidden: H.
    """

    def __init__(self, tasks: Sequence[str], *, width: int, num_experts: int, hidden: int) -> None:
        super().__init__()
        self.experts = ResidualExperts(width, num_experts=num_experts, hidden=hidden)
        self.gates = _gates(tasks, width=width, num_experts=num_experts)

    def forward(self, x: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Each task's own view of its rows; see GatedExperts."""
        return _mix_by_task(self.gates, x, self.experts(x), sizes)


class ProgressiveExtraction(nn.Module):
    """PLE: levels of experts that a task has to itself beside experts that all share.

    Tang et al. 2020, "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for
    Personalized Recommendations", section 4, with residual experts: it starts as the identity.
    There is one path for each task and a shared one, all x at first. In each level, task k's gate
    mixes the experts of k and the shared ones; the shared path's gate, which the last level has
    no use for, mixes all experts. Every row passes all paths, and task k's rows end on path k.

    Args:
        tasks: names, in the run's order.
        width: D.
        num_experts: shared experts of a level.
        num_task_experts: a task's own experts of a level.
        num_levels: at least 1; 1 is the paper's CGC.
        hidden: H.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        *,
        width: int,
        num_experts: int,
        num_task_experts: int,
        num_levels: int,
        hidden: int,
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            _ExtractionLevel(
                tasks,
                width=width,
                num_experts=num_experts,
                num_task_experts=num_task_experts,
                hidden=hidden,
                has_shared_gate=level + 1 < num_levels,
            )
            for level in range(num_levels)
        )

    def forward(self, x: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Each task's own view of its rows; see GatedExperts."""
        paths = [x] * (len(sizes) + 1)
        for level in self.levels:
            paths = level(paths)
        return [torch.split(path, list(sizes))[place] for place, path in enumerate(paths)]


class _ExtractionLevel(nn.Module):
    """[N, D] of each task's path and of the shared one -> the same (the last level: tasks only)."""

    def __init__(
        self,
        tasks: Sequence[str],
        *,
        width: int,
        num_experts: int,
        num_task_experts: int,
        hidden: int,
        has_shared_gate: bool,
    ) -> None:
        super().__init__()
        self.experts = nn.ModuleDict(
            {
                task: ResidualExperts(width, num_experts=num_task_experts, hidden=hidden)
                for task in tasks
            }
        )
        self.shared = ResidualExperts(width, num_experts=num_experts, hidden=hidden)
        self.gates = _gates(tasks, width=width, num_experts=num_task_experts + num_experts)
        num_all = len(tasks) * num_task_experts + num_experts
        self.shared_gate = _gate(width, num_all) if has_shared_gate else None

    def forward(self, paths: Sequence[Tensor]) -> list[Tensor]:
        own = [experts(x) for experts, x in zip(self.experts.values(), paths[:-1], strict=True)]
        shared = self.shared(paths[-1])
        mixed = [
            _mix(gate(x), torch.cat([experts, shared], dim=1))
            for gate, x, experts in zip(self.gates.values(), paths[:-1], own, strict=True)
        ]
        if self.shared_gate is None:
            return mixed
        return [*mixed, _mix(self.shared_gate(paths[-1]), torch.cat([*own, shared], dim=1))]


def _gate(width: int, num_experts: int) -> nn.Linear:
    """Logits of a gate; even at first."""
    gate = nn.Linear(width, num_experts)
    nn.init.zeros_(gate.weight)
    nn.init.zeros_(gate.bias)
    return gate


def _gates(tasks: Sequence[str], *, width: int, num_experts: int) -> nn.ModuleDict:
    return nn.ModuleDict({task: _gate(width, num_experts) for task in tasks})


def _mix(logits: Tensor, experts: Tensor) -> Tensor:
    """Softmax of the logits [N, E] over experts [N, E, D]: [N, D]."""
    return (logits.softmax(-1)[:, None] @ experts).squeeze(1)


def _mix_by_task(
    gates: nn.ModuleDict, x: Tensor, experts: Tensor, sizes: Sequence[int]
) -> list[Tensor]:
    """Mixes experts [N, E, D] of x [N, D] by the gate of each row's task."""
    rows, outputs = torch.split(x, list(sizes)), torch.split(experts, list(sizes))
    parts = zip(gates.values(), rows, outputs, strict=True)
    return [_mix(gate(own), mixed) for gate, own, mixed in parts]


def build_sharing(
    config: ModelConfig, *, tasks: Sequence[str], width: int
) -> SharedBottom | GatedExperts | MixtureOfExperts | ProgressiveExtraction:
    """The sharing module of `config.sharing`, for tasks in the run's order and D = width."""
    experts, hidden = config.num_experts, config.expert_width
    if config.sharing == "gated_experts":
        return GatedExperts(
            tasks, width=width, num_experts=experts, activation=config.expert_activation
        )
    if config.sharing == "mmoe":
        return MixtureOfExperts(tasks, width=width, num_experts=experts, hidden=hidden)
    if config.sharing == "ple":
        return ProgressiveExtraction(
            tasks,
            width=width,
            num_experts=experts,
            num_task_experts=config.num_task_experts,
            num_levels=config.num_levels,
            hidden=hidden,
        )
    return SharedBottom()
