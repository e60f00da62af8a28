"""adaptive_distance against its formula in float64, on CPU."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from operator_cases import ISAS, NAMESPACE, assert_same_bits, compile_whole, each_backend, opcheck
from oracle import returned_dtype
from structure_cases import (
    assert_near,
    doubles,
    each_dtype,
    root,
    rows,
    squares_written_out,
    weights,
)
from torch import Tensor

import dmlfast.functional as F
from dmlfast import use_backend

# Anchors, references (None: the batch) and dimensions; sizes on both sides of a panel and a block.
SIZES = [
    *((0, None, 3), (1, None, 3), (2, None, 1), (7, None, 3), (130, None, 64), (130, None, 130)),
    *((0, 5, 3), (5, 0, 3), (1, 1, 1), (7, 130, 3), (130, 7, 64), (17, 300, 130), (3, 4, 0)),
]

each_form = pytest.mark.parametrize("form", ["batch", "references"])
each_squared = pytest.mark.parametrize("squared", [False, True])


def problem(
    n: int, m: int | None, d: int, dtype: torch.dtype = torch.float32, kind: str = "random"
) -> tuple[Tensor, ...]:
    """Embeddings, weights and, unless m is None, references."""
    leaves = rows(n, d, dtype, kind), weights(n, d, dtype)
    return leaves if m is None else (*leaves, rows(m, d, dtype, kind, seed=1))


def written_out(
    e: Tensor, w: Tensor, references: Tensor | None = None, *, squared: bool = False
) -> Tensor:
    squares = squares_written_out(e, w, e if references is None else references)
    return squares if squared else root(squares)


def upstream(distance: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(distance.shape, generator=generator, dtype=torch.float64)


# --- value and gradient ---------------------------------------------------------------------------


@each_squared
@each_dtype
@each_backend
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_distances_and_their_gradients_are_those_of_the_formula(squared, dtype, backend, size):
    leaves = problem(*size, dtype)
    with use_backend(backend):
        distance = F.adaptive_distance(*leaves, squared=squared)
        up = upstream(distance)
        gradients = torch.autograd.grad(distance, leaves, up.to(distance.dtype))
    double = doubles(*leaves)
    expected = written_out(*double, squared=squared)
    assert distance.shape == expected.shape
    assert distance.dtype == returned_dtype(dtype)
    # Some ten roundings of float32; a square near 1e-3 of its terms loses three digits of them.
    exact = dtype == torch.float64
    rtol = 1e-13 if exact else 2e-5
    torch.testing.assert_close(distance.detach().double(), expected, rtol=rtol, atol=rtol / 10)
    right = torch.autograd.grad((expected * up).sum(), double)
    for gradient, wanted in zip(gradients, right, strict=True):
        assert gradient.dtype == dtype
        assert_near(gradient, wanted, 1e-12 if exact else 2e-5)


@each_backend
def test_only_the_weights_of_the_anchor_count(backend):
    e = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    w = torch.tensor([[1.0, 0.0], [0.25, 1.0]])
    with use_backend(backend):
        distance = F.adaptive_distance(e, w)
        squares = F.adaptive_distance(e, w, squared=True)
    assert distance.tolist() == [[0.0, 3.0], [pytest.approx((9 / 4 + 16) ** 0.5), 0.0]]
    assert squares.tolist() == [[0.0, 9.0], [18.25, 0.0]]


@each_backend
def test_with_weights_of_1_it_is_the_euclidean_distance(backend):
    e, y = rows(40, 6), rows(50, 6, seed=1)
    with use_backend(backend):
        adaptive = F.adaptive_distance(e, torch.ones(40, 6), y)
        plain = F.pairwise_distance(e, y)
    # Both within a few roundings.
    torch.testing.assert_close(adaptive, plain, rtol=1e-5, atol=1e-6)


@each_form
@pytest.mark.parametrize("squared", [False, True])
def test_gradcheck(form, squared):
    leaves = problem(5, None if form == "batch" else 4, 3, torch.float64)
    apart = ~torch.eye(5, dtype=torch.bool)

    def function(*leaves: Tensor) -> Tensor:
        distance = F.adaptive_distance(*leaves, squared=squared)
        # The root has no derivative at 0, where gradcheck would look for one.
        return distance[apart] if form == "batch" else distance

    assert torch.autograd.gradcheck(function, leaves)


@each_backend
@pytest.mark.parametrize("squared", [False, True])
def test_strides_do_not_matter(backend, squared):
    e, w = (f(60, 18).detach() for f in (rows, weights))
    results = []
    for view in (
        lambda x: x[::2, ::3].contiguous(),
        lambda x: x[::2, ::3],
        lambda x: x.T.contiguous().T[::2, ::3],
    ):
        leaves = [view(x).requires_grad_() for x in (e, w)]
        with use_backend(backend):
            distance = F.adaptive_distance(*leaves, squared=squared)
            up = upstream(distance).float()
            results.append((distance.detach(), *torch.autograd.grad(distance, leaves, up)))
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            assert torch.equal(a, b)


@each_backend
def test_an_upstream_gradient_may_have_any_strides(backend):
    leaves = problem(20, 30, 5)
    with use_backend(backend):
        distance = F.adaptive_distance(*leaves)
        up = upstream(distance).float()
        plain = torch.autograd.grad(distance, leaves, up, retain_graph=True)
        turned = torch.autograd.grad(distance, leaves, up.T.contiguous().T, retain_graph=True)
        once = torch.autograd.grad(distance, leaves, torch.ones(()).expand(20, 30))
        total = torch.autograd.grad(F.adaptive_distance(*leaves).sum(), leaves)
    for a, b in zip((*plain, *once), (*turned, *total), strict=True):
        assert torch.equal(a, b)


# --- near and equal rows --------------------------------------------------------------------------


@each_squared
@each_backend
@pytest.mark.parametrize(("gap", "size"), [(1e-2, 1.0), (1e-4, 1.0), (1e-6, 1.0), (1e-4, 37.0)])
def test_near_duplicates_keep_their_digits(squared, backend, gap, size):
    e = 3 + rows(40, 8).detach()
    e = torch.cat([e, e + gap * rows(40, 8, seed=1).detach()]).requires_grad_()
    w = (size * weights(80, 8).detach()).requires_grad_()
    up = torch.eye(80).roll(40, 0)  # the near pairs alone
    with use_backend(backend):
        distance = F.adaptive_distance(e, w, squared=squared)
        actual = torch.autograd.grad(distance, (e, w), up)
    double = doubles(e, w)
    expected = written_out(*double, squared=squared)
    near = up.bool()
    torch.testing.assert_close(distance[near].double(), expected[near], rtol=1e-6, atol=0)
    assert torch.equal(distance.diagonal(), torch.zeros(80))
    to_e, to_w = torch.autograd.grad((expected * up).sum(), double)
    assert_near(actual[0], to_e, 1e-6)
    assert_near(actual[1], to_w, 1e-6)


@each_squared
@each_backend
@pytest.mark.parametrize("deviation", [1e-3, 1e-5])
def test_gradients_of_collapsed_classes_keep_their_digits(squared, backend, deviation):
    labels = torch.arange(60) % 4
    e = 3 * rows(4, 8).detach()[labels] + deviation * rows(60, 8, seed=1).detach()
    e, w = e.requires_grad_(), weights(60, 8)
    up = (labels[:, None] == labels[None]).float()
    with use_backend(backend):
        actual = torch.autograd.grad(F.adaptive_distance(e, w, squared=squared), (e, w), up)
    double = doubles(e, w)
    expected = torch.autograd.grad((written_out(*double, squared=squared) * up).sum(), double)
    for gradient, right in zip(actual, expected, strict=True):
        assert_near(gradient, right, 1e-6)


@each_squared
@each_backend
@pytest.mark.parametrize(("kind", "factor"), [("row", 1e15), ("row", 1e35), ("weights", 1e45)])
def test_one_row_far_greater_leaves_the_others_their_digits(squared, backend, kind, factor):
    e, w = rows(40, 8).detach(), 1e-8 * weights(40, 8).detach().double()
    (e if kind == "row" else w)[3] *= factor
    e, w = e.requires_grad_(), w.float().requires_grad_()
    others = torch.arange(40) != 3
    up = (others[:, None] & others[None]).float()
    with use_backend(backend):
        distance = F.adaptive_distance(e, w, squared=squared)
        actual = torch.autograd.grad(distance, (e, w), up)
    double = doubles(e, w)
    expected = written_out(*double, squared=squared)
    found, right = (x.double()[others][:, others] for x in (distance, expected))
    torch.testing.assert_close(found, right, rtol=1e-6, atol=0)
    # Also where the distances to it are infinite.
    torch.testing.assert_close(distance.double(), expected.float().double(), rtol=1e-6, atol=0)
    gradients = torch.autograd.grad(torch.where(up > 0, expected, 0.0).sum(), double)
    for gradient, right in zip(actual, gradients, strict=True):
        assert_near(gradient, right, 1e-6)


@each_form
@each_backend
@each_dtype
def test_equal_rows_have_distance_0_and_gradient_0(form, backend, dtype):
    e = torch.full((21, 5), 0.7, dtype=dtype, requires_grad=True)
    leaves = (e, weights(21, 5, dtype), *([e.detach().clone()] if form == "references" else []))
    with use_backend(backend):
        distance = F.adaptive_distance(*leaves)
        gradients = torch.autograd.grad(distance.sum(), leaves[:2])
    assert torch.equal(distance, torch.zeros(21, 21, dtype=returned_dtype(dtype)))
    for gradient in gradients:
        assert torch.equal(gradient, torch.zeros_like(e))


@each_backend
@pytest.mark.parametrize("kind", ["shifted", "collapsed", "duplicated"])
def test_a_shift_a_collapse_and_copies_cost_no_digits(backend, kind):
    e, w = rows(60, 7, kind=kind), weights(60, 7)
    with use_backend(backend):
        distance = F.adaptive_distance(e, w)
    expected = written_out(*doubles(e, w))
    # Of rows around their mean, products lose up to a factor of 1e3 where D^2 is small.
    torch.testing.assert_close(distance.detach().double(), expected, rtol=1e-4, atol=0)


@each_backend
def test_weights_of_0_blind_an_anchor(backend):
    e, w = rows(20, 4), weights(20, 4).detach()
    w[3] = 0
    w.requires_grad_()
    with use_backend(backend):
        distance = F.adaptive_distance(e, w)
        to_e, to_w = torch.autograd.grad(distance[3].sum(), (e, w))
    assert torch.equal(distance[3], torch.zeros(20))
    assert torch.equal(to_e, torch.zeros(20, 4))
    assert torch.equal(to_w, torch.zeros(20, 4))


# --- the ends of the range ------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e10, 1e18, 1e30])
@pytest.mark.parametrize("weight", [1e-20, 1.0, 1e15])
def test_size_and_weight_are_factors(backend, size, weight):
    e, w = (x.detach().double() for x in (rows(30, 5), weights(30, 5)))
    factor = size * weight**0.5
    expected = written_out(e, w) * factor
    e, w = ((size * e).float().requires_grad_(), (weight * w).float().requires_grad_())
    with use_backend(backend):
        distance = F.adaptive_distance(e, w)
        to_e, to_w = torch.autograd.grad(distance.sum(), (e, w))
    held = expected < 1e37
    torch.testing.assert_close(distance.double()[held], expected[held], rtol=1e-4, atol=0)
    double = doubles(e, w)
    right_e, right_w = torch.autograd.grad(written_out(*double).sum(), double)
    for actual, right in ((to_e, right_e), (to_w, right_w)):
        if 1e-30 < right.abs().max() < 1e37:
            assert_near(actual, right, 2e-5)


# --- what is not finite, and what is no distance --------------------------------------------------


@each_squared
@each_backend
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_has_distance_nan_to_all(squared, backend, bad):
    leaves = problem(37, 45, 5)
    with torch.no_grad():
        leaves[0][4, 1] = bad
        leaves[2][7, 0] = bad
    lost = torch.zeros(37, 45, dtype=torch.bool)
    lost[4], lost[:, 7] = True, True
    with use_backend(backend):
        distance = F.adaptive_distance(*leaves, squared=squared)
        assert torch.equal(distance.isnan(), lost)
        unused, used = (
            torch.autograd.grad(distance, leaves, up, retain_graph=True)
            for up in ((~lost).float(), (torch.arange(45) == 7).float().expand(37, 45))
        )
    # What nobody uses gives nothing, and what is used reaches both of its rows.
    assert all(gradient.isfinite().all() for gradient in unused)
    assert used[0].isnan().all()
    assert used[1].isnan().all()
    assert used[2].isnan().any(1).nonzero().tolist() == [[7]]


@each_form
@each_backend
@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0, -1e-30])
def test_weights_that_are_no_metric_make_an_anchor_nan(form, backend, bad):
    leaves = problem(33, None if form == "batch" else 40, 5)
    with torch.no_grad():
        leaves[1][6, 2] = bad
    with use_backend(backend):
        distance = F.adaptive_distance(*leaves)
        gradients = torch.autograd.grad(distance[6, 9], leaves, retain_graph=True)
        others = torch.autograd.grad(distance[7].sum(), leaves)
    assert distance.isnan().any(1).nonzero().tolist() == [[6]]
    assert distance[6].isnan().all()
    assert gradients[0].isnan().any(1).nonzero().flatten().tolist() == (
        [6, 9] if form == "batch" else [6]
    )
    assert gradients[1].isnan().any(1).nonzero().tolist() == [[6]]
    assert all(gradient.isfinite().all() for gradient in others)


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_is_right(isa, select_isa):
    select_isa(isa)
    for squared in (False, True):
        test_distances_and_their_gradients_are_those_of_the_formula(
            squared, torch.float32, "kernel", (130, 200, 33)
        )
        test_near_duplicates_keep_their_digits(squared, "kernel", 1e-4, 1.0)


# --- same bits on every run -----------------------------------------------------------------------


@each_form
@pytest.mark.parametrize("isa", ISAS)
def test_one_thread_and_two_give_the_same_bits(form, isa, select_isa, set_threads):
    select_isa(isa)
    results = []
    for threads in (1, 2):
        set_threads(threads)
        leaves = problem(203, None if form == "batch" else 317, 6)
        distance = F.adaptive_distance(*leaves)
        up = upstream(distance).float()
        results.append((distance, *torch.autograd.grad(distance, leaves, up)))
    assert_same_bits(*results)


# --- what torch does around it --------------------------------------------------------------------


@each_backend
def test_a_second_backward_raises(backend):
    leaves = problem(9, None, 3)
    with use_backend(backend):
        value = F.adaptive_distance(*leaves, squared=True).sum()
        (gradient,) = torch.autograd.grad(value, leaves[0], create_graph=True)
        # The sum keeps a graph alive: a gradient that was silently constant would pass.
        with pytest.raises(RuntimeError, match="differentiate"):
            (gradient.square().sum() + leaves[0].sum()).backward()


@each_form
@each_backend
def test_opcheck_accepts_the_operator_and_its_gradient(form, backend, operator_calls: Callable):
    leaves = problem(9, None if form == "batch" else 12, 3)

    def run() -> None:
        with use_backend(backend):
            torch.autograd.grad(F.adaptive_distance(*leaves).sum(), leaves)

    calls = operator_calls(run, NAMESPACE[backend])
    assert len(calls) == 2
    opcheck(calls, constants=torch.float64)


@each_form
@each_backend
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole_forward_and_backward(form, backend, dynamic):
    def function(*leaves: Tensor) -> Tensor:
        return F.adaptive_distance(*leaves).square().sum()

    compiled = compile_whole(function, dynamic=dynamic)
    with use_backend(backend):
        for n in (24, 35):
            results = []
            for f in (function, compiled):
                leaves = problem(n, None if form == "batch" else n + 3, 4)
                value = f(*leaves)
                results.append((value, *torch.autograd.grad(value, leaves)))
            # A scalar's order of summation is the compiler's.
            torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-6)
    torch.compiler.reset()


@each_backend
def test_autocast_leaves_the_dtype_it_receives(backend):
    leaves = problem(20, 30, 5)
    with use_backend(backend):
        expected = F.adaptive_distance(*leaves)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(F.adaptive_distance(*leaves), expected)


# --- errors ---------------------------------------------------------------------------------------

X = torch.zeros(6, 3)
ERRORS = {
    "e is 3-D": ({"e": X[None]}, ValueError, r"e: expected a 2-D tensor.*got \(1, 6, 3\)"),
    "e is integer": ({"e": X.long()}, TypeError, r"e: expected float16.*got .*int64"),
    "w is a list": ({"w": []}, TypeError, r"w: expected a torch.Tensor"),
    "w is narrower": ({"w": X[:, :2]}, ValueError, r"w: expected \(6, 3\), the shape of e"),
    "w is of one row": ({"w": X[:1]}, ValueError, r"w: expected \(6, 3\), the shape of e"),
    "w is double": ({"w": X.double()}, TypeError, r"w: expected torch.float32 as e"),
    "w is elsewhere": ({"w": X.to("meta")}, ValueError, r"w: expected the device of e, cpu"),
    "references are wider": (
        {"references": torch.zeros(2, 4)},
        ValueError,
        r"3 dimensions as in e",
    ),
    "references are double": ({"references": X.double()}, TypeError, r"references: expected .*32"),
    "squared is a number": ({"squared": 1}, TypeError, r"squared: expected True or False, got 1"),
}


@each_backend
@pytest.mark.parametrize("mistake", ERRORS)
def test_a_mistake_is_named(backend, mistake):
    arguments, error, message = ERRORS[mistake]
    with use_backend(backend), pytest.raises(error, match=message):
        F.adaptive_distance(**{"e": X, "w": X, **arguments})


# --- memory ---------------------------------------------------------------------------------------


def test_the_gradient_needs_no_matrix_but_the_distances(resident_growth: Callable):
    # The upstream gradient of a sum is one expanded number.
    growth = resident_growth(
        "e = torch.randn(4096, 16, requires_grad=True)\nw = torch.ones(4096, 16)",
        "F.adaptive_distance(e, w).sum().backward()",
    )
    assert growth < 4096 * 4096 * 4 * 1.5
