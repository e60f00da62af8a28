"""Pairs of a chunk of anchors with all references, and gradients of sums over them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dmlfast.reference import distances

# A squared distance below this part of the squared norms has lost digits in a matrix product.
_NEAR = 1e-3


class PairChunk(NamedTuple):
    """Pairs of a chunk of anchors with all references.

    Attributes:
        value: (C, M) float64, what selections compare.
        distance: (C, M) float64, the distance as it is returned.
        positive, negative: (C, M) bool; a pair at distance NaN is neither.
        finite: (C,) bool, whether the anchor is.
    """

    value: Tensor
    distance: Tensor
    positive: Tensor
    negative: Tensor
    finite: Tensor


def pair_chunk(
    x: Tensor,
    labels: Tensor,
    references: Tensor,
    reference_labels: Tensor,
    self_index: Tensor | None,
    metric: str,
) -> PairChunk:
    """The pairs of (C, d) anchors; other arguments as in `dmlfast.reference.contrast.triplet`."""
    value = distances.values(x[:, None], references[None], metric)
    distance = distances.distances(value, metric, x.dtype).double()
    same = labels[:, None] == reference_labels[None]
    candidate = ~value.isnan()
    if self_index is not None:
        position = torch.arange(references.shape[0], device=x.device)
        candidate = candidate & (position[None] != self_index[:, None])
    return PairChunk(value, distance, same & candidate, ~same & candidate, x.isfinite().all(1))


def weighted_gradients(
    weights: Tensor, value: Tensor, x: Tensor, y: Tensor, metric: str
) -> tuple[Tensor, Tensor]:
    """Gradients of sum(weights * distance) with respect to finite x (C, d) and y (M, d)."""
    squares_x, squares_y = x.square().sum(1), y.square().sum(1)
    if metric == "dot":
        factors = -weights
    elif metric == "cosine":
        norms = (squares_x[:, None] * squares_y[None]).sqrt()
        factors = torch.where((weights == 0) | (norms == 0), 0.0, -weights / norms)
    elif metric == "euclidean":
        factors = torch.where((weights == 0) | (value == 0), 0.0, -weights / value.sqrt())
    else:
        factors = -2 * weights
    apart = metric in ("euclidean", "sqeuclidean")
    to_x, to_y = _pull(factors, value, x, y, apart)
    if metric == "cosine":
        return _orthogonal(to_x, x, squares_x), _orthogonal(to_y, y, squares_y)
    return to_x, to_y


def _pull(
    factors: Tensor, value: Tensor, x: Tensor, y: Tensor, apart: bool
) -> tuple[Tensor, Tensor]:
    """Sums of factors * y over y and of factors * x over x; of y - x and x - y where apart."""
    finite = y.isfinite().all(1)
    rows = torch.where(finite[:, None], y, 0.0)
    special = ~finite[None].expand_as(factors)
    if apart:
        # The differences do not depend on the origin, but what cancels in products does.
        centre = rows.sum(0) / finite.sum().clamp(min=1)
        near_x, near_y = x - centre, torch.where(finite[:, None], y - centre, 0.0)
        scale = near_x.square().sum(1)[:, None] + near_y.square().sum(1)[None]
        special = special | (value < _NEAR * scale)
    else:
        near_x, near_y = x, rows
    special = special & (factors != 0)
    ordinary = torch.where(special, 0.0, factors)
    to_x, to_y = ordinary @ near_y, ordinary.T @ near_x
    if apart:
        to_x -= ordinary.sum(1)[:, None] * near_x
        to_y -= ordinary.sum(0)[:, None] * near_y
    if not bool(special.any()):
        return to_x, to_y
    # A dimension at a time: the differences of near-duplicates would cancel in a product, and
    # rows that are not finite would reach pairs without weight.
    rest = torch.where(special, factors, 0.0)
    for k in range(x.shape[1]):
        x_k, y_k = x[:, None, k], y[None, :, k]
        to_x[:, k] += torch.where(special, rest * (y_k - x_k if apart else y_k), 0.0).sum(1)
        to_y[:, k] += torch.where(special, rest * (x_k - y_k if apart else x_k), 0.0).sum(0)
    return to_x, to_y


def _orthogonal(sums: Tensor, rows: Tensor, squares: Tensor) -> Tensor:
    """Removes from each sum its part along the row, which the cosine does not depend on."""
    along = (sums * rows).sum(1) / torch.where(squares == 0, 1, squares)
    # A row without pairs may not be finite: it must stay 0.
    return torch.where((sums == 0).all(1, keepdim=True), 0.0, sums - along[:, None] * rows)
