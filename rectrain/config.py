"""Load a configuration file plus dotted overrides into a typed, frozen object."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["Section"]


class Section(BaseModel):
    """Base of every configuration section: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")
