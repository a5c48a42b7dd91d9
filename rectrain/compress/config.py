"""The section that says how a small model is made of a large one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from rectrain.config import Section
from rectrain.idle import Idle
from rectrain.model.shape import SHAPE_PRESETS
from rectrain.train.config import TrainConfig

__all__ = ["CompressConfig", "DistilConfig"]

# What the steps themselves decide.
_DECIDED = (
    *("tasks", "start_from", "start_from_sha256", "freeze", "adapter"),
    *("early_stopping", "num_epochs"),
    *("elastic_layers", "elastic_heads", "elastic_intermediate"),
)


class DistilConfig(TrainConfig):
    """How the small model learns of the large one: as `jobs.train`, with other defaults."""

    num_steps: PositiveInt = Field(
        default=600, description="optimizer updates of the distillation of encoder and heads"
    )
    learning_rate: PositiveFloat | None = Field(
        default=5e-4, description="peak rate of the encoder"
    )
    head_learning_rate: PositiveFloat | None = Field(
        default=3e-3, description="peak rate of everything but the encoder"
    )


class CompressConfig(Section):
    """How a small model is made of a large one."""

    teacher: str = Field(description="the large model: a run's folder, or one checkpoint")
    output: str = Field(description="folder of all that is made; its package/ is the small model")
    preset: str = Field(
        default="small",
        description=f"shape of the small encoder, as shares of the large one's: "
        f"{', '.join(SHAPE_PRESETS)}",
    )
    encoder: str | None = Field(
        default=None,
        description="directory of a BERT that was already cut from the teacher's, as by jobs.tune, "
        "in the place of a preset",
    )
    data: tuple[str, ...] = Field(
        default=(), description="prepared directories; those of the teacher by default"
    )
    tokens_per_micro_batch: int = Field(
        default=2048, ge=16, description="real tokens of one forward of a worker"
    )
    seed: int = Field(default=0, ge=0, description="of samples of texts, order of rows and dropout")
    refit_texts: PositiveInt = Field(
        default=800, description="texts of all tasks that the cut encoder is fitted to"
    )
    head_steps: PositiveInt = Field(
        default=400, description="updates of the heads alone, on vectors that are computed once"
    )
    head_rate: PositiveFloat = Field(default=1e-3, description="their peak rate")
    calibration_texts: int = Field(
        default=400,
        ge=50,
        description="texts of all tasks that int8 scales come from; every fifth judges them",
    )
    max_drop: float = Field(
        default=0.002,
        ge=0.0,
        lt=1.0,
        description="share of its validation metric that a task may lose to int8, a standard error "
        "aside; layers stay in float until none loses more",
    )
    split: Literal["validation", "test"] = Field(
        default="test", description="rows that the table is about"
    )
    threads: PositiveInt = Field(default=1, description="CPU threads of everything that is timed")
    train: DistilConfig = DistilConfig()

    @model_validator(mode="before")
    @classmethod
    def _teach(cls, values: Any) -> Any:
        """The run that distils has this teacher, unless it names another: see `idle`."""
        if not isinstance(values, Mapping) or "teacher" not in values:
            return values
        train = values.get("train", {})
        if isinstance(train, TrainConfig):
            train = train.model_dump(exclude_unset=True)
        if not isinstance(train, Mapping) or train.get("teacher") is not None:
            return values
        return {**values, "train": {**train, "teacher": values["teacher"]}}

    @model_validator(mode="after")
    def _decided(self) -> Self:
        if self.preset not in SHAPE_PRESETS:
            raise ValueError(f"preset must be one of {', '.join(SHAPE_PRESETS)}")
        fields = DistilConfig.model_fields
        given = [name for name in _DECIDED if getattr(self.train, name) != fields[name].default]
        if given:
            raise ValueError(f"train.{given[0]} is decided by the steps; leave it out")
        return self

    def idle(self) -> Iterator[Idle]:
        """See `Section.idle`."""
        yield from self.train.idle()
        if self.encoder is not None:
            yield Idle(("preset", "refit_texts"), "with encoder", ("encoder",))
        if self.train.teacher != self.teacher:
            yield Idle(("train.teacher",), "beside another teacher", ("teacher",))
