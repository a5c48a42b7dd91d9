"""How the tasks share the encoder's vector.

Shapes: N rows of all tasks, D the encoder's hidden size, K experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["GatedExperts", "SharedBottom", "build_sharing"]

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

    Linear experts mixed by a gate of each task (Ma et al. 2018, MMoE), beside a path that all
    tasks share. W_out starts as the identity, the experts small and the gates even, so that with
    f = identity a pretrained vector passes almost unchanged; tanh bends it, gelu cuts its
    negative half.

    Args:
        tasks: names, in the run's order.
        width: D.
        num_experts: K.
        activation: f, a name in "identity", "tanh", "gelu".
    """

    def __init__(
        self, tasks: Sequence[str], *, width: int, num_experts: int, activation: str
    ) -> None:
        super().__init__()
        self.shared = nn.Linear(width, width, bias=False)
        self.experts = nn.Linear(width, num_experts * width, bias=False)
        self.gates = nn.ModuleDict({task: nn.Linear(width, num_experts) for task in tasks})
        self._num_experts = num_experts
        self._activation = _ACTIVATIONS[activation]
        nn.init.eye_(self.shared.weight)
        nn.init.normal_(self.experts.weight, std=0.1 * width**-0.5)
        for gate in self.gates.values():
            assert isinstance(gate, nn.Linear)
            nn.init.zeros_(gate.weight)
            nn.init.zeros_(gate.bias)

    def forward(self, x: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Each task's own view of its rows.

        Args:
            x: [N, D], the tasks' rows one after the other.
            sizes: rows of each task, N in all.

        Returns:
            A list of [sizes[i], D].
        """
        experts = self.experts(x).view(x.shape[0], self._num_experts, x.shape[1])
        attention = torch.cat(
            [
                gate(rows).softmax(-1)
                for gate, rows in zip(self.gates.values(), torch.split(x, list(sizes)), strict=True)
            ]
        )
        mixed = (attention[:, None] @ experts).squeeze(1)
        return list(torch.split(self._activation(self.shared(x) + mixed), list(sizes)))


def build_sharing(
    name: str, *, tasks: Sequence[str], width: int, num_experts: int, activation: str
) -> SharedBottom | GatedExperts:
    """The sharing module by its name in `ModelConfig.sharing`."""
    if name == "shared_bottom":
        return SharedBottom()
    return GatedExperts(tasks, width=width, num_experts=num_experts, activation=activation)
