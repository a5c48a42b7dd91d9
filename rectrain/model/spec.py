"""What a task is: one value that data preparation, model, training and evaluation read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rectrain.data.fields import FieldTable

__all__ = ["Head", "Loss", "TaskSpec"]

Head = Literal["two_tower", "bi_encoder", "pair", "single"]
Loss = Literal["in_batch_softmax", "listwise_softmax", "pairwise_logistic", "bce"]

_DERIVED = "history"
_LIST_LOSSES: tuple[Loss, ...] = ("listwise_softmax", "pairwise_logistic")
# A cosine has no bias, so it can't be a probability's logit.
_LOSSES: dict[Head, tuple[Loss, ...]] = {
    "two_tower": ("in_batch_softmax",),
    "bi_encoder": _LIST_LOSSES,
    "pair": (*_LIST_LOSSES, "bce"),
    "single": (*_LIST_LOSSES, "bce"),
}


@dataclass(frozen=True)
class TaskSpec:
    """One task.

    Attributes:
        name: its name in configurations, data and results.
        fields: what a row has, and each field's rule.
        query: fields whose texts make the query side, in this order, the newest text last;
            "history" is made by data preparation where it is no field.
        item: fields whose texts make the item side.
        head: "two_tower" (vectors that are indexed), "bi_encoder" (cosine plus interaction),
            "pair" (both sides fused) or "single" (the item side alone).
        loss: "in_batch_softmax", "listwise_softmax", "pairwise_logistic" or "bce".
        metrics: what evaluation computes.
        primary: the one of `metrics` that selects the best checkpoint.
        baselines: simple models of `inference.baselines` that evaluation runs beside the model.
    """

    name: str
    fields: FieldTable
    query: tuple[str, ...]
    item: tuple[str, ...]
    head: Head
    loss: Loss
    metrics: tuple[str, ...]
    primary: str
    baselines: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        texts = {_DERIVED, *self.fields.names("text", "text_list")}
        assert self.item and {*self.item, *self.query} <= texts, f"{self.name}: sides need texts"
        assert bool(self.query) == (self.head != "single"), f"{self.name}: head against sides"
        assert self.loss in _LOSSES[self.head], f"{self.name}: {self.head} has no {self.loss}"
        assert self.primary in self.metrics, f"{self.name}: the primary metric is one of metrics"
        grouped = self.fields.name_of("group") is not None
        assert grouped or not (self.has_lists or self.has_catalogue), f"{self.name}: needs a group"

    @property
    def has_lists(self) -> bool:
        """Whether the loss compares the rows of one group, which then stay together as a list."""
        return self.loss in _LIST_LOSSES

    @property
    def has_catalogue(self) -> bool:
        """Whether items are ranked out of a whole catalogue, by vectors that are indexed."""
        return self.head == "two_tower"

    @property
    def has_probabilities(self) -> bool:
        """Whether the head's output is the logit of a probability; else it only ranks."""
        return self.loss == "bce"
