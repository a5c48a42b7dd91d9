"""The sections that say what a run trains, how, and where its files go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from rectrain.config import Section
from rectrain.data.config import DataConfig
from rectrain.idle import Idle
from rectrain.model.config import (
    GRADIENT_BALANCERS,
    Adapter,
    AdapterTarget,
    Balancer,
    GradientPlace,
    ModelConfig,
)

__all__ = ["PretrainConfig", "RunConfig", "Schedule", "TrackingConfig", "TrainConfig"]

Schedule = Literal["cosine", "linear", "constant", "plateau"]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
_RATE = 5e-5
_ADAPTER_RATE = 1e-3  # they begin at zero, and are few: 5e-5 hardly moves them

# Settings of the model -> the kinds of sharing that read them.
_SHARING: Mapping[str, tuple[str, ...]] = {
    "num_experts": ("gated_experts", "mmoe", "ple"),
    "num_task_experts": ("ple",),
    "num_levels": ("ple",),
    "expert_width": ("mmoe", "ple"),
    "expert_activation": ("gated_experts",),
}


class TrainConfig(Section):
    """How a run trains.

    One of num_steps and num_epochs ends the run; with neither, it is one epoch. An epoch is one
    pass over the task that has the most micro-batches.
    """

    tasks: tuple[str, ...] | None = Field(
        default=None, description="tasks to train; all in the data"
    )
    num_steps: PositiveInt | None = Field(
        default=None, description="optimizer updates of the whole run"
    )
    num_epochs: PositiveFloat | None = Field(
        default=None,
        description="passes over the longest task, so more over the others (--dry-run shows them); "
        "1 by default when num_steps is not given",
    )
    num_workers: PositiveInt | tuple[PositiveInt, PositiveInt] = Field(
        default=1, description="processes, or [fewest, most] for an elastic run"
    )
    num_micro_batches: PositiveInt | None = Field(
        default=None, description="micro-batches of a step; the most workers by default"
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=2, description="what ZeRO splits over the workers"
    )
    offload: Literal["none", "optimizer", "all"] = Field(
        default="none",
        description="what lives in host memory: nothing, optimizer state, weights too",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="auto: bf16 on a GPU that has it, else fp32"
    )
    start_from: str | None = Field(
        default=None,
        description="a run or checkpoint whose weights this run starts from: its encoder, and its "
        "heads of tasks with the same features",
    )
    start_from_sha256: str | None = Field(
        default=None,
        description="of manifest.json in that checkpoint; noted when the run begins, so that it "
        "goes on from the same weights alone",
    )
    freeze: Literal["none", "encoder"] = Field(
        default="none",
        description="encoder: train all but the encoder, on vectors that are computed once",
    )
    teacher: str | None = Field(
        default=None,
        description="a run or checkpoint of the same tasks, features and tokenizer, whose scores "
        "this run learns beside the labels; its texts are encoded once",
    )
    teacher_sha256: str | None = Field(
        default=None,
        description="of manifest.json in that checkpoint; noted when the run begins, so that it "
        "goes on with the same teacher alone",
    )
    distill_weight: Share = Field(
        default=0.7,
        description="share of the teacher's soft labels in each task's loss; the rest is that of "
        "the labels",
    )
    distill_temperature: PositiveFloat = Field(
        default=2.0, description="what the scores of teacher and student are divided by for that"
    )
    distill_relation: float = Field(
        default=1.0,
        ge=0.0,
        description="weight of how alike a micro-batch's texts are to teacher and student; nothing "
        "with freeze=encoder",
    )
    frozen_cache_gib: PositiveFloat = Field(
        default=4.0,
        description="memory of a worker for the vectors of a frozen encoder and of a teacher, at "
        "most",
    )
    vector_cache: str | None = Field(
        default=None,
        description="folder or URI, shared by all workers, that keeps these vectors for other runs "
        "of the same encoder and texts",
    )
    adapter: Adapter = Field(
        default="none",
        description="train small matrices beside the encoder's frozen linear layers: lora, or "
        "adalora, which shares the ranks out between them (zero_stage 0); export adds them up",
    )
    adapter_rank: PositiveInt = Field(default=8, description="of a layer; of adalora on average")
    adapter_alpha: PositiveFloat = Field(
        default=16.0,
        description="what an adapter adds is multiplied by alpha / rank; with adalora by alpha / "
        "its first rank, 3/2 of adapter_rank rounded up, to the end",
    )
    adapter_dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="of adapters' inputs")
    adapter_targets: Annotated[tuple[AdapterTarget, ...], Field(min_length=1)] = Field(
        default=("query", "key", "value", "dense"),
        description="linear layers with an adapter; dense: those after attention, and the two "
        "inner ones",
    )
    elastic_layers: tuple[PositiveInt, ...] = Field(
        default=(),
        description="numbers of layers of sub-networks that are trained together with the encoder "
        "(a super-network, docs/search.md), beside its own",
    )
    elastic_heads: tuple[PositiveInt, ...] = Field(
        default=(), description="the same of attention heads, and so of the hidden size"
    )
    elastic_intermediate: tuple[PositiveInt, ...] = Field(
        default=(), description="the same of inner sizes"
    )
    elastic_random: int = Field(
        default=2,
        ge=0,
        description="random sub-networks of each step, beside the largest and the smallest",
    )
    optimizer: Literal["adamw", "adafactor"] = Field(
        default="adamw",
        description="adafactor holds sums of rows and columns in the place of AdamW's two moments "
        "(zero_stage 0)",
    )
    learning_rate: PositiveFloat | None = Field(
        default=None,
        description="peak rate of the encoder, or of its adapters; 5e-5 by default, 1e-3 of "
        "adapters",
    )
    head_learning_rate: PositiveFloat | None = Field(
        default=None,
        description="peak rate of everything but the encoder; by default 10 × learning_rate where "
        "that is given, else 5e-4",
    )
    layer_decay: float = Field(
        default=1.0,
        gt=0.0,
        le=1.0,
        description="each layer of the encoder learns at this share of the rate of the one above",
    )
    weight_decay: float = Field(
        default=0.01, ge=0.0, description="not on biases, norms and scalars"
    )
    decay: Literal["decoupled", "l2"] = Field(
        default="decoupled",
        description="how weights decay: beside the gradient (AdamW), or as a penalty inside it "
        "(Adam with L2), after clipping",
    )
    warmup_share: Share = Field(default=0.1, description="share of the steps in linear warm-up")
    schedule: Schedule = Field(
        default="cosine",
        description="of the rates after warm-up: half a cosine or a line to zero, constant, or "
        "constant until the watched validation stands still (plateau)",
    )
    plateau_patience: PositiveInt = Field(
        default=2, description="plateau: validations in a row without a gain that lower the rates"
    )
    plateau_factor: float = Field(
        default=0.5, gt=0.0, lt=1.0, description="plateau: what the rates are multiplied by"
    )
    watch: str = Field(
        default="mean",
        description="the validation that chooses the best checkpoint, and that early_stopping and "
        "plateau go by: a task, or the mean of all",
    )
    early_stopping: PositiveInt | None = Field(
        default=None,
        description="validations in a row without a gain that end the run; its result is then "
        "the best checkpoint, not the last",
    )
    min_delta: float = Field(
        default=0.0, ge=0.0, description="a gain is a rise of the watched validation by more"
    )
    max_grad_norm: float = Field(
        default=1.0, ge=0.0, description="clip the global norm; 0 = no clipping"
    )
    activation_checkpointing: bool = Field(
        default=False,
        description="recompute activations in backward: less memory, about 1/3 more time",
    )
    loss_weights: dict[str, PositiveFloat] = Field(
        default_factory=dict, description="weight of a task's loss; 1 for those not named"
    )
    balancer: Balancer = Field(
        default="static",
        description="what else weighs the losses: nothing, learned variances, how fast they fall "
        "(dwa), or the tasks' gradients (pcgrad, cagrad, upgrad; zero_stage 0 to 2)",
    )
    balancer_gradients: GradientPlace = Field(
        default="last_layer",
        description="where pcgrad, cagrad and upgrad compare the tasks' gradients: the encoder's "
        "last output block, or all of it (exact; one more backward pass a task)",
    )
    log_interval: PositiveInt = Field(
        default=10,
        description="steps between logged losses; the first and the last step's are logged, too, "
        "and shown; between them the console shows one line in 3 seconds at most",
    )
    checkpoint_interval: PositiveInt = Field(default=100, description="steps between checkpoints")
    keep_last: PositiveInt = Field(
        default=2, description="newest checkpoints kept beside the best one"
    )
    evaluate_interval: PositiveInt | None = Field(
        default=None, description="steps between validations; only at the end by default"
    )
    evaluate_rows: PositiveInt = Field(
        default=2000, description="validation rows of a task, at most"
    )
    max_failures: int = Field(
        default=-1, ge=-1, description="restarts after a death; -1 = no limit"
    )
    collective_timeout_s: PositiveFloat = Field(
        default=300.0, description="a silent peer counts as dead"
    )
    resize_interval_s: PositiveFloat = Field(
        default=60.0, description="elastic runs: seconds between looks for more room"
    )
    threads_per_worker: PositiveInt = Field(default=1, description="CPU threads of one worker")
    stage3_persistence_threshold: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="ZeRO-3 keeps parameters of fewer elements whole; 10 × hidden by default",
    )

    @field_validator("num_workers")
    @classmethod
    def _ordered(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        if isinstance(value, tuple) and value[0] > value[1]:
            raise ValueError("the fewest workers must not exceed the most")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.num_steps is not None and self.num_epochs is not None:
            raise ValueError("give num_steps or num_epochs, not both")
        if self.offload != "none" and self.zero_stage == 0:
            raise ValueError("offload needs zero_stage 1, 2 or 3")
        if self.offload == "all" and self.zero_stage != 3:
            raise ValueError("offload=all needs zero_stage 3; use offload=optimizer below it")
        if self.adapter != "none" and self.freeze != "none":
            raise ValueError("adapters train beside the encoder, and freeze leaves it as it is")
        if self.adapter == "adalora" and self.zero_stage != 0:
            raise ValueError(
                "adapter=adalora needs zero_stage 0: it weighs ranks by whole gradients and sets "
                "weights between updates, and ZeRO holds pieces of both; lora works at every stage"
            )
        if self.adapter == "adalora" and self.early_stopping is not None:
            raise ValueError(
                "adapter=adalora comes to its ranks after seven tenths of the steps, and "
                "early_stopping may end the run before; drop it, or choose lora"
            )
        if self.optimizer == "adafactor" and self.zero_stage != 0:
            raise ValueError(
                "optimizer=adafactor needs zero_stage 0: it sums over a matrix's rows and columns, "
                "and ZeRO gives each worker a flat piece of many matrices; its state is small whole"
            )
        if self.optimizer == "adafactor" and self.decay == "l2":
            raise ValueError("optimizer=adafactor has decoupled weight decay alone")
        if self.layer_decay != 1.0 and self.freeze != "none":
            raise ValueError("layer_decay needs an encoder that trains; drop it or freeze")
        if self.zero_stage == 3 and self.freeze != "none":
            raise ValueError("freeze needs zero_stage 0, 1 or 2: a frozen encoder is not split")
        if self.is_elastic:
            self._check_elastic()
        if self.follows_validation and self.evaluate_interval is None:
            raise ValueError("early_stopping and schedule=plateau need evaluate_interval")
        if self.balancer in GRADIENT_BALANCERS and self.freeze != "none":
            raise ValueError(
                f"balancer={self.balancer} compares gradients of the encoder, and freeze leaves "
                "none; choose static, uncertainty or dwa"
            )
        if self.zero_stage == 3 and self.balancer in GRADIENT_BALANCERS:
            raise ValueError(
                f"balancer={self.balancer} needs zero_stage 0, 1 or 2: at stage 3 a layer's "
                "weights are given up after its forward, and the tasks' gradients need them "
                "before the backward pass; dwa and uncertainty work at every stage"
            )
        return self

    def _check_elastic(self) -> None:
        if self.zero_stage == 3:
            raise ValueError(
                "a super-network (elastic_layers, _heads, _intermediate) needs zero_stage 0, 1 or "
                "2: its sub-networks read parts of weights outside of the modules that stage 3 "
                "gathers them for"
            )
        if self.freeze != "none" or self.adapter != "none":
            raise ValueError(
                "a super-network trains its whole encoder; leave out freeze and adapter, or "
                "elastic_layers, _heads and _intermediate"
            )
        if self.balancer != "static":
            raise ValueError("a super-network weighs its tasks by loss_weights; balancer=static")

    def idle(self) -> Iterator[Idle]:
        """See `Section.idle`; for the sections that hold this one as `train`."""
        if not self.is_elastic:
            sizes = ("train.elastic_layers", "train.elastic_heads", "train.elastic_intermediate")
            yield Idle(("train.elastic_random",), f"without {', '.join(sizes)}", sizes)
        if self.teacher is None and not self.is_elastic:
            taught = ("train.distill_weight", "train.distill_temperature", "train.distill_relation")
            yield Idle(taught, "without train.teacher", ("train.teacher",))
        elif self.freeze == "encoder":
            yield Idle(("train.distill_relation",), "with train.freeze=encoder", ("train.freeze",))
        if self.teacher is not None and self.distill_weight == 0:
            yield Idle(("train.distill_temperature",), "with train.distill_weight=0",
                       ("train.distill_weight",))  # fmt: skip
        if self.teacher is None and self.freeze == "none":
            yield Idle(("train.vector_cache",), "without train.teacher or train.freeze=encoder",
                       ("train.teacher", "train.freeze"))  # fmt: skip
        if self.adapter == "none":
            names = ("rank", "alpha", "dropout", "targets")
            keys = tuple(f"train.adapter_{name}" for name in names)
            yield Idle(keys, "without train.adapter", ("train.adapter",))
        if self.freeze == "encoder":
            yield Idle(("train.activation_checkpointing",), "with train.freeze=encoder",
                       ("train.freeze",))  # fmt: skip
        if self.balancer not in GRADIENT_BALANCERS:
            rule = f"without train.balancer={', '.join(GRADIENT_BALANCERS)}"
            yield Idle(("train.balancer_gradients",), rule, ("train.balancer",))
        if self.schedule != "plateau":
            keys = ("train.plateau_patience", "train.plateau_factor")
            yield Idle(keys, "without train.schedule=plateau", ("train.schedule",))
        if not self.follows_validation:
            rule = "without train.early_stopping or train.schedule=plateau"
            yield Idle(("train.min_delta",), rule, ("train.early_stopping", "train.schedule"))

    @property
    def is_elastic(self) -> bool:
        """Whether sub-networks of the encoder are trained with it."""
        return bool(self.elastic_layers or self.elastic_heads or self.elastic_intermediate)

    @property
    def encoder_rate(self) -> float:
        """Peak learning rate of the encoder, or of its adapters."""
        return self.learning_rate or (_RATE if self.adapter == "none" else _ADAPTER_RATE)

    @property
    def head_rate(self) -> float:
        """Peak learning rate of everything but the encoder."""
        return self.head_learning_rate or 10 * (self.learning_rate or _RATE)

    @property
    def follows_validation(self) -> bool:
        """Whether what validation measures decides how the run goes on."""
        return self.early_stopping is not None or self.schedule == "plateau"

    @property
    def min_workers(self) -> int:
        """Fewest processes the run accepts."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def max_workers(self) -> int:
        """Most processes the run takes."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one step, M."""
        return self.num_micro_batches or self.max_workers


