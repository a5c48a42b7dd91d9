"""What a predictor needs of a backend: vectors of packed texts, and nothing else of a model."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from rectrain.data.batch import PackedTexts

__all__ = ["TextEncoder"]


class TextEncoder(Protocol):
    """An encoder opened in some engine. The heads stay in torch, since they are small.

    Attributes:
        name: of the engine and precision: torch, openvino, openvino-int8, onnx, onnx-int8.
        width: D, the size of a vector.
    """

    @property
    def name(self) -> str: ...

    @property
    def width(self) -> int: ...

    def encode(self, texts: PackedTexts) -> Tensor:
        """The mean over each text's tokens of the last hidden state.

        A text's vector does not depend on the texts beside it, up to the rounding of float32.

        Args:
            texts: U texts on the CPU, each once, sorted by length; U may be 0.

        Returns:
            float32 [U, D] on the CPU, in the texts' order.
        """
        ...
