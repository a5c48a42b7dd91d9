"""The sections of the serving graph's settings (`config.Settings`), each checked by itself."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from rectrain.config import Section
from rectrain.errors import ConfigError

__all__ = [
    "Batching",
    "Cache",
    "Count",
    "Deadlines",
    "Golden",
    "Http",
    "Limits",
    "ModelPair",
    "Replicas",
    "Seconds",
    "Security",
    "Sha256",
]

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def _in_order(section: Section, *pairs: tuple[str, str]) -> None:
    """Refuses a section whose first value of a pair exceeds the second."""
    for low, high in pairs:
        if getattr(section, low) > getattr(section, high):
            raise ConfigError(
                what=low,
                got=getattr(section, low),
                rule=f"must not exceed {high} ({getattr(section, high)})",
                fix=f"lower {low} or raise {high}",
            )


class Http(Section):
    """Where requests come in. Serve reads this once, when it starts on a cluster."""

    host: str = Field(
        default="127.0.0.1",
        description="address to listen on; 0.0.0.0 opens it to all who get here",
    )
    port: int = Field(default=8000, ge=1, le=65_535, description="TCP port")
    ssl_certfile: str | None = Field(
        default=None, description="PEM certificate: HTTPS instead of HTTP"
    )
    ssl_keyfile: str | None = Field(default=None, description="its key")

    @model_validator(mode="after")
    def _both_or_none(self) -> Http:
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise ConfigError(
                what="http.ssl_certfile and http.ssl_keyfile",
                got="one without the other",
                rule="TLS needs both",
                fix="give both, or neither",
            )
        return self

    @field_validator("host")
    @classmethod
    def _resolves(cls, host: str) -> str:
        try:
            socket.getaddrinfo(host, None)
        except (OSError, UnicodeError):
            raise ValueError("must be an address of this machine, or its name") from None
        return host

    def check_files(self) -> None:
        """Refuses a certificate that can't be used with its key on this machine.

        Raises:
            ConfigError: a file that is missing, is no PEM, or does not fit the other.
        """
        if self.ssl_certfile is None or self.ssl_keyfile is None:
            return
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
                self.ssl_certfile, self.ssl_keyfile, password=""
            )
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError(
                what="http.ssl_certfile and http.ssl_keyfile",
                got=f"{self.ssl_certfile} and {self.ssl_keyfile} ({error})",
                rule="must be a certificate in PEM and its key, without a password",
                fix="give the paths of both files on every node",
            ) from error

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


class ModelPair(Section):
    """A small model, and the large one that takes what the small one doubts."""

    small: str = Field(description="folder of the small model's package; its policy.json decides")
    large: str | None = Field(default=None, description="folder of the large model's package")
    small_backend: str = Field(
        default="auto",
        description="what runs the small encoder, in all replicas alike: torch, or a graph of the"
        " package; auto: the usually fastest of them",
    )
    large_backend: str = Field(default="auto", description="the same of the large one")
    small_sha256: Sha256 | None = Field(
        default=None,
        description="sha256 in the small package's manifest.json; a replica refuses another"
        " (default: of what is there when the graph is deployed)",
    )
    large_sha256: Sha256 | None = Field(default=None, description="the same of the large one")
    cost: str | None = Field(
        default=None, description="cost.json of jobs.cost: answers tell what they cost"
    )


class Replicas(Section):
    """Processes of one deployment. The number follows the load between the two limits."""

    min_replicas: Count = Field(default=1, description="processes that always run")
    max_replicas: Count = Field(default=1, description="processes at most")
    threads: Count = Field(default=1, description="threads of a process's computations")
    device: Literal["cpu", "cuda"] = Field(
        default="cpu", description="what it computes on; cuda: each process has a GPU of its own"
    )
    max_ongoing_requests: Count = Field(
        default=64, description="requests in a process at a time, and so in a batch, at most"
    )
    max_queued_requests: Count = Field(
        default=256,
        description="requests that wait at each caller; beyond, 503 or no deferral",
    )
    target_ongoing_requests: float = Field(
        default=2,
        gt=0,
        description="requests in a process that scaling aims at: one is computed, one waits; far"
        " more would scale down what is just enough, and up again; what waits for the large model"
        " counts at the ingress, too",
    )
    upscale_delay_s: Seconds = Field(
        default=10, description="load must last so long before a start"
    )
    downscale_delay_s: Seconds = Field(
        default=120, description="quiet must last so long before a stop"
    )

    @model_validator(mode="after")
    def _check(self) -> Replicas:
        _in_order(
            self,
            ("min_replicas", "max_replicas"),
            ("target_ongoing_requests", "max_ongoing_requests"),
        )
        return self


class Limits(Section):
    """What a request may be; beyond, it is refused with 413 or 422."""

    body_bytes: Count = Field(default=262_144, description="bytes of a body, inflated")
    body_s: Seconds = Field(default=10, description="seconds in which a whole body must have come")
    requests: Count = Field(default=64, description="requests in a batch")
    candidates: Count = Field(default=500, description="candidates of a request")
    text_chars: Count = Field(default=4_000, description="characters of a text")
    list_texts: Count = Field(
        default=200, description="texts of a list, as a history or an exclusion"
    )
    k: Count = Field(default=100, description="recommended items")
    choose_route: bool = Field(
        default=True,
        description="whether options.route may be small or large; what it sends to the large model"
        " is outside the policy's budget",
    )


class Deadlines(Section):
    """How long an answer may take. A client shortens it with the header X-Deadline-Ms."""

    default_ms: float = Field(default=5_000, gt=0, description="where the client says nothing")
    max_ms: float = Field(default=30_000, gt=0, description="the most that a client may ask for")
    large_ms: float = Field(
        default=20, ge=0, description="with less time left, the large model is not asked"
    )

    @model_validator(mode="after")
    def _check(self) -> Deadlines:
        _in_order(self, ("default_ms", "max_ms"), ("large_ms", "default_ms"))
        return self


class Batching(Section):
    """Requests that wait are scored together, as many as fit into a budget of tokens and time."""

    max_tokens: Count = Field(default=16_384, description="tokens scored in one go")
    max_ms: float = Field(
        default=100, gt=0, description="how long that may take, at the pace of the last ones"
    )
    max_queued_tokens: Count = Field(
        default=262_144, description="tokens that wait at most; beyond, 503"
    )

    @model_validator(mode="after")
    def _check(self) -> Batching:
        _in_order(self, ("max_tokens", "max_queued_tokens"))
        return self


class Cache(Section):
    """Whole answers, kept by model version. (Vectors of texts are kept by the models.)"""

    answers: int = Field(default=4_096, ge=0, description="answers kept in a process; 0 keeps none")
    ttl_s: Seconds = Field(default=60, description="for so long")
    texts: int = Field(
        default=16_384, ge=0, description="texts whose vectors a model keeps; 0 keeps none"
    )


class Golden(Section):
    """Requests with known answers: run before a process takes traffic, and again and again."""

    required: bool = Field(default=False, description="refuse a package that brings none")
    period_s: Seconds = Field(default=30, description="how often they are run again")
    health_check_s: Seconds = Field(
        default=2, description="how often Serve asks a process how it is"
    )
    tolerance: float = Field(
        default=1e-4,
        gt=0,
        lt=1,
        description="largest difference of a float32 score from the stored one, as its share above"
        " 1; of int8 more, see docs/serving.md",
    )

    @model_validator(mode="after")
    def _check(self) -> Golden:
        _in_order(self, ("health_check_s", "period_s"))
        return self


class Security(Section):
    """Who may ask."""

    token_hashes: tuple[str, ...] = Field(
        default=(),
        description="SHA-256 of each bearer token (`printf %s TOKEN | sha256sum`)",
    )

    @field_validator("token_hashes")
    @classmethod
    def _hex(cls, hashes: tuple[str, ...]) -> tuple[str, ...]:
        if any(len(one) != 64 or set(one) - set("0123456789abcdef") for one in hashes):
            raise ValueError("each must be 64 hexadecimal digits in lower case, never the token")
        return hashes
