"""Draws of a reference of another class, in plain torch, a chunk of anchors at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dmlfast.reference import distances

# 1 - D^2/4 is not taken below it: at D = 2 its logarithm is infinite.
_LEAST_REST = 1e-8


def sample(
    x: Tensor,
    labels: Tensor,
    references: Tensor,
    reference_labels: Tensor,
    reference_order: Tensor,
    self_index: Tensor | None,
    uniform: Tensor,
    fallback: Tensor,
    *,
    weighted: bool,
    cutoff: float,
    nonzero_loss_cutoff: float,
    metric: str,
) -> tuple[Tensor, Tensor]:
    """One reference of another class for each anchor, and its distance.

    Args:
        x: (N, d) anchors.
        labels: (N,) int64.
        references: (M, d).
        reference_labels: (M,) int64.
        reference_order: (M,) permutation that sorts the labels: the order of the inversion.
        self_index: (N,) int64 references never drawn, -1 for none; or None.
        uniform: (N,) float64 in [0, 1).
        fallback: (N,) int64 references for anchors all of whose weights are 0, -1 for none.
        weighted: draw in proportion to the weights, else take the fallback.
        cutoff: least distance in a weight.
        nonzero_loss_cutoff: weights are 0 from this distance on.
        metric: see `dmlfast.functional`.

    Returns:
        distance (N, 1) and index (N, 1). O((N + M)·d) memory.
    """
    index = fallback.clone()
    sorted_references, sorted_labels = (t[reference_order] for t in (references, reference_labels))
    rows = distances.chunk_rows(references.shape[0])
    for start in range(0, x.shape[0] if weighted and references.shape[0] else 0, rows):
        chunk = slice(start, start + rows)
        weights = _weights(
            x[chunk],
            labels[chunk],
            sorted_references,
            sorted_labels,
            cutoff=cutoff,
            nonzero_loss_cutoff=nonzero_loss_cutoff,
            metric=metric,
        )
        if self_index is not None:
            is_self = reference_order[None] == self_index[chunk, None]
            weights = weights.masked_fill(is_self, 0.0)
        drawn = reference_order[_invert(weights, uniform[chunk])]
        index[chunk] = torch.where((weights > 0).any(1), drawn, index[chunk])
    found = index >= 0
    other = references[index.clamp(min=0)] if references.shape[0] else x
    distance = distances.distances(distances.values(x, other, metric), metric, x.dtype)
    zero = (x - x).double().sum(1)
    missing = torch.where(zero == 0, math.inf, math.nan).to(distance.dtype)
    return torch.where(found, distance, missing)[:, None], index[:, None]


def _weights(
    x: Tensor,
    labels: Tensor,
    references: Tensor,
    reference_labels: Tensor,
    *,
    cutoff: float,
    nonzero_loss_cutoff: float,
    metric: str,
) -> Tensor:
    """(n, M) float64 weights; the greatest of an anchor is about 1, unless all are 0."""
    value = distances.values(x[:, None], references[None], metric)
    squares = squared_distances(value, metric)
    negative = labels[:, None] != reference_labels[None]
    near = (squares < nonzero_loss_cutoff * nonzero_loss_cutoff) & (squares > -math.inf)
    counts = negative & near
    squares = squares.clamp(min=cutoff * cutoff)
    d = x.shape[1]
    rest = (1 - squares / 4).clamp(min=_LEAST_REST)
    logarithm = (2 - d) / 2 * squares.log() - (d - 3) / 2 * rest.log()
    logarithm = torch.where(counts, logarithm, -math.inf)
    greatest = logarithm.amax(1, keepdim=True)
    return torch.where(counts, (logarithm - greatest).exp(), 0.0)


def squared_distances(value: Tensor, metric: str) -> Tensor:
    """The squared Euclidean distance of rows on the unit sphere, of their value in any metric."""
    if metric == "cosine":
        return 2 * value
    return 2 + 2 * value if metric == "dot" else value


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """The first column at which the sum of a row's weights is greater than its part `uniform`."""
    sums = weights.cumsum(1)
    column = torch.searchsorted(sums, (uniform * sums[:, -1])[:, None], right=True)[:, 0]
    # Rounding may leave a rest after the last weight.
    positive = weights > 0
    last = weights.shape[1] - 1 - positive.flip(1).int().argmax(1)
    return torch.minimum(column, last)
