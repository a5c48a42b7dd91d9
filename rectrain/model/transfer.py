"""Taking over the parts of a trained model that mean the same in another one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from rectrain.data.encoding import FeatureEncoder
from rectrain.model.multitask import MultiTaskModel
from rectrain.model.sharing import GatedExperts

__all__ = ["take_over"]

Features = Mapping[str, FeatureEncoder]


def take_over(
    model: MultiTaskModel, start: MultiTaskModel, *, features: Features, start_features: Features
) -> str:
    """Copies the weights of each part that fits, whole; the others stay fresh.

    Parts are the encoder, each task's own modules, the sharing layer, and the learned variances of
    `uncertainty`. What other balancers remember is no weight: it belongs to the run that saw it.

    Args:
        model: is changed; its encoder has the shape of the other's.
        start: the trained model.
        features: task -> how the model's features are encoded.
        start_features: the same of the trained one.

    Returns:
        What was taken and what is fresh, and why, for a person to read.
    """
    own, given = model.state_dict(), start.state_dict()
    taken, fresh = [], []
    for part, prefix, reason in _parts(features, start_features):
        if part == "sharing" and not reason:
            reason = _other_function(model.sharing, start.sharing)
        shapes = {name: value.shape for name, value in own.items() if name.startswith(prefix)}
        offered = {name: value.shape for name, value in given.items() if name.startswith(prefix)}
        if not shapes:
            continue
        reason = reason or ("" if shapes == offered else "shape" if offered else "new")
        if reason:
            fresh.append(f"{part} ({reason})")
        else:
            taken.append(part)
            own |= {name: given[name] for name in shapes}
    model.load_state_dict(own)
    return f"taken: {', '.join(taken)}; fresh: {', '.join(fresh) or 'nothing'}"


def _parts(features: Features, start_features: Features) -> Iterator[tuple[str, str, str]]:
    """Part, prefix of its parameters, and why it can't mean the same ("" if it may)."""
    yield "encoder", "encoder.", ""
    for task, encoder in features.items():
        if task not in start_features:
            reason = "new"
        else:  # as JSON, since the order of features counts too
            same = encoder.to_json() == start_features[task].to_json()
            reason = "" if same else "features"
        yield f"heads.{task}", f"tasks.{task}.", reason
    reason = "" if list(features) == list(start_features) else "tasks"  # they go by place
    yield "sharing", "sharing.", reason
    yield "balancer", "balancer.log_variance", reason


def _other_function(own: nn.Module, given: nn.Module) -> str:
    """What differs between sharing layers of one kind and size, whose weights look alike."""
    if isinstance(own, GatedExperts) and isinstance(given, GatedExperts):
        return "" if own.activation == given.activation else "expert_activation"
    return ""