class TrackingConfig(Section):
    """Where a run can be watched."""

    tensorboard: bool = Field(default=True, description="write TensorBoard files under the run")
    mlflow: str = Field(
        default="auto",
        description="auto: sqlite file <output>/mlflow.db; off; or a tracking server's URI",
    )
    mlflow_experiment: str = Field(default="rectrain", description="MLflow's experiment")


class RunConfig(Section):
    """Everything that decides a run; stored beside its checkpoints."""

    name: str = Field(
        default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="folder in output"
    )
    output: str = Field(default="runs", description="folder or URI (s3://, gs://, …) of all runs")
    seed: int = Field(default=0, ge=0, description="of weights, order of rows and dropout")
    data: DataConfig
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _counts_what_the_encoder_keeps(self) -> Self:
        if self.data.tokens_per_micro_batch == "auto" and self.train.freeze == "encoder":
            raise ValueError(
                "data.tokens_per_micro_batch=auto counts what the encoder's layers keep, and with "
                "train.freeze=encoder they keep nothing; give a number"
            )
        return self

    def idle(self) -> Iterator[Idle]:
        """See `Section.idle`."""
        yield from self.train.idle()
        if self.train.start_from is not None:
            yield Idle(("model.encoder",), "with train.start_from", ("train.start_from",))
        for name, kinds in _SHARING.items():
            if self.model.sharing not in kinds:
                rule = f"without model.sharing={' or '.join(kinds)}"
                yield Idle((f"model.{name}",), rule, ("model.sharing",))


class PretrainConfig(RunConfig):
    """A run that trains the encoder alone, to guess masked words of the data's texts.

    Settings of heads and of the tasks' losses have no effect, so that one file can serve both runs.
    """

    name: str = Field(
        default="pretrain", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="folder in output"
    )
    mask_share: float = Field(
        default=0.15, gt=0, lt=1, description="share of the words that are masked"
    )

    @model_validator(mode="after")
    def _trains_the_encoder(self) -> Self:
        if self.train.freeze != "none":
            raise ValueError("pre-training trains the encoder; leave out train.freeze")
        if self.train.start_from is not None:
            raise ValueError(
                "pre-training starts from an encoder; give model.encoder=RUN/encoder in the place "
                "of train.start_from"
            )
        if self.train.teacher is not None:
            raise ValueError("pre-training has no tasks to teach; leave out train.teacher")
        if self.train.adapter != "none":
            raise ValueError("pre-training trains the whole encoder; leave out train.adapter")
        if self.train.watch != "mean":
            raise ValueError("pre-training has no tasks to watch; leave out train.watch")
        return self
