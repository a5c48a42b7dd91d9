"""Configuration of data: what a run reads, and how raw rows are prepared."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, field_validator, model_validator

from rectrain.config import Section
from rectrain.errors import ConfigError
from rectrain.idle import Idle

__all__ = ["AugmentConfig", "DataConfig", "PrepareConfig", "SplitConfig"]


class DataConfig(Section):
    """What a training run reads and how much of it at a time."""

    paths: tuple[str, ...] = Field(default=(), description="prepared directories")
    tokens_per_micro_batch: Annotated[int, Field(ge=16)] | Literal["auto"] = Field(
        default=2048,
        description="real tokens of one micro-batch's rows: the memory of one forward; auto: as "
        "many as fit into the memory that is free here when the run begins",
    )
    num_negatives: int = Field(
        default=0,
        ge=0,
        description="items drawn from the catalogue for each micro-batch of recommendation, "
        "negatives beside those in the batch; their tokens come on top; 0 for none",
    )
    temperature: float = Field(
        default=2.0,
        gt=0,
        description="task mixing, p proportional to n^(1/T); 1 keeps the natural shares",
    )
    mixing_weights: dict[str, PositiveFloat] = Field(
        default_factory=dict,
        description="what a task's p is multiplied by; 1 for those not named (--dry-run shows the "
        "passes over each task that come of it)",
    )
    prefetch: int = Field(default=2, ge=0, description="steps built ahead of the training thread")

    @property
    def micro_batch_tokens(self) -> int:
        """`tokens_per_micro_batch` of a run that begins: auto is a number by then."""
        assert self.tokens_per_micro_batch != "auto"
        return self.tokens_per_micro_batch


class SplitConfig(Section):
    """How rows are parted into train, validation and test without a leak."""

    by: Literal["auto", "time", "group"] = Field(
        default="auto",
        description="auto: by time where every row of a task has a timestamp, else group",
    )
    validation_share: float = Field(default=0.1, ge=0, lt=1, description="share of rows or groups")
    test_share: float = Field(default=0.1, ge=0, lt=1, description="share of rows or groups")
    validation_start: datetime | None = Field(
        default=None, description="by time: instead of its share, UTC"
    )
    test_start: datetime | None = Field(
        default=None, description="by time: instead of its share, UTC"
    )
    gap_days: float = Field(
        default=0,
        ge=0,
        description="by time: days a label takes to be known; such rows don't train",
    )
    num_folds: int = Field(default=5, ge=3, description="by group: parts for cross-validation")
    fold: int | None = Field(
        default=None, ge=0, description="by group: this part is test, the next one validation"
    )

    @field_validator("validation_start", "test_start")
    @classmethod
    def _in_utc(cls, moment: datetime | None) -> datetime | None:
        return moment.replace(tzinfo=UTC) if moment and moment.tzinfo is None else moment

    @model_validator(mode="after")
    def _consistent(self) -> SplitConfig:
        if self.validation_share + self.test_share >= 1:
            raise ConfigError(
                what="split.validation_share + split.test_share",
                got=self.validation_share + self.test_share, rule="must be below 1",
                fix="leave rows to train on",
            )  # fmt: skip
        if self.fold is not None and self.fold >= self.num_folds:
            raise ConfigError(
                what="split.fold", got=self.fold,
                rule=f"must be below split.num_folds ({self.num_folds})",
                fix=f"take 0 to {self.num_folds - 1}",
            )  # fmt: skip
        starts = (self.validation_start, self.test_start)
        if starts[0] is not None and starts[1] is not None and starts[0] >= starts[1]:
            raise ConfigError(
                what="split.validation_start", got=starts[0],
                rule=f"must be before split.test_start ({starts[1]})", fix="swap or move them",
            )  # fmt: skip
        return self


class AugmentConfig(Section):
    """Altered copies of the training rows of tasks without a catalogue; off unless asked for."""

    copies: int = Field(
        default=0, ge=0, le=16, description="altered copies of each training row; 0 for none"
    )
    word_drop: float = Field(default=0.1, ge=0, lt=1, description="chance of a word to be dropped")
    synonym_swap: float = Field(
        default=0.3, ge=0, le=1, description="chance of a phrase that has synonyms to become one"
    )
    synonyms: str = Field(
        default="shop",
        description="shop: the simulated marketplace's words; or a file, a line the phrases of "
        "one meaning, separated by tabs",
    )


class PrepareConfig(Section):
    """One run of `jobs.prepare`."""

    source: str = Field(
        description="simulated, parquet, or a public data set: online_retail, chorus, esci, "
        "upworthy, bank_marketing, criteo, dark_patterns"
    )
    input: tuple[str, ...] = Field(
        default=(), description="files, directories, globs or URIs of the source"
    )
    output: str = Field(description="the prepared directory to make")
    encoder: str = Field(default="minilm", description="minilm, or a directory with a tokenizer")
    task: str | None = Field(default=None, description="parquet: the task of inputs that name none")
    tasks: tuple[str, ...] | None = Field(default=None, description="keep only these; None for all")
    item_text: tuple[str, ...] | None = Field(
        default=None,
        description="chorus, esci: product columns that make the item's text; "
        "None for the source's own choice",
    )
    locales: tuple[str, ...] = Field(
        default=("us",), description="esci: product locales to keep, of us, es, jp"
    )
    size: str = Field(default="demo", description="simulated: tiny, demo or large")
    simulated: dict[str, float] = Field(
        default={}, description="simulated: counts that differ from the size's, as num_users: 500"
    )
    features: str | None = Field(default=None, description="YAML of own features a task")
    max_length: int = Field(default=64, ge=4, le=512, description="tokens kept of one text")
    max_history: int = Field(default=8, ge=1, le=256, description="past purchases kept of a user")
    max_list_size: int = Field(default=32, ge=2, description="rows of one search list")
    split: SplitConfig = SplitConfig()
    augment: AugmentConfig = AugmentConfig()
    seed: int = Field(default=0, ge=0, description="of splits, simulated rows and altered copies")
    max_reject_share: float = Field(
        default=0.05, ge=0, le=1, description="more bad rows stop the job"
    )
    shard_rows: int = Field(default=65_536, ge=1, description="rows of one shard")
    num_workers: int | None = Field(
        default=None, ge=1, description="parallel tasks; None for all CPUs"
    )
    overwrite: bool = Field(default=False, description="replace a prepared directory at output")

    def idle(self) -> Iterator[Idle]:
        """See `Section.idle`; which settings of the split are read, only the rows say."""
        if self.augment.copies == 0:
            names = ("word_drop", "synonym_swap", "synonyms")
            keys = tuple(f"augment.{name}" for name in names)
            yield Idle(keys, "without augment.copies", ("augment.copies",))
