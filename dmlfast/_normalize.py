"""Embeddings of unit length."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_rows(x: Tensor) -> Tensor:
    """Rows scaled to unit L2 norm; a zero row stays zero and has gradient 0.

    Args:
        x: (..., d) floating. Their squares may leave the range of the dtype.

    Returns:
        (..., d) in float64 for float64, else in float32: rounding unit vectors to 16 bits would
        move them, and squares leave the range of float16. NaN in a row that is not finite.
    """
    rows = x if x.dtype == torch.float64 else x.float()
    # A unit row does not depend on the scale, and so neither does its gradient.
    rows = rows / _scales(rows.detach())
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    zero = norm == 0
    return torch.where(zero, 0.0, rows / torch.where(zero, 1.0, norm))


def unit_rows_gradient(grad: Tensor, rows: Tensor, units: Tensor) -> Tensor:
    """The gradient of `unit_rows` where autograd does not record, as within an operator.

    Args:
        grad: (..., d) gradient by the units.
        rows: (..., d) float32 or float64.
        units: (..., d) `unit_rows(rows)`.

    Returns:
        (..., d), 0 for a zero row.
    """
    scales = _scales(rows)
    norm = torch.linalg.vector_norm(rows / scales, dim=-1, keepdim=True)
    zero = norm == 0
    across = grad - (grad * units).sum(-1, keepdim=True) * units
    return torch.where(zero, 0.0, across / torch.where(zero, 1.0, norm) / scales)


def _scales(rows: Tensor) -> Tensor:
    """(..., 1) what a row is divided by before it is squared: 1 where its squares are in range."""
    if rows.shape[-1] == 0:
        return rows.new_ones(*rows.shape[:-1], 1)
    greatest = rows.abs().amax(-1, keepdim=True)
    limits = torch.finfo(rows.dtype)
    safe = (greatest >= limits.tiny**0.25) & (greatest <= limits.max**0.25)
    return torch.where(safe | (greatest == 0), 1.0, greatest)
