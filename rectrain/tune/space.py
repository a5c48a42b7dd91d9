"""The points of a search: discrete, and each an ordinary BERT with settings of its training."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import BertConfig

from rectrain.errors import ConfigError
from rectrain.model.elastic import Choices
from rectrain.model.shape import Shape
from rectrain.model.slicing import narrowed
from rectrain.tune.config import SpaceConfig

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

__all__ = ["Point", "Space"]

Point = Mapping[str, Any]
"""Parameter -> value: `layers`, `heads`, `intermediate`, and settings of a run by dotted key."""

_SHAPE = ("layers", "heads", "intermediate")


@dataclass(frozen=True)
class Space:
    """All points of a search.

    Attributes:
        parent: configuration of the BERT that all shapes are cut from.
        values: parameter -> what it may be.
    """

    parent: BertConfig
    values: Mapping[str, tuple[Any, ...]]

    @classmethod
    def of(cls, config: SpaceConfig, parent: BertConfig) -> Space:
        """The space of a configuration.

        Args:
            config: what may be chosen; sizes that are left out are the parent's.
            parent: of the teacher's encoder.

        Raises:
            ConfigError: a size that doesn't fit the parent.
        """
        sizes: dict[str, tuple[Any, ...]] = {
            "layers": config.layers or (parent.num_hidden_layers,),
            "heads": config.heads or (parent.num_attention_heads,),
            "intermediate": config.intermediate or (parent.intermediate_size,),
        }
        ordered = {name: tuple(sorted(set(values))) for name, values in sizes.items()}
        settings = {name: tuple(dict.fromkeys(v)) for name, v in config.settings.items()}
        found = cls(parent, {**ordered, **settings})
        for point in (found.smallest, found.largest):
            found.shape(point)
        return found

    @property
    def size(self) -> int:
        """How many points there are."""
        return len(list(itertools.product(*self.values.values())))

    @property
    def smallest(self) -> dict[str, Any]:
        """The point with the least of every size, and the first of every setting."""
        return {name: values[0] for name, values in self.values.items()}

    @property
    def largest(self) -> dict[str, Any]:
        """The point with the most of every size, and the first of every setting."""
        return {
            name: values[-1] if name in _SHAPE else values[0]
            for name, values in self.values.items()
        }

    def points(self) -> Iterator[dict[str, Any]]:
        """All points; the last parameter changes first."""
        for chosen in itertools.product(*self.values.values()):
            yield dict(zip(self.values, chosen, strict=True))

    def shape(self, point: Point, *, of: BertConfig | None = None) -> Shape:
        """What a point cuts out of a BERT.

        Args:
            point: of the space.
            of: of the BERT; the parent's by default.

        Raises:
            ConfigError: it doesn't fit.
        """
        config = of or self.parent
        asked = {name: int(point[name]) for name in _SHAPE}
        if asked["layers"] > config.num_hidden_layers:
            raise ConfigError(
                what="space.layers",
                got=asked["layers"],
                rule=f"the encoder has {config.num_hidden_layers}",
                fix="leave it out",
            )
        choices = Choices.of(
            config, layers=[asked["layers"]], heads=[asked["heads"]],
            intermediate=[asked["intermediate"]],
        )  # fmt: skip
        return choices.shape(**asked)

    def bert_config(self, point: Point) -> BertConfig:
        """The configuration of a point's encoder: a plain BERT."""
        return narrowed(self.parent, self.shape(point))

    @staticmethod
    def settings(point: Point) -> dict[str, Any]:
        """The settings of a run among a point's parameters, by dotted key."""
        return {name: value for name, value in point.items() if name not in _SHAPE}

    def distributions(self) -> dict[str, BaseDistribution]:
        """For Optuna: numbers with even gaps are ordered, others are categories."""
        from optuna.distributions import CategoricalDistribution, IntDistribution

        found: dict[str, BaseDistribution] = {}
        for name, values in self.values.items():
            gaps = {b - a for a, b in itertools.pairwise(values)} if _are_whole(values) else set()
            if len(gaps) == 1 and min(gaps) > 0:
                found[name] = IntDistribution(values[0], values[-1], step=gaps.pop())
            else:
                found[name] = CategoricalDistribution(values)
        return found


def _are_whole(values: tuple[Any, ...]) -> bool:
    return all(isinstance(value, int) for value in values)
