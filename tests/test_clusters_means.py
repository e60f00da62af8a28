"""cluster_means: means of the rows of clusters, on CPU."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from operator_cases import DTYPES, assert_same_bits, compile_whole, each_backend
from oracle import returned_dtype
from torch import Tensor

import dmlfast.functional as F
from dmlfast import use_backend


def problem(n: int, d: int, clusters: int, dtype: torch.dtype = torch.float32) -> tuple:
    """Rows, and clusters of which the last and, by chance, others are empty; some rows in none."""
    generator = torch.Generator().manual_seed(n + d)
    x = torch.randn(n, d, generator=generator).to(dtype)
    return x, torch.randint(-1, max(1, clusters - 1), (n,), generator=generator)


def written_out(x: Tensor, index: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    rows = x.double().numpy()
    sums, count = np.zeros((clusters, x.shape[1])), np.zeros(clusters, dtype=np.int64)
    for row, cluster in zip(rows, index.tolist(), strict=True):
        if cluster >= 0:
            sums[cluster] += row
            count[cluster] += 1
    means = torch.from_numpy(sums / np.maximum(count, 1)[:, None])
    return means.to(returned_dtype(x.dtype)), torch.from_numpy(count)


@each_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(200, 19, 12), (5, 3, 40), (0, 3, 2), (300, 1, 1)], ids=str)
def test_means_are_the_sums_in_order_rounded_once(backend, dtype, size):
    x, index = problem(*size, dtype)
    with use_backend(backend):
        found = F.cluster_means(x, index, size[2])
    assert_same_bits(found, written_out(x, index, size[2]))


@each_backend
def test_an_empty_cluster_has_mean_and_count_0(backend):
    with use_backend(backend):
        found = F.cluster_means(torch.full((2, 3), 7.0), torch.tensor([2, 2]), 4)
    assert found.count.tolist() == [0, 0, 2, 0]
    assert found.mean[:, 0].tolist() == [0.0, 0.0, 7.0, 0.0]


@each_backend
def test_a_row_in_no_cluster_is_not_read_and_one_that_is_not_finite_spoils_its_own_alone(backend):
    x = torch.tensor([[1.0], [math.nan], [3.0], [math.inf]])
    with use_backend(backend):
        found = F.cluster_means(x, torch.tensor([0, -1, 0, 1]), 2)
    assert found.mean.tolist() == [[2.0], [math.inf]]


@each_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_has_the_gradient_of_its_mean_over_the_count(backend, dtype):
    x, index = problem(50, 4, 6, dtype)
    x.requires_grad_()
    with use_backend(backend):
        mean, count = F.cluster_means(x, index, 6)
        up = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1)).to(mean.dtype)
        (gradient,) = torch.autograd.grad(mean, x, up)
    share = torch.cat([up / count.clamp(min=1)[:, None], torch.zeros_like(up[:1])])
    assert gradient.dtype == dtype
    assert torch.equal(gradient, share[index].to(dtype))
    assert not count.requires_grad


@each_backend
def test_a_second_backward_raises(backend):
    x, index = problem(12, 3, 4)
    x.requires_grad_()
    with use_backend(backend):
        mean = F.cluster_means(x, index, 4).mean
        (gradient,) = torch.autograd.grad(mean.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match=r"clusters_means: .*can be differentiated once"):
            gradient.sum().backward()


def test_gradcheck():
    x, index = problem(12, 3, 4, torch.float64)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: F.cluster_means(x, index, 4).mean, x)


@pytest.mark.parametrize("stride", ["columns", "rows", "expanded"])
def test_strides_do_not_matter(stride):
    x, index = problem(60, 8, 5)
    view = {"columns": x[:, ::2], "rows": x.T.contiguous().T, "expanded": x[:1].expand(60, 8)}
    plain = view[stride].contiguous()
    assert_same_bits(F.cluster_means(view[stride], index, 5), F.cluster_means(plain, index, 5))


def test_every_thread_count_gives_the_same_bits(set_threads):
    x, index = problem(3000, 33, 7)
    set_threads(1)
    expected = F.cluster_means(x, index, 7)
    set_threads(2)
    assert_same_bits(F.cluster_means(x, index, 7), expected)


@each_backend
@pytest.mark.parametrize(("index", "got"), [([0, 1, 2], 2), ([0, -2, 1], -2)], ids=str)
def test_clusters_that_there_are_not_are_refused(backend, index, got):
    x, index = torch.zeros(3, 2), torch.tensor(index)
    message = rf"assignment: expected clusters in \[-1, 2\), got {got}"
    with use_backend(backend), pytest.raises(ValueError, match=message):
        F.cluster_means(x, index, 2)
    # A compiled call does not look at the data; the operator does.
    with pytest.raises(RuntimeError, match="index: expected -1 to 1"):
        torch.ops.dmlfast.clusters_means(x, index, 2)


@each_backend
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole_forward_and_backward(backend, dynamic):
    def function(x: Tensor, index: Tensor) -> Tensor:
        return F.cluster_means(x, index, 5).mean

    with use_backend(backend):
        compiled = compile_whole(function, dynamic=dynamic)
        for n in (24, 35):
            x, index = problem(n, 4, 5)
            leaves = x.clone().requires_grad_(), x.clone().requires_grad_()
            results = function(leaves[0], index), compiled(leaves[1], index)
            for result in results:
                result.square().sum().backward()
            assert_same_bits((results[1], leaves[1].grad), (results[0], leaves[0].grad))
    torch.compiler.reset()


@pytest.mark.parametrize("name", ["dmlfast", "dmlfast_reference"])
def test_opcheck(name):
    x, index = problem(20, 4, 5)
    operator = getattr(torch.ops, name).clusters_means.default
    torch.library.opcheck(operator, (x.requires_grad_(), index, 5))


def test_opcheck_of_the_gradient():
    _, index = problem(20, 4, 5)
    count = torch.bincount(index[index >= 0], minlength=5)
    operator = torch.ops.dmlfast_reference.clusters_means_backward.default
    torch.library.opcheck(operator, (torch.randn(5, 4), index, count, torch.float16))


@pytest.mark.parametrize(
    ("error", "message", "given"),
    [
        (ValueError, r"assignment: expected shape \(5,\)", {"assignment": torch.zeros(4).long()}),
        (TypeError, "assignment: expected an integer dtype", {"assignment": torch.zeros(5)}),
        (ValueError, "clusters: expected at least 0, got -1", {"clusters": -1}),
        (TypeError, "clusters: expected an integer", {"clusters": 2.0}),
        (TypeError, "x: expected float16", {"x": torch.zeros(5, 2).long()}),
    ],
)
def test_a_mistake_is_named_before_any_work(error, message, given):
    arguments = {"x": torch.zeros(5, 2), "assignment": torch.zeros(5).long(), "clusters": 3}
    with pytest.raises(error, match=message):
        F.cluster_means(**(arguments | given))
