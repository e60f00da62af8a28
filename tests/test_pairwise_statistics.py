"""distance_statistics against the mean and deviation of a float64 matrix, on CPU."""

from __future__ import annotations

import math
from collections.abc import Callable

import oracle
import pytest
import torch
from operator_cases import DTYPES, each_backend, each_metric
from oracle import make, relative_error
from pairwise_cases import Problem, each_form, off_diagonal
from torch import Tensor

import dmlfast.functional as F
from dmlfast import use_backend


def assert_statistics(actual: F.DistanceStatistics, distances: Tensor, rtol: float) -> None:
    assert actual.count.dtype == torch.int64
    assert actual.count.item() == distances.numel()
    torch.testing.assert_close(actual.mean.double(), distances.mean(), rtol=rtol, atol=0)
    torch.testing.assert_close(actual.deviation.double(), distances.std(), rtol=rtol, atol=0)


@each_metric
@each_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_statistics_are_those_of_the_matrix(metric, backend, dtype):
    for kind in ("random", "clustered", "duplicated"):
        batch, others = Problem(kind, "batch", dtype), Problem(kind, "references", dtype)
        with use_backend(backend):
            within = F.distance_statistics(batch.x, metric=metric)
            whole = F.distance_statistics(batch.x, metric=metric, include_self=True)
            against = F.distance_statistics(others.x, others.references, metric=metric)
        assert within.mean.dtype == within.deviation.dtype == oracle.returned_dtype(dtype)
        # The mean of a float32 matrix has the error of its largest distances, and at most a
        # tenth of their size.
        rtol = 1e-12 if dtype == torch.float64 else 1e-5
        matrix = batch.oracle(metric)
        assert_statistics(within, matrix[off_diagonal(37)], rtol)
        assert_statistics(whole, matrix.flatten(), rtol)
        assert_statistics(against, others.oracle(metric).flatten(), rtol)


@each_metric
@each_backend
def test_self_index_leaves_pairs_out(metric, backend):
    problem = Problem("random", "references")
    own = torch.where(torch.arange(37) % 3 == 0, -1, torch.arange(37) + 5)
    own[1] = 99  # no reference: none is left out
    kept = torch.arange(45)[None] != own[:, None]
    with use_backend(backend):
        statistics = F.distance_statistics(
            problem.x, problem.references, self_index=own.to(torch.int32), metric=metric
        )
    assert_statistics(statistics, problem.oracle(metric)[kept], 1e-5)


@each_metric
@each_backend
@pytest.mark.parametrize("include_self", [False, True])
def test_the_gradient_of_mean_and_deviation(metric, backend, include_self):
    problem = Problem("random")
    with use_backend(backend):
        statistics = F.distance_statistics(problem.x, metric=metric, include_self=include_self)
        actual = [
            torch.autograd.grad(value, problem.x, retain_graph=True)[0] for value in statistics[:2]
        ]
    (double,) = problem.doubles()
    matrix = oracle.distance_matrix(double, double, metric)
    kept = matrix.flatten() if include_self else matrix[off_diagonal(37)]
    for a, value in zip(actual, (kept.mean(), kept.std()), strict=True):
        (expected,) = torch.autograd.grad(value, double, retain_graph=True)
        # Sums of float32 terms that cancel to about a tenth.
        assert relative_error(a, expected) < 1e-5


@each_metric
@pytest.mark.parametrize("form", ["batch", "whole", "references", "references and self_index"])
def test_gradcheck_of_statistics(metric, form):
    x, y = (make("random", n, 3, 2, seed=n, dtype=torch.float64)[0] for n in (6, 7))
    own = torch.tensor([0, 3, -1, 2, 6, -1])

    def statistics(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if form.startswith("references"):
            self_index = own if form.endswith("self_index") else None
            return F.distance_statistics(x, y, self_index=self_index, metric=metric)[:2]
        return F.distance_statistics(x, metric=metric, include_self=form == "whole")[:2]

    leaves = (x.requires_grad_(), y.requires_grad_(form.startswith("references")))
    assert torch.autograd.gradcheck(statistics, leaves)


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_deviation_small_against_the_mean_keeps_its_digits(backend, dtype):
    # The corners of a simplex, moved a little: distances of 1.41 that deviate by 1e-4.
    noise = torch.randn(60, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (torch.eye(60) + 1e-4 * noise).to(dtype)
    value = oracle.values(x, x, "euclidean")
    matrix = torch.from_numpy(oracle.distances(value, "euclidean", torch.float64))
    with use_backend(backend):
        statistics = F.distance_statistics(x)
    # float32 distances are off by 1e-7; moments around 0 would lose the deviation's square, 1e-8
    # of the squares' mean, in float32, and half of its digits in float64.
    rtol = 1e-10 if dtype == torch.float64 else 1e-4
    expected = matrix[off_diagonal(60)].std()
    torch.testing.assert_close(statistics.deviation.double(), expected, rtol=rtol, atol=0)


@each_metric
@each_backend
def test_statistics_of_too_few_pairs_are_0_with_gradient_0(metric, backend):
    with use_backend(backend):
        for n, m in ((0, None), (1, None), (0, 3), (3, 0)):
            x = make("random", n, 3, 2)[0].requires_grad_()
            references = None if m is None else make("random", m, 3, 2)[0]
            mean, deviation, count = F.distance_statistics(x, references, metric=metric)
            assert (mean.item(), deviation.item(), count.item()) == (0, 0, 0)
            (mean + deviation).backward()
            assert torch.equal(x.grad, torch.zeros_like(x))
        x, y = make("random", 2, 3, 2)[0].requires_grad_().split(1)
        mean, deviation, count = F.distance_statistics(x, y, metric=metric)
        assert count.item() == 1
        assert deviation.item() == 0
        assert mean.item() == pytest.approx(F.pairwise_distance(x, y, metric=metric).item())
        none = F.distance_statistics(x, y, self_index=torch.tensor([0]), metric=metric)
        assert [value.item() for value in none] == [0, 0, 0]


@each_metric
@each_backend
def test_equal_rows_deviate_by_0_with_gradient_0(metric, backend):
    x = torch.full((9, 4), 0.5, requires_grad=True)
    with use_backend(backend):
        statistics = F.distance_statistics(x, metric=metric)
    assert statistics.mean.item() == (-1 if metric == "dot" else 0)
    assert statistics.deviation.item() == 0
    statistics.deviation.backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


@each_metric
@each_form
@each_backend
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite_makes_both_nan(metric, form, backend, bad):
    problem = Problem("random", form)
    with torch.no_grad():
        problem.others[20, 2] = bad
    with use_backend(backend):
        statistics = F.distance_statistics(problem.x, problem.references, metric=metric)
        gradients = torch.autograd.grad(statistics.deviation, problem.leaves)
    assert statistics.mean.isnan()
    assert statistics.deviation.isnan()
    assert all(gradient.isnan().all() for gradient in gradients)


def test_statistics_need_no_matrix_of_pairs(resident_growth: Callable):
    # One float32 matrix would be 268 MB.
    growth = resident_growth(
        "x = torch.randn(8192, 16, requires_grad=True)",
        "s = F.distance_statistics(x); (s.mean + s.deviation).backward()",
    )
    assert growth < 8192 * 8192 * 4 / 2
