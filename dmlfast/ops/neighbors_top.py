"""The k nearest references of each query, of all classes or under a label rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmlfast.ops._arguments import (
    METRICS,
    Pairs,
    check_count,
    check_embeddings,
    check_option,
    check_pairs,
    check_references,
    describe,
)
from dmlfast.ops._operators import operators, register
from dmlfast.ops.neighbors import Selection, save_selection, selection_backward
from dmlfast.reference import neighbors_top as reference
from dmlfast.reference.distances import distance_dtype

CANDIDATES = ("all", "positives", "negatives")
GREATEST_K = 1024
_NAMES = ("queries", "query_labels", "references", "reference_labels", "self_index")


def nearest_neighbors(
    queries: Tensor,
    references: Tensor | None = None,
    k: int = 1,
    *,
    query_labels: Tensor | None = None,
    reference_labels: Tensor | None = None,
    candidates: str = "all",
    self_index: Tensor | None = None,
    metric: str = "euclidean",
) -> Selection:
    """The k nearest references of each query, the nearest first.

    The choice is exact: values are float64 sums over the dimensions in ascending order, equal
    values come in the order of their indices, and a distance is that value rounded once.
    Deterministic. A reference at distance NaN is never chosen.

    Args:
        queries: (N, d); float16, bfloat16, float32 or float64, any strides.
        references: (M, d) candidates, dtype and device of `queries`; the queries themselves by
            default, each then without itself.
        k: how many, 1 to 1024; it may exceed the number of candidates.
        query_labels: (N,) classes of the queries, any integer dtype; required by "positives" and
            "negatives", and refused by "all".
        reference_labels: (M,) classes of the references, where both are given.
        candidates: "all", "positives" (references of the query's class) or "negatives" (of another
            class).
        self_index: (N,) the row of `references` that is the query itself and is not a candidate,
            -1 for none. Without references it is the query's own row, and must not be given.
        metric: "euclidean", "sqeuclidean", "cosine" (1 - cos, 1 for a zero vector) or "dot"
            (-<x, y>); smaller is closer.

    Returns:
        Selection with (N, k) distance, ascending and differentiable once in `queries` and
        `references`, and (N, k) index. Where there are fewer than k candidates, the rest has
        distance +inf (NaN for a query that is not finite) and index -1. The gradient of a
        Euclidean distance of 0 is 0.

    Memory: O((N + M)·d + N·k).

    Raises:
        TypeError: something is not a tensor or has a wrong dtype, or `k` is no integer.
        ValueError: a wrong shape, device, option or `k`, or labels that are missing or unused.
    """
    check_option("metric", metric, METRICS)
    count = check_count("k", k, greatest=GREATEST_K)
    pairs = _check_pairs(
        queries, references, query_labels, reference_labels, candidates, self_index
    )
    return nearest(pairs, metric, candidates, count)


def nearest(pairs: Pairs, metric: str, candidates: str, count: int) -> Selection:
    """The operator: (N, count) distances and indices."""
    order, reference_order = pairs.orders()
    distance, index = operators("neighbors_top", pairs.x.device).neighbors_top(
        pairs.x,
        pairs.labels,
        order,
        pairs.references,
        pairs.reference_labels,
        reference_order,
        pairs.self_index,
        count,
        candidates,
        metric,
    )
    return Selection(distance, index)


def _check_pairs(
    queries: object,
    references: object,
    query_labels: object,
    reference_labels: object,
    candidates: object,
    self_index: object,
) -> Pairs:
    """Checked pairs; where all references are candidates, all are of one class."""
    option = check_option("candidates", candidates, CANDIDATES)
    if option != "all":
        if query_labels is None:
            raise ValueError(f"query_labels: expected labels with candidates={option!r}, got None")
        return check_pairs(
            queries, query_labels, references, reference_labels, self_index, names=_NAMES
        )
    for name, labels in (("query_labels", query_labels), ("reference_labels", reference_labels)):
        if labels is not None:
            raise ValueError(f"{name}: expected None with candidates='all', got {describe(labels)}")
    x = check_embeddings("queries", queries)
    one_class = x.new_zeros(x.shape[0], dtype=torch.int64)
    others = None
    if references is not None:
        rows = check_references("references", references, "queries", x).shape[0]
        others = x.new_zeros(rows, dtype=torch.int64)
    return check_pairs(x, one_class, references, others, self_index, names=_NAMES)


def _reference_top(
    x: Tensor,
    labels: Tensor,
    order: Tensor,
    references: Tensor,
    reference_labels: Tensor,
    reference_order: Tensor,
    self_index: Tensor | None,
    k: int,
    candidates: str,
    metric: str,
) -> tuple[Tensor, Tensor]:
    return reference.top(
        x,
        labels,
        references,
        reference_labels,
        self_index,
        k=k,
        candidates=candidates,
        metric=metric,
    )


def _fake_top(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], arguments[6])
    return x.new_empty(shape, dtype=distance_dtype(x)), x.new_empty(shape, dtype=torch.int64)


register(
    "neighbors_top",
    reference=_reference_top,
    fake=_fake_top,
    save_for_backward=save_selection,
    backward=selection_backward,
)
