"""The Open Inference Protocol, version 2, over HTTP: the same answers for generic clients.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md

A task of a pair of models is a model `PAIR.ENDPOINT`, as `shop.rank`; its version is the small
model's. An inference is one request of that endpoint, with a tensor for each field: of what stands
in the candidates one value a candidate, of what stands beside them one in all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NoReturn, TypeAlias, get_args

from fastapi import APIRouter, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError

import rectrain
from rectrain.data.fields import Field as RowField
from rectrain.errors import DataError
from serve.answering import Answerer
from serve.asking import Asker, strict_route
from serve.failure_form import OPEN_INFERENCE
from serve.schemas import ENDPOINTS, Answer, FirstError, RequestModels, field_names

__all__ = ["InferenceFailure", "health_router", "models_router"]

Scalar: TypeAlias = str | bool | int | float
Datatype: TypeAlias = Literal["BYTES", "FP32", "FP64", "INT32", "INT64"]

_NUMBERS = ("FP64", "FP32", "INT64", "INT32")
_BINARY = "inference-header-content-length"  # of the extension for binary tensors


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class InferenceFailure(_Model):
    """Why there is no answer."""

    error: str


class ServerMetadata(_Model):
    """Of this server."""

    name: str
    version: str
    extensions: tuple[str, ...] = Field(description="none: tensors come and go as JSON")


class TensorMetadata(_Model):
    """What a model takes or gives."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...] = Field(description="-1: as many as the candidates, or as the texts")


class ModelMetadata(_Model):
    """A task of a pair of models."""

    name: str
    versions: tuple[str, ...] = Field(description="SHA-256 of the small model")
    platform: str
    inputs: tuple[TensorMetadata, ...] = Field(
        description="what the endpoint in /v1 can do without need not be there"
    )
    outputs: tuple[TensorMetadata, ...]


class ModelReady(_Model):
    """Whether a model answers."""

    name: str
    ready: bool


class InputTensor(_Model):
    """A field's values."""

    name: str
    shape: Annotated[tuple[Annotated[int, Strict(), Field(ge=0)], ...], FirstError()]
    datatype: Datatype
    parameters: dict[str, Any] = Field(default={}, description="passed over")
    data: Annotated[
        tuple[Scalar | Annotated[tuple[Scalar, ...], FirstError()], ...],
        FirstError(),
        Field(description="in row-major order"),
    ]


class RequestedOutput(_Model):
    """An output that is wanted."""

    name: str
    parameters: dict[str, Any] = Field(default={}, description="passed over")


class InferenceRequest(_Model):
    """One request of an endpoint, as tensors."""

    id: str | None = Field(default=None, description="comes back with the answer")
    parameters: dict[str, Any] = Field(default={}, description="passed over")
    inputs: Annotated[tuple[InputTensor, ...], FirstError()]
    outputs: Annotated[
        tuple[RequestedOutput, ...], FirstError(), Field(default=(), description="default: all")
    ]


class OutputTensor(_Model):
    """One value a candidate, in the request's order."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    data: tuple[Scalar, ...]


class InferenceResponse(_Model):
    """An answer as tensors."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, Scalar] = Field(description="how it came about, as in /v1")
    outputs: tuple[OutputTensor, ...]


def health_router(require_sound: Callable[[], None]) -> APIRouter:
    """The routes that load balancers ask.

    Args:
        require_sound: raises where this process may not answer.
    """
    router = APIRouter(prefix=OPEN_INFERENCE, tags=["open inference"])

    @router.get("/health/live")
    async def live() -> dict[str, bool]:
        """Whether the process lives."""
        return {"live": True}

    @router.get("/health/ready", responses=_failures(503))
    async def ready() -> dict[str, bool]:
        """Whether the process may answer: its golden requests got their answers."""
        require_sound()
        return {"ready": True}

    return router


def models_router(
    asker: Asker, forms: Mapping[str, RequestModels], require_sound: Callable[[], None]
) -> APIRouter:
    """The routes that tell of models, and infer.

    Args:
        asker: asks them.
        forms: path of each endpoint -> its requests.
        require_sound: raises where this process may not answer.
    """
    models = _Models(asker, forms, require_sound)
    router = APIRouter(prefix=OPEN_INFERENCE, tags=["open inference"])
    router.add_api_route("", models.server)
    name = _in_path("model_name", models.served)
    version = _in_path("model_version", {one.version for one in models.served.values()})
    for path, parameters in (
        ("/models/{model_name}", [name]),
        ("/models/{model_name}/versions/{model_version}", [name, version]),
    ):
        extra = {"parameters": parameters}
        unknown = _failures(404, 405)
        router.add_api_route(path, models.metadata, openapi_extra=extra, responses=unknown)
        router.add_api_route(
            f"{path}/ready", models.ready, openapi_extra=extra, responses=unknown | _failures(503)
        )
        router.add_api_route(
            f"{path}/infer",
            models.infer,
            methods=["POST"],
            route_class_override=strict_route(models.admit),
            strict_content_type=False,  # tritonclient names none
            openapi_extra=extra,
            responses=unknown | _failures(400, 408, 413, 415, 422, 503),
            response_model_exclude_none=True,
        )
    return router


