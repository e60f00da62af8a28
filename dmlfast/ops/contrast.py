"""Losses over positives and negatives of each anchor."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmlfast.ops._arguments import (
    METRICS,
    Pairs,
    allows_fast_products,
    check_generator,
    check_number,
    check_option,
    check_pairs,
)
from dmlfast.ops._operators import operators, reference_operators, register
from dmlfast.ops._reduction import REDUCTIONS, is_active, nan_marks, reduce
from dmlfast.ops.neighbors import (
    Selection,
    farthest_positive,
    hardest_negative,
    nearest_positive,
    semihard_negative,
)
from dmlfast.ops.neighbors_sample import sample_negative
from dmlfast.reference import contrast as reference
from dmlfast.reference.distances import distance_dtype

POSITIVES = ("all", "nearest", "farthest")
NEGATIVES = ("all", "hardest", "semihard", "distance_weighted")


class AnchorSums(NamedTuple):
    """Losses of anchors that may have several terms, such as triplets, each.

    Attributes:
        loss: (N,) sum over the terms of each anchor; differentiable.
        active: (N,) int64 number of the terms that the mean divides by.
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
    generator: torch.Generator | None = None,
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
        negatives: "all" (every other-class reference), "hardest" (the nearest), "semihard" (the
            nearest one farther away than the positive of the triplet, none if there is no such),
            or, with one positive, "distance_weighted": one that `sample_negative` draws with its
            default cutoffs, which are meant for rows of norm 1.
        generator: what decides the draws; torch's own of the CPU by default. Not looked at
            without draws.
        reduction: "mean" over the active triplets (0 when none is active), "sum", or "none".

    Returns:
        A scalar; with reduction "none" (N,) losses, 0 for an anchor without a triplet, or, when
        `positives` or `negatives` is "all", `AnchorSums`. float64 for float64 inputs, else
        float32. Differentiable once in `x` and `references`. An anchor that is not finite has
        loss NaN.

    Memory: O((N + M)·d), whatever the number of triplets; deterministic.

    Precision: which triplets are active is decided by exact distances; on CUDA, with all
    negatives, only where `torch.get_float32_matmul_precision()` is "highest", while otherwise
    activity and loss follow distances of half-precision products. Kernels on CUDA pair no row
    that has infinite elements.

    Raises:
        TypeError: something is not a tensor, number or generator, or has a wrong dtype.
        ValueError: a wrong shape, device or option, or drawn negatives of all positives.

    Source: Schroff et al., "FaceNet", CVPR 2015; nearest positive: Levi et al., ICCV 2021;
    distance-weighted negatives: Wu et al., ICCV 2017.
    """
    margin = check_number("margin", margin)
    check_option("positives", positives, POSITIVES)
    check_negatives(positives, negatives)
    check_generator(generator)
    check_option("reduction", reduction, REDUCTIONS)
    if "all" in (positives, negatives):
        check_option("metric", metric, METRICS)
        pairs = check_pairs(x, labels, references, reference_labels, self_index)
        sums = AnchorSums(*_triplet(pairs, metric, positives, negatives, margin))
        return sums if reduction == "none" else reduce(*sums, reduction)
    positive_of = nearest_positive if positives == "nearest" else farthest_positive
    rows = x, labels, references, reference_labels
    positive = positive_of(*rows, self_index=self_index, metric=metric)
    if negatives == "hardest":
        negative = hardest_negative(*rows, self_index=self_index, metric=metric)
    elif negatives == "semihard":
        negative = semihard_negative(
            *rows, beyond=positive.distance, self_index=self_index, metric=metric
        )
    else:
        negative = sample_negative(*rows, self_index=self_index, metric=metric, generator=generator)
    loss = _one_triplet(x, positive, negative, margin)
    return loss if reduction == "none" else reduce(loss, is_active(loss), reduction)


def check_negatives(
    positives: str, negatives: str, of_all: tuple[str, ...] = ("all", "hardest", "semihard")
) -> None:
    """Raises ValueError unless a loss has these negatives for these positives.

    `of_all` are those that it has for all positives.
    """
    check_option("negatives", negatives, NEGATIVES)
    if positives != "all" or negatives in of_all:
        return
    advice = "use one positive"
    if negatives == "distance_weighted":
        advice += (
            ", or indices_tuple=dmlfast.miners.DistanceWeightedMiner()(embeddings, labels), which "
            "draws for every positive pair"
        )
    raise ValueError(
        f'negatives: expected one of {of_all} with positives="all", got {negatives!r}; {advice}'
    )


def _one_triplet(x: Tensor, positive: Selection, negative: Selection, margin: float) -> Tensor:
    """(N,) losses of anchors with one triplet each, 0 for those that lack a partner."""
    hinge = torch.relu(positive.distance - negative.distance + margin)
    exists = (positive.index >= 0) & (negative.index >= 0) & x.isfinite().all(1)
    return torch.where(exists, hinge, 0.0) + nan_marks(x)


def _triplet(
    pairs: Pairs, metric: str, positives: str, negatives: str, margin: float
) -> tuple[Tensor, Tensor]:
    """The operator: (N,) sums and (N,) numbers of active triplets."""
    order, reference_order = pairs.orders()
    loss, active = _namespace(pairs.x, negatives).contrast_triplet(
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
        allows_fast_products(),
    )
    return loss, active


def _namespace(x: Tensor, negatives: str) -> Any:
    """On CUDA kernels serve all negatives of at most float32, plain torch the rest."""
    if x.device.type == "cuda" and (negatives != "all" or x.dtype == torch.float64):
        return reference_operators()
    return operators("contrast_triplet", x.device)


def _reference_triplet(
    x: Tensor,
    labels: Tensor,
    order: Tensor,
    references: Tensor,
    reference_labels: Tensor,
    reference_order: Tensor,
    self_index: Tensor | None,
    metric: str,
    positives: str,
    negatives: str,
    margin: float,
    fast: bool,
) -> tuple[Tensor, Tensor]:
    return reference.triplet(
        x,
        labels,
        references,
        reference_labels,
        self_index,
        metric=metric,
        positives=positives,
        negatives=negatives,
        margin=margin,
    )


def _reference_triplet_backward(
    grad: Tensor,
    x: Tensor,
    labels: Tensor,
    order: Tensor,
    references: Tensor,
    reference_labels: Tensor,
    reference_order: Tensor,
    self_index: Tensor | None,
    metric: str,
    positives: str,
    negatives: str,
    margin: float,
    fast: bool,
) -> tuple[Tensor, Tensor]:
    return reference.triplet_backward(
        grad,
        x,
        labels,
        references,
        reference_labels,
        self_index,
        metric=metric,
        positives=positives,
        negatives=negatives,
        margin=margin,
    )


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


def _backward(operators: Any, ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    grad_x, grad_references = operators.contrast_triplet_backward(
        grad, *ctx.saved_tensors, *ctx.options
    )
    return grad_x, None, None, grad_references, *(None,) * 8


register(
    "contrast_triplet",
    reference=_reference_triplet,
    reference_backward=_reference_triplet_backward,
    fake=_fake_triplet,
    fake_backward=_fake_triplet_backward,
    save_for_backward=_save_for_backward,
    backward=_backward,
)
