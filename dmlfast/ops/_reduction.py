"""Reductions of losses per anchor, with the same bits for every number of threads."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dmlfast.reference.distances import fixed_order_sum

REDUCTIONS = ("mean", "sum", "none")


def is_active(loss: Tensor) -> Tensor:
    """Whether a triplet contributes; a loss of NaN does, so that it is not averaged away."""
    return ~(loss <= 0)


def reduce(loss: Tensor, active: Tensor, reduction: str) -> Tensor:
    """The sum of (N,) losses, or for "mean" that over the number of active triplets, at least 1."""
    total = fixed_order_sum(loss)
    return total if reduction == "sum" else total / active.sum().clamp(min=1)


def reduce_over_rows(loss: Tensor, reduction: str) -> Tensor:
    """(N,) losses, their sum, or for "mean" that over N, at least 1."""
    if reduction == "none":
        return loss
    total = fixed_order_sum(loss)
    return total if reduction == "sum" else total / max(1, loss.shape[0])


def nan_marks(x: Tensor) -> Tensor:
    """(N,) NaN with a gradient of NaN for rows that are not finite, 0 with 0 for the others."""
    mark = torch.where(x.isfinite().all(1), 0.0, math.nan).to(x.dtype)[:, None]
    return (x * mark).sum(1)


def softplus(value: Tensor) -> Tensor:
    """log(1 + exp(value)) to the last digits, 0 with gradient 0 at -inf."""
    return torch.logaddexp(value, torch.zeros_like(value))