class _Models:
    """All models, and what the routes say of them; see `models_router`."""

    def __init__(
        self, asker: Asker, forms: Mapping[str, RequestModels], require_sound: Callable[[], None]
    ) -> None:
        self._asker, self._require_sound = asker, require_sound
        served = (
            _Served(pair, path, form.single, answerer)
            for pair, answerer in asker.answerers.items()
            for path, form in forms.items()
            if _scores_rows(answerer, path)
        )
        self.served = {one.name: one for one in served}

    def _find(self, model_name: str, model_version: str | None = None) -> _Served:
        one = self.served.get(model_name)
        if one is None or model_version not in (None, one.version):
            names = ", ".join(self.served)
            raise HTTPException(404, f"no such model and version; models: {names}")
        return one

    def admit(self, request: Request) -> None:
        """Refuses what a request's path and headers say."""
        if _BINARY in request.headers:
            raise HTTPException(415, "tensors come as JSON here (tritonclient: binary_data=False)")
        one = self._find(**request.path_params)
        self._asker.admit(request, one.path, model=one.pair)

    async def server(self) -> ServerMetadata:
        """Who answers."""
        return ServerMetadata(name="rectrain", version=rectrain.__version__, extensions=())

    async def metadata(self, request: Request) -> ModelMetadata:
        """What a model takes and gives."""
        return self._find(**request.path_params).metadata

    async def ready(self, request: Request) -> ModelReady:
        """Whether a model answers."""
        one = self._find(**request.path_params)
        self._require_sound()
        return ModelReady(name=one.name, ready=True)

    async def infer(self, request: Request, body: InferenceRequest) -> InferenceResponse:
        """A model's answer."""
        one, deadline = self._find(**request.path_params), self._asker.deadline(request)
        given = await self._asker.answer(request, one.path, one.request(body), deadline=deadline)
        return one.response(body, given)


def _scores_rows(answerer: Answerer, path: str) -> bool:
    """Whether a pair has an endpoint's task, and that has rows: a recommendation finds its own."""
    task, small = ENDPOINTS[path], answerer.small
    return task in small.tasks and not small.predictor.spec(task).has_catalogue


def _in_path(name: str, values: Mapping[str, Any] | set[str]) -> dict[str, Any]:
    """What the OpenAPI says of a part of a path."""
    schema = {"type": "string", "enum": sorted(values)}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": InferenceFailure} for status in statuses}


