"""The encoder with mean pooling as one module that OpenVINO and ONNX take in as it is.

Shapes: B texts, L tokens with padding, D hidden size, H heads, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertModel

from rectrain.model.rounding import int8_rows

__all__ = ["EncoderGraph", "name_in_graph"]

# Added to the score of a padding token: exp of it is 0 in float32 beside any real token's.
_MASKED = -1e4
# Padding may reach beyond the last position; what stands there is never read.
_SPARE_POSITIONS = 256


def name_in_graph(layer: str) -> str:
    """What an encoder's linear layer, such as "encoder.layer.0.output.dense", is called there."""
    return layer.replace("encoder.layer.", "layers.", 1)


class EncoderGraph(nn.Module):
    """BERT's forward over padded texts, then the mean over each text's real tokens.

    Args:
        bert: the encoder in evaluation mode; its modules are used, not copied.
        int8_table: hold the word vectors as int8, a scale for each row.
    """

    positions: Tensor

    def __init__(self, bert: BertModel, *, int8_table: bool = False) -> None:
        super().__init__()
        embeddings: Any = bert.embeddings
        self.heads = int(bert.config.num_attention_heads)
        self.width = int(bert.config.hidden_size)
        self.layers: Any = bert.encoder.layer
        self.norm: nn.LayerNorm = embeddings.LayerNorm
        # Every token is of type 0, so that type's vector joins the positions'.
        places = embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
        spare = places[-1:].expand(_SPARE_POSITIONS, -1)
        self.register_buffer("positions", torch.cat([places, spare]).detach())
        words = embeddings.word_embeddings.weight.detach()
        self.words = _Int8Table(words) if int8_table else _Table(words)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Mean-pooled vectors.

        Args:
            input_ids: int64 [B, L]; any valid id where there is padding.
            attention_mask: int64 [B, L], 1 for real tokens, at least one a text.

        Returns:
            float32 [B, D].
        """
        hidden: Tensor = self.norm(self.words(input_ids) + self.positions[: input_ids.shape[1]])
        real = attention_mask.to(hidden.dtype)
        if torch.onnx.is_in_onnx_export():
            attend, mask = self._attend_in_onnx, attention_mask.to(torch.int32)
        else:
            attend, mask = self._attend, ((1 - real) * _MASKED)[:, None, None, :]
        for layer in self.layers:
            attention: Any = layer.attention
            module = attention.self
            context = attend(module.query(hidden), module.key(hidden), module.value(hidden), mask)
            hidden = attention.output(context, hidden)
            hidden = layer.output(layer.intermediate(hidden), hidden)
        return (hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Attention over the heads: [B, L, D] -> [B, L, D]."""
        q, k, v = (
            torch.unflatten(part, -1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v)
        )
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)

    def _attend_in_onnx(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        no_bias = torch.zeros(3 * self.width)  # q, k and v have theirs already
        attended: Tensor = _OnnxAttention.apply(q, k, v, no_bias, mask, self.heads)  # type: ignore[no-untyped-call]
        return attended


class _OnnxAttention(torch.autograd.Function):
    """Attention that is exported as ONNX Runtime's own fused operation.

    Its own way to mask is to add -10000 to the score, as above.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor, heads: int
    ) -> Tensor:
        return torch.empty_like(q)  # only its shape is traced

    @staticmethod
    def symbolic(g: Any, q: Any, k: Any, v: Any, bias: Any, mask: Any, heads: int) -> Any:
        attended = g.op("com.microsoft::MultiHeadAttention", q, k, v, bias, mask, num_heads_i=heads)
        return attended.setType(q.type())


class _Table(nn.Module):
    """Rows of a table in float32."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows)

    def forward(self, index: Tensor) -> Tensor:
        return F.embedding(index, self.rows)  # type: ignore[arg-type]


class _Int8Table(nn.Module):
    """Rows of a table in int8, with a scale for each."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        integers, scale = int8_rows(rows)
        self.register_buffer("rows", integers)
        self.register_buffer("scale", scale)

    def forward(self, index: Tensor) -> Tensor:
        rows, scale = F.embedding(index, self.rows), F.embedding(index, self.scale)  # type: ignore[arg-type]
        return rows.to(scale.dtype) * scale
