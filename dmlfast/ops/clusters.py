"""Assignment of rows to centres."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from dmlfast.ops._arguments import (
    METRICS,
    Pairs,
    check_count,
    check_embeddings,
    check_integers,
    check_option,
    check_positive,
    check_references,
    describe,
)
from dmlfast.ops.clusters_soft import SoftAssignment, soft_assignment
from dmlfast.ops.neighbors import Selection, select
from dmlfast.ops.neighbors_top import GREATEST_K, nearest


@overload
def assign_clusters(
    x: Tensor,
    centers: Tensor,
    *,
    metric: str = ...,
    top: int = ...,
    temperature: None = ...,
    labels: Tensor | None = ...,
    center_labels: Tensor | None = ...,
) -> Selection: ...


@overload
def assign_clusters(
    x: Tensor,
    centers: Tensor,
    *,
    metric: str = ...,
    top: int = ...,
    temperature: float,
    labels: Tensor | None = ...,
    center_labels: Tensor | None = ...,
) -> SoftAssignment: ...


def assign_clusters(
    x: Tensor,
    centers: Tensor,
    *,
    metric: str = "euclidean",
    top: int = 1,
    temperature: float | None = None,
    labels: Tensor | None = None,
    center_labels: Tensor | None = None,
) -> Selection | SoftAssignment:
    """The nearest centre of each row, several of them, or all of them by soft assignment.

    Without a temperature the choice is exact: it is the arg-min of the float64 sum over the
    dimensions in ascending order, equal values go to the lowest centre, and the distance is that
    value rounded once. A centre at distance NaN is never chosen.

    With a temperature t a row is shared among all centres, p_k = softmax over k of -D_k / t, and
    what the shares make of its distances is returned, never the (N, K) shares:

        distance = -t log sum_k exp(-D_k / t)      the soft minimum
        mean     = sum_k p_k D_k                   the mean distance

    More follows from these. The derivative of the soft minimum by D_k is p_k, so that its gradient
    by `x` is -sum_k p_k c_k with "dot" and 2 (x - sum_k p_k c_k) with "sqeuclidean": it holds the
    row as its centres make it up. That by `centers` is 2 sum_i p_ik (c_k - x_i) with "sqeuclidean",
    which is 0 at the centres of soft k-means. The entropy of the shares is (mean - distance) / t.
    With "dot" and labels, -mean is the relaxed similarity of SoftTriple to the own class.

    Both are deterministic.

    Args:
        x: (N, d) rows; float16, bfloat16, float32 or float64, any strides.
        centers: (K, d) of the dtype and device of `x`.
        metric: "euclidean", "sqeuclidean", "cosine" (1 - cos, 1 for a zero vector) or "dot"
            (-<x, c>); smaller is closer.
        top: how many centres, the nearest first, 1 to 1024; it may exceed their number. 1 with a
            temperature, where all count.
        temperature: of the soft assignment, in units of the metric, greater than 0 and finite; None
            for the nearest centre.
        labels: (N,) classes of the rows, any integer dtype. With them only the centres of a row's
            own class count.
        center_labels: (K,) classes of the centres; required with `labels`.

    Returns:
        Without a temperature a Selection with (N,) distance, or (N, top) for a `top` of more than
        1, differentiable once in `x` and `centers`, and index of the same shape. Without a centre
        the distance is +inf (NaN for a row that is not finite) and the index -1. The gradient of a
        Euclidean distance of 0 is 0.
        With one a SoftAssignment of (N,) distance and mean, differentiable once in `x` and
        `centers`. Centres that are not finite do not count; without any that do, both are +inf with
        gradient 0. A row that is not finite has NaN, and gradient NaN where that is used.

    Memory: O((N + K)·d + N·top). Time: with labels only pairs of one class are computed, by soft
    assignment whole blocks of up to 256 centres (128 on CUDA) of neighbouring classes. The
    distances of a soft assignment are float32 sums of products, near ones of differences; on CUDA
    `torch.set_float32_matmul_precision("high")` allows products of half precision, which are
    faster. float64 rows are served by plain torch everywhere.

    Any temperature serves, with two limits beside rows or centres that are far longer than others:
    on CPU a soft assignment by "sqeuclidean" or "dot" knows no distances and no temperatures below
    the square of 1e-30 of the longest of all; on CUDA one by "dot" rounds elements to 2^-38 of the
    greatest of all.

    Raises:
        TypeError: something is not a tensor or number or has a wrong dtype, or `top` is no integer.
        ValueError: a wrong shape, device, option, temperature or `top`, or labels of one side
            alone.
    """
    check_option("metric", metric, METRICS)
    count = check_count("top", top, greatest=GREATEST_K)
    pairs = check_centers(x, centers, labels, center_labels)
    if temperature is not None:
        if count != 1:
            raise ValueError(f"top: expected 1 with a temperature, got {top}")
        return soft_assignment(pairs, metric, check_positive("temperature", temperature))
    if count == 1:
        distance, index = select(pairs, metric, None, same_class=True, farthest=False)
        return Selection(distance[:, 0], index[:, 0])
    return nearest(pairs, metric, "positives", count)


def check_centers(x: object, centers: object, labels: object, center_labels: object) -> Pairs:
    """Rows and centres with their classes, or all of one class.

    Raises:
        TypeError: something is not a tensor or has a wrong dtype.
        ValueError: a wrong shape or device, or labels of one side alone.
    """
    rows = check_embeddings("x", x)
    others = check_references("centers", centers, "x", rows)
    if (labels is None) != (center_labels is None):
        one, other = ("labels", "center_labels")[:: 1 if labels is None else -1]
        given = center_labels if labels is None else labels
        raise ValueError(f"{one}: expected labels with {other} {describe(given)}, got None")
    if labels is None:
        one_class = rows.new_zeros(rows.shape[0], dtype=torch.int64)
        return Pairs(
            rows, one_class, others, rows.new_zeros(others.shape[0], dtype=torch.int64), None
        )
    return Pairs(
        rows,
        check_integers("labels", labels, rows.shape[0], rows.device),
        others,
        check_integers("center_labels", center_labels, others.shape[0], rows.device),
        None,
    )
