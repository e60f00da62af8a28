"""Recall@K, R-precision and MAP@R of an embedding, by exact search.

Definitions: K. Musgrave, S. Belongie, S.-N. Lim, "A Metric Learning Reality Check", ECCV 2020,
section 3.2. For query i let R_i be the number of references of its class (itself not counted) and
hit_i(k) = 1 when its k-th nearest reference is one of them:

    Recall@K    = mean_i [ any hit_i(k), k <= K ]
    R-precision = mean_i 1/R_i sum_{k <= R_i} hit_i(k)
    MAP@R       = mean_i 1/R_i sum_{k <= R_i} hit_i(k) * (hit_i(1) + ... + hit_i(k)) / k

The means run over the queries with R_i > 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dmlfast._optional import require
from dmlfast.evaluation._rows import chunk_rows, drop_self, parts
from dmlfast.ops._arguments import check_count

__all__ = ["RetrievalMetrics", "embed", "evaluate_retrieval"]

_METRICS = ("euclidean", "sqeuclidean", "cosine", "dot")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class RetrievalMetrics:
    """What `evaluate_retrieval` returns. Every value lies in [0, 1], or is NaN without a query.

    Attributes:
        recall: Recall@K for every K asked for, in the order asked for.
        r_precision: R-precision.
        map_at_r: MAP@R.
        num_queries: how many queries the means run over: those with a reference of their class.
    """

    recall: Mapping[int, float]
    r_precision: float
    map_at_r: float
    num_queries: int

    def as_dict(self) -> dict[str, float]:
        """The values by name: `recall@K` in the order of `recall`, `r_precision`, `map@r`."""
        recalls = {f"recall@{k}": value for k, value in self.recall.items()}
        return {**recalls, "r_precision": self.r_precision, "map@r": self.map_at_r}


def evaluate_retrieval(
    queries: Tensor,
    query_labels: Tensor,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    *,
    metric: str = "euclidean",
    recall_at: Sequence[int] = (1, 2, 4, 8),
) -> RetrievalMetrics:
    """Recall@K, R-precision and MAP@R of `queries` searched in `references`.

    Without `references` every query is searched among the other queries: it is left out of its own
    list by its index, so duplicates of it stay in. With `references` nothing is left out, even when
    both are the same tensor. A query with no reference of its class ("lone") is left out of all
    three metrics but still serves as a reference; when no query is left every value is NaN.

    The search is exhaustive (faiss `IndexFlatL2` or `IndexFlatIP`) with as many neighbours as any
    query has references of its class, at least `max(recall_at)` and at most all of them. Its
    distances are float32, whatever the input; before that, in float64, rows are normalised under
    cosine, the mean of the references is subtracted (under dot and cosine from the references only)
    and the values are scaled to at most 1, none of which changes a ranking. References whose
    distances are equal, or differ by no more than float32 rounding, come in faiss's order.

    Args:
        queries: (N, d) float16, bfloat16, float32 or float64, on any device, any strides.
        query_labels: (N,) of an integer dtype, compared as int64.
        references: (M, d), as `queries`; None to search the queries among themselves.
        reference_labels: (M,), as `query_labels`; given exactly when `references` is.
        metric: "euclidean", "sqeuclidean" (same ranking), "cosine" (a zero vector is at distance 1
            of everything) or "dot" (largest inner product first).
        recall_at: the K of Recall@K, positive.

    Returns:
        The metrics and the number of queries they are means of. Not differentiable.

    Memory: two float32 copies of the references on the CPU, 8·M·d bytes, and about 50 MB for a
    chunk of queries; a chunk has 2^20 / max(k, d) queries, at least one, for k neighbours each.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, an unknown metric, a K below 1, only one of `references` and
            `reference_labels`, or a row that is not finite in float32.
        ImportError: faiss is not installed.
    """
    ranks = _check_recall_at(recall_at)
    if metric not in _METRICS:
        raise ValueError(f"metric must be one of {', '.join(_METRICS)}, got {metric!r}")
    labels = _check_sets(queries, query_labels, references, reference_labels)
    if not len(labels.counted):
        return _without_queries(ranks)
    rows = queries if references is None else references
    search = _searcher(queries.detach(), rows.detach(), metric)
    width = labels.width(ranks)

    def neighbours_of(chosen: Tensor) -> Tensor:
        found = search(chosen, width + int(labels.within))
        return drop_self(found, chosen) if labels.within else found

    return _mean_metrics(labels, ranks, neighbours_of, chunk_rows(max(width, queries.shape[1])))


def embed(model: torch.nn.Module, images: Tensor, *, batch_size: int = 1024) -> Tensor:
    """The embedding of `images` by `model` in evaluation mode, without gradients.

    Batches are moved to the device of the model's first parameter. Afterwards, also after an
    error, every submodule is back in the mode (training or evaluation) it was in.

    Args:
        model: a module that maps (n, ...) to (n, d) of a floating dtype.
        images: (N, ...), of the dtype the model takes. N may be 0 where the model accepts that.
        batch_size: rows per call of the model.

    Returns:
        (N, d) float32 on the CPU.

    Memory: the result, and one batch on the device of the model.

    Raises:
        TypeError: `images` or what the model returns is no tensor of the right dtype, or
            `batch_size` is no integer.
        ValueError: `batch_size` below 1, `images` without a dimension, or a model whose result is
            not (n, d).
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a Tensor, got {type(images).__name__}")
    if images.dim() == 0:
        raise ValueError("images must have shape (N, ...), got a scalar")
    check_count("batch_size", batch_size)
    parameter = next(model.parameters(), None)
    device = images.device if parameter is None else parameter.device
    # Submodule by submodule: model.train() would wake the batch norms that a user has frozen.
    modes = [(module, module.training) for module in model.modules()]
    result = torch.empty(0)
    try:
        model.eval()
        with torch.no_grad():
            # max(1, ...): an empty set still makes one call, which tells d.
            for start in range(0, max(1, images.shape[0]), batch_size):
                batch = images[start : start + batch_size].to(device)
                output = _check_output(model(batch), batch.shape[0])
                if start == 0:
                    result = torch.empty(images.shape[0], output.shape[1], dtype=torch.float32)
                result[start : start + batch_size] = output
    finally:
        for module, training in modes:
            module.training = training
    return result


