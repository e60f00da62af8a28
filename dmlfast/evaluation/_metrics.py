"""Metrics of lists of neighbours by their labels, and the checks of what is searched."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dmlfast.evaluation._rows import parts
from dmlfast.ops._arguments import (
    check_count,
    check_dimensions,
    check_embeddings,
    check_integer_dtype,
    check_integers,
    check_tensor,
    describe,
)


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


class Labels(NamedTuple):
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

    @classmethod
    def of(cls, queries: Tensor, references: Tensor | None) -> Labels:
        """Of checked labels; None where the queries are searched among themselves."""
        within = references is None
        references = queries if references is None else references
        relevant = _count_relevant(queries, references) - int(within)
        return cls(queries, references, within, relevant, relevant.nonzero().flatten())

    def width(self, ranks: Sequence[int]) -> int:
        """How many neighbours of each query the metrics look at."""
        wanted = max([int(self.relevant.max()), *ranks])
        return min(wanted, self.references.shape[0] - int(self.within))


def check_sets(
    queries: Tensor,
    query_labels: Tensor,
    references: Tensor | None,
    reference_labels: Tensor | None,
) -> Labels:
    """The labels of checked arguments."""
    query_labels = check_labelled("queries", queries, "query_labels", query_labels)
    if references is None:
        if reference_labels is not None:
            raise ValueError(
                f"reference_labels: expected None without references, "
                f"got {describe(reference_labels)}"
            )
        return Labels.of(query_labels, None)
    if reference_labels is None:
        raise ValueError("reference_labels: expected labels of references, got None")
    reference_labels = check_labelled(
        "references", references, "reference_labels", reference_labels
    )
    check_dimensions("references", references, queries.shape[1])
    return Labels.of(query_labels, reference_labels)


def without_queries(ranks: Sequence[int]) -> RetrievalMetrics:
    """What is known when no query has a reference of its class."""
    return RetrievalMetrics(dict.fromkeys(ranks, math.nan), math.nan, math.nan, 0)


def mean_metrics(
    labels: Labels, ranks: Sequence[int], neighbours_of: Callable[[Tensor], Tensor], step: int
) -> RetrievalMetrics:
    """The metrics, so many of the counted queries at a time.

    `neighbours_of` maps queries to (n, k) int64 references, the nearest first, -1 for none and
    without the query itself. What a list lacks is not found.
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


def check_labelled(x_name: str, x: Tensor, labels_name: str, labels: Tensor) -> Tensor:
    """Check embeddings and their labels; return the labels as int64 on the CPU."""
    _check_matrix(x_name, x)
    checked = check_labels(labels_name, labels, len(x))
    _check_finite(x_name, x)
    return checked


def check_rows(name: str, x: Tensor) -> None:
    """Check embeddings."""
    _check_matrix(name, x)
    _check_finite(name, x)


def _check_matrix(name: str, x: Tensor) -> None:
    if check_embeddings(name, x).shape[1] == 0:
        raise ValueError(f"{name}: expected at least 1 dimension, got {describe(x)}")


def _check_finite(name: str, x: Tensor) -> None:
    """Raises unless every row is finite in float32: the one check that reads the data."""
    bad = sum(int((~part.float().isfinite().all(dim=1)).sum()) for part in parts(x.detach()))
    if bad:
        raise ValueError(
            f"{name}: expected rows that are finite in float32, got {bad} of {x.shape[0]} that "
            "are not"
        )


def check_labels(name: str, labels: object, rows: int | None = None) -> Tensor:
    """Labels, of so many rows if that is known, as int64 on the CPU, from any device."""
    given = check_tensor(name, labels)
    if rows is None:
        if check_integer_dtype(name, given).dim() != 1:
            raise ValueError(f"{name}: expected shape (N,), got {describe(given)}")
        rows = len(given)
    return check_integers(name, given, rows, given.device).cpu()


def check_recall_at(recall_at: Sequence[int]) -> tuple[int, ...]:
    """`recall_at` without repetitions, checked to be positive integers."""
    if not isinstance(recall_at, Sequence) or isinstance(recall_at, str):
        raise TypeError(
            f"recall_at: expected a sequence of positive integers, got {type(recall_at).__name__}"
        )
    for place, k in enumerate(recall_at):
        check_count(f"recall_at[{place}]", k)
    return tuple(dict.fromkeys(recall_at))


def _count_relevant(query_labels: Tensor, reference_labels: Tensor) -> Tensor:
    """(N,) int64: the number of references with the label of each query, the query included."""
    if not reference_labels.numel():
        return torch.zeros_like(query_labels)
    classes, counts = torch.unique(reference_labels, return_counts=True)
    slot = torch.searchsorted(classes, query_labels).clamp_(max=classes.numel() - 1)
    return torch.where(classes[slot] == query_labels, counts[slot], 0)


def _metric_sums(hits: Tensor, relevant: Tensor, ranks: Sequence[int]) -> Tensor:
    """(len(ranks) + 2,) float64: sums over the rows of Recall@K for each K, RP and MAP@R.

    `hits` is (n, k) bool, nearest first; `relevant` is (n,) int64, R of each row, at least 1.
    """
    recalls = [hits[:, :k].any(dim=1).sum(dtype=torch.float64) for k in ranks]
    place = torch.arange(1, hits.shape[1] + 1)
    hits = hits & (place <= relevant.unsqueeze(1))
    found = hits.cumsum(dim=1)
    r_precision = found[:, -1] / relevant.double()
    precision = found.double().div_(place).mul_(hits)
    average_precision = precision.sum(dim=1) / relevant
    return torch.stack([*recalls, r_precision.sum(), average_precision.sum()])
