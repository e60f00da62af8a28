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

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dmlfast._optional import require
from dmlfast.evaluation._metrics import (
    Labels,
    RetrievalMetrics,
    check_labels,
    check_recall_at,
    check_sets,
    mean_metrics,
    without_queries,
)
from dmlfast.evaluation._rows import chunk_rows, drop_self, parts
from dmlfast.ops._arguments import (
    METRICS,
    check_count,
    check_integer_dtype,
    check_option,
    check_tensor,
    describe,
)

__all__ = ["RetrievalMetrics", "embed", "evaluate_neighbors", "evaluate_retrieval"]


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
    ranks = check_recall_at(recall_at)
    check_option("metric", metric, METRICS)
    labels = check_sets(queries, query_labels, references, reference_labels)
    if not len(labels.counted):
        return without_queries(ranks)
    rows = queries if references is None else references
    search = _searcher(queries.detach(), rows.detach(), metric)
    width = labels.width(ranks)

    def neighbours_of(chosen: Tensor) -> Tensor:
        found = search(chosen, width + int(labels.within))
        return drop_self(found, chosen) if labels.within else found

    return mean_metrics(labels, ranks, neighbours_of, chunk_rows(max(width, queries.shape[1])))


def evaluate_neighbors(
    neighbors: Tensor,
    query_labels: Tensor,
    reference_labels: Tensor | None = None,
    *,
    recall_at: Sequence[int] = (1, 2, 4, 8),
) -> RetrievalMetrics:
    """Recall@K, R-precision and MAP@R of lists of neighbours, such as an index gives.

    As `evaluate_retrieval`. What is missing in a list that is shorter than R is not found.

    Args:
        neighbors: (N, k) rows of the references, of an integer dtype, the nearest first; -1 for
            none.
        query_labels: (N,) of an integer dtype, compared as int64.
        reference_labels: (M,) alike; None where the queries were searched among themselves, each
            without itself.
        recall_at: the K of Recall@K, positive.

    Returns:
        The metrics and the number of queries they are means of.

    Memory: the arguments, and about 50 MB for a chunk of queries.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, a K below 1, or a neighbour that is no reference.
    """
    ranks = check_recall_at(recall_at)
    check_integer_dtype("neighbors", neighbors)
    if neighbors.dim() != 2 or neighbors.shape[1] == 0:
        raise ValueError(f"neighbors: expected shape (N, k) with k >= 1, got {describe(neighbors)}")
    own = check_labels("query_labels", query_labels, len(neighbors))
    if reference_labels is not None:
        reference_labels = check_labels("reference_labels", reference_labels)
    labels = Labels.of(own, reference_labels)
    found = neighbors.to(device="cpu", dtype=torch.int64)
    last = labels.references.shape[0] - 1
    if found.numel() and not -1 <= int(found.min()) <= int(found.max()) <= last:
        raise ValueError(
            f"neighbors: expected rows from 0 to {last}, or -1 for none, got some from "
            f"{int(found.min())} to {int(found.max())}"
        )
    if not len(labels.counted):
        return without_queries(ranks)
    step = chunk_rows(max(1, found.shape[1]))
    return mean_metrics(labels, ranks, found.__getitem__, step)


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
    if check_tensor("images", images).dim() == 0:
        raise ValueError(f"images: expected shape (N, ...), got {describe(images)}")
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
        raise TypeError(f"model: expected it to return a floating dtype, got {describe(output)}")
    if output.dim() != 2 or output.shape[0] != rows:
        raise ValueError(
            f"model: expected it to return shape ({rows}, d) for {rows} images, "
            f"got {describe(output)}"
        )
    return output


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
