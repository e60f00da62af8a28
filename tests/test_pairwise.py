"""pairwise_distance against float64 loops, and what distance_statistics shares with it, on CPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import oracle
import pytest
import torch
from operator_cases import (
    DTYPES,
    ISAS,
    assert_same_bits,
    compile_whole,
    each_backend,
    each_metric,
    opcheck,
)
from oracle import make, relative_error
from pairwise_cases import Problem, each_form, off_diagonal
from torch import Tensor

import dmlfast.functional as F
from dmlfast import use_backend

EUCLIDEAN = ("euclidean", "sqeuclidean")


def squared_norms(x: Tensor, y: Tensor) -> Tensor:
    """(N, M) |x|^2 + |y|^2."""
    a, b = x.detach().double(), y.detach().double()
    return a.square().sum(1)[:, None] + b.square().sum(1)[None]


def error_bound(problem: Problem, metric: str, expected: Tensor) -> Tensor:
    """(N, M) how far a distance may be from the true one, the result being float32.

    A product of five dimensions and the sums around it are some ten float32 roundings, 6e-8 each,
    of |x|^2 + |y|^2 >= 2 |x·y|; a root halves the relative error of its argument.
    """
    squares = squared_norms(problem.x, problem.others)
    if metric == "euclidean":
        return 1e-6 * torch.where(expected == 0, 0.0, squares / (2 * expected)) + 1e-6 * expected
    if metric == "sqeuclidean":
        return torch.where(expected == 0, 0.0, 1e-6 * squares)
    return torch.full_like(expected, 1e-6) if metric == "cosine" else 1e-6 * squares


# --- distances ------------------------------------------------------------------------------------


@each_metric
@each_form
@each_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_distance_is_that_of_its_rows(metric, form, backend, dtype):
    for kind in ("random", "clustered", "duplicated", "tied"):
        problem = Problem(kind, form, dtype)
        with use_backend(backend):
            distance = F.pairwise_distance(problem.x, problem.references, metric=metric)
        expected = problem.oracle(metric)
        assert distance.shape == expected.shape
        assert distance.dtype == oracle.returned_dtype(dtype)
        if dtype == torch.float64:
            torch.testing.assert_close(distance.detach(), expected, rtol=1e-14, atol=1e-14)
        else:
            error = (distance.double() - expected).abs()
            assert (error <= error_bound(problem, metric, expected)).all()


@pytest.mark.parametrize("metric", EUCLIDEAN)
@each_backend
@pytest.mark.parametrize("kind", ["shifted", "collapsed"])
def test_a_shift_and_a_collapse_cost_no_digits(metric, backend, kind):
    problem = Problem(kind)
    with use_backend(backend):
        distance = F.pairwise_distance(problem.x, metric=metric)
    # Of rows around their mean, products lose up to a factor of 1e3 where D^2 is small.
    torch.testing.assert_close(distance.double(), problem.oracle(metric), rtol=1e-4, atol=0)


@pytest.mark.parametrize("metric", EUCLIDEAN)
@each_backend
@pytest.mark.parametrize("gap", [1e-2, 1e-4, 1e-6])
def test_near_duplicates_keep_their_digits(metric, backend, gap):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 8, generator=generator)
    x = torch.cat([x, x + gap * torch.randn(40, 8, generator=generator)])
    expected = torch.from_numpy(
        oracle.distances(oracle.values(x, x, metric), metric, torch.float64)
    )
    squares = expected if metric == "sqeuclidean" else expected.square()
    near = squares < 1e-3 * squared_norms(x, x)
    assert near.sum() > 80
    with use_backend(backend):
        distance = F.pairwise_distance(x, metric=metric).double()
    torch.testing.assert_close(distance[near], expected[near], rtol=1e-6, atol=0)
    assert torch.equal(distance.diagonal(), torch.zeros(80, dtype=torch.float64))


@pytest.mark.parametrize("metric", EUCLIDEAN)
@each_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("rows", [5, 26, 300])
def test_the_diagonal_of_a_batch_is_0(metric, backend, dtype, rows):
    # The expanded square loses about |x|^2 = 4000 times the rounding error there.
    x = 3 * torch.randn(rows, 512, generator=torch.Generator().manual_seed(0)).to(dtype)
    with use_backend(backend):
        distance = F.pairwise_distance(x, metric=metric)
    assert torch.equal(distance.diagonal(), torch.zeros(rows))
    assert (distance > 0).sum() == rows * (rows - 1)


@each_metric
@each_backend
def test_a_batch_is_its_own_reference_set(metric, backend):
    problem = Problem("random")
    with use_backend(backend):
        within = F.pairwise_distance(problem.x, metric=metric)
        against = F.pairwise_distance(problem.x, problem.x.detach().clone(), metric=metric)
    # Both are within some roundings of the truth; only a within-batch matrix must be symmetric.
    torch.testing.assert_close(within, against, rtol=1e-5, atol=1e-5)
    assert torch.equal(within, within.T)


@pytest.mark.parametrize(("rows", "columns", "d"), [(1, 1, 1), (3, 70, 1), (65, 2, 33), (17, 9, 3)])
@each_metric
@each_backend
def test_sizes_that_fit_no_tile(rows, columns, d, metric, backend):
    x, y = make("random", rows, d, 2)[0], make("random", columns, d, 2, seed=1)[0]
    with use_backend(backend):
        distance = F.pairwise_distance(x, y, metric=metric).double()
    expected = oracle.distance_matrix(x.double(), y.double(), metric)
    # Roundings of up to 33 products each of the size of the norms.
    torch.testing.assert_close(distance, expected, rtol=1e-5, atol=2e-5)


@each_metric
@each_backend
def test_strides_do_not_matter(metric, backend):
    x, y = make("random", 30, 6, 2)[0], make("random", 40, 6, 2, seed=1)[0]
    with use_backend(backend):
        expected = F.pairwise_distance(x[::2, ::3].contiguous(), y[::2, ::3].clone(), metric=metric)
        for a, b in ((x[::2, ::3], y[::2, ::3]), (x.T.contiguous().T[::2, ::3], y[::2, ::3])):
            assert torch.equal(F.pairwise_distance(a, b, metric=metric), expected)


@each_metric
@each_backend
def test_no_rows_and_no_dimensions_are_defined(metric, backend):
    with use_backend(backend):
        for n, m, d in ((0, 3, 2), (3, 0, 2), (0, 0, 2), (2, 3, 0)):
            x, y = torch.zeros(n, d, requires_grad=True), torch.zeros(m, d, requires_grad=True)
            distance = F.pairwise_distance(x, y, metric=metric)
            assert distance.tolist() == [[float(metric == "cosine")] * m] * n
            distance.sum().backward()
            assert torch.equal(x.grad, torch.zeros_like(x))
            assert torch.equal(y.grad, torch.zeros_like(y))


# --- gradients of distances -----------------------------------------------------------------------


@each_metric
@each_form
@each_backend
def test_the_gradient_is_that_of_every_distance(metric, form, backend):
    for kind in ("random", "clustered", "duplicated"):
        problem = Problem(kind, form)
        with use_backend(backend):
            distance = F.pairwise_distance(problem.x, problem.references, metric=metric)
            upstream = torch.randn(distance.shape, generator=torch.Generator().manual_seed(3))
            actual = torch.autograd.grad(distance, problem.leaves, upstream)
        doubles = problem.doubles()
        matrix = oracle.distance_matrix(doubles[0], doubles[-1], metric)
        expected = torch.autograd.grad(matrix, doubles, upstream.double())
        for a, e in zip(actual, expected, strict=True):
            # A gradient of a root has the relative error of the distance that it is divided by:
            # in the clusters, whose D^2 is 1/100 of the norms, up to 1e-5.
            assert relative_error(a, e) < 1e-5


@each_form
@each_backend
def test_an_upstream_gradient_may_have_any_strides(form, backend):
    problem = Problem("random", form)
    with use_backend(backend):
        distance = F.pairwise_distance(problem.x, problem.references)
        upstreams = (torch.ones(()).expand(distance.shape), torch.ones_like(distance))
        expanded, contiguous = (
            torch.autograd.grad(distance, problem.leaves, upstream, retain_graph=True)
            for upstream in upstreams
        )
    for a, e in zip(expanded, contiguous, strict=True):
        assert torch.equal(a, e)


@each_metric
def test_gradcheck_of_distances(metric):
    x, y = (make("random", n, 3, 2, seed=n, dtype=torch.float64)[0] for n in (6, 5))
    function = partial(F.pairwise_distance, metric=metric)
    assert torch.autograd.gradcheck(function, (x.requires_grad_(), y.requires_grad_()))
    off = off_diagonal(6)  # the root has no derivative at 0, where gradcheck would look for one
    assert torch.autograd.gradcheck(lambda x: function(x)[off], x)


@pytest.mark.parametrize("metric", EUCLIDEAN)
@each_backend
@pytest.mark.parametrize("gap", [1e-3, 1e-6])
def test_near_duplicates_keep_the_digits_of_their_gradient(metric, backend, gap):
    generator = torch.Generator().manual_seed(0)
    x = 3 + torch.randn(6, 8, generator=generator)
    x = torch.cat([x, x + gap * torch.randn(6, 8, generator=generator)]).requires_grad_()
    upstream = torch.eye(12).roll(6, 0)  # the near pairs alone
    with use_backend(backend):
        (actual,) = torch.autograd.grad(F.pairwise_distance(x, metric=metric), x, upstream)
    double = x.detach().double().requires_grad_()
    matrix = oracle.distance_matrix(double, double, metric)
    (expected,) = torch.autograd.grad(matrix, double, upstream.double())
    assert relative_error(actual, expected) < 1e-6


@each_backend
def test_a_distance_of_0_and_a_zero_vector_have_gradient_0(backend):
    equal = torch.full((4, 3), 0.7, requires_grad=True)
    zero = torch.zeros(4, 3, requires_grad=True)
    with use_backend(backend):
        for x, metric in ((equal, "euclidean"), (equal, "sqeuclidean"), (zero, "cosine")):
            distance = F.pairwise_distance(x, metric=metric)
            assert torch.equal(distance, torch.full((4, 4), float(metric == "cosine")))
            (gradient,) = torch.autograd.grad(distance.sum(), x)
            assert torch.equal(gradient, torch.zeros(4, 3))


@each_metric
@each_backend
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite_has_distance_nan_to_all(metric, backend, bad):
    problem = Problem("random", "references")
    with torch.no_grad():
        problem.x[4, 1] = bad
        problem.references[7, 0] = bad
    lost = torch.zeros(37, 45, dtype=torch.bool)
    lost[4], lost[:, 7] = True, True
    with use_backend(backend):
        distance = F.pairwise_distance(problem.x, problem.references, metric=metric)
        assert torch.equal(distance.isnan(), lost)
        unused, used = (
            torch.autograd.grad(distance, problem.leaves, upstream, retain_graph=True)
            for upstream in ((~lost).float(), (torch.arange(45) == 7).float().expand(37, 45))
        )
    # What nobody uses gives nothing, and what is used reaches both of its rows.
    assert all(gradient.isfinite().all() for gradient in unused)
    assert used[0].isnan().all()
    assert used[1].isnan().any(1).nonzero().tolist() == [[7]]


# --- same bits on every run -----------------------------------------------------------------------


def _forward_and_backward(metric: str, form: str) -> list[Tensor]:
    x = make("random", 203, 6, 5)[0].requires_grad_()
    references = make("random", 317, 6, 5, seed=1)[0].requires_grad_()
    others = (references,) if form == "references" else ()
    distance = F.pairwise_distance(x, *others, metric=metric)
    statistics = F.distance_statistics(x, *others, metric=metric)
    total = statistics.mean + 2 * statistics.deviation
    upstream = torch.randn(distance.shape, generator=torch.Generator().manual_seed(3))
    return [
        distance,
        *statistics[:2],
        *torch.autograd.grad(distance, (x, *others), upstream),
        *torch.autograd.grad(total, (x, *others)),
    ]


@each_metric
@each_form
@pytest.mark.parametrize("isa", ISAS)
def test_one_thread_and_two_give_the_same_bits(metric, form, isa, select_isa, set_threads):
    select_isa(isa)
    set_threads(1)
    expected = _forward_and_backward(metric, form)
    set_threads(2)
    assert_same_bits(_forward_and_backward(metric, form), expected)


# --- what torch does around it --------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("function", [F.pairwise_distance, F.distance_statistics])
def test_a_second_backward_raises(backend, function):
    x = make("random", 9, 3, 3)[0].requires_grad_()
    with use_backend(backend):
        result = function(x, metric="sqeuclidean")
        value = result.sum() if isinstance(result, Tensor) else result.mean
        (gradient,) = torch.autograd.grad(value, x, create_graph=True)
        # x.sum() keeps a graph alive: a gradient that was silently constant would pass.
        with pytest.raises(RuntimeError, match="differentiate"):
            (gradient.square().sum() + x.sum()).backward()


def test_opcheck_accepts_the_operators_and_their_gradients(operator_calls):
    x, references = (make("random", n, 3, 3, seed=n)[0].requires_grad_() for n in (9, 12))

    def run() -> None:
        total = F.pairwise_distance(x).sum()
        total = total + F.pairwise_distance(x, references, metric="cosine").sum()
        total = total + F.distance_statistics(x, metric="dot").deviation
        own = torch.arange(9)
        total = total + F.distance_statistics(x, references, self_index=own).mean
        torch.autograd.grad(total, (x, references))

    calls = operator_calls(run)
    assert {f.overloadpacket.__name__ for f, _ in calls} == {
        name.removeprefix("dmlfast::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("dmlfast::pairwise_")
    }
    # A moment's centre is a constant.
    opcheck(calls, constants=torch.float64)


@pytest.mark.parametrize("dynamic", [False, True])
@each_form
def test_compiles_whole_forward_and_backward(dynamic, form):
    def function(x: Tensor, references: Tensor) -> Tensor:
        others = (references,) if form == "references" else ()
        statistics = F.distance_statistics(x, *others)
        return F.pairwise_distance(x, *others).sum() + statistics.mean / statistics.deviation

    compiled = compile_whole(function, dynamic=dynamic)
    for n in (24, 35):
        x, references = (make("random", m, 4, 3, seed=m)[0] for m in (n, n + 3))
        results = []
        for f in (function, compiled):
            leaf = x.clone().requires_grad_()
            value = f(leaf, references)
            results.append((value, torch.autograd.grad(value, leaf)[0]))
        # A scalar's order of summation is the compiler's.
        torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-6)
    torch.compiler.reset()


@each_backend
def test_autocast_leaves_the_dtype_it_receives(backend):
    x = Problem("random").x.detach()
    with use_backend(backend):
        expected = F.pairwise_distance(x), *F.distance_statistics(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = F.pairwise_distance(x), *F.distance_statistics(x)
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)


# --- errors ---------------------------------------------------------------------------------------

X = make("random", 6, 3, 2)[0]
OWN = torch.arange(6)
ERRORS = {
    "x is 3-D": ({"x": X[None]}, ValueError, r"x: expected a 2-D tensor.*got \(1, 6, 3\)"),
    "x is integer": ({"x": X.long()}, TypeError, r"x: expected float16.*got .*int64"),
    "references are a list": ({"references": []}, TypeError, r"references: expected a torch.Tens"),
    "references are wider": ({"references": X[:, :2]}, ValueError, r"references: expected 3 dim"),
    "references are double": ({"references": X.double()}, TypeError, r"references: expected .*32"),
    "the metric is unknown": ({"metric": "l2"}, ValueError, r"metric: expected one of.*got 'l2'"),
}
STATISTICS_ERRORS = {
    "self_index within a batch": (
        {"self_index": OWN},
        ValueError,
        r"self_index: expected None without references",
    ),
    "self_index is too short": (
        {"references": X, "self_index": OWN[:5]},
        ValueError,
        r"self_index: expected shape \(6,\)",
    ),
    "self_index is float": (
        {"references": X, "self_index": OWN.float()},
        TypeError,
        r"self_index: expected an integer dtype",
    ),
    "include_self is a number": (
        {"include_self": 1},
        TypeError,
        r"include_self: expected True or False, got 1",
    ),
    "include_self with references": (
        {"references": X, "include_self": True},
        ValueError,
        r"include_self: expected False with references",
    ),
}


@each_backend
@pytest.mark.parametrize("mistake", ERRORS | STATISTICS_ERRORS)
def test_a_mistake_is_named(backend, mistake):
    arguments, error, message = (ERRORS | STATISTICS_ERRORS)[mistake]
    functions: list[Callable] = [F.distance_statistics]
    if mistake in ERRORS:
        functions.append(F.pairwise_distance)
    for function in functions:
        with use_backend(backend), pytest.raises(error, match=message):
            function(**{"x": X, **arguments})


# --- memory ---------------------------------------------------------------------------------------


def test_the_gradient_needs_no_matrix_but_the_distances(resident_growth: Callable):
    # The upstream gradient of a sum is one expanded number.
    growth = resident_growth(
        "x = torch.randn(4096, 16, requires_grad=True)", "F.pairwise_distance(x).sum().backward()"
    )
    assert growth < 4096 * 4096 * 4 * 1.5
