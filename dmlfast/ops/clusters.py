"""The nearest of several centres."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlfast.ops._arguments import (
    METRICS,
    Pairs,
    check_count,
    check_embeddings,
    check_integers,
    check_option,
    check_references,
    describe,
)
from dmlfast.ops.neighbors import Selection, select
from dmlfast.ops.neighbors_top import GREATEST_K, nearest


def assign_clusters(
    x: Tensor,
    centers: Tensor,
    *,
    metric: str = "euclidean",
    top: int = 1,
    labels: Tensor | None = None,
    center_labels: Tensor | None = None,
) -> Selection:
    """The nearest centre of each row, or several of them.

    The choice is exact: it is the arg-min of the float64 sum over the dimensions in ascending
    order, equal values go to the lowest centre, and the distance is that value rounded once.
    Deterministic. A centre at distance NaN is never chosen.

    Args:
        x: (N, d) rows; float16, bfloat16, float32 or float64, any strides.
        centers: (K, d) of the dtype and device of `x`.
        metric: "euclidean", "sqeuclidean", "cosine" (1 - cos, 1 for a zero vector) or "dot"
            (-<x, c>); smaller is closer.
        top: how many centres, the nearest first, 1 to 1024; it may exceed their number.
        labels: (N,) classes of the rows, any integer dtype. With them only the centres of a row's
            own class count.
        center_labels: (K,) classes of the centres; required with `labels`.

    Returns:
        Selection with (N,) distance, or (N, top) for a `top` of more than 1, differentiable once in
        `x` and `centers`, and index of the same shape. Without a centre the distance is +inf (NaN
        for a row that is not finite) and the index -1. The gradient of a Euclidean distance of 0 is
        0.

    Memory: O((N + K)·d + N·top). Time: with labels only pairs of one class are computed.

    Raises:
        TypeError: something is not a tensor or has a wrong dtype, or `top` is no integer.
        ValueError: a wrong shape, device, option or `top`, or labels of one side alone.
    """
    check_option("metric", metric, METRICS)
    count = check_count("top", top, greatest=GREATEST_K)
    return _nearest(check_centers(x, centers, labels, center_labels), metric, count)


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


def _nearest(pairs: Pairs, metric: str, count: int) -> Selection:
    if count == 1:
        distance, index = select(pairs, metric, None, same_class=True, farthest=False)
        return Selection(distance[:, 0], index[:, 0])
    return nearest(pairs, metric, "positives", count)
