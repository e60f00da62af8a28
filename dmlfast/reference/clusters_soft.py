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
        share: (C, K) float64, 0 where a centre does not count.
        slope: (C, K) float64, the derivative of the mean by a distance is that many shares; 0 where
            there is no share.
        minimum: (C,) soft minimum of the distances.
        mean: (C,) mean of the distances.
        mass: (C,) sum of exp(-excess over the least distance / temperature).
        finite: (C,) bool, whether the row is.
    """

    value: Tensor
    share: Tensor
    slope: Tensor
    minimum: Tensor
    mean: Tensor
    mass: Tensor
    finite: Tensor


def _shares(
    x: Tensor,
    labels: Tensor,
    centers: Tensor,
    center_labels: Tensor,
    metric: str,
    temperature: float,
) -> _Shares:
    # Distances in float64, which a far centre does not leave.
    chunk = pair_chunk(x.double(), labels, centers, center_labels, None, metric)
    counts = chunk.positive & centers.isfinite().all(1)[None]
    distance = torch.where(counts, chunk.distance, math.inf)
    least = distance.amin(1) if counts.shape[1] else distance.new_full(x.shape[:1], math.inf)
    # From the least distance on: a small temperature would magnify what larger numbers lose.
    excess = torch.where(distance == least[:, None], 0.0, distance - least[:, None])
    power = torch.where(counts, (-excess / temperature).exp(), 0.0)
    mass = power.sum(1)
    share = torch.where(power > 0, power / mass[:, None], 0.0)
    # 0 * inf: a centre without a share may be infinitely far.
    excess = torch.where(share > 0, excess, 0.0)
    mean_excess = (share * excess).sum(1)
    slope = torch.where(share > 0, 1 - (excess - mean_excess[:, None]) / temperature, 0.0)
    none = torch.where(chunk.finite, math.inf, math.nan)
    found = chunk.finite & (mass > 0)
    return _Shares(
        chunk.value,
        share,
        slope,
        torch.where(found, least - temperature * mass.log(), none),
        torch.where(found, least + mean_excess, none),
        torch.where(found, mass, 0.0),
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
) -> tuple[Tensor, Tensor, Tensor]:
    """The soft minimum and the mean of the distances of each row to the centres of its class.

    And what kernels need for the gradient: the mass, the sum of exp(-excess / temperature) with the
    excess over the least distance, 0 without a centre.

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
    mean, mass = torch.empty_like(minimum), torch.empty_like(minimum)
    for part in row_parts(x.shape[0], centers.shape[0]):
        found = _shares(x[part], labels[part], centers, center_labels, metric, temperature)
        minimum[part], mean[part], mass[part] = found.minimum, found.mean, found.mass
    return minimum, mean, mass


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
        derivative = found.share * (to_minimum + to_mean * found.slope)
        # 0 * NaN: neither a centre without a share nor a row that nobody asks for counts.
        weights = torch.where(found.share > 0, derivative, 0.0)
        a = torch.where(found.finite[:, None], x[part].double(), 0.0)
        to_x, to_centers = weighted_gradients(weights, found.value, a, y, metric)
        lost = ~found.finite & ((to_minimum != 0) | (to_mean != 0))[:, 0]
        grad_x[part] = torch.where(lost[:, None], math.nan, to_x)
        grad_centers += to_centers
    return grad_x.to(x.dtype), grad_centers.to(centers.dtype)
