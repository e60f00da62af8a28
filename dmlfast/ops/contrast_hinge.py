"""Losses of hinges over the distances to positives and to negatives."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dmlfast.ops._arguments import (
    Pairs,
    check_generator,
    check_number,
    check_tensor,
    describe,
)
from dmlfast.ops._partners import (
    OnePartner,
    call,
    check_loss,
    one_partner,
    one_positive,
    partner_counts,
)
from dmlfast.ops._reduction import is_active, reduce
from dmlfast.ops.contrast import AnchorSums, check_negatives
from dmlfast.ops.contrast_sums import ContrastSums, contrast_sums
from dmlfast.ops.neighbors import hardest_negative, semihard_negative
from dmlfast.ops.neighbors_sample import sample_negative
from dmlfast.reference.distances import distance_dtype


def contrastive_loss(
    x: Tensor,
    labels: Tensor,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    *,
    self_index: Tensor | None = None,
    pos_margin: float = 0.0,
    neg_margin: float = 1.0,
    metric: str = "euclidean",
    positives: str = "all",
    reduction: str = "mean",
) -> Tensor | ContrastSums:
    """Contrastive loss: [D_p - pos_margin]_+ of positives and [neg_margin - D_n]_+ of negatives.

    Args:
        x: (N, d) anchors; float16, bfloat16, float32 or float64. Not normalised here.
        labels: (N,) classes, any integer dtype.
        references: (M, d) positives and negatives; the batch itself by default.
        reference_labels: (M,) classes of the references.
        self_index: (N,) the row of `references` that is the anchor itself, -1 for none.
        pos_margin: in units of the metric, a distance under every metric.
        neg_margin: likewise.
        metric: "euclidean" (default), "sqeuclidean", "cosine" or "dot".
        positives: "all", "nearest" or "farthest".
        reduction: "mean", that over the positive pairs with a loss greater than 0 plus that over
            such negative pairs (0 where there are none); "sum"; or "none".

    Returns:
        A scalar; with reduction "none" `ContrastSums`: each anchor's sums over its positives and
        over its negatives, and the numbers of their terms greater than 0. float64 for float64
        inputs, else float32. Differentiable once in `x` and `references`. An anchor that is not
        finite has loss NaN; a reference that is not finite is left out.

    Memory: O((N + M)·d); deterministic.

    Raises:
        TypeError: something is not a tensor or number, or has a wrong dtype.
        ValueError: a wrong shape, device or option.

    Source: Hadsell et al., "Dimensionality reduction by learning an invariant mapping", CVPR
    2006, with plain in place of squared hinges.
    """
    pos_margin = check_number("pos_margin", pos_margin)
    neg_margin = check_number("neg_margin", neg_margin)
    pairs = check_loss(
        x, labels, references, reference_labels, self_index, metric, positives, reduction
    )
    sums = contrast_sums(
        pairs,
        metric=metric,
        positive_form="hinge" if positives == "all" else "none",
        positive_bound=pos_margin if positives == "all" else None,
        negative_form="hinge",
        negative_bound=neg_margin,
    )
    if positives != "all":
        loss, active = _one_hinge(one_positive(pairs, metric, positives), 1, pos_margin)
        sums = sums._replace(positive=loss, positive_count=active)
    return sums if reduction == "none" else reduce_sides(sums, reduction)


def reduce_sides(sums: ContrastSums, reduction: str) -> Tensor:
    """The two sums of all anchors, each over the number of its terms for "mean", added."""
    positive = reduce(sums.positive, sums.positive_count, reduction)
    return positive + reduce(sums.negative, sums.negative_count, reduction)


def _one_hinge(one: OnePartner, sign: int, bound: Tensor | float) -> tuple[Tensor, Tensor]:
    """(N,) hinges of one partner an anchor, and whether they are active."""
    hinge = torch.where(one.exists, torch.relu(sign * (one.distance - bound)), 0.0)
    return hinge, is_active(hinge).long()


class MarginRows(NamedTuple):
    """Margin losses of the anchors.

    Attributes:
        loss: (N,) sums over the triplets of each anchor.
        active: (N,) int64 numbers of their terms greater than 0.
        triplets: (N,) int64 numbers of triplets.
    """

    loss: Tensor
    active: Tensor
    triplets: Tensor


def margin_loss(
    x: Tensor,
    labels: Tensor,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    *,
    boundary: float | Tensor,
    self_index: Tensor | None = None,
    margin: float = 0.2,
    metric: str = "euclidean",
    positives: str = "all",
    negatives: str = "all",
    generator: torch.Generator | None = None,
    reduction: str = "mean",
) -> Tensor | AnchorSums:
    """Margin loss: positives nearer than `boundary - margin`, negatives beyond `boundary + margin`.

    Each triplet of an anchor, a positive p and a negative n has two terms,
    [D_p - boundary + margin]_+ and [boundary - D_n + margin]_+. So with all positives and all
    negatives a positive counts once for each of its anchor's negatives, and the other way round.
    EPS is `positives="nearest"`.

    Args:
        x: (N, d) anchors; float16, bfloat16, float32 or float64. Not normalised here.
        labels: (N,) classes, any integer dtype.
        references: (M, d) positives and negatives; the batch itself by default.
        reference_labels: (M,) classes of the references.
        boundary: the distance between positives and negatives; a number, or a floating tensor of
            shape () or (N,), one per anchor, to which gradients flow.
        self_index: (N,) the row of `references` that is the anchor itself, -1 for none.
        margin: in units of the metric.
        metric: "euclidean" (default), "sqeuclidean", "cosine" or "dot".
        positives: "all", "nearest" or "farthest".
        negatives: "all", "hardest" (the nearest), or, with one positive, "semihard" (the nearest
            one farther away than the positive) or "distance_weighted": one that
            `sample_negative` draws with its default cutoffs, which are meant for rows of norm 1.
        generator: what decides the draws; torch's own of the CPU by default. Not looked at
            without draws.
        reduction: "mean" over the terms greater than 0 (0 when there are none), "sum", or "none".

    Returns:
        A scalar; with reduction "none" `AnchorSums` over each anchor's terms. An anchor without a
        positive or without a negative is left out. float64 for float64 inputs, else float32.
        Differentiable once in `x`, `references` and `boundary`. An anchor that is not finite has
        loss NaN; a reference that is not finite is left out.

    Memory: O((N + M)·d), whatever the number of triplets; deterministic.

    Raises:
        TypeError: something is not a tensor, number or generator, or has a wrong dtype.
        ValueError: a wrong shape, device or option, or semi-hard or drawn negatives of all
            positives.

    Source: Wu et al., "Sampling matters in deep embedding learning", ICCV 2017; nearest positive:
    Levi et al., ICCV 2021.
    """
    pairs = check_loss(
        x, labels, references, reference_labels, self_index, metric, positives, reduction
    )
    rows = margin_rows(pairs, boundary, margin, metric, positives, negatives, generator)
    sums = AnchorSums(rows.loss, rows.active)
    return sums if reduction == "none" else reduce(*sums, reduction)


def margin_rows(
    pairs: Pairs,
    boundary: float | Tensor,
    margin: float,
    metric: str,
    positives: str,
    negatives: str,
    generator: torch.Generator | None = None,
) -> MarginRows:
    """The losses of `margin_loss` before they are reduced; raises alike."""
    check_margin_options(positives, negatives)
    check_generator(generator)
    margin = check_number("margin", margin)
    middle = _check_boundary(boundary, pairs.x)
    near, far = middle - margin, middle + margin
    positive = None if positives == "all" else one_positive(pairs, metric, positives)
    negative = None
    if negatives != "all":
        negative = _one_negative(pairs, metric, negatives, positive, generator)
    if positive is None or negative is None:
        sums = contrast_sums(
            pairs,
            metric=metric,
            positive_form="hinge" if positive is None else "none",
            positive_bound=near if positive is None else None,
            negative_form="hinge" if negative is None else "none",
            negative_bound=far if negative is None else None,
        )
        pull, push, pull_active, push_active = sums
        positive_number, negative_number = partner_counts(pairs)
    if positive is not None:
        pull, pull_active = _one_hinge(positive, 1, near)
        positive_number = positive.exists.long()
    if negative is not None:
        push, push_active = _one_hinge(negative, -1, far)
        negative_number = negative.exists.long()
    return MarginRows(
        pull * negative_number + push * positive_number,
        pull_active * negative_number + push_active * positive_number,
        positive_number * negative_number,
    )


def check_margin_options(positives: str, negatives: str) -> None:
    """Raises ValueError unless `margin_loss` has these negatives for these positives."""
    # A semi-hard negative is one of a single positive.
    check_negatives(positives, negatives, of_all=("all", "hardest"))


def _one_negative(
    pairs: Pairs,
    metric: str,
    negatives: str,
    positive: OnePartner | None,
    generator: torch.Generator | None,
) -> OnePartner:
    """The only negative of each anchor; other ways to choose one belong here."""
    if negatives == "distance_weighted":
        drawn = call(sample_negative, pairs, metric=metric, generator=generator)
        return one_partner(pairs, drawn)
    if negatives == "hardest" or positive is None:
        return one_partner(pairs, call(hardest_negative, pairs, metric=metric))
    chosen = call(semihard_negative, pairs, beyond=positive.selected, metric=metric)
    return one_partner(pairs, chosen)


def _check_boundary(boundary: object, x: Tensor) -> Tensor:
    """The boundary as () or (N,) in the dtype of distances."""
    dtype = distance_dtype(x)
    if not isinstance(boundary, Tensor):
        return x.new_full((), check_number("boundary", boundary), dtype=dtype)
    value = check_tensor("boundary", boundary)
    if not value.dtype.is_floating_point:
        raise TypeError(f"boundary: expected a floating dtype, got {describe(value)}")
    if value.shape not in ((), (x.shape[0],)):
        raise ValueError(f"boundary: expected shape () or ({x.shape[0]},), got {describe(value)}")
    if value.device != x.device:
        raise ValueError(f"boundary: expected the device of x, {x.device}, got {describe(value)}")
    return value.to(dtype)
