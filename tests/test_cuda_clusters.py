"""Means of clusters and k-means on a GPU: `pytest -m cuda`."""

from __future__ import annotations

import pytest
import torch
from operator_cases import DTYPES
from torch import Tensor

import dmlfast.functional as F
from dmlfast import _library

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not (torch.cuda.is_available() and _library.cuda_status.loaded),
        reason="needs a CUDA device and the CUDA library",
    ),
]

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def draw(number: int, dimensions: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, dimensions, generator=generator).to(dtype)


# --- means ----------------------------------------------------------------------------------------


def members(number: int, clusters: int) -> Tensor:
    """Clusters of rows, -1 for some; the last is empty."""
    generator = torch.Generator().manual_seed(number)
    return torch.randint(-1, max(1, clusters - 1), (number,), generator=generator)


@each_dtype
# Clusters of many sections of 256 rows and, numbered by two bytes, of few rows.
@pytest.mark.parametrize(("rows", "clusters"), [(20_001, 7), (5000, 2000)])
def test_means_and_their_gradients_are_those_of_the_cpu(dtype, rows, clusters):
    x, index = draw(rows, 2 * 67, dtype)[:, ::2], members(rows, clusters)
    up = draw(clusters, 67, torch.float32 if dtype != torch.float64 else dtype, seed=1)
    results = []
    for device in ("cpu", "cuda"):
        leaf = x.to(device).requires_grad_()
        mean, count = F.cluster_means(leaf, index.to(device), clusters)
        (gradient,) = torch.autograd.grad(mean, leaf, up.to(device))
        results.append([tensor.detach().cpu() for tensor in (mean, count, gradient)])
    (mean, count, gradient), (on_gpu, count_on_gpu, gradient_on_gpu) = results
    assert torch.equal(count, count_on_gpu)
    assert torch.equal(gradient, gradient_on_gpu)
    # Float64 sums of other sections, rounded once.
    places = 2.0**-52 if dtype == torch.float64 else 2.0**-23
    slack = places * mean.abs() + 2.0**-52 * int(count.max()) * x.abs().max().double()
    assert ((on_gpu.double() - mean.double()).abs() <= slack).all()


def test_clusters_that_there_are_not_are_none_on_a_gpu():
    x = draw(6, 3).cuda().requires_grad_()
    mean, count = F.cluster_means(x, torch.tensor([0, 9, -5, 1, 1, 2**40]).cuda(), 2)
    assert count.tolist() == [1, 2]
    assert torch.equal(mean[0], x[0])
    mean.sum().backward()
    assert (x.grad != 0).any(1).tolist() == [True, False, False, True, True, False]


def test_means_have_the_same_bits_ten_times():
    x, index = draw(3000, 33).cuda(), members(3000, 11).cuda()
    first = F.cluster_means(x, index, 11)
    for _ in range(10):
        assert all(map(torch.equal, F.cluster_means(x, index, 11), first))


def test_means_are_captured_as_a_graph():
    # Whatever waits for the host cannot be captured.
    x, index = draw(3000, 33).cuda(), members(3000, 300).cuda()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        F.cluster_means(x, index, 300)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = F.cluster_means(x, index, 300)
    x.copy_(x.flip(0) * 0.5)
    index.copy_(index.roll(1))
    graph.replay()
    assert all(map(torch.equal, captured, F.cluster_means(x, index, 300)))


# --- k-means --------------------------------------------------------------------------------------


def start(x: Tensor, clusters: int) -> Tensor:
    """Some of the rows, with repetitions, which leave clusters empty."""
    return x[torch.arange(clusters) * 7 % (len(x) * 2 // 3)].clone()


@each_dtype
# Compared pair by pair, searched, and with more centres than rows.
@pytest.mark.parametrize(("rows", "d", "clusters"), [(900, 5, 40), (5000, 67, 700), (60, 3, 90)])
def test_an_assignment_is_that_of_the_cpu_bit_by_bit(dtype, rows, d, clusters):
    x = draw(rows, 2 * d, dtype)[:, ::2]
    initial = start(x, clusters)
    expected = F.kmeans(x, clusters, iterations=1, initial=initial)
    found = F.kmeans(x.cuda(), clusters, iterations=1, initial=initial.cuda())
    # Clusters have fewer than 256 rows: their means are the same sums.
    assert torch.equal(found.centers.cpu(), expected.centers)
    assert torch.equal(found.index.cpu(), expected.index)
    torch.testing.assert_close(found.history.cpu(), expected.history, rtol=1e-12, atol=0)


def test_iterations_are_those_of_the_cpu_until_nothing_moves():
    x = torch.cat([draw(900, 8, seed=c) * 0.1 + 3 * c for c in range(6)])
    x[7, 2], x[8, 3] = torch.nan, torch.inf
    initial = start(x, 6)
    expected = F.kmeans(x, 6, iterations=50, initial=initial)
    found = F.kmeans(x.cuda(), 6, iterations=50, initial=initial.cuda())
    assert torch.equal(found.index.cpu(), expected.index)
    # Float64 sums of other sections, rounded once.
    torch.testing.assert_close(found.centers.cpu(), expected.centers, rtol=2e-7, atol=1e-12)
    torch.testing.assert_close(found.history.cpu(), expected.history, rtol=1e-7, atol=0)
    assert found.history[-1] == found.history[-2]


def test_kmeans_has_the_same_bits_ten_times():
    x = draw(3000, 33).cuda()
    first = F.kmeans(x, 500, iterations=4, initial=start(x, 500))
    for _ in range(10):
        found = F.kmeans(x, 500, iterations=4, initial=start(x, 500))
        assert all(map(torch.equal, found, first))


def test_kmeans_is_captured_as_a_graph():
    # Whatever waits for the host cannot be captured.
    x = draw(3000, 33).cuda()
    initial = start(x, 500)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        F.kmeans(x, 500, iterations=4, initial=initial)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = F.kmeans(x, 500, iterations=4, initial=initial)
    x.copy_(x.flip(0) * 0.5)
    initial.copy_(start(x, 500))
    graph.replay()
    assert all(map(torch.equal, captured, F.kmeans(x, 500, iterations=4, initial=initial)))


# --- the start of k-means -------------------------------------------------------------------------


def uniform(number: int) -> Tensor:
    return torch.rand(number, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("rows", "d", "draws"), [(50_001, 67, 300), (40, 3, 60)])
def test_draws_are_those_of_the_cpu(dtype, rows, d, draws):
    x = draw(rows, 2 * d, dtype)[:, ::2]
    x[::7, 1] = torch.nan
    expected = torch.ops.dmlfast.clusters_seeds(x, uniform(draws))
    found = torch.ops.dmlfast.clusters_seeds(x.cuda(), uniform(draws).cuda())
    assert torch.equal(found.cpu(), expected)


def test_draws_are_captured_as_a_graph():
    x, numbers = draw(3000, 33).cuda(), uniform(40).cuda()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.ops.dmlfast.clusters_seeds(x, numbers)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = torch.ops.dmlfast.clusters_seeds(x, numbers)
    x.copy_(x.flip(0) * 0.5)
    graph.replay()
    assert torch.equal(captured, torch.ops.dmlfast.clusters_seeds(x, numbers))


def test_the_reference_draws_in_a_fixed_order():
    x, numbers = draw(3000, 5).cuda(), uniform(20).cuda()
    torch.use_deterministic_algorithms(True)
    try:
        found = torch.ops.dmlfast_reference.clusters_seeds(x, numbers)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(found.cpu(), torch.ops.dmlfast.clusters_seeds(x.cpu(), numbers.cpu()))
