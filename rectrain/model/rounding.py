"""Matrices in int8, a scale for each row."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["int8_rows", "rounded"]


def int8_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Row r as its integers times scale[r]; the largest of them is ±127.

    Args:
        matrix: float [R, ...].

    Returns:
        int8 in the matrix's shape, and the scales, float [R, 1, ...].
    """
    dimensions = tuple(range(1, matrix.ndim))
    scale = matrix.abs().amax(dimensions, keepdim=True).clamp_min(1e-12) / 127
    return (matrix / scale).round().to(torch.int8), scale


def rounded(matrix: Tensor) -> Tensor:
    """The matrix that its int8 rows stand for; at most half a scale away."""
    integers, scale = int8_rows(matrix)
    return integers.to(scale.dtype) * scale
