"""Distances by an anchor's own weights of the dimensions, and their assignment to clusters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from dmlfast.benchmarking.workload import Case, Contestant, Inputs, Step, Workload
from dmlfast.benchmarking.workloads._contestants import on_reference, product
from dmlfast.functional import adaptive_distance, multi_cluster_loss

__all__ = ["WORKLOADS"]

CLUSTERS = 4
# The defaults of the loss.
SPREAD, SHARPNESS, FLOOR = 3.0, 10.0, 0.2

# Of embeddings and weights; a scalar tensor.
_Loss = Callable[[Tensor, Tensor], Tensor]


def _weights_of(x: Tensor) -> Tensor:
    """(N, d) numbers from 0.5 to 1.5, the same on every call."""
    generator = torch.Generator().manual_seed(1)
    return (0.5 + torch.rand(x.shape, generator=generator)).to(x.device)


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


def _step(loss: _Loss, inputs: Inputs) -> Step:
    leaves = inputs.leaf(), _weights_of(inputs.x).requires_grad_()

    def step() -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        value = loss(*leaves)
        value.backward()
        return value.detach()

    return step


def _training(loss: _Loss) -> Contestant:
    return partial(_step, loss)


def _compiled_step(loss: _Loss, inputs: Inputs) -> Step:
    with torch._dynamo.config.patch(recompile_limit=64):
        step = _step(torch.compile(loss, fullgraph=True, dynamic=False), inputs)
        step()
    return step


def _compiled(loss: _Loss) -> Contestant:
    return partial(_compiled_step, loss)


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
            "kernel": _training(_kernel),
            "reference": on_reference(_training(_kernel)),
            "written out": _training(_written_out),
            "written out, compiled": _compiled(_written_out),
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
            "kernel": _training(_sum_of_distances),
            "reference": on_reference(_training(_sum_of_distances)),
            "one product": _training(_sum_of_products),
        },
        yardstick="product",
        cases=(Case(4096),),
        quick=Case(512),
        operations=_operations,
    ),
)
