"""Samples and their centres by the CUDA kernels on a GPU: `pytest -m cuda`."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from cuda_cases import Function, check_capture, cuda, needs_gpu, results
from operator_cases import each_metric
from oracle import make
from structure_cases import doubles
from torch import Tensor

import dmlfast.functional as F

pytestmark = needs_gpu

# Of a result's length. Products of rows are off by 2^-20 of their lengths, which a temperature of
# 0.5 makes shares of; 16-bit gradients are rounded themselves.
TOLERANCE = {torch.float32: 5e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}
each_label = pytest.mark.parametrize("labelled", [False, True])


def problem(dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Rows and centres of several tiles with a rest, in strides, and classes that all have centres.

    Some rows are close to centres, and some equal to them.
    """
    x, labels = make("random", 301, 41, 5)
    centers, center_labels = make("random", 403, 41, 5, seed=1)
    x[10:20], x[20:30] = centers[:10], centers[:10] * (1 + 1e-3)
    rows = [x.to(dtype).t().contiguous().t()[:, 1:], centers.to(dtype)[:, 1:]]
    return rows, {"labels": labels, "center_labels": center_labels}


def soft(labels: dict[str, Tensor] | None = None, **options: object) -> Function:
    """Soft assignment of rows and centres on any device."""

    def assign(x: Tensor, centers: Tensor) -> list[Tensor]:
        own = {name: value.to(x.device) for name, value in (labels or {}).items()}
        return list(F.assign_clusters(x, centers, **({"temperature": 0.5} | own | options)))

    return assign


def check(actual: list[Tensor], expected: list[Tensor], tolerance: list[float]) -> None:
    for a, e, t in zip(actual, expected, tolerance, strict=True):
        assert (a.double() - e).norm() <= t * e.norm()


@each_metric
@each_label
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_soft_assignment_and_its_gradients_are_those_of_float64(metric, labelled, dtype):
    tensors, labels = problem(dtype)
    function = soft(labels if labelled else None, metric=metric)
    expected = results(function, *doubles(*tensors))
    actual = results(function, *cuda(*tensors))
    check(actual, expected, [TOLERANCE[torch.float32]] * 2 + [TOLERANCE[dtype]] * 2)


@each_metric
def test_soft_assignment_may_have_products_of_half_precision(metric):
    tensors, labels = problem()
    function = soft(labels, metric=metric)
    expected = results(function, *doubles(*tensors))
    torch.set_float32_matmul_precision("high")
    try:
        actual = results(function, *cuda(*tensors))
    finally:
        torch.set_float32_matmul_precision("highest")
    # Rows are rounded to 2^-11; a temperature of 0.5 makes shares of what that changes.
    check(actual, expected, [2e-2] * 4)


@pytest.mark.parametrize("temperature", [1e-3, 1e-6, 1e-8])
def test_equal_centres_share_evenly_at_any_temperature(temperature):
    (x, centers), _ = problem()
    centers = centers[:1].repeat(3, 1)
    function = partial(F.assign_clusters, metric="sqeuclidean", temperature=temperature)
    leaves = [tensor.requires_grad_() for tensor in cuda(x.clone(), centers)]
    gradients = torch.autograd.grad(function(*leaves).distance.sum(), leaves)
    difference = (x - centers[0]).double()
    torch.testing.assert_close(gradients[0].cpu().double(), 2 * difference, rtol=1e-5, atol=1e-5)
    to_center = (-2 * difference.sum(0) / 3).expand(3, -1)
    torch.testing.assert_close(gradients[1].cpu().double(), to_center, rtol=1e-4, atol=1e-3)


# Products of the gradients of centres are those of the sums with rows and columns exchanged: their
# bits have to be the same.
@each_metric
def test_towards_temperature_0_soft_assignment_is_the_nearest_centre(metric):
    tensors, _ = problem()
    tensors[0] = torch.cat([tensors[0][:10], tensors[0][30:]])
    _, _, *to_soft = results(soft(metric=metric, temperature=1e-30), *cuda(*tensors))
    assert all(gradient.isfinite().all() for gradient in to_soft)

    def hard(x: Tensor, centers: Tensor) -> list[Tensor]:
        found = F.assign_clusters(x, centers, metric=metric)
        return [found.distance, found.distance]

    _, _, *to_hard = results(hard, *cuda(*tensors))
    check(to_soft, [gradient.double() for gradient in to_hard], [1e-4] * 2)


@each_label
def test_what_soft_assignment_loses_is_what_it_loses_on_the_cpu(labelled):
    tensors, labels = problem()
    labels["labels"][5:9] = 99
    tensors[0][4, 0], tensors[1][7, 1] = torch.nan, torch.inf
    tensors[1][labels["center_labels"] == 2] = torch.nan
    function = soft(labels if labelled else None)
    for use in (function, lambda *leaves: [part[9:] for part in function(*leaves)]):
        on_cpu, on_gpu = results(use, *tensors), results(use, *cuda(*tensors))
        for a, e in zip(on_gpu, on_cpu, strict=True):
            assert torch.equal(a.isnan(), e.isnan())
            assert torch.equal(a.isinf(), e.isinf())


@each_label
def test_soft_assignment_has_the_same_bits_ten_times(labelled):
    tensors, labels = problem()
    function = soft(labels if labelled else None)
    first = results(function, *cuda(*tensors))
    for _ in range(10):
        assert all(map(torch.equal, results(function, *cuda(*tensors)), first))


@each_label
def test_soft_assignment_is_captured_as_a_graph(labelled):
    tensors, labels = problem()
    on_gpu = {name: value.cuda() for name, value in labels.items()}
    check_capture(soft(on_gpu if labelled else None), *cuda(*tensors))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1)], ids=str)
def test_tiny_soft_assignments_are_defined(shape):
    tensors = [tensor[:n] for tensor, n in zip(problem()[0], shape, strict=True)]
    expected = results(soft(), *doubles(*tensors))
    for a, e in zip(results(soft(), *cuda(*tensors)), expected, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-5, atol=1e-6)


def test_soft_assignment_of_float64_rows_is_served_by_plain_torch():
    tensors = doubles(*problem()[0])
    for a, e in zip(soft()(*cuda(*tensors)), soft()(*tensors), strict=True):
        torch.testing.assert_close(a.cpu(), e)