class _Served:
    """A task of a pair of models, as the protocol's model.

    Args:
        pair: its name.
        path: of the endpoint.
        form: the endpoint's request.
        answerer: of the pair.
    """

    def __init__(self, pair: str, path: str, form: type[BaseModel], answerer: Answerer) -> None:
        small, task = answerer.small, ENDPOINTS[path]
        table = small.fields(task)
        candidate, _ = get_args(form.model_fields["candidates"].annotation)
        self.pair, self.path = pair, path
        self.name, self.version = f"{pair}.{path}", small.version
        self._form = form
        # A list of texts for each candidate would be no tensor.
        self._in_rows = set(candidate.model_fields) - set(table.names("text_list"))
        asked = field_names(table)
        inputs = [self._input(field) for field in table.fields if field.name in asked]
        self._inputs = {one.name: one for one in inputs}
        meant: dict[str, Datatype] = {"rank": "INT64"}
        if small.predictor.spec(task).has_probabilities:
            meant = {"probability": "FP64"}
        self._outputs: dict[str, Datatype] = {"score": "FP64", **meant, "by": "BYTES"}
        self.metadata = ModelMetadata(
            name=self.name,
            versions=(self.version,),
            platform=f"rectrain_{small.engine.encoder.name}",
            inputs=tuple(inputs),
            outputs=tuple(
                TensorMetadata(name=name, datatype=datatype, shape=(-1,))
                for name, datatype in self._outputs.items()
            ),
        )

    def _input(self, field: RowField) -> TensorMetadata:
        is_many = field.name in self._in_rows or field.kind == "text_list"
        is_number = field.kind in ("numeric", "vector")
        return TensorMetadata(
            name=field.name,
            datatype="FP64" if is_number else "BYTES",
            shape=(-1 if is_many else 1, *((field.size,) if field.size else ())),
        )

    def request(self, body: InferenceRequest) -> BaseModel:
        """The endpoint's request that tensors make.

        Raises:
            DataError: tensors that are not the model's, or don't fit one another.
            RequestValidationError: values that the endpoint refuses.
        """
        for output in body.outputs:
            if output.name not in self._outputs:
                self._refuse("output", output.name, f"it has {', '.join(self._outputs)}")
        columns: dict[str, Sequence[Any]] = {}
        for tensor in body.inputs:
            if tensor.name in columns:
                self._refuse("input", tensor.name, "each stands there once")
            columns[tensor.name] = self._column(tensor)
        try:
            return self._form.model_validate(self._placed(columns))
        except ValidationError as error:
            problems = error.errors(include_url=False, include_context=False, include_input=False)
            shown = [{**one, "loc": ("body", *one["loc"])} for one in problems]
            raise RequestValidationError(shown) from None

    def _column(self, tensor: InputTensor) -> Sequence[Any]:
        """A tensor's values along its first dimension; they may come flat."""
        known = self._inputs.get(tensor.name)
        if known is None:
            self._refuse("input", tensor.name, f"it has {', '.join(self._inputs)}")
        taken = ("BYTES",) if known.datatype == "BYTES" else _NUMBERS
        if tensor.datatype not in taken:
            self._refuse(tensor.name, tensor.datatype, f"its type is {' or '.join(taken)}")
        rows: Sequence[Any] = tensor.data
        for width in known.shape[1:]:
            if not all(isinstance(row, tuple) for row in rows):
                rows = tuple(rows[at : at + width] for at in range(0, len(rows), width))
        count = len(rows) if known.shape[0] == -1 else known.shape[0]
        if tensor.shape != (count, *known.shape[1:]) or len(rows) != count:
            got = f"{list(tensor.shape)} with {len(tensor.data)} values"
            self._refuse(tensor.name, got, f"its shape, and its data's, is {list(known.shape)}")
        return rows

    def _placed(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """Values where the endpoint's request has them; what may stand in candidates or beside
        them, and is one value, is all candidates'."""
        sizes = [len(column) for name, column in columns.items() if name in self._in_rows]
        candidates: list[dict[str, Any]] = [{} for _ in range(max(sizes, default=0))]
        asked: dict[str, Any] = {"candidates": candidates, "options": {"model": self.pair}}
        for name, column in columns.items():
            if name not in self._in_rows:
                asked[name] = column if self._inputs[name].shape == (-1,) else column[0]
            elif len(column) == len(candidates):
                for candidate, value in zip(candidates, column, strict=True):
                    candidate[name] = value
            elif len(column) == 1 and name in self._form.model_fields:
                asked[name] = column[0]
            else:
                rule = f"others have {len(candidates)}, and each has one value a candidate"
                self._refuse(name, f"{len(column)} values", rule)
        return asked

    def _refuse(self, what: str, got: object, rule: str) -> NoReturn:
        fix = f"see GET {OPEN_INFERENCE}/models/{self.name}"
        raise DataError(what=f"{what} of {self.name}", got=got, rule=rule, fix=fix)

    def response(self, body: InferenceRequest, answer: Answer) -> InferenceResponse:
        """An answer as tensors. `rank` is the place in a list, 0 first: scores don't say it where
        two models gave them."""
        ranks = {item.index: rank for rank, item in enumerate(answer.items)}
        order = [ranks[index] for index in range(len(answer.items))]
        items = [answer.items[rank] for rank in order]
        values: dict[str, list[Any]] = {
            "score": [item.score for item in items],
            "probability": [item.probability for item in items],
            "rank": order,
            "by": [item.by for item in items],
        }
        wanted = {output.name for output in body.outputs} or set(self._outputs)
        facts: dict[str, Scalar] = {
            "deferred": answer.deferred, "reason": answer.reason, "cached": answer.cached,
        }  # fmt: skip
        if answer.versions.large is not None:
            facts["large_version"] = answer.versions.large
        return InferenceResponse(
            model_name=self.name,
            model_version=answer.versions.small,
            id=body.id,
            parameters=facts,
            outputs=tuple(
                OutputTensor(
                    name=name, datatype=datatype, shape=(len(items),), data=tuple(values[name])
                )
                for name, datatype in self._outputs.items()
                if name in wanted
            ),
        )
