"""The sections that say what is searched, how trials are judged, and what becomes of the best."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from rectrain.compress.config import DistilConfig
from rectrain.config import Section
from rectrain.idle import Idle
from rectrain.train.config import TrackingConfig

__all__ = [
    "CHOSEN",
    "Chosen",
    "FinishConfig",
    "LimitsConfig",
    "MeasureConfig",
    "PriceConfig",
    "SearchConfig",
    "SpaceConfig",
]

Chosen = Literal["knee", "cheapest", "best"]
CHOSEN: tuple[Chosen, ...] = ("knee", "cheapest", "best")
Setting = int | float | str
# What the search itself decides of a run.
_DECIDED = (
    *("tasks", "start_from", "start_from_sha256", "freeze", "adapter", "teacher", "early_stopping"),
    *(
        "teacher_sha256",
        "vector_cache",
        "num_epochs",
        "elastic_layers",
        "elastic_heads",
        "elastic_intermediate",
    ),
)
# Settings that all trials share: the cluster's CPUs are shared out between them by the first, and
# ASHA compares them at the others.
_SHARED = ("train.num_workers", "train.threads_per_worker")
_SHARED_BY_ASHA = ("train.num_steps", "train.evaluate_interval")


class SpaceConfig(Section):
    """The points of the search: every combination of these."""

    layers: tuple[PositiveInt, ...] = Field(
        default=(), description="numbers of layers, spread over the teacher's; all by default"
    )
    heads: tuple[PositiveInt, ...] = Field(
        default=(),
        description="attention heads, which give the hidden size, for a head keeps its size; the "
        "teacher's by default",
    )
    intermediate: tuple[PositiveInt, ...] = Field(
        default=(), description="inner sizes; the teacher's by default"
    )
    settings: dict[str, tuple[Setting, ...]] = Field(
        default_factory=dict,
        description="separate: further settings of a run and their values, as "
        "{train.learning_rate: [1e-4, 5e-4], model.sharing: [shared_bottom, mmoe]}",
    )


class LimitsConfig(Section):
    """What a model must keep to be chosen."""

    p99_ms: PositiveFloat | None = Field(default=None, description="99th percentile of a request")
    megabytes: PositiveFloat | None = Field(
        default=None, description="10^6 bytes of all weights in fp32"
    )
    cost_per_1000: PositiveFloat | None = Field(default=None, description="money, 1,000 requests")


class MeasureConfig(Section):
    """How a shape's latency is measured: alone on its machine, once a shape."""

    backend: Literal["torch", "openvino", "openvino-int8"] = Field(
        default="openvino-int8",
        description="what runs the encoder while it is timed; torch and openvino in fp32",
    )
    rows: PositiveInt = Field(default=32, description="rows of a request, of one task each")
    requests: int = Field(default=40, ge=4, description="different requests, the tasks in turn")
    rounds: PositiveInt = Field(
        default=3, description="times that each is timed; its median counts"
    )
    threads: PositiveInt = Field(default=1, description="CPU threads while timed")


class PriceConfig(Section):
    """What a device-second costs."""

    core_hour: PositiveFloat = Field(default=0.05, description="money for one CPU core for an hour")
    currency: str = Field(default="EUR", pattern="^[A-Z]{3}$", description="of all money")


class FinishConfig(Section):
    """What becomes of the chosen models."""

    models: tuple[Chosen, ...] = Field(
        default=CHOSEN,
        description="of the front: its knee, the cheapest within `least_lift`, the best; [] for "
        "none",
    )
    least_lift: float = Field(
        default=0.9, ge=0, le=1, description="cheapest: share of the best lift that it must keep"
    )
    package: Literal["int8", "plain"] = Field(
        default="int8",
        description="int8: all of jobs.compress (encoder and heads learn on, vocabulary trimmed, "
        "graphs in int8, minutes a model); plain: heads learn, fp32",
    )
    num_steps: PositiveInt = Field(
        default=200, description="int8: updates of encoder and heads together"
    )
    max_drop: float = Field(
        default=0.002,
        ge=0.0,
        lt=1.0,
        description="int8: share of its validation metric that a task may lose to it",
    )
    head_steps: PositiveInt = Field(default=300, description="updates of the heads alone")


