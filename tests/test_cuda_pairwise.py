"""Distances to references, their statistics and gradients on a GPU: `pytest -m cuda`."""

from __future__ import annotations

import pytest
import torch
from operator_cases import each_metric
from oracle import make

import dmlfast.functional as F
from dmlfast import _library

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not (torch.cuda.is_available() and _library.cuda_status.loaded),
        reason="needs a CUDA device and the CUDA library",
    ),
]

# Of a gradient's length. Sums of products of rows of a length near 1 are off by 2^-20; 16-bit
# gradients are rounded themselves.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}


def rows(dtype=torch.float32):
    """151 rows and 300 references, neither contiguous."""
    points = make("random", 451, 41, 9)[0].to(dtype)
    return points[:151, 1:], points[151:].t().contiguous().t()[:, 1:]


def gradients(function, *tensors):
    """What the function of the rows returns, and the gradients of its weighted sum."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    results = function(*leaves)
    generator = torch.Generator().manual_seed(1)
    total = 0
    for result in results:
        weight = torch.randn(result.shape, generator=generator).to(result)
        total = total + (result * weight).sum()
    total.backward()
    return [t.detach().cpu().double() for t in (*results, *(leaf.grad for leaf in leaves))]


def check(function, dtype=torch.float32):
    tensors = rows(dtype)
    expected = gradients(function, *(t.double() for t in tensors))
    actual = gradients(function, *(t.cuda() for t in tensors))
    for a, e in zip(actual, expected, strict=True):
        assert (a - e).norm() <= TOLERANCE[dtype] * e.norm()


@each_metric
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_distances_to_references_and_their_gradients(metric, dtype):
    check(lambda x, y: [F.pairwise_distance(x, y, metric=metric)], dtype)


@each_metric
def test_statistics_leave_self_out(metric):
    def statistics(x, y):
        own = torch.arange(151, device=x.device) * 3 % 302 - 1
        return F.distance_statistics(x, y, self_index=own, metric=metric)[:2]

    check(statistics)


@each_metric
def test_a_row_that_is_not_finite_gives_nan_to_what_uses_it(metric):
    points = [t.clone() for t in rows()]
    points[0][4, 0], points[1][7, 1] = torch.nan, torch.inf

    def some_distances(x, y):
        return [F.pairwise_distance(x, y, metric=metric)[:, 5:]]

    on_cpu = gradients(some_distances, *points)
    on_gpu = gradients(some_distances, *(t.cuda() for t in points))
    for a, e in zip(on_gpu, on_cpu, strict=True):
        assert torch.equal(a.isnan(), e.isnan())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_16_bit_rows_have_weights_of_float32(dtype):
    # Rows with much in common, and weights whose sum is 0: what is common cancels.
    generator = torch.Generator().manual_seed(0)
    x, references = (8 + torch.randn(n, 40, generator=generator).to(dtype) for n in (100, 300))
    weight = torch.randn(100, 300, generator=generator)
    weight -= weight.mean(1, keepdim=True)
    leaf = x.cuda().requires_grad_()
    distance = F.pairwise_distance(leaf, references.cuda(), metric="dot")
    (distance * weight.cuda()).sum().backward()
    expected = -(weight.double() @ references.double())
    # Sums of 2100 in size to 2^-20, and the result rounded; weights of half precision would be
    # 0.08 off.
    half_unit = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(leaf.grad.cpu().double(), expected, rtol=half_unit, atol=2.5e-3)
