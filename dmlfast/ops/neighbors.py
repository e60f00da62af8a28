"""Selections: the nearest, farthest or next reference of each anchor under a label rule."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmlfast.ops._arguments import (
    METRICS,
    Pairs,
    check_number,
    check_option,
    check_pairs,
    check_tensor,
    describe,
)
from dmlfast.ops._operators import operators, register
from dmlfast.reference import neighbors as reference
from dmlfast.reference.distances import distance_dtype

MISSING = ("drop", "hardest")


class Selection(NamedTuple):
    """What a selection found for each anchor.

    Attributes:
        distance: (N,) or (N, T); float64 for float64 inputs, else float32. +inf where nothing
            was found, NaN for an anchor that is not finite and found nothing. Differentiable in
            the anchors and the references.
        index: int64 of the same shape, a row of the references (of the batch where there are
            none); -1 where nothing was found.
    """

    distance: Tensor
    index: Tensor  # type: ignore[assignment]  # shadows tuple.index on purpose


def nearest_positive(
    x: Tensor,
    labels: Tensor,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    *,
    self_index: Tensor | None = None,
    metric: str = "euclidean",
    min_distance: float | None = None,
) -> Selection:
    """The nearest reference of each anchor's class: the easy positive of EPS.

    The choice is exact: it is the arg-min of the float64 sum over the dimensions in ascending
    order, equal values go to the lowest index, and the distance is that value rounded once.
    Deterministic. A reference at distance NaN is never chosen.

    Args:
        x: (N, d) anchors; float16, bfloat16, float32 or float64, any strides.
        labels: (N,) classes of the anchors, any integer dtype.
        references: (M, d) candidates, dtype and device of `x`; the batch itself by default.
        reference_labels: (M,) classes of the references; required with them.
        self_index: (N,) the row of `references` that is the anchor itself and is not a candidate,
            -1 for none. Within a batch it is the anchor's own row, and must not be given.
        metric: "euclidean", "sqeuclidean", "cosine" (1 - cos, 1 for a zero vector) or "dot"
            (-<x, y>); smaller is closer.
        min_distance: positives whose distance is not greater than this are passed over, for
            example 0.0 to skip exact duplicates.

    Returns:
        Selection with (N,) distance, differentiable once in `x` and `references`, and (N,) index.
        The gradient of a Euclidean distance of 0 is 0.

    Memory: O((N + M)·d). Time: only pairs of one class are computed.

    Raises:
        TypeError: something is not a tensor or has a wrong dtype.
        ValueError: a wrong shape, device or option.

    Source: Levi et al., "Rethinking preventing class-collapsing in metric learning with
    margin-based losses", ICCV 2021 (arXiv 2006.05162).
    """
    pairs = check_pairs(x, labels, references, reference_labels, self_index)
    beyond = None
    if min_distance is not None:
        threshold = check_number("min_distance", min_distance)
        beyond = pairs.x.new_full((pairs.x.shape[0], 1), threshold, dtype=torch.float64)
    return _single(pairs, metric, beyond, same_class=True)


def farthest_positive(
    x: Tensor,
    labels: Tensor,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    *,
    self_index: Tensor | None = None,
    metric: str = "euclidean",
) -> Selection:
    """The farthest reference of each anchor's class: the hard positive.

    Arguments, exactness, memory, errors and the result are those of `nearest_positive`; an anchor
    alone in its class has distance +inf and index -1 here too.

    Source: Hermans et al., "In defense of the triplet loss for person re-identification", 2017.
    """
    pairs = check_pairs(x, labels, references, reference_labels, self_index)
    return _single(pairs, metric, None, same_class=True, farthest=True)


def hardest_negative(
    x: Tensor,
    labels: Tensor,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    *,
    self_index: Tensor | None = None,
    metric: str = "euclidean",
) -> Selection:
    """The nearest reference of another class.

    Arguments, exactness, memory, errors and the result are those of `nearest_positive`, over all
    pairs of different classes.

    Source: Hermans et al., "In defense of the triplet loss for person re-identification", 2017.
    """
    pairs = check_pairs(x, labels, references, reference_labels, self_index)
    return _single(pairs, metric, None, same_class=False)


def semihard_negative(
    x: Tensor,
    labels: Tensor,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    *,
    beyond: Tensor,
    self_index: Tensor | None = None,
    metric: str = "euclidean",
    missing: str = "drop",
) -> Selection:
    """The nearest reference of another class that is strictly beyond a distance.

    A candidate is beyond when its returned distance, rounded to the returned dtype, is greater
    than `beyond`; so the distance of a selection can be handed in as it is.

    Args:
        x: (N, d) anchors.
        labels: (N,) classes of the anchors.
        references: (M, d) candidates; the batch itself by default.
        reference_labels: (M,) classes of the references.
        beyond: (N,) or (N, T) floating thresholds in units of the metric, one or several per
            anchor; +inf for one that is unused. No gradient flows to it.
        self_index: (N,) references that are the anchor itself.
        metric: as in `nearest_positive`.
        missing: where no reference is beyond, "drop" (index -1, distance +inf) or "hardest" (the
            nearest reference of another class, wherever it is).

    Returns:
        Selection of the shape of `beyond`. Further contract as in `nearest_positive`;
        O((N + M)·d + N·T) memory.

    Raises:
        TypeError: something is not a tensor or has a wrong dtype.
        ValueError: a wrong shape, device or option.

    Source: Schroff et al., "FaceNet", CVPR 2015, in the closest-negative form.
    """
    pairs = check_pairs(x, labels, references, reference_labels, self_index)
    check_option("missing", missing, MISSING)
    thresholds = _check_beyond(beyond, pairs.x)
    distance, index = select(pairs, metric, thresholds, same_class=False, farthest=False)
    if missing == "hardest":
        hardest = select(pairs, metric, None, same_class=False, farthest=False)
        dropped = index < 0
        distance = torch.where(dropped, hardest[0], distance)
        index = torch.where(dropped, hardest[1], index)
    return Selection(distance.reshape(beyond.shape), index.reshape(beyond.shape))


def _check_beyond(beyond: object, x: Tensor) -> Tensor:
    """Thresholds as (N, T), detached."""
    thresholds = check_tensor("beyond", beyond)
    if not thresholds.dtype.is_floating_point:
        raise TypeError(f"beyond: expected a floating dtype, got {describe(thresholds)}")
    rows = x.shape[0]
    if thresholds.dim() not in (1, 2) or thresholds.shape[0] != rows:
        raise ValueError(
            f"beyond: expected shape ({rows},) or ({rows}, T), got {describe(thresholds)}"
        )
    if thresholds.device != x.device:
        raise ValueError(
            f"beyond: expected the device of x, {x.device}, got {describe(thresholds)}"
        )
    thresholds = thresholds.detach().double().contiguous()
    return thresholds[:, None] if thresholds.dim() == 1 else thresholds


def _single(
    pairs: Pairs, metric: str, beyond: Tensor | None, *, same_class: bool, farthest: bool = False
) -> Selection:
    distance, index = select(pairs, metric, beyond, same_class=same_class, farthest=farthest)
    return Selection(distance[:, 0], index[:, 0])


def select(
    pairs: Pairs, metric: str, beyond: Tensor | None, *, same_class: bool, farthest: bool
) -> tuple[Tensor, Tensor]:
    """The operator: (N, T) distances and indices, T = 1 without `beyond`."""
    check_option("metric", metric, METRICS)
    order, reference_order = pairs.orders()
    distance, index = operators("neighbors", pairs.x.device).neighbors_select(
        pairs.x,
        pairs.labels,
        order,
        pairs.references,
        pairs.reference_labels,
        reference_order,
        pairs.self_index,
        beyond,
        metric,
        same_class,
        farthest,
    )
    return distance, index


def _reference_select(
    x: Tensor,
    labels: Tensor,
    order: Tensor,
    references: Tensor,
    reference_labels: Tensor,
    reference_order: Tensor,
    self_index: Tensor | None,
    beyond: Tensor | None,
    metric: str,
    same_class: bool,
    farthest: bool,
) -> tuple[Tensor, Tensor]:
    return reference.select(
        x,
        labels,
        references,
        reference_labels,
        self_index,
        beyond,
        metric=metric,
        same_class=same_class,
        farthest=farthest,
    )


def _reference_select_backward(
    grad: Tensor, x: Tensor, references: Tensor, index: Tensor, slot_order: Tensor, metric: str
) -> tuple[Tensor, Tensor]:
    return reference.select_backward(grad, x, references, index, metric=metric)


def _fake_select(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    beyond = arguments[6]
    shape = (x.shape[0], 1 if beyond is None else beyond.shape[1])
    return x.new_empty(shape, dtype=distance_dtype(x)), x.new_empty(shape, dtype=torch.int64)


def _fake_select_backward(
    grad: Tensor, x: Tensor, references: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), references.new_empty(references.shape)


def save_selection(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """What the gradient of any operator that chooses references needs of its arguments.

    `x` and `references` are the first and the fourth; the metric is the last string.
    """
    ctx.metric = next(value for value in reversed(inputs) if isinstance(value, str))
    ctx.arguments = len(inputs)
    ctx.save_for_backward(inputs[0], inputs[3], output[1])
    ctx.mark_non_differentiable(output[1])


def selection_backward(
    operators: Any, ctx: Any, grad: Tensor, _: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradient of the chosen distances, after `save_selection`."""
    x, references, index = ctx.saved_tensors
    grad_x, grad_references = operators.neighbors_select_backward(
        grad, x, references, index, index.flatten().argsort(stable=True), ctx.metric
    )
    return grad_x, None, None, grad_references, *(None,) * (ctx.arguments - 4)


register(
    "neighbors_select",
    reference=_reference_select,
    reference_backward=_reference_select_backward,
    fake=_fake_select,
    fake_backward=_fake_select_backward,
    save_for_backward=save_selection,
    backward=selection_backward,
)
