"""Row losses over all pairs, in plain torch, a chunk of anchors at a time."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dmlfast.reference import distances
from dmlfast.reference.pairs import PairChunk, pair_chunk, weighted_gradients


class TripletRows(NamedTuple):
    """Sums over the triplets of each anchor of a chunk.

    Attributes:
        loss: (C,) float64 sum of the active triplets' losses.
        active: (C,) int64 number of active triplets.
        weights: (C, M) float64 derivative of the loss by each pair's distance.
    """

    loss: Tensor
    active: Tensor
    weights: Tensor


def _one_positive(chunk: PairChunk, positives: str) -> Tensor:
    """The mask of positives, reduced to the nearest or farthest; equal values: the lowest index."""
    if positives == "all" or chunk.value.shape[1] == 0:
        return chunk.positive
    key = chunk.value if positives == "nearest" else -chunk.value
    key = torch.where(chunk.positive, key, math.inf)
    ties = chunk.positive & (key == key.amin(1, keepdim=True))
    return ties & (ties.cumsum(1) == 1)


def triplet_rows(chunk: PairChunk, positives: str, negatives: str, margin: float) -> TripletRows:
    """Triplets of a chunk: each positive with all negatives, the hardest, or the semi-hard one."""
    positive = _one_positive(chunk, positives)
    # A stable sort keeps the lowest index first among equal values.
    order = torch.where(chunk.negative, chunk.value, math.inf).argsort(dim=1, stable=True)
    is_negative = chunk.negative.gather(1, order)
    # Negatives at +inf and the rest both sort last: what is no negative moves behind them.
    order = order.gather(1, (~is_negative).to(torch.int8).argsort(dim=1, stable=True))
    count = chunk.negative.sum(1, keepdim=True)
    sorted_distance = chunk.distance.gather(1, order)
    beyond_end = torch.arange(order.shape[1], device=order.device)[None] >= count
    sorted_distance = torch.where(beyond_end, math.inf, sorted_distance)
    bound = chunk.distance + margin
    if negatives == "all":
        rows = _all_negatives(positive, bound, sorted_distance, count)
    else:
        rows = _one_negative(chunk, positive, bound, sorted_distance, count, negatives)
    loss, active, to_positive, to_sorted = rows
    weights = torch.zeros_like(bound).scatter_(1, order, -to_sorted) + to_positive
    loss = torch.where(chunk.finite, loss, math.nan)
    active = torch.where(chunk.finite, active, 1)
    return TripletRows(loss, active, torch.where(chunk.finite[:, None], weights, 0.0))


def _all_negatives(
    positive: Tensor, bound: Tensor, sorted_distance: Tensor, count: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For a positive the active negatives are those before its bound: a prefix of the sorted."""
    prefix = torch.searchsorted(sorted_distance, bound.contiguous(), right=False)
    prefix = torch.where(positive, torch.minimum(prefix, count), 0)
    finite = torch.where(sorted_distance == math.inf, 0.0, sorted_distance)
    sums = torch.cat([finite.new_zeros(finite.shape[0], 1), finite.cumsum(1)], 1)
    # 0 * inf: a positive at distance +inf without a negative before it has no triplet.
    loss = torch.where(prefix > 0, prefix * bound - sums.gather(1, prefix), 0.0).sum(1)
    ends = torch.zeros_like(sums).scatter_add_(1, prefix, positive.double())
    to_sorted = positive.sum(1, keepdim=True) - ends.cumsum(1)[:, :-1]
    return loss, prefix.sum(1), prefix.double(), to_sorted


def _one_negative(
    chunk: PairChunk,
    positive: Tensor,
    bound: Tensor,
    sorted_distance: Tensor,
    count: Tensor,
    negatives: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For a positive the first negative, or the first whose distance is greater than its own."""
    if negatives == "hardest":
        rank = torch.zeros_like(bound, dtype=torch.int64)
    else:
        rank = torch.searchsorted(sorted_distance, chunk.distance.contiguous(), right=True)
    exists = positive & (rank < count)
    rank = torch.where(exists, rank, 0)
    hinge = bound - sorted_distance.gather(1, rank)
    active = exists & ~(hinge <= 0)
    loss = torch.where(active, hinge, 0.0).sum(1)
    to_sorted = torch.zeros_like(bound).scatter_add_(1, rank, active.double())
    return loss, active.sum(1), active.double(), to_sorted


def triplet(
    x: Tensor,
    labels: Tensor,
    references: Tensor,
    reference_labels: Tensor,
    self_index: Tensor | None,
    *,
    metric: str,
    positives: str,
    negatives: str,
    margin: float,
) -> tuple[Tensor, Tensor]:
    """Per anchor the sum of its active triplets' losses and their number.

    Args:
        x: (N, d) anchors.
        labels: (N,) int64.
        references: (M, d).
        reference_labels: (M,) int64.
        self_index: (N,) int64 references never paired, -1 for none; or None.
        metric: see `dmlfast.functional`.
        positives: "all", "nearest" or "farthest".
        negatives: "all", "hardest" or "semihard".
        margin: in units of the metric.

    Returns:
        loss (N,) in the dtype of distances and active (N,) int64. O((N + M)·d) memory.
    """
    loss = x.new_empty(x.shape[0], dtype=torch.float64)
    active = x.new_empty(x.shape[0], dtype=torch.int64)
    for part in distances.row_parts(x.shape[0], references.shape[0]):
        own = None if self_index is None else self_index[part]
        chunk = pair_chunk(x[part], labels[part], references, reference_labels, own, metric)
        loss[part], active[part], _ = triplet_rows(chunk, positives, negatives, margin)
    return loss if x.dtype == torch.float64 else loss.float(), active


def triplet_backward(
    grad: Tensor,
    x: Tensor,
    labels: Tensor,
    references: Tensor,
    reference_labels: Tensor,
    self_index: Tensor | None,
    *,
    metric: str,
    positives: str,
    negatives: str,
    margin: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of the sums of `triplet` for an upstream gradient (N,), recomputing the pairs."""
    grad_x = torch.zeros_like(x, dtype=torch.float64)
    grad_references = torch.zeros_like(references, dtype=torch.float64)
    y = references.double()
    for part in distances.row_parts(x.shape[0], references.shape[0]):
        own = None if self_index is None else self_index[part]
        chunk = pair_chunk(x[part], labels[part], references, reference_labels, own, metric)
        upstream = grad[part].double()[:, None]
        weights = triplet_rows(chunk, positives, negatives, margin).weights * upstream
        a = torch.where(chunk.finite[:, None], x[part].double(), 0.0)
        to_a, to_y = weighted_gradients(weights, chunk.value, a, y, metric)
        lost = ~chunk.finite[:, None] & (upstream != 0)
        grad_x[part] = torch.where(lost, math.nan, to_a)
        grad_references += to_y
    return grad_x.to(x.dtype), grad_references.to(references.dtype)
