"""Embeddings of unit length."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_rows(x: Tensor) -> Tensor:
    """Rows scaled to unit L2 norm; a zero row stays zero and has gradient 0.

    Args:
        x: (N, d) floating.

    Returns:
        (N, d) in float64 for float64, else in float32: rounding unit vectors to 16 bits would
        move them, and squares leave the range of float16.
    """
    rows = x if x.dtype == torch.float64 else x.float()
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    zero = norm == 0
    return torch.where(zero, 0.0, rows / torch.where(zero, 1.0, norm))
