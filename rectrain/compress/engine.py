"""What writing a graph asks of an engine; `openvino` and `onnx` beside it answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from transformers import BertModel

from rectrain.inference.text_encoder import TextEncoder

__all__ = ["EngineTools"]


class _Write(Protocol):
    def __call__(self, bert: BertModel, path: Path) -> Path: ...


class _Quantize(Protocol):
    def __call__(
        self,
        bert: BertModel,
        path: Path,
        *,
        texts: Sequence[Sequence[int]],
        float_layers: Sequence[str],
    ) -> Path: ...


class _Open(Protocol):
    def __call__(self, graph: Path, *, threads: int) -> TextEncoder: ...


class EngineTools(NamedTuple):
    """An engine.

    Attributes:
        suffix: of the file to open.
        write: writes the graph in fp32.
        quantize: writes it in int8, calibrated on `texts`, without the linear layers named (as
            `sensitivity.linear_layers` names them).
        open: the graph as a backend.
    """

    suffix: str
    write: _Write
    quantize: _Quantize
    open: _Open