class SearchConfig(Section):
    """A search for the width, depth and training of a small model."""

    teacher: str = Field(description="the large model: a run's folder, or one checkpoint")
    output: str = Field(description="folder of all that is made; its study.db is the study")
    way: Literal["elastic", "separate"] = Field(
        default="elastic",
        description="elastic: one super-network is trained, and trials judge its sub-networks; "
        "separate: each trial trains a model of its own",
    )
    data: tuple[str, ...] = Field(
        default=(), description="prepared directories; those of the teacher by default"
    )
    tokens_per_micro_batch: int = Field(
        default=2048, ge=16, description="real tokens of one forward of a worker"
    )
    seed: int = Field(default=0, ge=0, description="of the sampler, of texts, rows and dropout")
    refit_texts: PositiveInt = Field(
        default=800, description="texts of all tasks that cut encoders are fitted to"
    )
    space: SpaceConfig = SpaceConfig()
    sampler: Literal["tpe", "nsga2", "random", "grid"] = Field(
        default="tpe", description="what chooses the next point"
    )
    num_trials: PositiveInt = Field(default=30, description="trials that end, well or not")
    budget_s: PositiveFloat | None = Field(
        default=None,
        description="device-seconds of super-network and trials together, after which none begins",
    )
    objective: Literal["all", "mean_lift"] = Field(
        default="all",
        description="what the sampler goes by: lift, cost and latency, or the lift alone under "
        "`limits`",
    )
    asha: bool = Field(
        default=False,
        description="separate, objective=mean_lift: end trials early that are behind at "
        "validations (train.evaluate_interval)",
    )
    reference: tuple[float, float, float] | None = Field(
        default=None,
        description="lift, cost per 1,000 and p99 in ms that bound the hypervolume; lift 0 and "
        "twice the largest shape's cost and latency by default",
    )
    limits: LimitsConfig = LimitsConfig()
    measure: MeasureConfig = MeasureConfig()
    price: PriceConfig = PriceConfig()
    threads_per_trial: PositiveInt = Field(
        default=1, description="CPU threads of a trial's own process, which judges its model"
    )
    max_concurrent: PositiveInt | None = Field(
        default=None, description="trials at a time; as many as the cluster holds by default"
    )
    train: DistilConfig = DistilConfig()
    finish: FinishConfig = FinishConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        fields = DistilConfig.model_fields
        given = [name for name in _DECIDED if getattr(self.train, name) != fields[name].default]
        if given:
            raise ValueError(f"train.{given[0]} is decided by the search; leave it out")
        if self.way == "elastic" and self.space.settings:
            raise ValueError(
                "space.settings are of way=separate: all sub-networks of a super-network are "
                "trained together, in one way; give them in train"
            )
        if self.way == "elastic" and self.train.zero_stage == 3:
            raise ValueError("a super-network needs train.zero_stage 0, 1 or 2")
        if self.way == "elastic" and self.train.balancer != "static":
            raise ValueError(
                "a super-network weighs its tasks by train.loss_weights; leave out train.balancer"
            )
        if self.asha and (self.way, self.objective) != ("separate", "mean_lift"):
            raise ValueError(
                "asha needs way=separate and objective=mean_lift: it compares one number of "
                "trials on their way, and of several objectives none stands for the others"
            )
        if self.asha and not 0 < (self.train.evaluate_interval or 0) < self.train.num_steps:
            raise ValueError(
                "asha goes by validations on the way; give train.evaluate_interval, less than "
                "train.num_steps"
            )
        self._check_searched()
        return self

    def _check_searched(self) -> None:
        """Whether trials may differ in the settings that are searched; see also `check_settings` of
        `rectrain.tune.runs`."""
        decided = {"model.encoder", *(f"train.{name}" for name in _DECIDED)}
        shared = (*_SHARED, *(_SHARED_BY_ASHA if self.asha else ()))
        for name, values in self.space.settings.items():
            if not values or not name.startswith(("train.", "model.")):
                raise ValueError(f"space.settings.{name} must be train.… or model.… with values")
            if name in decided:
                raise ValueError(f"space.settings.{name} is decided by the search; leave it out")
            if name in shared:
                raise ValueError(f"space.settings.{name} is one for all trials; give it in train")

    def idle(self) -> Iterator[Idle]:
        """See `Section.idle`."""
        for keys, because, deciders in self.train.idle():
            decided = ("train.distill", "train.elastic", "train.vector_cache")
            kept = tuple(key for key in keys if not key.startswith(decided))
            yield Idle(kept, because, deciders)
        if self.way == "separate":
            yield Idle(("train.elastic_random",), "with way=separate", ("way",))
        if "cheapest" not in self.finish.models:
            yield Idle(("finish.least_lift",), "without cheapest in finish.models",
                       ("finish.models",))  # fmt: skip
        if self.finish.package == "plain":
            keys = ("finish.num_steps", "finish.max_drop")
            yield Idle(keys, "with finish.package=plain", ("finish.package",))
