"""Sums over the positives and over the negatives of each anchor, in plain torch, by chunks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dmlfast.reference import distances
from dmlfast.reference.pairs import PairChunk, pair_chunk, weighted_gradients


class Side(NamedTuple):
    """How the distances of one kind of partners are summed.

    Attributes:
        form: "none", "logsumexp", "hinge", "sum" or "softplus".
        scale: factor of the distance under "logsumexp" and "softplus".
        bound: (N,) floating, or None.
        sign: 1 for positives, -1 for negatives.
    """

    form: str
    scale: float
    bound: Tensor | None
    sign: int

    def of(self, part: slice) -> Side:
        """The side of some of the anchors."""
        return self._replace(bound=None if self.bound is None else self.bound[part])


class SideRows(NamedTuple):
    """One side of a chunk of anchors.

    Attributes:
        result: (C,) float64.
        count: (C,) int64.
        weights: (C, M) float64 derivative of the result by each pair's distance.
        to_bound: (C,) float64 derivative of the result by the bound.
        lost: (C,) bool, whether the result is NaN: an anchor that is not finite, or a bound of NaN.
    """

    result: Tensor
    count: Tensor  # type: ignore[assignment]  # shadows tuple.count on purpose
    weights: Tensor
    to_bound: Tensor
    lost: Tensor


def side_rows(chunk: PairChunk, partners: Tensor, side: Side) -> SideRows:
    """The sum of one side over (C, M) bool partners."""
    zeros = torch.zeros_like(chunk.distance)
    none = zeros.new_zeros(zeros.shape[0])
    if side.form == "none":
        count = none.to(torch.int64)
        return SideRows(none, count, zeros, none, torch.zeros_like(chunk.finite))
    bound = none if side.bound is None else side.bound.double()
    rows = _FORMS[side.form](chunk.distance, partners, side, bound[:, None])
    result, count, weights, to_bound = rows
    lost = ~chunk.finite | bound.isnan()
    return SideRows(
        torch.where(lost, math.nan, result),
        torch.where(lost, 1, count),
        torch.where(lost[:, None], 0.0, weights),
        torch.where(lost, math.nan, to_bound),
        lost,
    )


_Rows = tuple[Tensor, Tensor, Tensor, Tensor]


def _logsumexp(distance: Tensor, partners: Tensor, side: Side, bound: Tensor) -> _Rows:
    if side.bound is not None:
        partners = partners & (side.sign * distance > side.sign * bound)
    scaled = torch.where(partners, side.scale * distance, -math.inf)
    result = scaled.logsumexp(1)
    softmax = torch.where(partners, (scaled - result[:, None]).exp(), 0.0)
    return result, partners.sum(1), side.scale * softmax, torch.zeros_like(result)


def _hinge(distance: Tensor, partners: Tensor, side: Side, bound: Tensor) -> _Rows:
    term = side.sign * (distance - bound)
    active = partners & (term > 0)
    count = active.sum(1)
    result = torch.where(active, term, 0.0).sum(1)
    return result, count, side.sign * active.double(), -side.sign * count.double()


def _sum(distance: Tensor, partners: Tensor, *_: object) -> _Rows:
    result = torch.where(partners, distance, 0.0).sum(1)
    return result, partners.sum(1), partners.double(), torch.zeros_like(result)


def _softplus(distance: Tensor, partners: Tensor, side: Side, bound: Tensor) -> _Rows:
    term = side.scale * distance + bound
    each = torch.where(partners, torch.logaddexp(term, torch.zeros_like(term)), 0.0)
    slope = torch.where(partners, term.sigmoid(), 0.0)
    return each.sum(1), partners.sum(1), side.scale * slope, slope.sum(1)


_FORMS: dict[str, Callable[[Tensor, Tensor, Side, Tensor], _Rows]] = {
    "logsumexp": _logsumexp,
    "hinge": _hinge,
    "sum": _sum,
    "softplus": _softplus,
}


def _chunk(
    x: Tensor,
    labels: Tensor,
    references: Tensor,
    reference_labels: Tensor,
    self_index: Tensor | None,
    metric: str,
) -> PairChunk:
    """A chunk whose positives and negatives are finite."""
    chunk = pair_chunk(x, labels, references, reference_labels, self_index, metric)
    finite = references.isfinite().all(1)[None]
    return chunk._replace(positive=chunk.positive & finite, negative=chunk.negative & finite)


def sums(
    x: Tensor,
    labels: Tensor,
    references: Tensor | None,
    reference_labels: Tensor,
    self_index: Tensor | None,
    *,
    metric: str,
    positive: Side,
    negative: Side,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sums of both sides for each anchor.

    Args:
        x: (N, d) anchors.
        labels: (N,) int64.
        references: (M, d), or None for the batch itself, without each anchor's own row.
        reference_labels: (M,) int64; `labels` within a batch.
        self_index: (N,) int64 references never paired, -1 for none; or None.
        metric: see `dmlfast.functional`.
        positive: how the references of the anchor's class are summed.
        negative: how all others are. References that are not finite are nobody's partners.

    Returns:
        positive and negative sums (N,) in the dtype of distances, and the numbers of their terms
        (N,) int64. O((N + M)·d) memory.
    """
    if references is None:
        references, self_index = x, torch.arange(x.shape[0], device=x.device)
    results = [x.new_empty(x.shape[0], dtype=torch.float64) for _ in range(2)]
    counts = [x.new_empty(x.shape[0], dtype=torch.int64) for _ in range(2)]
    for part in distances.row_parts(x.shape[0], references.shape[0]):
        own = None if self_index is None else self_index[part]
        chunk = _chunk(x[part], labels[part], references, reference_labels, own, metric)
        for i, (partners, side) in enumerate(
            ((chunk.positive, positive), (chunk.negative, negative))
        ):
            results[i][part], counts[i][part], *_ = side_rows(chunk, partners, side.of(part))
    dtype = distances.distance_dtype(x)
    return results[0].to(dtype), results[1].to(dtype), counts[0], counts[1]


