"""Search by the adaptive distance of NASA: with the query's own weights of the dimensions.

Source: Li et al., "Neighborhood-adaptive structure augmented metric learning", AAAI 2022, which
ranks the 32 nearest by Euclidean distance again. What is searched in needs no structure embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dmlfast import functional
from dmlfast.evaluation._metrics import (
    RetrievalMetrics,
    check_recall_at,
    check_sets,
    mean_metrics,
    without_queries,
)
from dmlfast.evaluation._rows import chunk_rows, parts
from dmlfast.evaluation.index import SearchIndex, check_index, check_norms, found_by
from dmlfast.functional import Selection
from dmlfast.ops._arguments import check_count, check_integers, check_references, describe
from dmlfast.ops.neighbors_top import GREATEST_K
from dmlfast.ops.structure import check_structure
from dmlfast.reference.distances import distance_dtype

__all__ = ["adaptive_search", "evaluate_adaptive_retrieval", "oracle_structure"]

# Of the mean variance of a class: no dimension has all the weight.
_LEAST_VARIANCE = 1e-6


def adaptive_search(
    queries: Tensor,
    structure: Tensor,
    references: Tensor | None = None,
    k: int = 32,
    *,
    shortlist: int | None = 32,
    index: SearchIndex | None = None,
    self_index: Tensor | None = None,
) -> Selection:
    """The nearest references of each query by its own structure, the nearest first.

        D_ij = sqrt(sum_k w_ik (q_ik - y_jk)^2)

    By default the `shortlist` nearest by Euclidean distance are ranked by D. With `shortlist=None`
    all are: with y' = y - m and q' = q - m around the median m of the references,

        D_ij^2 = sum_k w_ik q'_ik^2 - <[2 w_i q'_i, -w_i], [y'_j, y'_j^2]>

    is the exact search for the largest inner product with vectors of twice the length.

    Args:
        queries: (N, d) float16, bfloat16, float32 or float64 sample embeddings, any strides. Their
            scale changes no ranking.
        structure: (N, d) weights of the dimensions around each query, dtype and device of
            `queries`; at least 0.
        references: (M, d) sample embeddings, dtype and device of `queries`; the queries themselves
            by default, each then without itself.
        k: how many, 1 to 1024 and at most `shortlist`; it may exceed the number of references.
        shortlist: how many are ranked, at most 1024; None for all.
        index: a faiss index of the references in their order, approximate ones included, that gives
            the shortlist; it compares in float32: queries and references of norm 6e18 at most. By
            default the shortlist is searched exactly, on the device of the queries.
        self_index: (N,) of an integer dtype, the reference that is the query itself, and is left
            out; -1 for none. By default no reference is left out; without `references` it is known.

    Returns:
        `dmlfast.functional.Selection` with (N, k) distance D, ascending, and (N, k) index, on the
        device of the queries; float64 for float64 queries, else float32. Not differentiable. Where
        there are fewer than k references, the rest has distance +inf and index -1.

        A distance is the root of a float64 sum of differences; equal ones come in the order of
        their indices. Which k are found by inner products is right up to the rounding of float64
        sums.

    Memory: O((N + M)·d + N·shortlist), with `shortlist=None` two float64 copies of N + M rows of
    twice the length, and about 50 MB for a chunk of queries. There is no N x M matrix.

    Raises:
        TypeError: something is not a tensor or a faiss index, or has a wrong dtype.
        ValueError: a wrong shape, device or number; a row that is not finite or a weight below 0;
            float64 values so large, about 1e152, that their weighted squares overflow; an index of
            another number or length of rows, of rows too large for it, or without a shortlist.
    """
    queries, structure = check_structure(queries, structure, ("queries", "structure"))
    queries, structure = queries.detach(), structure.detach()
    rows = queries
    if references is not None:
        rows = check_references("references", references, "queries", queries).detach()
    own = _self_index(self_index, queries, within=references is None)
    k = check_count("k", k, greatest=GREATEST_K)
    _check_shortlist(shortlist, k)
    others = None if references is None else rows
    _check_values(queries, structure, others)
    _check_range(queries, structure, others)
    if index is not None:
        candidates = _of_index(index, queries, rows, shortlist, own)
    elif shortlist is not None:
        candidates = functional.nearest_neighbors(queries, rows, shortlist, self_index=own).index
    else:
        candidates = _by_inner_product(queries, structure, rows, k, own)
    return _ranked(queries, structure, rows, candidates, k)


def evaluate_adaptive_retrieval(
    queries: Tensor,
    structure: Tensor,
    query_labels: Tensor,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    *,
    shortlist: int | None = None,
    recall_at: Sequence[int] = (1, 2, 4, 8),
) -> RetrievalMetrics:
    """Recall@K, R-precision and MAP@R of `queries` searched by their own structure.

    As `evaluate_retrieval`, by the adaptive distance of `adaptive_search`. With a `shortlist`, so
    many nearest by Euclidean distance are ranked again, and the rest follow as they were.

    Args:
        queries: (N, d) float16, bfloat16, float32 or float64 sample embeddings, any strides.
        structure: (N, d) weights of the dimensions around each query, dtype and device of
            `queries`; at least 0.
        query_labels: (N,) of an integer dtype, compared as int64.
        references: (M, d), dtype and device of `queries`; None to search the queries among
            themselves.
        reference_labels: (M,), as `query_labels`; given exactly when `references` is.
        shortlist: how many are ranked again, at most 1024; None (default) ranks all by the
            adaptive distance.
        recall_at: the K of Recall@K, positive.

    Returns:
        The metrics and the number of queries they are means of. Not differentiable.

    Memory: O((N + M)·d + N·k), k being the references of the largest class, the largest K or the
    `shortlist`, whichever is most. There is no N x M matrix.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device or number, more than 1024 neighbours to look at, only one
            of `references` and `reference_labels`, a row that is not finite in float32, or a
            weight below 0; weights so large that what they are multiplied with overflows float64.
    """
    ranks = check_recall_at(recall_at)
    queries, structure = check_structure(queries, structure, ("queries", "structure"))
    labels = check_sets(queries, query_labels, references, reference_labels)
    others = None
    if references is not None:
        others = check_references("references", references, "queries", queries).detach()
    _check_values(queries, structure, None)
    _check_range(queries, structure, others)
    if shortlist is not None:
        check_count("shortlist", shortlist, greatest=GREATEST_K)
    if not len(labels.counted):
        return without_queries(ranks)
    width = labels.width(ranks)
    if width > GREATEST_K:
        raise ValueError(
            f"query_labels, recall_at: expected at most {GREATEST_K} neighbours of a query to look "
            f"at, got {width}"
        )
    found = _ranking(queries.detach(), structure.detach(), others, width, shortlist).cpu()
    return mean_metrics(labels, ranks, found.__getitem__, chunk_rows(width))


def oracle_structure(x: Tensor, labels: Tensor) -> Tensor:
    """The weights of one who knows the classes: the inverse variance of the row's own class.

        w_ik = v_k / mean_l v_l,  v_k = 1 / (variance of dimension k within the class of i)

    What a structure can be worth, not what it must be: retrieval by it looks at the labels. A
    variance counts as 1e-6 of the mean over the dimensions at least. Rows of a class without a
    variance, such as that of a single row, have weights of 1.

    Args:
        x: (N, d) float16, bfloat16, float32 or float64 embeddings, any strides.
        labels: (N,) of an integer dtype.

    Returns:
        (N, d) weights of mean 1, dtype and device of `x`; not differentiable.

    Memory: O(N·d).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, or a row that is not finite in float32.
    """
    labels = check_sets(x, labels, None, None).queries
    rows = x.detach().double().cpu()  # where sums are deterministic
    classes, row_class = torch.unique(labels, return_inverse=True)
    count = torch.bincount(row_class, minlength=len(classes)).double()[:, None]

    def means(values: Tensor) -> Tensor:
        return values.new_zeros(len(classes), x.shape[1]).index_add(0, row_class, values) / count

    variance = means((rows - means(rows)[row_class]).square())
    # Equal rows do not vary, whatever their mean is rounded to.
    member = torch.empty(len(classes), dtype=torch.int64)
    member[row_class] = torch.arange(len(rows))
    differs = (rows != rows[member[row_class]]).any(1, keepdim=True).double()
    variance = torch.where(means(differs.expand_as(rows)) > 0, variance, 0.0)
    total = variance.mean(1, keepdim=True)
    relative = (variance / torch.where(total == 0, 1.0, total)).clamp(min=_LEAST_VARIANCE)
    weights = torch.where(total == 0, 1.0, 1 / relative)
    return (weights / weights.mean(1, keepdim=True))[row_class].to(x)


def _ranking(
    queries: Tensor, structure: Tensor, references: Tensor | None, k: int, shortlist: int | None
) -> Tensor:
    """(N, k) the nearest by adaptive distance, of all or of a shortlist alone; -1 for none."""
    if shortlist is None:
        return adaptive_search(queries, structure, references, k, shortlist=None).index
    plain = functional.nearest_neighbors(queries, references, max(k, shortlist)).index
    rows = queries if references is None else references
    first = _ranked(queries, structure, rows, plain[:, :shortlist], shortlist).index
    return torch.cat([first, plain[:, shortlist:]], 1)[:, :k]


def _check_shortlist(shortlist: object, k: int) -> None:
    if shortlist is not None:
        length = check_count("shortlist", shortlist, greatest=GREATEST_K)
        if length < k:
            raise ValueError(f"shortlist: expected at least k, {k}, or None, got {length}")


def _check_values(queries: Tensor, structure: Tensor, references: Tensor | None) -> None:
    given = {"queries": queries, "structure": structure, "references": references}
    for name, rows in given.items():
        if rows is not None and not all(bool(part.isfinite().all()) for part in parts(rows)):
            raise ValueError(f"{name}: expected finite values, got others in {describe(rows)}")
    if bool((structure < 0).any()):
        raise ValueError(f"structure: expected weights of at least 0, got {structure.min().item()}")


def _check_range(queries: Tensor, structure: Tensor, references: Tensor | None) -> None:
    """Raises ValueError where float64 could not hold what is summed."""
    if queries.dtype != torch.float64:
        return
    rows = {"queries": _peak(queries)}
    if references is not None:
        rows["references"] = _peak(references)
    name = max(rows, key=rows.__getitem__)
    peak, weight = rows[name], max(1.0, _peak(structure))
    # A product of the exact search has two terms of a dimension, of at most 8 and 4 weight peak^2.
    if 16.0 * queries.shape[1] * weight * peak * peak > torch.finfo(torch.float64).max:
        raise ValueError(
            f"{name}, structure: expected values whose weighted squares float64 can sum, got up to "
            f"{peak:.3g} with weights up to {_peak(structure):.3g}"
        )


def _peak(x: Tensor) -> float:
    """The largest absolute value, 0 where there is none."""
    return max(abs(float(end)) for end in x.aminmax()) if x.numel() else 0.0


def _self_index(given: Tensor | None, queries: Tensor, *, within: bool) -> Tensor | None:
    """The reference that is each query itself, if there are such."""
    if given is None:
        return torch.arange(len(queries), device=queries.device) if within else None
    if within:
        raise ValueError(
            f"self_index: expected None without references, got {describe(given)}: it is known"
        )
    return check_integers("self_index", given, len(queries), queries.device)


def _of_index(
    index: SearchIndex,
    queries: Tensor,
    references: Tensor,
    shortlist: int | None,
    self_index: Tensor | None,
) -> Tensor:
    """(N, shortlist) rows that an index finds, -1 for none."""
    if shortlist is None:
        raise ValueError("index: expected None with shortlist=None, which searches all references")
    check_index(index)
    if (index.ntotal, index.d) != tuple(references.shape):
        raise ValueError(
            f"index: expected one of {references.shape[0]} rows of length {references.shape[1]}, "
            f"got {index.ntotal} of {index.d}"
        )
    check_norms("queries", queries)
    if references is not queries:
        check_norms("references", references)
    return found_by(index, queries, shortlist, self_index)[1]


def _by_inner_product(
    queries: Tensor, structure: Tensor, references: Tensor, k: int, self_index: Tensor | None
) -> Tensor:
    """(N, k) the nearest by adaptive distance, -1 for none."""
    rows = references.double()
    # Not the mean, which one long row moves: squares would take the digits of all differences.
    centre = rows.median(0).values if len(rows) else rows.new_zeros(rows.shape[1])
    x, y, w = queries.double() - centre, rows - centre, structure.double()
    return functional.nearest_neighbors(
        torch.cat([2 * w * x, -w], 1),
        torch.cat([y, y.square()], 1),
        k,
        self_index=self_index,
        metric="dot",
    ).index


def _ranked(
    queries: Tensor, structure: Tensor, references: Tensor, candidates: Tensor, k: int
) -> Selection:
    """The k nearest of (N, s) candidates by adaptive distance, those of -1 at the end."""
    rows, width = candidates.shape
    distance = torch.full((rows, k), torch.inf, dtype=torch.float64, device=queries.device)
    index = torch.full((rows, k), -1, dtype=torch.int64, device=queries.device)
    step = chunk_rows(max(1, width) * queries.shape[1])
    # Where there is no reference there is nothing to gather from.
    for start in range(0, rows if len(references) else 0, step):
        chunk = slice(start, start + step)
        # Ascending, so that a stable sort leaves equal distances in that order.
        listed = candidates[chunk].sort(1).values
        gap = references[listed.clamp(min=0)].double() - queries[chunk].double()[:, None]
        squares = (structure[chunk].double()[:, None] * gap.square()).sum(2)
        squares = torch.where(listed < 0, torch.inf, squares)
        squares, place = squares.sort(dim=1, stable=True)
        kept = min(k, width)
        distance[chunk, :kept] = squares[:, :kept].sqrt()
        index[chunk, :kept] = listed.gather(1, place)[:, :kept]
    return Selection(distance.to(distance_dtype(queries)), index)
