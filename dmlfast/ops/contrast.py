"""Losses over positives and negatives of each anchor."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmlfast import _library
from dmlfast._backend import uses_kernel
from dmlfast.ops._arguments import (
    METRICS,
    Pairs,
    check_number,
    check_option,
    check_pairs,
    distance_dtype,
)
from dmlfast.ops._autograd import refuse_second_backward
from dmlfast.ops.neighbors import (
    Selection,
    farthest_positive,
    hardest_negative,
    nearest_positive,
    semihard_negative,
)
from dmlfast.reference import contrast as reference

POSITIVES = ("all", "nearest", "farthest")
NEGATIVES = ("all", "hardest", "semihard")
REDUCTIONS = ("mean", "sum", "none")


class AnchorSums(NamedTuple):
    """Losses of the anchors that may have several triplets each.

    Attributes:
        loss: (N,) sum over the active triplets of each anchor; differentiable.
        active: (N,) int64 number of active triplets.
    """

    loss: Tensor
    active: Tensor


def triplet_margin_loss(
    x: Tensor,
    labels: Tensor,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    *,
    self_index: Tensor | None = None,
    margin: float = 0.05,
    metric: str = "euclidean",
    positives: str = "all",
    negatives: str = "all",
    reduction: str = "mean",
) -> Tensor | AnchorSums:
    """Triplet margin loss [distance to positive - distance to negative + margin]_+.

    EPS is `positives="nearest"`. A triplet is active when its loss is greater than 0.

    Args:
        x: (N, d) anchors; float16, bfloat16, float32 or float64. Not normalised here.
        labels: (N,) classes, any integer dtype.
        references: (M, d) positives and negatives; the batch itself by default.
        reference_labels: (M,) classes of the references.
        self_index: (N,) the row of `references` that is the anchor itself, -1 for none.
        margin: in units of the metric.
        metric: "euclidean", "sqeuclidean", "cosine" or "dot".
        positives: "all" (every same-class reference makes triplets of its own), "nearest" or
            "farthest".
        negatives: "all" (every other-class reference), "hardest" (the nearest), or "semihard"
            (the nearest one farther away than the positive of the triplet, none if there is no
            such).
        reduction: "mean" over the active triplets (0 when none is active), "sum", or "none".

    Returns:
        A scalar; with reduction "none" (N,) losses, 0 for an anchor without a triplet, or, when
        `positives` or `negatives` is "all", `AnchorSums`. float64 for float64 inputs, else
        float32. Differentiable once in `x` and `references`. An anchor that is not finite has
        loss NaN.

    Memory: O((N + M)·d), whatever the number of triplets; deterministic.

    Raises:
        TypeError: something is not a tensor or number, or has a wrong dtype.
        ValueError: a wrong shape, device or option.

    Source: Schroff et al., "FaceNet", CVPR 2015; nearest positive: Levi et al., ICCV 2021.
    """
    margin = check_number("margin", margin)
    check_option("positives", positives, POSITIVES)
    check_option("negatives", negatives, NEGATIVES)
    check_option("reduction", reduction, REDUCTIONS)
    if "all" in (positives, negatives):
        check_option("metric", metric, METRICS)
        pairs = check_pairs(x, labels, references, reference_labels, self_index)
        sums = AnchorSums(*_triplet(pairs, metric, positives, negatives, margin))
        return sums if reduction == "none" else _reduce(sums, reduction)
    positive_of = nearest_positive if positives == "nearest" else farthest_positive
    positive = positive_of(
        x, labels, references, reference_labels, self_index=self_index, metric=metric
    )
    if negatives == "hardest":
        negative = hardest_negative(
            x, labels, references, reference_labels, self_index=self_index, metric=metric
        )
    else:
        negative = semihard_negative(
            x,
            labels,
            references,
            reference_labels,
            beyond=positive.distance,
            self_index=self_index,
            metric=metric,
        )
    loss = _one_triplet(positive, negative, margin)
    if reduction == "none":
        return loss
    return _reduce(AnchorSums(loss, is_active(loss).to(torch.int64)), reduction)


def is_active(loss: Tensor) -> Tensor:
    """Whether a triplet contributes; a loss of NaN does, so that it is not averaged away."""
    return ~(loss <= 0)


def _one_triplet(positive: Selection, negative: Selection, margin: float) -> Tensor:
    """(N,) losses of anchors with one triplet each, 0 for those that lack a partner."""
    hinge = torch.relu(positive.distance - negative.distance + margin)
    exists = (positive.index >= 0) & (negative.index >= 0)
    not_finite = positive.distance.isnan() | negative.distance.isnan()
    return torch.where(exists | not_finite, hinge, 0.0)


def _reduce(sums: AnchorSums, reduction: str) -> Tensor:
    total = sums.loss.sum()
    return total if reduction == "sum" else total / sums.active.sum().clamp(min=1)


def _triplet(
    pairs: Pairs, metric: str, positives: str, negatives: str, margin: float
) -> tuple[Tensor, Tensor]:
    """The operator: (N,) sums and (N,) numbers of active triplets."""
    if not uses_kernel("contrast", pairs.x.device):
        loss, active = _ReferenceTriplet.apply(  # type: ignore[no-untyped-call]
            *pairs, metric, positives, negatives, margin
        )
        return loss, active
    order, reference_order = pairs.orders()
    loss, active = torch.ops.dmlfast.contrast_triplet(
        pairs.x,
        pairs.labels,
        order,
        pairs.references,
        pairs.reference_labels,
        reference_order,
        pairs.self_index,
        metric,
        positives,
        negatives,
        margin,
    )
    return loss, active


class _ReferenceTriplet(torch.autograd.Function):
    """The reference with the gradients of the operator; differentiable once, like it."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        *tensors, metric, positives, negatives, margin = arguments
        options = {
            "metric": metric,
            "positives": positives,
            "negatives": negatives,
            "margin": margin,
        }
        loss, active = reference.triplet(*tensors, **options)
        ctx.options = options
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(active)
        return loss, active

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_references = reference.triplet_backward(
            grad, *ctx.saved_tensors, **ctx.options
        )
        return grad_x, None, grad_references, *(None,) * 6


def _fake_triplet(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0],)
    return x.new_empty(shape, dtype=distance_dtype(x)), x.new_empty(shape, dtype=torch.int64)


def _fake_triplet_backward(
    grad: Tensor, x: Tensor, labels: Tensor, order: Tensor, references: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), references.new_empty(references.shape)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:7])
    ctx.options = inputs[7:]
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    grad_x, grad_references = torch.ops.dmlfast.contrast_triplet_backward(
        grad, *ctx.saved_tensors, *ctx.options
    )
    return grad_x, None, None, grad_references, *(None,) * 7


if _library.cpu_status.loaded:
    torch.library.register_fake("dmlfast::contrast_triplet", _fake_triplet)
    torch.library.register_fake("dmlfast::contrast_triplet_backward", _fake_triplet_backward)
    torch.library.register_autograd(
        "dmlfast::contrast_triplet", _backward, setup_context=_save_for_backward
    )
    refuse_second_backward("dmlfast::contrast_triplet_backward")