def sums_backward(
    grad_positive: Tensor,
    grad_negative: Tensor,
    x: Tensor,
    labels: Tensor,
    references: Tensor | None,
    reference_labels: Tensor,
    self_index: Tensor | None,
    *,
    metric: str,
    positive: Side,
    negative: Side,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `sums` for upstream gradients (N,), recomputing the pairs.

    Returns:
        Those by x, by the references ((0, d) within a batch, where that by x is the whole), and
        by both bounds, (N,) each, 0 where there is no bound.
    """
    others = x if references is None else references
    if references is None:
        self_index = torch.arange(x.shape[0], device=x.device)
    grad_x = torch.zeros_like(x, dtype=torch.float64)
    grad_others = torch.zeros_like(others, dtype=torch.float64)
    to_bounds = (torch.zeros_like(grad_positive), torch.zeros_like(grad_positive))
    y = others.double()
    for part in distances.row_parts(x.shape[0], others.shape[0]):
        own = None if self_index is None else self_index[part]
        chunk = _chunk(x[part], labels[part], others, reference_labels, own, metric)
        weights = torch.zeros_like(chunk.distance)
        lost = torch.zeros_like(chunk.finite)
        for i, (partners, side, grad) in enumerate(
            (
                (chunk.positive, positive, grad_positive[part].double()),
                (chunk.negative, negative, grad_negative[part].double()),
            )
        ):
            one = side_rows(chunk, partners, side.of(part))
            # 0 * NaN: neither a pair that is no term nor an anchor that nobody asks for counts.
            unused = (one.weights == 0) | (grad == 0)[:, None]
            weights += torch.where(unused, 0.0, one.weights * grad[:, None])
            lost |= one.lost & (grad != 0)
            if side.bound is not None:
                to_bounds[i][part] = torch.where(one.to_bound == 0, 0.0, one.to_bound * grad)
        a = torch.where(chunk.finite[:, None], x[part].double(), 0.0)
        to_a, to_y = weighted_gradients(weights, chunk.value, a, y, metric)
        grad_x[part] += torch.where(lost[:, None], math.nan, to_a)
        grad_others += to_y
    if references is None:
        return (grad_x + grad_others).to(x.dtype), x.new_empty((0, x.shape[1])), *to_bounds
    return grad_x.to(x.dtype), grad_others.to(others.dtype), *to_bounds
