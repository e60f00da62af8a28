"""All distances between two sets of rows, and their moments, in plain torch, by chunks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dmlfast.reference import distances
from dmlfast.reference.pairs import weighted_gradients


def distance(x: Tensor, references: Tensor | None, *, metric: str) -> Tensor:
    """All distances of x (N, d) to the references (M, d), or to x itself.

    Returns:
        (N, M) float64 for float64 rows, else float32; NaN for a row that is not finite.
    """
    others = x if references is None else references
    result = x.new_empty((x.shape[0], others.shape[0]), dtype=distances.distance_dtype(x))
    for part in distances.row_parts(x.shape[0], others.shape[0]):
        value = _values(x[part], others, metric)
        result[part] = distances.distances(value, metric, x.dtype)
    return result


def distance_backward(
    grad: Tensor, distance: Tensor, x: Tensor, references: Tensor | None, *, metric: str
) -> tuple[Tensor, Tensor]:
    """Gradients of `distance` for an upstream gradient (N, M).

    Returns:
        Those by x and by the references; within a batch that by x is the whole, and the other
        is (0, d). No temporary of (N, M).
    """
    others = x if references is None else references
    sums = _Gradients(x, references)
    for part in distances.row_parts(x.shape[0], others.shape[0]):
        value = distance[part].double()
        if metric == "euclidean":
            value = value.square()
        sums.add(part, grad[part].double(), value, metric)
    return sums.rounded()


def moments(
    x: Tensor, references: Tensor | None, self_index: Tensor | None, centre: Tensor, *, metric: str
) -> tuple[Tensor, Tensor]:
    """Per anchor the sums of D - centre and of its square over the references.

    Args:
        x: (N, d) anchors.
        references: (M, d), or None for the batch itself, without each anchor's own row.
        self_index: (N,) int64 references left out, -1 for none; or None.
        centre: (1,) float64.
        metric: see `dmlfast.functional`.

    Returns:
        (N,) float64 each, NaN where a pair has a row that is not finite. O((N + M)·d) memory.
    """
    others = x if references is None else references
    first = x.new_empty(x.shape[0], dtype=torch.float64)
    second = torch.empty_like(first)
    for part in distances.row_parts(x.shape[0], others.shape[0]):
        value = _values(x[part], others, metric)
        offset = distances.distances(value, metric, torch.float64) - centre
        offset = torch.where(_is_self(part, x, references, self_index), 0.0, offset)
        first[part], second[part] = offset.sum(1), offset.square().sum(1)
    return first, second


def moments_backward(
    grad_first: Tensor,
    grad_second: Tensor,
    x: Tensor,
    references: Tensor | None,
    self_index: Tensor | None,
    centre: Tensor,
    *,
    metric: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of `moments` for upstream gradients (N,), recomputing the pairs.

    Returns:
        As `distance_backward`.
    """
    others = x if references is None else references
    sums = _Gradients(x, references)
    for part in distances.row_parts(x.shape[0], others.shape[0]):
        value = _values(x[part], others, metric)
        offset = distances.distances(value, metric, torch.float64) - centre
        to_first, to_second = grad_first[part, None], grad_second[part, None]
        # 0 * NaN: nothing comes from an anchor whose upstream gradients are 0.
        unused = ((to_first == 0) & (to_second == 0)) | _is_self(part, x, references, self_index)
        weights = torch.where(unused, 0.0, to_first + 2 * to_second * offset)
        sums.add(part, weights, value, metric)
    return sums.rounded()


def _values(x: Tensor, others: Tensor, metric: str) -> Tensor:
    """(C, M) float64 values; NaN for a row that is not finite, under "dot" too."""
    value = distances.values(x[:, None], others[None], metric)
    finite = x.isfinite().all(1)[:, None] & others.isfinite().all(1)[None]
    return torch.where(finite, value, math.nan)


def _is_self(
    part: slice, x: Tensor, references: Tensor | None, self_index: Tensor | None
) -> Tensor:
    """Whether a pair is left out, broadcastable to (C, M)."""
    if references is None:
        self_index = torch.arange(x.shape[0], device=x.device)
    if self_index is None:
        return torch.zeros((1, 1), dtype=torch.bool, device=x.device)
    columns = (x if references is None else references).shape[0]
    return torch.arange(columns, device=x.device)[None] == self_index[part, None]


class _Gradients:
    """float64 sums of the gradients of anchors and references.

    Args:
        x: (N, d) anchors.
        references: (M, d), or None for the batch itself.
    """

    def __init__(self, x: Tensor, references: Tensor | None) -> None:
        others = x if references is None else references
        self._x = x
        self._references = references
        self._finite = others.isfinite().all(1)
        self._y = torch.where(self._finite[:, None], others.double(), 0.0)
        self._to_x = torch.zeros_like(x, dtype=torch.float64)
        self._to_y = torch.zeros_like(others, dtype=torch.float64)

    def add(self, part: slice, weights: Tensor, value: Tensor, metric: str) -> None:
        """Adds those of sum(weights * distance) over a chunk of anchors and all references.

        A pair with a weight and a row that is not finite gives NaN to both of its rows.
        """
        finite = self._x[part].isfinite().all(1)
        lost = (weights != 0) & ~(finite[:, None] & self._finite[None])
        rows = torch.where(finite[:, None], self._x[part].double(), 0.0)
        kept = torch.where(lost, 0.0, weights)
        to_x, to_y = weighted_gradients(kept, value, rows, self._y, metric)
        self._to_x[part] += torch.where(lost.any(1)[:, None], math.nan, to_x)
        self._to_y += torch.where(lost.any(0)[:, None], math.nan, to_y)

    def rounded(self) -> tuple[Tensor, Tensor]:
        """The gradients in the dtype of the rows; within a batch, both roles in the first."""
        dtype = self._x.dtype
        if self._references is None:
            return (self._to_x + self._to_y).to(dtype), self._x.new_empty((0, self._x.shape[1]))
        return self._to_x.to(dtype), self._to_y.to(dtype)
