"""Selections and the EPS triplet loss, forward and backward, against what else computes them.

    pytest benchmarks/bench_neighbors.py

Rows of one group share a size; the figure in brackets is the ratio to the fastest. `product` is
the yardstick, the bare `x @ x.T` into memory that is already allocated. `written_out` is the loss
as it is usually written, with N x N matrices and masks. extra_info holds the peak of resident
memory above the inputs in MiB (Linux).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from measure import peak_memory

import dmlfast
from dmlfast.functional import triplet_margin_loss

MARGIN = 0.2


def product(x: torch.Tensor, _: torch.Tensor) -> Callable[[], object]:
    warm = torch.zeros(x.shape[0], x.shape[0])
    return lambda: torch.mm(x, x.T, out=warm)


def kernel(x: torch.Tensor, labels: torch.Tensor) -> Callable[[], object]:
    leaf = x.clone().requires_grad_()

    def step() -> None:
        triplet_margin_loss(
            leaf, labels, margin=MARGIN, positives="nearest", negatives="semihard"
        ).backward()

    return step


def reference(x: torch.Tensor, labels: torch.Tensor) -> Callable[[], object]:
    return dmlfast.use_backend("reference")(kernel(x, labels))


def written_out(x: torch.Tensor, labels: torch.Tensor) -> Callable[[], object]:
    leaf = x.clone().requires_grad_()

    def step() -> None:
        distance = torch.cdist(leaf, leaf)
        same = labels[:, None] == labels[None]
        itself = torch.eye(len(labels), dtype=torch.bool)
        positive = distance.masked_fill(~same | itself, torch.inf).amin(1)
        semihard = same | (distance <= positive[:, None])
        negative = distance.masked_fill(semihard, torch.inf).amin(1)
        torch.relu(positive - negative + MARGIN).mean().backward()

    return step


@pytest.mark.parametrize("contestant", [product, kernel, reference, written_out])
@pytest.mark.parametrize(("rows", "dimensions", "per_class"), [(2048, 128, 4), (8192, 128, 4)])
def test_eps_triplet_loss(benchmark, contestant, rows, dimensions, per_class):
    if contestant is reference and rows > 2048:
        pytest.skip("a minute a round")
    benchmark.group = f"N={rows}, d={dimensions}, {per_class} per class"
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(rows, dimensions, generator=generator))
    step = contestant(x, torch.arange(rows) // per_class)
    step()  # what only a first call allocates or compiles is not part of the figures
    benchmark.extra_info["peak_mib"] = peak_memory(step)
    benchmark.pedantic(step, rounds=5)
