"""Adaptive distances, their clusters and gradients on a GPU: `pytest -m cuda`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from cuda_cases import check_capture, cuda, needs_gpu, results
from structure_cases import doubles, rows, weights
from torch import Tensor

import dmlfast.functional as F

pytestmark = needs_gpu

each_form = pytest.mark.parametrize("form", ["batch", "references"])
each_squared = pytest.mark.parametrize("squared", [False, True])
# Of a result's length: distances from products are off by 2^-20 of their terms; 16-bit gradients
# are rounded themselves.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}


def problem(form: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Of several tiles with a rest, in strides; some rows are close, and some equal."""
    e, w = rows(301, 82, dtype).detach()[:, ::2], weights(301, 41, dtype).detach()
    e = e.clone()
    e[10:20], e[20:30] = e[0:10], e[0:10] * (1 + 1e-3)
    tensors = [e.t().contiguous().t(), w.t().contiguous().t()]
    if form == "references":
        tensors.append(torch.cat([rows(400, 41, dtype, seed=1).detach(), e[:5]]))
    return tensors


@each_form
@each_squared
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_distances_and_gradients_are_those_of_float64(form, squared, dtype):
    tensors = problem(form, dtype)
    expected = results(lambda *t: F.adaptive_distance(*t, squared=squared), *doubles(*tensors))
    actual = results(lambda *t: F.adaptive_distance(*t, squared=squared), *cuda(*tensors))
    for a, e in zip(actual, expected, strict=True):
        tolerance = TOLERANCE[torch.float32 if a is actual[0] else dtype]
        assert (a.double() - e).norm() <= tolerance * e.norm()


@each_squared
def test_near_duplicates_keep_their_digits_and_equal_rows_have_distance_0(squared):
    e, w = problem("batch")
    expected = F.adaptive_distance(e.double(), w.double(), squared=squared)
    actual = F.adaptive_distance(*cuda(e, w), squared=squared).cpu().double()
    pairs = torch.arange(10), torch.arange(20, 30)
    torch.testing.assert_close(actual[pairs], expected[pairs], rtol=1e-6, atol=0)
    assert torch.equal(actual == 0, expected == 0)


@each_form
def test_what_is_lost_is_what_is_lost_on_the_cpu(form):
    tensors = problem(form)
    tensors[0][4, 0], tensors[1][7, 1], tensors[-1][5, 2] = torch.nan, -1.0, torch.inf

    def function(*leaves: Tensor) -> Tensor:
        return F.adaptive_distance(*leaves)[3:, 5:]

    on_cpu, on_gpu = results(function, *tensors), results(function, *cuda(*tensors))
    for a, e in zip(on_gpu, on_cpu, strict=True):
        assert torch.equal(a.isnan(), e.isnan())


@each_form
def test_distances_and_gradients_have_the_same_bits_ten_times(form):
    tensors = cuda(*problem(form))
    first = results(F.adaptive_distance, *tensors)
    for _ in range(10):
        assert all(map(torch.equal, results(F.adaptive_distance, *tensors), first))


def test_distances_and_gradients_are_captured_as_a_graph():
    check_capture(F.adaptive_distance, *cuda(*problem("references")))


def test_float64_rows_are_served_by_plain_torch():
    tensors = doubles(*problem("batch"))
    torch.testing.assert_close(
        F.adaptive_distance(*cuda(*tensors)).cpu(), F.adaptive_distance(*tensors)
    )


# --- the loss that assigns adaptive distances to clusters -----------------------------------------

CLUSTERS = {
    "nasa": {},
    "one": {"clusters": 1},
    "four": {"clusters": 4, "include_self": False},
    "ordered": {"clusters": 4, "order_weight": 0.7, "order_margin": 0.3},
}
each_clusters = pytest.mark.parametrize("clusters", CLUSTERS)


def loss_of(clusters: str) -> Callable[..., Tensor]:
    return partial(F.multi_cluster_loss, reduction="none", **CLUSTERS[clusters])


@each_clusters
# Within a tile, and several tiles with a rest.
@pytest.mark.parametrize("number", [60, 301])
def test_cluster_losses_and_gradients_are_those_of_float64(clusters, number):
    tensors = [tensor[:number] for tensor in problem("batch")]
    expected = results(loss_of(clusters), *doubles(*tensors))
    actual = results(loss_of(clusters), *cuda(*tensors))
    # The sharpness of 10 to 30 per distance of 1 multiplies the error of distances; a pair so near
    # to an anchor distance that float32 takes its other side changes the ranking's gradient most.
    for a, e in zip(actual, expected, strict=True):
        assert (a.double() - e).norm() <= (1e-3 if clusters == "ordered" else 1e-4) * e.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_cluster_losses_of_16_bit_rows_are_those_of_float64(dtype):
    tensors = problem("batch", dtype)
    expected = results(loss_of("four"), *doubles(*tensors))
    actual = results(loss_of("four"), *cuda(*tensors))
    for a, e in zip(actual, expected, strict=True):
        assert (a.double() - e).norm() <= TOLERANCE[dtype] * e.norm()


@each_clusters
def test_what_cluster_losses_lose_is_what_they_lose_on_the_cpu(clusters):
    e, w = problem("batch")
    w[7, 1] = -1.0

    def function(*leaves: Tensor) -> Tensor:
        return loss_of(clusters)(*leaves)[:200]

    for use in (function, lambda *leaves: function(*leaves)[8:]):
        on_cpu, on_gpu = results(use, e, w), results(use, *cuda(e, w))
        for a, b in zip(on_gpu, on_cpu, strict=True):
            assert torch.equal(a.isnan(), b.isnan())


@each_clusters
def test_cluster_losses_have_the_same_bits_ten_times(clusters):
    tensors = cuda(*problem("batch"))
    first = results(loss_of(clusters), *tensors)
    for _ in range(10):
        assert all(map(torch.equal, results(loss_of(clusters), *tensors), first))


@each_clusters
def test_cluster_losses_are_captured_as_a_graph(clusters):
    check_capture(loss_of(clusters), *cuda(*problem("batch")))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_cluster_losses_of_tiny_batches_are_defined(number):
    tensors = [tensor[:number] for tensor in problem("batch")]
    expected = results(loss_of("ordered"), *doubles(*tensors))
    for a, e in zip(results(loss_of("ordered"), *cuda(*tensors)), expected, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-4, atol=1e-6)
