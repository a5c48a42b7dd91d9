"""The encoder in torch: the packed forward of training, which pads nothing."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import BertModel

from rectrain.data.batch import PackedTexts, split_texts
from rectrain.inference.text_encoder import TextEncoder
from rectrain.model.encoder import encode

__all__ = ["open_torch"]

_TOKENS_PER_FORWARD = 2048


def open_torch(bert: BertModel, *, threads: int | None = None, device: str = "cpu") -> TextEncoder:
    """The encoder as a backend.

    Args:
        bert: the encoder; moved to `device` and set to evaluation mode.
        threads: of torch in this whole process, which knows no others; None leaves them alone.
        device: "cpu" or "cuda".
    """
    if threads is not None:
        torch.set_num_threads(threads)
    bert.train(False).to(device)
    return _Torch(bert, device=device)


class _Torch:
    name = "torch"

    def __init__(self, bert: BertModel, *, device: str) -> None:
        self._bert = bert
        self._device = device
        self.width = int(bert.config.hidden_size)

    def encode(self, texts: PackedTexts) -> Tensor:
        """See `TextEncoder.encode`."""
        parts = []
        with torch.inference_mode():
            for part in split_texts(texts, _TOKENS_PER_FORWARD):
                moved = PackedTexts(part.input_ids.to(self._device), part.lengths.to(self._device))
                parts.append(encode(self._bert, moved).float().cpu())
        return torch.cat(parts) if parts else torch.empty(0, self.width)
