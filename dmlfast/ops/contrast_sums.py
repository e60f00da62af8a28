"""The operator of the contrast losses: a sum over positives and one over negatives per anchor."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmlfast.ops._arguments import Pairs, allows_fast_products
from dmlfast.ops._operators import operators, reference_operators, register
from dmlfast.reference import contrast_sums as reference
from dmlfast.reference.distances import distance_dtype

_TENSORS = 9  # arguments of the operator that are tensors or None; the first ones


class ContrastSums(NamedTuple):
    """A sum over the positives and one over the negatives of each anchor.

    Attributes:
        positive: (N,) float64 for float64 embeddings, else float32; differentiable.
        negative: (N,) likewise.
        positive_count: (N,) int64 number of terms in the sum over the positives.
        negative_count: (N,) likewise.
    """

    positive: Tensor
    negative: Tensor
    positive_count: Tensor
    negative_count: Tensor


def contrast_sums(
    pairs: Pairs,
    *,
    metric: str,
    positive_form: str = "none",
    positive_scale: float = 1.0,
    positive_bound: float | Tensor | None = None,
    negative_form: str = "none",
    negative_scale: float = 1.0,
    negative_bound: float | Tensor | None = None,
) -> ContrastSums:
    """Sums over the distances D of each anchor to its positives, and to its negatives.

    Each side has a form, what is summed over its partners, and the number of its terms:

    * "none": 0.
    * "logsumexp": log sum exp(scale * D), -inf without partners; with a bound only positives
      farther than it and negatives nearer than it count. No gradient to the bound.
    * "hinge": [D - bound]_+ of positives, [bound - D]_+ of negatives; the terms above 0 count.
    * "sum": D.
    * "softplus": log(1 + exp(scale * D + bound)).

    References that are not finite are nobody's partners; an anchor that is not finite, or whose
    bound is NaN, has sums of NaN with count 1.

    Args:
        pairs: checked arguments.
        metric: see `dmlfast.functional`.
        positive_form: how positives are summed.
        positive_scale: factor of the distance under "logsumexp" and "softplus".
        positive_bound: a number or (N,) floating; differentiable under "hinge" and "softplus".
        negative_form: how negatives are summed.
        negative_scale: as `positive_scale`.
        negative_bound: as `positive_bound`.

    Returns:
        `ContrastSums`, differentiable once in the anchors, the references and the bounds.

    Memory: O((N + M)·d); deterministic. float64 embeddings are served by plain torch everywhere.
    On CUDA products are as good as float32, unless `torch.set_float32_matmul_precision`
    allows less.
    """
    order, reference_order = pairs.orders()
    x = pairs.x
    namespace = (
        reference_operators() if x.dtype == torch.float64 else operators("contrast_sums", x.device)
    )
    results = namespace.contrast_sums(
        x,
        pairs.labels,
        order,
        None if pairs.within_batch else pairs.references,
        pairs.reference_labels,
        reference_order,
        None if pairs.within_batch else pairs.self_index,
        _bounds(positive_bound, x),
        _bounds(negative_bound, x),
        metric,
        positive_form,
        positive_scale,
        negative_form,
        negative_scale,
        allows_fast_products(),
    )
    return ContrastSums(*results)


def _bounds(bound: float | Tensor | None, x: Tensor) -> Tensor | None:
    """(N,) contiguous bounds in the dtype of distances."""
    if bound is None:
        return None
    dtype = distance_dtype(x)
    if isinstance(bound, Tensor):
        return bound.to(dtype).expand(x.shape[0]).contiguous()
    return x.new_full((x.shape[0],), bound, dtype=dtype)


def _reference_sums(
    x: Tensor,
    labels: Tensor,
    order: Tensor,
    references: Tensor | None,
    reference_labels: Tensor,
    reference_order: Tensor,
    self_index: Tensor | None,
    positive_bound: Tensor | None,
    negative_bound: Tensor | None,
    metric: str,
    positive_form: str,
    positive_scale: float,
    negative_form: str,
    negative_scale: float,
    fast: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return reference.sums(
        x,
        labels,
        references,
        reference_labels,
        self_index,
        metric=metric,
        positive=reference.Side(positive_form, positive_scale, positive_bound, 1),
        negative=reference.Side(negative_form, negative_scale, negative_bound, -1),
    )


def _reference_sums_backward(
    grad_positive: Tensor,
    grad_negative: Tensor,
    positive: Tensor,
    negative: Tensor,
    x: Tensor,
    labels: Tensor,
    order: Tensor,
    references: Tensor | None,
    reference_labels: Tensor,
    reference_order: Tensor,
    self_index: Tensor | None,
    positive_bound: Tensor | None,
    negative_bound: Tensor | None,
    metric: str,
    positive_form: str,
    positive_scale: float,
    negative_form: str,
    negative_scale: float,
    fast: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return reference.sums_backward(
        grad_positive,
        grad_negative,
        x,
        labels,
        references,
        reference_labels,
        self_index,
        metric=metric,
        positive=reference.Side(positive_form, positive_scale, positive_bound, 1),
        negative=reference.Side(negative_form, negative_scale, negative_bound, -1),
    )


def _fake_sums(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape, dtype = (x.shape[0],), distance_dtype(x)
    return (
        x.new_empty(shape, dtype=dtype),
        x.new_empty(shape, dtype=dtype),
        x.new_empty(shape, dtype=torch.int64),
        x.new_empty(shape, dtype=torch.int64),
    )


def _fake_sums_backward(
    grad_positive: Tensor,
    grad_negative: Tensor,
    positive: Tensor,
    negative: Tensor,
    x: Tensor,
    labels: Tensor,
    order: Tensor,
    references: Tensor | None,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape),
        x.new_empty((0, x.shape[1]) if references is None else references.shape),
        positive.new_empty(positive.shape),
        positive.new_empty(positive.shape),
    )


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[:2], *inputs[:_TENSORS])
    ctx.options = inputs[_TENSORS:]
    ctx.mark_non_differentiable(*output[2:])


def _backward(
    operators: Any, ctx: Any, grad_positive: Tensor, grad_negative: Tensor, *_: Tensor
) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    grad_x, grad_references, *to_bounds = operators.contrast_sums_backward(
        grad_positive, grad_negative, *saved, *ctx.options
    )
    references, bounds = saved[5], saved[9:11]
    return (
        grad_x,
        None,
        None,
        None if references is None else grad_references,
        *(None,) * 3,
        *(
            None if bound is None else to_bound
            for bound, to_bound in zip(bounds, to_bounds, strict=True)
        ),
        *(None,) * 6,
    )


register(
    "contrast_sums",
    reference=_reference_sums,
    reference_backward=_reference_sums_backward,
    fake=_fake_sums,
    fake_backward=_fake_sums_backward,
    save_for_backward=_save_for_backward,
    backward=_backward,
)