def _check_output(output: object, rows: int) -> Tensor:
    if not isinstance(output, Tensor) or not output.is_floating_point():
        got = output.dtype if isinstance(output, Tensor) else type(output).__name__
        raise TypeError(f"model must return a floating-point Tensor, got {got}")
    if output.dim() != 2 or output.shape[0] != rows:
        raise ValueError(
            f"model must return shape ({rows}, d) for {rows} images, got {tuple(output.shape)}"
        )
    return output


def _check_recall_at(recall_at: Sequence[int]) -> tuple[int, ...]:
    """`recall_at` without repetitions, checked to be positive integers."""
    if not isinstance(recall_at, Sequence) or isinstance(recall_at, str):
        raise TypeError(
            f"recall_at must be a sequence of positive ints, got {type(recall_at).__name__}"
        )
    for place, k in enumerate(recall_at):
        check_count(f"recall_at[{place}]", k)
    return tuple(dict.fromkeys(recall_at))


class _Labels(NamedTuple):
    """What the metrics know of queries and references beside who is near whom.

    Attributes:
        queries: (N,) int64 on the CPU.
        references: (M,) alike.
        within: whether the queries are searched among themselves.
        relevant: (N,) int64, R of each query.
        counted: the queries with R > 0, ascending.
    """

    queries: Tensor
    references: Tensor
    within: bool
    relevant: Tensor
    counted: Tensor

    def width(self, ranks: Sequence[int]) -> int:
        """How many neighbours of each query the metrics look at."""
        wanted = max(int(self.relevant.max()), *ranks)
        return min(wanted, self.references.shape[0] - int(self.within))


def _check_sets(
    queries: Tensor,
    query_labels: Tensor,
    references: Tensor | None,
    reference_labels: Tensor | None,
) -> _Labels:
    """The labels of checked arguments."""
    query_labels = _check_set("queries", queries, "query_labels", query_labels)
    within = references is None
    if references is None or reference_labels is None:
        if references is not None or reference_labels is not None:
            missing = "reference_labels" if reference_labels is None else "references"
            raise ValueError(
                "references and reference_labels must be given together or not at all, "
                f"got no {missing}"
            )
        reference_labels = query_labels
    else:
        reference_labels = _check_set(
            "references", references, "reference_labels", reference_labels
        )
        if references.shape[1] != queries.shape[1]:
            raise ValueError(
                f"references must have the {queries.shape[1]} columns of queries, "
                f"got {references.shape[1]}"
            )
    relevant = _count_relevant(query_labels, reference_labels) - int(within)
    counted = torch.nonzero(relevant > 0).flatten()
    return _Labels(query_labels, reference_labels, within, relevant, counted)


def _without_queries(ranks: Sequence[int]) -> RetrievalMetrics:
    return RetrievalMetrics(dict.fromkeys(ranks, math.nan), math.nan, math.nan, 0)


def _mean_metrics(
    labels: _Labels, ranks: Sequence[int], neighbours_of: Callable[[Tensor], Tensor], step: int
) -> RetrievalMetrics:
    """The metrics, so many of the counted queries at a time.

    `neighbours_of` maps queries to (n, k) int64 references, the nearest first, -1 for none and
    without the query itself; k is at least R of each query.
    """
    sums = torch.zeros(len(ranks) + 2, dtype=torch.float64)
    for rows in labels.counted.split(step):
        neighbours = neighbours_of(rows)
        hits = labels.references[neighbours] == labels.queries[rows].unsqueeze(1)
        sums += _metric_sums(hits & (neighbours >= 0), labels.relevant[rows], ranks)
    means = (sums / labels.counted.numel()).tolist()
    return RetrievalMetrics(
        dict(zip(ranks, means[:-2], strict=True)), means[-2], means[-1], labels.counted.numel()
    )


