"""LoRA and AdaLoRA: small trained matrices beside the encoder's frozen linear layers, by peft.

Shapes: r rank of a layer's adapter, I and O its inputs and outputs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import BertModel

from rectrain.errors import ConfigError

__all__ = ["RankBudget", "adapted_width", "add_adapters", "merge_adapters"]

_NAME = "default"
_MIN_STEPS = 10  # fewer leave AdaLoRA no time between its phases


def add_adapters(
    encoder: BertModel,
    *,
    kind: Literal["lora", "adalora"],
    rank: int,
    alpha: float,
    dropout: float,
    targets: Sequence[str],
    seed: int,
    num_steps: int | None,
) -> RankBudget | None:
    """Freezes an encoder and puts an adapter beside each of its chosen linear layers, in place.

    LoRA (Hu et al., 2022) adds alpha / r · B A x to W x. AdaLoRA (Zhang et al., 2023) adds
    alpha / r₀ · B diag(E) A x, begins with r₀ = ceil(3/2 r) and leaves the least important parts of
    all layers out, until `rank` a layer is left on average; peft keeps the scale. Both begin at the
    encoder itself.

    Args:
        encoder: not split over workers.
        kind: which.
        rank: r; of AdaLoRA the mean at the end.
        alpha: scale of what is added.
        dropout: of an adapter's input.
        targets: last names of the linear layers: query, key, value, dense.
        seed: of the fresh weights; the caller's random state is left alone.
        num_steps: updates of the run; None for an encoder that will not train.

    Returns:
        Of AdaLoRA what decides about ranks between steps.

    Raises:
        ConfigError: peft is missing, or the run is too short for AdaLoRA.
    """
    if importlib.util.find_spec("peft") is None:
        raise ConfigError(
            what="train.adapter",
            got=f"{kind} without peft",
            rule="adapters need the package of an extra",
            fix="pip install 'rectrain[peft]', or choose none",
        )
    from peft import AdaLoraConfig, LoraConfig, inject_adapter_in_model

    common: dict[str, Any] = {
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": list(targets),
    }
    config: Any
    if kind == "lora":
        config = LoraConfig(r=rank, **common)
    else:
        config = AdaLoraConfig(
            init_r=-(-3 * rank // 2), target_r=rank, **common, **_phases(num_steps)
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, encoder, adapter_name=_NAME)
    return RankBudget(encoder, config) if kind == "adalora" else None


def _phases(num_steps: int | None) -> dict[str, Any]:
    """A tenth of the steps at the first rank, six tenths of falling, three at the last rank."""
    if num_steps is None:
        num_steps = 100
    if num_steps < _MIN_STEPS:
        raise ConfigError(
            what="train.adapter",
            got=f"adalora in {num_steps} steps",
            rule=f"needs at least {_MIN_STEPS} to find the ranks",
            fix="train longer, or choose lora",
        )
    return {
        "total_step": num_steps,
        "tinit": round(0.1 * num_steps),
        "tfinal": round(0.3 * num_steps),
        "deltaT": max(1, num_steps // 100),
    }


def adapted_width(encoder: BertModel) -> int:
    """Inputs of all linear layers with an adapter together: ΣI; 0 without adapters."""
    layers: Any = [module for module in encoder.modules() if hasattr(module, "base_layer")]
    return sum(int(layer.base_layer.in_features) for layer in layers)


def merge_adapters(encoder: BertModel) -> None:
    """Adds what the adapters have learned to the weights, in place: a plain BERT is left."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(encoder.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(encoder.get_submodule(parent), child, module.get_base_layer())
    del encoder.peft_config
    encoder.requires_grad_(True)


class RankBudget(nn.Module):
    """AdaLoRA between two steps: how important each rank was, and which are left.

    The importance of a weight is the product of its smoothed |w · ∂L/∂w| and of how much that
    varies (Zhang et al., 2023, equations 8 to 11); peft computes it, and the ranks that stay. What
    it remembers are buffers here, so that a checkpoint has them. With equal gradients on all
    workers, all decide alike.

    Args:
        encoder: with adapters.
        config: peft's, of AdaLoRA.
    """

    def __init__(self, encoder: BertModel, config: Any) -> None:
        super().__init__()
        from peft.tuners.adalora.layer import RankAllocator

        self._config = config
        allocator: Any = RankAllocator  # parts of peft have no types
        self._allocator = allocator(encoder, config, _NAME)
        for name, parameter in _trained(encoder):
            self.register_buffer(_key("sensitivity", name), torch.zeros_like(parameter))
            self.register_buffer(_key("uncertainty", name), torch.zeros_like(parameter))
            if "lora_E" in name:
                self.register_buffer(_key("kept", name), torch.ones_like(parameter))

    @property
    def _end(self) -> int:
        """The update after which the ranks are fixed."""
        return int(self._config.total_step - self._config.tfinal)

    def penalty(self, encoder: BertModel) -> Tensor:
        """How far B and A are from orthogonal, weighted: mean of ‖A Aᵀ - I‖ and ‖Bᵀ B - I‖."""
        gaps = []
        for name, p in _trained(encoder):
            if "lora_E" not in name:
                product = p @ p.T if "lora_A" in name else p.T @ p
                gaps.append(
                    torch.linalg.matrix_norm(product - torch.eye(len(product), device=p.device))
                )
        return torch.stack(gaps).mean() * float(self._config.orth_reg_weight)

    @torch.no_grad()
    def observe(self, encoder: BertModel, *, done: int) -> None:
        """Takes the gradients of update number `done`, reduced over workers, before the update."""
        if done >= self._end:
            return
        allocator = self._allocator
        names = [name for name, _ in _trained(encoder)]
        allocator.ipt = dict.fromkeys(names)
        for kind, held in self._held(names).items():
            setattr(allocator, kind, dict(held))
        allocator.update_ipt(encoder)
        for kind, held in self._held(names).items():
            for name, buffer in held.items():
                buffer.copy_(getattr(allocator, kind)[name])

    @torch.no_grad()
    def allocate(self, encoder: BertModel, *, done: int) -> None:
        """Sets what is left out to zero, after update number `done`."""
        budget, is_due = self._allocator.budget_schedule(done)
        values = {name: p for name, p in _trained(encoder) if "lora_E" in name}
        if done > self._end:
            for name, value in values.items():
                value.mul_(self.get_buffer(_key("kept", name)))
        elif is_due or done == self._end:
            names = [name for name, _ in _trained(encoder)]
            for kind, held in self._held(names).items():
                setattr(self._allocator, kind, held)
            for name, kept in self._allocator.mask_to_budget(encoder, budget).items():
                buffer = self.get_buffer(_key("kept", name))
                buffer.copy_(torch.tensor(kept).view_as(buffer))

    def _held(self, names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
        """The allocator's attributes -> parameter -> its buffer."""
        return {
            attribute: {name: self.get_buffer(_key(kind, name)) for name in names}
            for attribute, kind in (("exp_avg_ipt", "sensitivity"), ("exp_avg_unc", "uncertainty"))
        }


def _trained(encoder: BertModel) -> Iterator[tuple[str, nn.Parameter]]:
    """A [r, I], B [O, r] and of AdaLoRA E [r, 1] of each adapter, by name."""
    for name, parameter in encoder.named_parameters():
        if "lora_" in name:
            yield name, parameter


def _key(kind: str, name: str) -> str:
    """A buffer's name, which must hold no dots."""
    return f"{kind}/{name.replace('.', '/')}"
