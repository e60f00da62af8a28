"""Soft assignment to centres: what of it takes O(N) memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmlfast.ops._arguments import Pairs, allows_fast_products
from dmlfast.ops._operators import operators, reference_operators, register
from dmlfast.reference import clusters_soft as reference
from dmlfast.reference.distances import distance_dtype

_TENSORS = 6  # arguments of the operator that are tensors; the first ones


class SoftAssignment(NamedTuple):
    """What the shares p_k, the softmax of -D_k / t, make of the distances of a row to its centres.

    Attributes:
        distance: (N,) soft minimum, -t log sum_k exp(-D_k / t); float64 for float64 rows, else
            float32. Its derivative by D_k is p_k. Differentiable in the rows and the centres.
        mean: (N,) mean distance, sum_k p_k D_k; likewise.
    """

    distance: Tensor
    mean: Tensor


def soft_assignment(pairs: Pairs, metric: str, temperature: float) -> SoftAssignment:
    """Shares every row among the references of its class.

    Args:
        pairs: checked rows and centres.
        metric: see `dmlfast.functional`.
        temperature: t, greater than 0.

    Returns:
        `SoftAssignment`. +inf, with gradient 0, without a finite centre; NaN for a row that is not
        finite.
    """
    order, center_order = pairs.orders()
    x = pairs.x
    namespace = (
        reference_operators() if x.dtype == torch.float64 else operators("clusters", x.device)
    )
    minimum, mean, _ = namespace.clusters_soft(
        x,
        pairs.labels,
        order,
        pairs.references,
        pairs.reference_labels,
        center_order,
        metric,
        temperature,
        allows_fast_products(),
    )
    dtype = distance_dtype(x)
    return SoftAssignment(minimum.to(dtype), mean.to(dtype))


def _reference(
    x: Tensor,
    labels: Tensor,
    order: Tensor,
    centers: Tensor,
    center_labels: Tensor,
    center_order: Tensor,
    metric: str,
    temperature: float,
    fast: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return reference.soft(x, labels, centers, center_labels, metric=metric, temperature=temperature)


def _reference_backward(
    grad_minimum: Tensor,
    grad_mean: Tensor,
    minimum: Tensor,
    mean: Tensor,
    mass: Tensor,
    x: Tensor,
    labels: Tensor,
    order: Tensor,
    centers: Tensor,
    center_labels: Tensor,
    center_order: Tensor,
    metric: str,
    temperature: float,
    fast: bool,
) -> tuple[Tensor, Tensor]:
    return reference.soft_backward(
        grad_minimum,
        grad_mean,
        x,
        labels,
        centers,
        center_labels,
        metric=metric,
        temperature=temperature,
    )


def _fake(x: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape[0], dtype=torch.float64) for _ in range(3))


def _fake_backward(
    grad_minimum: Tensor,
    grad_mean: Tensor,
    minimum: Tensor,
    mean: Tensor,
    mass: Tensor,
    x: Tensor,
    labels: Tensor,
    order: Tensor,
    centers: Tensor,
    *_: Any,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), centers.new_empty(centers.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output, *inputs[:_TENSORS])
    ctx.options = inputs[_TENSORS:]
    ctx.mark_non_differentiable(output[2])


def _backward(
    operators: Any, ctx: Any, grad_minimum: Tensor, grad_mean: Tensor, _: Tensor
) -> tuple[Tensor | None, ...]:
    grad_x, grad_centers = operators.clusters_soft_backward(
        grad_minimum, grad_mean, *ctx.saved_tensors, *ctx.options
    )
    return grad_x, None, None, grad_centers, *(None,) * 5


register(
    "clusters_soft",
    reference=_reference,
    reference_backward=_reference_backward,
    fake=_fake,
    fake_backward=_fake_backward,
    save_for_backward=_save,
    backward=_backward,
)
