"""A row's numeric, categorical and vector features as one vector, with a mask for what is missing.

Shapes: B rows, Fn numeric and Fc categorical features, K bins, V the size of a vector feature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FeatureLayer", "piecewise_linear"]

_EMBEDDING_SIZE = 16
_VECTOR_WIDTH = 64


def piecewise_linear(values: Tensor, *, left: Tensor, width: Tensor) -> Tensor:
    """Piecewise-linear encoding: share of each quantile bin that lies below the value.

    e_t(x) = clamp((x − b_{t−1}) / (b_t − b_{t−1}), 0, 1); missing values give zeros and a mask
    of 1 (Gorishniy et al. 2022, "On Embeddings for Numerical Features in Tabular Deep Learning",
    equation 1; unlike there the outer bins are clamped too, so that outliers stay bounded).

    Args:
        values: float32 [B, Fn], NaN where missing.
        left: float32 [Fn, K], b_{t−1}.
        width: float32 [Fn, K], b_t − b_{t−1}; infinite where a feature has fewer bins.

    Returns:
        Float32 [B, Fn · (K + 1)]: of each feature its bins, then its mask.
    """
    missing = values.isnan()
    shares = ((values.nan_to_num()[..., None] - left) / width).clamp(0, 1)
    shares = shares.masked_fill(missing[..., None], 0.0)
    return torch.cat([shares, missing[..., None].to(shares.dtype)], dim=-1).flatten(1)


class FeatureLayer(nn.Module):
    """Encodes a task's features; bins for numbers, embeddings for categories, masks for gaps.

    Args:
        bin_edges: of each numeric feature its bin edges, strictly ascending.
        vocabulary_sizes: of each categorical feature its codes; code 0 means missing.
        vector_sizes: vector feature -> V.
        width: width of the result.
    """

    def __init__(
        self,
        *,
        bin_edges: Sequence[Sequence[float]],
        vocabulary_sizes: Sequence[int],
        vector_sizes: Mapping[str, int],
        width: int,
    ) -> None:
        super().__init__()
        # Plain tensors, not buffers: casting the module to bf16 must not move the bins.
        self._left, self._width = _bins(bin_edges)
        starts = torch.tensor([0, *vocabulary_sizes], dtype=torch.int64).cumsum(0)
        self._starts = starts[:-1]
        inputs = self._left.shape[0] * (self._left.shape[1] + 1)
        if vocabulary_sizes:
            self.embedding = nn.Embedding(int(starts[-1]), _EMBEDDING_SIZE)
            nn.init.normal_(self.embedding.weight, std=0.3)
            inputs += len(vocabulary_sizes) * _EMBEDDING_SIZE
        self.vectors = nn.ModuleDict(
            {name: nn.Linear(size, _VECTOR_WIDTH) for name, size in vector_sizes.items()}
        )
        inputs += len(vector_sizes) * (_VECTOR_WIDTH + 1)
        #: Width of the result: 0 for a task without features.
        self.width = width if inputs else 0
        if inputs:
            self.out = nn.Linear(inputs, width)
            self.norm = nn.LayerNorm(width)

    def forward(
        self,
        numeric: Tensor,
        categorical: Tensor,
        vectors: Mapping[str, Tensor],
        *,
        dtype: torch.dtype,
    ) -> Tensor:
        """Encodes rows.

        Args:
            numeric: float32 [B, Fn], NaN where missing.
            categorical: int64 [B, Fc], codes.
            vectors: name -> float32 [B, V], a row of NaN where missing.
            dtype: of the result.

        Returns:
            [B, width].
        """
        if not self.width:
            return numeric.new_zeros(numeric.shape[0], 0, dtype=dtype)
        device = numeric.device
        left, width = self._left.to(device), self._width.to(device)
        parts = [piecewise_linear(numeric, left=left, width=width).to(dtype)]
        if self._starts.numel():
            parts.append(self.embedding(categorical + self._starts.to(device)).flatten(1))
        for name, project in self.vectors.items():
            values = vectors[name]
            missing = values.isnan().any(1, keepdim=True).to(dtype)
            values = values.nan_to_num()
            if values.shape[1] > 1:  # a single value less its mean is always 0
                values = F.layer_norm(values, values.shape[1:])
            parts += [project(values.to(dtype)) * (1 - missing), missing]
        return self.norm(F.gelu(self.out(torch.cat(parts, dim=1))))  # type: ignore[no-any-return]


def _bins(bin_edges: Sequence[Sequence[float]]) -> tuple[Tensor, Tensor]:
    """Left edges and widths, both float32 [Fn, K], filled up with bins that give 0."""
    most = max((len(edges) - 1 for edges in bin_edges), default=0)
    left = torch.zeros(len(bin_edges), max(most, 0))
    width = torch.full_like(left, torch.inf)
    for row, edges in enumerate(bin_edges):
        values = torch.tensor(list(edges), dtype=torch.float32)
        left[row, : len(edges) - 1] = values[:-1]
        width[row, : len(edges) - 1] = values.diff()
    return left, width