def _check_set(x_name: str, x: Tensor, labels_name: str, labels: Tensor) -> Tensor:
    """Check embeddings and their labels; return the labels as int64 on the CPU."""
    for name, value in ((x_name, x), (labels_name, labels)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {type(value).__name__}")
    if x.dtype not in _FLOATS:
        raise TypeError(
            f"{x_name} must be float16, bfloat16, float32 or float64, got {_dtype_name(x)}"
        )
    if x.dim() != 2 or x.shape[1] == 0:
        raise ValueError(f"{x_name} must have shape (N, d) with d >= 1, got {tuple(x.shape)}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{labels_name} must have an integer dtype, got {_dtype_name(labels)}")
    if labels.shape != x.shape[:1]:
        raise ValueError(
            f"{labels_name} must have shape ({x.shape[0]},) to match {x_name}, "
            f"got {tuple(labels.shape)}"
        )
    bad = sum(int((~part.float().isfinite().all(dim=1)).sum()) for part in parts(x.detach()))
    if bad:
        raise ValueError(
            f"{x_name} must be finite in float32, got {bad} of {x.shape[0]} rows that are not"
        )
    return labels.to(device="cpu", dtype=torch.int64)


def _dtype_name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _count_relevant(query_labels: Tensor, reference_labels: Tensor) -> Tensor:
    """(N,) int64: the number of references with the label of each query, the query included."""
    if not reference_labels.numel():
        return torch.zeros_like(query_labels)
    classes, counts = torch.unique(reference_labels, return_counts=True)
    slot = torch.searchsorted(classes, query_labels).clamp_(max=classes.numel() - 1)
    return torch.where(classes[slot] == query_labels, counts[slot], 0)


def _float_rows(x: Tensor, metric: str) -> Tensor:
    """`x` in float64 on the CPU, of unit length under cosine; zero rows stay zero."""
    rows = x.to(device="cpu", dtype=torch.float64)
    if metric != "cosine":
        return rows
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / torch.where(length == 0, 1.0, length)


def _searcher(queries: Tensor, references: Tensor, metric: str) -> Callable[[Tensor, int], Tensor]:
    """A function (rows, k) -> (len(rows), k) int64: the k nearest references, nearest first.

    Faiss computes |x|^2 + |y|^2 - 2<x, y> in float32: a common offset of the rows cancels badly
    there, and the squares of very large or very small values overflow or vanish. Subtracting one
    vector from the references moves all inner products of a query by the same amount, subtracting
    it from both sides leaves distances as they are, and so does a positive scale for rankings.
    """
    faiss = require("faiss", "train")
    columns = references.shape[1]
    euclidean = metric in ("euclidean", "sqeuclidean")
    shift = torch.zeros(columns, dtype=torch.float64)
    for part in parts(references):
        shift += _float_rows(part, metric).sum(dim=0) / references.shape[0]
    query_shift = shift if euclidean else torch.zeros_like(shift)
    query_peak = _peak(queries, metric, query_shift)
    reference_peak = _peak(references, metric, shift)
    if euclidean:
        query_peak = reference_peak = max(query_peak, reference_peak)

    packed = torch.empty(references.shape, dtype=torch.float32)
    for target, part in zip(parts(packed), parts(references), strict=True):
        target.copy_((_float_rows(part, metric) - shift) / reference_peak)
    index = faiss.IndexFlatL2(columns) if euclidean else faiss.IndexFlatIP(columns)
    index.add(packed.numpy())

    def search(rows: Tensor, k: int) -> Tensor:
        chunk = _float_rows(queries[rows.to(queries.device)], metric)
        chunk = ((chunk - query_shift) / query_peak).to(torch.float32)
        return torch.from_numpy(index.search(chunk.numpy(), k)[1])

    return search


def _peak(x: Tensor, metric: str, shift: Tensor) -> float:
    """The largest absolute entry of the shifted rows, 1 when all are zero."""
    peaks = [float((_float_rows(part, metric) - shift).abs().amax()) for part in parts(x)]
    return max(peaks) or 1.0


def _metric_sums(hits: Tensor, relevant: Tensor, ranks: Sequence[int]) -> Tensor:
    """(len(ranks) + 2,) float64: sums over the rows of Recall@K for each K, RP and MAP@R.

    `hits` is (n, k) bool, nearest first; `relevant` is (n,) int64, R of each row, 1 <= R <= k.
    """
    recalls = [hits[:, :k].any(dim=1).sum(dtype=torch.float64) for k in ranks]
    place = torch.arange(1, hits.shape[1] + 1)
    hits = hits & (place <= relevant.unsqueeze(1))
    found = hits.cumsum(dim=1)
    r_precision = found[:, -1] / relevant.double()
    precision = found.double().div_(place).mul_(hits)
    average_precision = precision.sum(dim=1) / relevant
    return torch.stack([*recalls, r_precision.sum(), average_precision.sum()])
