"""What the served graph takes beyond its models' own calls.

    core seconds of a load = idle_share · cores · duration + Σ over requests of
        (the model's call + request_ms / 1000 + candidates · candidate_ms / 1000)

The settings' defaults are `python -m benchmarks.cost --only serving` of this repository
(C1/serving/overhead/…; the machine is in benchmarks/README.md). Measure yours by the same command.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rectrain.config import Section

__all__ = ["Overhead"]

AtLeastZero = Annotated[float, Field(ge=0)]


class Overhead(Section):
    """What HTTP, Ray and the server take; python -m benchmarks.cost --only serving measures it."""

    request_ms: AtLeastZero = Field(
        default=16.5,
        description="of a core, of a request: HTTP, Serve's proxy, checks, the way to the model",
    )
    candidate_ms: AtLeastZero = Field(
        default=0.0, description="of a core, of each candidate: read, checked, written"
    )
    idle_share: float = Field(
        default=0.065, ge=0, lt=1,
        description="share of each core that Ray's processes keep busy, whatever is asked",
    )  # fmt: skip

    def seconds(self, candidates: float) -> float:
        """Of a core, for a request with so many."""
        return (self.request_ms + candidates * self.candidate_ms) / 1000
