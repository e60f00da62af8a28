"""Distances by an anchor's own weights of the dimensions, and their assignment to clusters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dmlfast.benchmarking.workload import Case, Inputs, Workload
from dmlfast.benchmarking.workloads._contestants import compiled, on_reference, product, training
from dmlfast.functional import adaptive_distance, multi_cluster_loss

__all__ = ["WORKLOADS"]

CLUSTERS = 4
# The defaults of the loss.
SPREAD, SHARPNESS, FLOOR = 3.0, 10.0, 0.2


def _with_weights(inputs: Inputs) -> Sequence[Tensor]:
    """The arguments of a loss of embeddings and weights: from 0.5 to 1.5, the same every time."""
    generator = torch.Generator().manual_seed(1)
    weights = 0.5 + torch.rand(inputs.x.shape, generator=generator)
    return inputs.leaf(), weights.to(inputs.x.device).requires_grad_()


def _kernel(e: Tensor, w: Tensor) -> Tensor:
    return multi_cluster_loss(e, w, clusters=CLUSTERS)


def _sum_of_distances(e: Tensor, w: Tensor) -> Tensor:
    return adaptive_distance(e, w).sum()


def _distance_by_products(e: Tensor, w: Tensor) -> Tensor:
    """All distances by one matrix product; near pairs lose their digits."""
    products = torch.cat([w, -2 * w * e], 1) @ torch.cat([e * e, e], 1).T
    own = (w * e * e).sum(1, keepdim=True)
    return (own + products).clamp(min=1e-12).sqrt()


def _sum_of_products(e: Tensor, w: Tensor) -> Tensor:
    return _distance_by_products(e, w).sum()


def _written_out(e: Tensor, w: Tensor) -> Tensor:
    with torch.no_grad():
        plain = torch.cdist(e, e)
        mean, deviation = plain.mean(), plain.std()
        least = torch.maximum(FLOOR * mean, mean - SPREAD * deviation)
        steps = torch.arange(CLUSTERS, device=e.device) / (CLUSTERS - 1)
        targets = mean - (mean - least) * steps
    gap = (_distance_by_products(e, w)[..., None] - targets).abs()
    shares = torch.softmax(-SHARPNESS * (CLUSTERS - 1) * gap, 2)
    losses = (shares * gap).sum(2)
    return (losses.sum() - losses.diagonal().sum()) / (len(e) * (len(e) - 1))


def _operations(case: Case) -> float:
    # One product of twice the dimensions, and two of its gradient.
    return 12.0 * case.rows**2 * case.dimensions


WORKLOADS = (
    Workload(
        name="multi_cluster",
        family="structure",
        summary=f"structure loss with {CLUSTERS} clusters, forward and backward",
        contestants={
            "product": product,
            "kernel": training(_kernel, _with_weights),
            "reference": on_reference(training(_kernel, _with_weights)),
            "written out": training(_written_out, _with_weights),
            "written out, compiled": compiled(_written_out, _with_weights),
        },
        yardstick="product",
        cases=(Case(4096),),
        quick=Case(512),
        operations=_operations,
    ),
    Workload(
        name="adaptive_distance",
        family="structure",
        summary="matrix of adaptive distances, forward and the backward of its sum",
        contestants={
            "product": product,
            "kernel": training(_sum_of_distances, _with_weights),
            "reference": on_reference(training(_sum_of_distances, _with_weights)),
            "one product": training(_sum_of_products, _with_weights),
        },
        yardstick="product",
        cases=(Case(4096),),
        quick=Case(512),
        operations=_operations,
    ),
)
