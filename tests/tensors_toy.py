"""Requests of /v1 as the tensors of the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def tensors(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The inputs that say the same; the candidates have all the same fields.

    Args:
        body: of an endpoint that scores candidates.
    """
    rows = body["candidates"]
    beside = {name: value for name, value in body.items() if name not in ("candidates", "options")}
    columns = {name: one if isinstance(one, list) else [one] for name, one in beside.items()}
    columns |= {name: [row[name] for row in rows] for name in rows[0]}
    return [tensor(name, data) for name, data in columns.items()]


def tensor(name: str, data: list[Any], datatype: str | None = None) -> dict[str, Any]:
    """One input, of the type and the shape that its data have."""
    values = np.array(data)
    kind = datatype or ("BYTES" if values.dtype.kind == "U" else "FP64")
    return {"name": name, "shape": list(values.shape), "datatype": kind, "data": data}
