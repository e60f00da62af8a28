"""The triplet loss over all positives and negatives, forward and backward.

    pytest benchmarks/bench_contrast.py

`product` is the yardstick, the bare `x @ x.T` into memory that is already allocated;
`pytorch_metric_learning` is its TripletMarginLoss with the defaults, which computes the same.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from bench_neighbors import product
from measure import peak_memory
from pytorch_metric_learning.losses import TripletMarginLoss as PeerLoss

import dmlfast
from dmlfast.losses import TripletMarginLoss


def kernel(x: torch.Tensor, labels: torch.Tensor) -> Callable[[], object]:
    leaf = x.clone().requires_grad_()
    loss = TripletMarginLoss()
    return lambda: loss(leaf, labels).backward()


def reference(x: torch.Tensor, labels: torch.Tensor) -> Callable[[], object]:
    return dmlfast.use_backend("reference")(kernel(x, labels))


def pytorch_metric_learning(x: torch.Tensor, labels: torch.Tensor) -> Callable[[], object]:
    leaf = x.clone().requires_grad_()
    loss = PeerLoss()
    return lambda: loss(leaf, labels).backward()


@pytest.mark.parametrize("contestant", [product, kernel, reference, pytorch_metric_learning])
@pytest.mark.parametrize(("rows", "dimensions", "per_class"), [(512, 128, 4), (1024, 128, 4)])
def test_triplet_loss_over_all_pairs(benchmark, contestant, rows, dimensions, per_class):
    benchmark.group = f"N={rows}, d={dimensions}, {per_class} per class"
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(rows, dimensions, generator=generator))
    step = contestant(x, torch.arange(rows) // per_class)
    step()  # what only a first call allocates or compiles is not part of the figures
    benchmark.extra_info["peak_mib"] = peak_memory(step)
    benchmark.pedantic(step, rounds=5)
