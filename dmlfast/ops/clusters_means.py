"""Means of the rows of clusters."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmlfast.ops._arguments import (
    can_read,
    check_count,
    check_embeddings,
    check_integers,
)
from dmlfast.ops._operators import operators, reference_operators, register
from dmlfast.reference import clusters as reference
from dmlfast.reference.distances import distance_dtype


class ClusterMeans(NamedTuple):
    """What `cluster_means` found.

    Attributes:
        mean: (K, d) float64 for float64 rows, else float32; 0 for a cluster without rows.
            Differentiable in the rows.
        count: (K,) int64 number of rows.
    """

    mean: Tensor
    count: Tensor  # type: ignore[assignment]  # shadows tuple.count on purpose


def cluster_means(x: Tensor, assignment: Tensor, clusters: int) -> ClusterMeans:
    """The mean of the rows of each cluster.

    It is their float64 sum in ascending order over their number, rounded once; the kernels of a
    GPU add up sections of 256 rows in that order, and then these. Deterministic: the same bits for
    every number of threads.

    Args:
        x: (N, d) rows; float16, bfloat16, float32 or float64, any strides.
        assignment: (N,) the cluster of each row, 0 to `clusters` - 1, any integer dtype; -1 for a
            row in none. A GPU's kernels take any other number for that, too.
        clusters: their number K, at least 0.

    Returns:
        `ClusterMeans`, (K, d) and (K,); a cluster without rows has mean 0 and count 0. The gradient
        of a row is that of its cluster's mean over the count. A row that is not finite makes the
        mean of its cluster so.

    Memory: O(N + K·d).

    Raises:
        TypeError: something is not a tensor or has a wrong dtype, or `clusters` is no integer.
        ValueError: a wrong shape or device, a negative number of clusters, or on the CPU another
            cluster.
    """
    rows = check_embeddings("x", x)
    index = check_integers("assignment", assignment, rows.shape[0], rows.device)
    count = check_count("clusters", clusters, least=0)
    if can_read(index) and index.numel() > 0:
        least, greatest = (int(value) for value in index.aminmax())
        if least < -1 or greatest >= count:
            got = least if least < -1 else greatest
            raise ValueError(f"assignment: expected clusters in [-1, {count}), got {got}")
    return ClusterMeans(*operators("clusters", rows.device).clusters_means(rows, index, count))


def _reference(x: Tensor, index: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    return reference.means(x, index, clusters)


def _fake(x: Tensor, index: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    means = x.new_empty((clusters, x.shape[1]), dtype=distance_dtype(x))
    return means, x.new_empty(clusters, dtype=torch.int64)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.dtype = inputs[0].dtype
    ctx.save_for_backward(inputs[1], output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(operators: Any, ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    # A gather, which torch serves as well as a kernel would.
    gradient = reference_operators().clusters_means_backward(grad, *ctx.saved_tensors, ctx.dtype)
    return gradient, None, None


def _reference_backward(grad: Tensor, index: Tensor, count: Tensor, dtype: torch.dtype) -> Tensor:
    return reference.means_backward(grad, index, count).to(dtype)


def _fake_backward(grad: Tensor, index: Tensor, count: Tensor, dtype: torch.dtype) -> Tensor:
    return grad.new_empty((index.shape[0], grad.shape[1]), dtype=dtype)


register(
    "clusters_means",
    reference=_reference,
    fake=_fake,
    save_for_backward=_save,
    backward=_backward,
    reference_backward=_reference_backward,
    fake_backward=_fake_backward,
    has_backward_kernel=False,
)
