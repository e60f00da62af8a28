"""Rows shared among the centres of their class, in plain torch, a chunk of rows at a time."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dmlfast.reference.distances import row_parts
from dmlfast.reference.pairs import pair_chunk, weighted_gradients


class _Shares(NamedTuple):
    """How the rows of a chunk are shared.

    Attributes:
        value: (C, K) float64, what selections compare.
        distance: (C, K) float64, 0 where a centre does not count.
        share: (C, K) float64, 0 there.
        minimum: (C,) soft minimum of the distances.
        mean: (C,) mean of the distances.
        finite: (C,) bool, whether the row is.
    """

    value: Tensor
    distance: Tensor
    share: Tensor
    minimum: Tensor
    mean: Tensor
    finite: Tensor


def _shares(
    x: Tensor,
    labels: Tensor,
    centers: Tensor,
    center_labels: Tensor,
    metric: str,
    temperature: float,
) -> _Shares:
    chunk = pair_chunk(x, labels, centers, center_labels, None, metric)
    counts = chunk.positive & centers.isfinite().all(1)[None]
    distance = torch.where(counts, chunk.distance, 0.0)
    scaled = torch.where(counts, -distance / temperature, -math.inf)
    total = scaled.logsumexp(1)
    share = torch.where(counts, (scaled - total[:, None]).exp(), 0.0)
    none = torch.where(chunk.finite, math.inf, math.nan)
    found = chunk.finite & counts.any(1)
    return _Shares(
        chunk.value,
        distance,
        share,
        torch.where(found, -temperature * total, none),
        torch.where(found, (share * distance).sum(1), none),
        chunk.finite,
    )


def soft(
    x: Tensor,
    labels: Tensor,
    centers: Tensor,
    center_labels: Tensor,
    *,
    metric: str,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """The soft minimum and the mean of the distances of each row to the centres of its class.

    Args:
        x: (N, d).
        labels: (N,) int64.
        centers: (K, d). Those that are not finite do not count.
        center_labels: (K,) int64.
        metric: see `dmlfast.functional`.
        temperature: the shares of the centres are the softmax of -distance / temperature.

    Returns:
        (N,) float64 each. O((N + K)·d) memory.
    """
    minimum = x.new_empty(x.shape[0], dtype=torch.float64)
    mean = torch.empty_like(minimum)
    for part in row_parts(x.shape[0], centers.shape[0]):
        found = _shares(x[part], labels[part], centers, center_labels, metric, temperature)
        minimum[part], mean[part] = found.minimum, found.mean
    return minimum, mean


def soft_backward(
    grad_minimum: Tensor,
    grad_mean: Tensor,
    x: Tensor,
    labels: Tensor,
    centers: Tensor,
    center_labels: Tensor,
    *,
    metric: str,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of `soft` by x and by the centres for (N,) upstream gradients."""
    grad_x = torch.zeros_like(x, dtype=torch.float64)
    y = centers.double()
    grad_centers = torch.zeros_like(y)
    for part in row_parts(x.shape[0], centers.shape[0]):
        found = _shares(x[part], labels[part], centers, center_labels, metric, temperature)
        to_minimum, to_mean = (g[part, None].double() for g in (grad_minimum, grad_mean))
        slope = 1 - (found.distance - found.mean[:, None]) / temperature
        # 0 * NaN: neither a centre without a share nor a row that nobody asks for counts.
        weights = torch.where(found.share > 0, found.share * (to_minimum + to_mean * slope), 0.0)
        a = torch.where(found.finite[:, None], x[part].double(), 0.0)
        to_x, to_centers = weighted_gradients(weights, found.value, a, y, metric)
        lost = ~found.finite & ((to_minimum != 0) | (to_mean != 0))[:, 0]
        grad_x[part] = torch.where(lost[:, None], math.nan, to_x)
        grad_centers += to_centers
    return grad_x.to(x.dtype), grad_centers.to(centers.dtype)
