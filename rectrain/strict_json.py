"""JSON that any program reads: it has no word for a number that is none."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["finite", "number", "strict_json"]


def strict_json(value: Any) -> str:
    """A value as text, its last line ended; null in the place of NaN and infinity.

    Args:
        value: JSON-serialisable but for such numbers.
    """
    return json.dumps(finite(value), indent=1, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """The same with None in the place of NaN and infinity, at any depth."""
    if isinstance(value, Mapping):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number(value: float | None) -> float:
    """A number that was read; NaN where null stands."""
    return math.nan if value is None else value
