"""Requests and answers, made from the tables of fields that the packages bring.

A request is one user or query with its candidates. What a field is about decides its place:

    the group (user_id, query_id) and the query side's texts    beside `candidates`
    an item's id and texts                                      in each candidate
    other features                                              in either; the candidate's own wins
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias, get_args

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    Strict,
    StringConstraints,
    create_model,
)

from rectrain.data.fields import Field as RowField
from rectrain.data.fields import FieldTable
from rectrain.errors import ConfigError
from rectrain.inference.packaged import PackagedModel
from rectrain.inference.rows import EXCLUDE
from rectrain.model.spec import TaskSpec
from serve.sections import Limits

__all__ = [
    "ENDPOINTS",
    "Answer",
    "BatchAnswer",
    "Failure",
    "FirstError",
    "Item",
    "ModelFacts",
    "Options",
    "PolicyFacts",
    "Reason",
    "RequestModels",
    "Timings",
    "Versions",
    "field_names",
    "request_models",
    "routes",
    "rows_of",
]

#: Path below /v1 -> its task.
ENDPOINTS = {
    "recommend": "recommendation",
    "rank": "search_ranking",
    "ctr": "ad_ctr",
    "risk": "risk",
}

Reason: TypeAlias = Literal[
    "confident", "doubtful", "over_budget", "no_large", "overload", "deadline", "not_asked",
    "asked", "no_policy", "unavailable",
]  # fmt: skip

Route: TypeAlias = Literal["auto", "small", "large"]

_ROUTE = "as the policy decides, or never or always the large model"
_ANYONE = "-"  # the group of a request that names none; no model reads it
_NO_FIELDS = ("options", "candidates", "k", "diversity")  # of a request, beside its row
_UNUSED = ("label", "weight", "split", "oracle", "timestamp")

# A text has more than white space: Arrow's, spelled out, for engines differ in what \s is.
_NOT_BLANK = r"[^\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
# What a model computes with; products of several of a vector's elements are added up there.
_LARGEST = float(np.finfo(np.float32).max)
_LARGEST_IN_VECTOR = 1e6


class FirstError(FailFast):
    """Of a sequence alone: a body of wrong elements would have some hundred thousand errors, and
    list them on the event loop. (Parts of a union must have a hash, which pydantic's lacks.)"""

    def __hash__(self) -> int:
        return hash(self.fail_fast)


class _Model(BaseModel):
    """NaN and infinity are neither taken nor given, and what is not known is refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


# --- answers ---------------------------------------------------------------------------------


class Item(_Model):
    """One candidate's place in an answer."""

    index: int | None = Field(
        default=None, description="place among the request's candidates, from 0"
    )
    item_id: str | None = Field(default=None, description="of the candidate or of the catalogue")
    score: float = Field(description="of the model named in `by`; only its order counts in a list")
    probability: float | None = Field(
        default=None,
        description="of 0/1 tasks (ctr, risk): calibrated where there is a policy, else the score",
    )
    by: Literal["small", "large"] = Field(description="which model gave the score")


class Timings(_Model):
    """Where the time went, in milliseconds."""

    queue_ms: float = Field(default=0, description="waited for the small model")
    small_ms: float = Field(default=0, description="the small model's batch")
    large_ms: float = Field(
        default=0, description="the large model with the way there and its queue"
    )
    total_ms: float = Field(default=0, description="all of it, inside the process that answered")


class AnswerCost(_Model):
    """What such answers cost, by the report of `jobs.cost`: machines at their plan's load, texts as
    long as those that it timed."""

    currency: str
    per_1000: float = Field(
        description="of 1,000 answers of as many candidates, as many of them deferred"
    )


class Versions(_Model):
    """SHA-256 of the models that gave the scores of an answer."""

    small: str
    large: str | None = Field(description="null where the large model gave none of them")


class Answer(_Model):
    """What a request gets: the items, and how they came about."""

    items: tuple[Item, ...] = Field(
        description="lists (rank, recommend): best first; ctr, risk: in the request's order"
    )
    model: str = Field(description="name of the pair of models")
    versions: Versions
    deferred: bool = Field(description="whether the large model gave any of the scores")
    reason: Reason = Field(description="why it did or did not")
    confidence: float | None = Field(description="of the small model; null where nothing asked")
    cached: bool = Field(default=False, description="whether the answer was kept from before")
    timings: Timings | None = None
    cost: AnswerCost | None = Field(
        default=None, description="where it was asked for and the server knows"
    )


class BatchAnswer(_Model):
    """Answers in the order of a batch's requests."""

    answers: tuple[Answer, ...]


class Failure(_Model):
    """Why there is no answer."""

    code: str
    message: str
    request_id: str


class PolicyFacts(_Model):
    """When the large model is asked for a task."""

    threshold: float = Field(description="a lower confidence is doubtful")
    budget: float = Field(description="share of rows or lists that may be deferred")
    head: int = Field(description="of a deferred list, how many the large model orders; 0: all")


class ModelFacts(_Model):
    """A pair of models that is served."""

    name: str
    is_default: bool
    versions: Versions
    small_backend: str
    endpoints: tuple[str, ...]
    fields: dict[str, tuple[str, ...]] = Field(description="endpoint -> what its rows may have")
    policy: dict[str, PolicyFacts] = Field(description="task -> when the large model is asked")
    routes: tuple[Route, ...] = Field(description="what options.route may say")


Number: TypeAlias = Annotated[float, Strict()]
"""A number that stands in JSON as one: no text, and no bool unless a field takes it."""


# --- requests --------------------------------------------------------------------------------


class Options(_Model):
    """How to answer."""

    model: str | None = Field(default=None, description="a name of GET /v1/models")
    route: Route = Field(default="auto", description=_ROUTE)
    timings: Annotated[bool, Strict()] = Field(default=False, description="say where the time went")
    cost: Annotated[bool, Strict()] = Field(
        default=False, description="say what such an answer costs, where the server knows"
    )


@dataclass(frozen=True)
class RequestModels:
    """An endpoint's request, and its batch of them."""

    single: type[BaseModel]
    batch: type[BaseModel]


def request_models(models: Mapping[str, PackagedModel], limits: Limits) -> dict[str, RequestModels]:
    """The requests of all endpoints that any of the models has a task for.

    Args:
        models: by name; where several have a task, a request may have the fields of all of them.
        limits: of a request.

    Raises:
        ConfigError: two models that need one field in different ways.
    """
    found = {}
    options = _options(models, limits)
    for path, task in ENDPOINTS.items():
        having = [model for model in models.values() if task in model.tasks]
        if not having:
            continue
        spec = having[0].predictor.spec(task)
        fields = _union([model.fields(task) for model in having])
        if spec.has_catalogue:
            single = _recommend_model(fields, limits, options)
        else:
            single = _score_model(path, spec, fields, limits, options)
        found[path] = RequestModels(single, _batch_model(path, single, limits))
    return found


def rows_of(request: BaseModel) -> tuple[dict[str, Any], ...]:
    """A request's rows in its task's fields, one a candidate; of a recommendation the user's."""
    shared = {name: value for name, value in _given(request).items() if name not in _NO_FIELDS}
    if "k" in type(request).model_fields:
        return (shared,)
    return tuple(
        shared | _given(candidate)
        for candidate in request.candidates  # type: ignore[attr-defined]
    )


def _given(model: BaseModel) -> dict[str, Any]:
    """The fields that are there. (Iterating over the model itself takes four times as long.)"""
    return {name: value for name, value in vars(model).items() if value is not None}


def field_names(table: FieldTable) -> tuple[str, ...]:
    """What a request may have of a task's fields: not what only training reads."""
    return tuple(field.name for field in table.fields if _is_asked(field))


def _is_asked(field: RowField) -> bool:
    if field.kind == "vector" and field.size is None:  # the model has no such feature
        return False
    return field.kind not in _UNUSED and (field.kind != "id" or field.required)


def _union(tables: list[FieldTable]) -> dict[str, RowField]:
    fields: dict[str, RowField] = {}
    for table in tables:
        for field in filter(_is_asked, table.fields):
            other = fields.setdefault(field.name, field)
            if (other.kind, other.size) != (field.kind, field.size):
                raise ConfigError(
                    what=f"field {field.name} of {table.task}",
                    got=f"a {other.kind} of one model and a {field.kind} of another",
                    rule="models in one application share the form of a request",
                    fix="serve them as two applications",
                )
            if field.name in _NO_FIELDS:
                raise ConfigError(
                    what=f"field {field.name} of {table.task}",
                    got="a name that requests use for something else",
                    rule="a feature's name must be another",
                    fix="rename the feature and train again",
                )
    return fields


def routes(limits: Limits) -> tuple[Route, ...]:
    """What a request may say of the way to its answer."""
    return get_args(Route) if limits.choose_route else ("auto",)


def _options(names: Iterable[str], limits: Limits) -> type[Options]:
    """How to answer, by one of these models."""
    name: Any = Literal[tuple(names)] | None
    default = Field(default=None, description="default: the application's first")
    route: Any = Literal[routes(limits)]
    way = Field(default="auto", description=_ROUTE)
    return create_model("Options", __base__=Options, model=(name, default), route=(route, way))


def _score_model(
    path: str,
    spec: TaskSpec,
    fields: Mapping[str, RowField],
    limits: Limits,
    options: type[Options],
) -> type[BaseModel]:
    beside = {*spec.query, *(name for name, field in fields.items() if field.kind == "group")}
    within = {*spec.item, *(name for name, field in fields.items() if field.kind == "id")}
    name = path.capitalize()
    candidate = create_model(
        f"{name}Candidate",
        __base__=_Model,
        **dict(_typed(fields, limits, skip=beside, required=within)),
    )
    listed = Annotated[
        tuple[candidate, ...],  # type: ignore[valid-type]
        FirstError(),
        Field(min_length=1, max_length=limits.candidates, description="what to score"),
    ]
    return create_model(
        f"{name}Request",
        __base__=_Model,
        **dict(_typed(fields, limits, skip=within, required=beside)),
        candidates=(listed, ...),
        options=(options, options()),
    )


def _recommend_model(
    fields: Mapping[str, RowField], limits: Limits, options: type[Options]
) -> type[BaseModel]:
    text = _text(limits)
    ids = Annotated[
        tuple[text, ...],  # type: ignore[valid-type]
        FirstError(),
        Field(max_length=limits.candidates),
    ]
    return create_model(
        "RecommendRequest",
        __base__=_Model,
        **dict(_typed(fields, limits, skip=set(), required=set(fields) - {EXCLUDE})),
        k=(_whole(limits.k), Field(10, description="items wanted")),
        diversity=(Number, Field(0.0, ge=0, le=1, description="0: by score alone")),
        candidates=(
            ids | None,
            Field(None, description="ids to choose from (default: the whole catalogue)"),
        ),
        options=(options, options()),
    )


def _batch_model(path: str, single: type[BaseModel], limits: Limits) -> type[BaseModel]:
    listed = Annotated[
        tuple[single, ...],  # type: ignore[valid-type]
        FirstError(),
        Field(min_length=1, max_length=limits.requests),
    ]
    return create_model(f"{path.capitalize()}Batch", __base__=_Model, requests=(listed, ...))


def _typed(
    fields: Mapping[str, RowField], limits: Limits, *, skip: set[str], required: set[str]
) -> Iterator[tuple[str, Any]]:
    """name -> (type, default) of each field, as `create_model` takes it."""
    for name, field in fields.items():
        if name in skip:
            continue
        kind, note = _type(field, limits), field.description or None
        if field.kind == "group":
            yield name, (kind, Field(default=_ANYONE, description=note))
        elif field.required and name in required:
            yield name, (kind, Field(description=note))
        else:
            yield name, (kind | None, Field(default=None, description=note))


def _type(field: RowField, limits: Limits) -> Any:
    if field.kind == "numeric":
        low = -_LARGEST if field.low is None else field.low
        high = _LARGEST if field.high is None else field.high
        rule = Field(ge=low, le=high)
        return Annotated[
            Number,
            rule,
            BeforeValidator(_as_number, json_schema_input_type=Annotated[float, rule] | bool),
        ]
    if field.kind == "vector":
        element = Annotated[Number, Field(ge=-_LARGEST_IN_VECTOR, le=_LARGEST_IN_VECTOR)]
        return Annotated[
            tuple[element, ...], FirstError(), Field(min_length=field.size, max_length=field.size)
        ]
    if field.kind == "text_list":
        text = _text(limits)
        return Annotated[
            tuple[text, ...],  # type: ignore[valid-type]
            FirstError(),
            Field(max_length=limits.list_texts),
        ]
    return _text(limits, named=field.kind != "text")


def _text(limits: Limits, *, named: bool = True) -> Any:
    """A text; a name (an id, a category) may come as a whole number or a bool, as in Arrow."""
    text = Annotated[
        str, StringConstraints(min_length=1, max_length=limits.text_chars, pattern=_NOT_BLANK)
    ]
    if not named:
        return text
    return Annotated[text, BeforeValidator(_as_text, json_schema_input_type=text | int | bool)]


def _whole(most: int) -> Any:
    rule = Field(ge=1, le=most)
    typed = Annotated[int, Strict(), rule]
    return Annotated[typed, BeforeValidator(_as_whole, json_schema_input_type=typed)]


def _as_text(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    value = _as_whole(value)
    return str(value) if isinstance(value, int) else value


def _as_number(value: Any) -> Any:
    return float(value) if isinstance(value, bool) else value


def _as_whole(value: Any) -> Any:
    """In JSON 5.0 is a whole number too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
