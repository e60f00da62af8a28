"""ranking_loss against its formula in float64, on CPU."""

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
    NAMESPACE,
    assert_same_bits,
    compile_whole,
    each_backend,
    opcheck,
)
from torch import Tensor

import dmlfast.functional as F
from dmlfast import use_backend

PAIRS = ("all", "adjacent", "band")
# No row, rows that fill no vector, rows that do; no pair, and sizes on both sides of a vector.
SIZES = [(0, 5), (1, 2), (7, 1), (7, 5), (1000, 5), (33, 32), (9, 33), (5, 0)]

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_pairs = pytest.mark.parametrize("pairs", PAIRS)


def similarities(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(rows + columns)
    return (0.5 * torch.randn(rows, columns, generator=generator)).to(dtype).requires_grad_()


def written_out(s: Tensor, margin: float = 0.11, scale: float = 32.0, pairs: str = "all") -> Tensor:
    """(B,) losses in float64, pair by pair."""
    s = s.double()
    total = s.new_zeros(s.shape[0])
    found = [(j, k) for k in range(s.shape[1]) for j in range(k)]
    if pairs == "adjacent":
        found = [(j, k) for j, k in found if k == j + 1]
    sides = [[s[:, k] - s[:, j] + margin for j, k in found]]
    if pairs == "band":
        # k counts from 0 here, from 1 in the formula.
        sides.append([-(s[:, k] - s[:, j] + k * margin) for j, k in found])
    for side in sides:
        if side:
            largest = (scale * torch.stack(side, 1)).logsumexp(1)
            total = total + torch.logaddexp(largest, torch.zeros_like(largest)) / scale
    return total


def assert_rounded(actual: Tensor, expected: Tensor) -> None:
    """`expected`, rounded once to the dtype of `actual`, up to float64's own errors."""
    exact = actual.dtype == torch.float64
    # Half a unit in the last place of float32; of 16 bits, of gradients, the dtype's own.
    rtol = 1e-13 if exact else 1.01 * torch.finfo(actual.dtype).eps / 2
    tiny = torch.finfo(actual.dtype).smallest_normal * torch.finfo(actual.dtype).eps
    # Sums of weights up to 1 that cancel lose some units of 2^-53.
    atol = 1e-13 if exact else max(tiny, 1e-13)
    torch.testing.assert_close(actual.double(), expected, rtol=rtol, atol=atol)


# --- value and gradient ---------------------------------------------------------------------------


@each_pairs
@each_dtype
@each_backend
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_loss_and_its_gradient_are_those_of_the_formula(pairs, dtype, backend, size):
    s = similarities(*size, dtype)
    up = torch.linspace(-1, 2, size[0], dtype=oracle.returned_dtype(dtype))
    double = s.detach().double().requires_grad_()
    expected = written_out(double, pairs=pairs)
    with use_backend(backend):
        loss = F.ranking_loss(s, pairs=pairs, reduction="none")
        (gradient,) = torch.autograd.grad(loss, s, up)
    assert loss.dtype == oracle.returned_dtype(dtype)
    assert gradient.dtype == dtype
    assert_rounded(loss, expected)
    (right,) = torch.autograd.grad((expected * up).sum() + 0 * double.sum(), double)
    assert_rounded(gradient, right)


@each_pairs
@each_backend
@pytest.mark.parametrize(("margin", "scale"), [(0.0, 1.0), (-0.3, 5.0), (0.7, 0.01), (2.0, 300.0)])
def test_margin_and_scale_are_those_of_the_formula(pairs, backend, margin, scale):
    s = similarities(20, 6)
    double = s.detach().double().requires_grad_()
    expected = written_out(double, margin, scale, pairs)
    with use_backend(backend):
        options = {"margin": margin, "scale": scale, "pairs": pairs}
        loss = F.ranking_loss(s, reduction="none", **options)
        (gradient,) = torch.autograd.grad(loss.sum(), s)
    assert_rounded(loss, expected)
    assert_rounded(gradient, torch.autograd.grad(expected.sum(), double)[0])


@each_backend
def test_a_row_of_two_is_one_softplus(backend):
    s = torch.tensor([[0.9, 0.2], [0.2, 0.9]])
    expected = torch.nn.functional.softplus(32 * torch.tensor([-0.59, 0.81])) / 32
    with use_backend(backend):
        for pairs in ("all", "adjacent"):
            loss = F.ranking_loss(s, pairs=pairs, reduction="none")
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


@each_pairs
@each_backend
def test_reductions_are_over_all_rows(pairs, backend):
    s = similarities(37, 5)
    expected = written_out(s.detach(), pairs=pairs)
    with use_backend(backend):
        mean, total = (F.ranking_loss(s, pairs=pairs, reduction=r) for r in ("mean", "sum"))
        assert torch.equal(F.ranking_loss(s, pairs=pairs), mean)
    # A sum of 37 float32 numbers.
    torch.testing.assert_close(total.double(), expected.sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(mean.double(), expected.mean(), rtol=1e-6, atol=0)


@each_backend
def test_strides_do_not_matter(backend):
    s = similarities(60, 20).detach()
    up = torch.linspace(-1, 2, 60)[::2]
    results = []
    for view in (
        s[::2, ::3].contiguous(),
        s[::2, ::3],
        s.T.contiguous().T[::2, ::3],
        s.flip(1).flip(1)[::2, ::3],
    ):
        leaf = view.detach().requires_grad_()
        with use_backend(backend):
            loss = F.ranking_loss(leaf, pairs="band", reduction="none")
            results.append((loss.detach(), torch.autograd.grad(loss, leaf, up)[0]))
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(gradient, results[0][1])


@each_backend
def test_one_row_for_all_has_the_sum_of_their_gradients(backend):
    row = similarities(1, 5)
    with use_backend(backend):
        (gradient,) = torch.autograd.grad(F.ranking_loss(row.expand(12, 5), reduction="sum"), row)
        (once,) = torch.autograd.grad(F.ranking_loss(row, reduction="sum"), row)
    torch.testing.assert_close(gradient, 12 * once)


@each_pairs
def test_gradcheck(pairs):
    s = similarities(4, 5, torch.float64)
    function = partial(F.ranking_loss, scale=3.0, pairs=pairs, reduction="none")
    assert torch.autograd.gradcheck(function, s)


# --- nothing to rank, and what is not finite ------------------------------------------------------


@each_pairs
@each_backend
@pytest.mark.parametrize("size", [(0, 0), (0, 5), (3, 0), (3, 1)], ids=str)
def test_without_a_pair_the_loss_is_0_and_attached(pairs, backend, size):
    s = similarities(*size)
    with use_backend(backend):
        loss = F.ranking_loss(s, pairs=pairs)
        rows = F.ranking_loss(s, pairs=pairs, reduction="none")
        # Even NaN from above must not reach rows by a sum of nothing.
        (gradient,) = torch.autograd.grad(rows, s, torch.full_like(rows, math.nan))
    assert loss.item() == 0
    assert loss.requires_grad
    assert rows.tolist() == [0.0] * size[0]
    assert torch.equal(gradient, torch.zeros_like(s))
    (mean_gradient,) = torch.autograd.grad(loss, s)
    assert torch.equal(mean_gradient, torch.zeros_like(s))


@each_pairs
@each_backend
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("columns", [1, 2, 9])
def test_a_row_that_is_not_finite_is_nan_alone(pairs, backend, bad, columns):
    good = similarities(21, columns).detach()
    s = good.clone()
    s[13, columns // 2] = bad
    s.requires_grad_()
    keep = torch.arange(21) != 13
    with use_backend(backend):
        loss = F.ranking_loss(s, pairs=pairs, reduction="none")
        used, unused = (
            torch.autograd.grad(loss, s, up, retain_graph=True)[0]
            for up in (torch.ones(21), keep.float())
        )
        others = F.ranking_loss(good, pairs=pairs, reduction="none")
    assert torch.equal(loss[keep], others[keep])
    assert loss[13].isnan()
    # With one column the loss of every other row is 0 whatever comes.
    assert used[13].isnan().all()
    assert used[keep].isfinite().all()
    assert unused.isfinite().all()


# --- the ends of the range ------------------------------------------------------------------------


@each_pairs
@each_backend
@pytest.mark.parametrize("value", [0.0, -1e4, 1e4, 1e30, -3e38])
def test_equal_similarities_keep_the_margin(pairs, backend, value):
    s = torch.full((11, 5), value, requires_grad=True)
    double = torch.zeros(11, 5, dtype=torch.float64, requires_grad=True)
    expected = written_out(double, pairs=pairs)
    with use_backend(backend):
        loss = F.ranking_loss(s, pairs=pairs, reduction="none")
        (gradient,) = torch.autograd.grad(loss.sum(), s)
    assert_rounded(loss, expected)
    assert_rounded(gradient, torch.autograd.grad(expected.sum(), double)[0])


@each_backend
@pytest.mark.parametrize("scale", [1e-300, 1e-30, 32.0, 1e6, 1e30, 1e300])
@pytest.mark.parametrize("size", [1.0, 1e4, 1e30, 3e38])
def test_nothing_overflows(backend, scale, size):
    s = (torch.tensor([[-1.0, 0.5, 1.0, -0.25], [1.0, 0.25, -0.5, -1.0]]) * size).requires_grad_()
    with use_backend(backend):
        loss = F.ranking_loss(s, margin=0.0, scale=scale, reduction="none")
        (gradient,) = torch.autograd.grad(loss.sum(), s)
    assert gradient.isfinite().all()
    # The greatest of s_k - s_j lies between the two, as the sum has six terms and a 1.
    most = torch.tensor([2.0, 0.0], dtype=torch.float64) * float(s.detach().max())
    limit = torch.finfo(torch.float32).max
    assert (loss >= most.clamp(max=limit).float()).all()
    above = (most + math.log(7) / scale).float()
    assert (loss <= above * (1 + 1e-6)).all()
    if scale * size > 1e4:  # one term alone
        assert gradient.tolist() == [[-1.0, 0.0, 1.0, 0.0], [0.0] * 4]


@each_pairs
@each_backend
@pytest.mark.parametrize("margin", [-1e30, -1e4, 1e4, 1e30, 1e300])
def test_a_margin_far_beyond_the_similarities(pairs, backend, margin):
    s = similarities(9, 5)
    with use_backend(backend):
        loss = F.ranking_loss(s, margin=margin, pairs=pairs, reduction="none")
        (gradient,) = torch.autograd.grad(loss.sum(), s)
    assert not loss.isnan().any()
    assert gradient.isfinite().all()
    if pairs == "band" and abs(margin) > 1e4:  # beside it the similarities have no digits
        return
    # Whatever the weights are, they are taken from one similarity and given to another.
    torch.testing.assert_close(gradient.sum(1), torch.zeros(9), rtol=0, atol=1e-6)
    if margin < 0 and pairs != "band":
        assert torch.equal(loss, torch.zeros(9))
        assert torch.equal(gradient, torch.zeros(9, 5))


@each_backend
def test_similarities_of_1e4_are_those_of_the_formula(backend):
    s = (1e4 * similarities(50, 7).detach()).requires_grad_()
    double = s.detach().double().requires_grad_()
    expected = written_out(double)
    with use_backend(backend):
        loss = F.ranking_loss(s, reduction="none")
        (gradient,) = torch.autograd.grad(loss.sum(), s)
    assert_rounded(loss, expected)
    assert_rounded(gradient, torch.autograd.grad(expected.sum(), double)[0])


# --- same bits on every run -----------------------------------------------------------------------


def _forward_and_backward(pairs: str) -> list[Tensor]:
    s = similarities(5003, 9)
    loss = F.ranking_loss(s, pairs=pairs)
    rows = F.ranking_loss(s, pairs=pairs, reduction="none")
    return [loss, rows, *torch.autograd.grad(loss, s)]


@each_pairs
@pytest.mark.parametrize("isa", ISAS)
def test_one_thread_and_two_give_the_same_bits(pairs, isa, select_isa, set_threads):
    select_isa(isa)
    set_threads(1)
    expected = _forward_and_backward(pairs)
    set_threads(2)
    assert_same_bits(_forward_and_backward(pairs), expected)


@each_pairs
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_gives_the_same_bits(pairs, isa, select_isa):
    select_isa("baseline")
    expected = _forward_and_backward(pairs)
    select_isa(isa)
    assert_same_bits(_forward_and_backward(pairs), expected)


# --- what torch does around it --------------------------------------------------------------------


@each_backend
def test_a_second_backward_raises(backend):
    s = similarities(9, 3)
    with use_backend(backend):
        (gradient,) = torch.autograd.grad(F.ranking_loss(s), s, create_graph=True)
        # s.sum() keeps a graph alive: a gradient that was silently constant would pass.
        with pytest.raises(RuntimeError, match="differentiate"):
            (gradient.square().sum() + s.sum()).backward()


@each_backend
def test_opcheck_accepts_the_operator_and_its_gradient(backend, operator_calls: Callable):
    s = similarities(9, 4)

    def run() -> None:
        with use_backend(backend):
            torch.autograd.grad(F.ranking_loss(s, pairs="band"), s)

    calls = operator_calls(run, NAMESPACE[backend])
    assert len(calls) == 2
    opcheck(calls)


@each_backend
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole_forward_and_backward(backend, dynamic):
    compiled = compile_whole(F.ranking_loss, dynamic=dynamic)
    with use_backend(backend):
        for rows in (24, 35):
            results = []
            for f in (F.ranking_loss, compiled):
                s = similarities(rows, 5)
                loss = f(s)
                results.append((loss, torch.autograd.grad(loss, s)[0]))
            # A scalar's order of summation is the compiler's.
            torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-9)
    torch.compiler.reset()


@each_backend
def test_autocast_leaves_the_dtype_it_receives(backend):
    s = similarities(20, 5)
    with use_backend(backend):
        expected = F.ranking_loss(s)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(F.ranking_loss(s), expected)


# --- errors ---------------------------------------------------------------------------------------

ERRORS = {
    "not a tensor": ({"similarities": [[1.0, 2.0]]}, TypeError, "similarities: expected a torch.T"),
    "a vector": ({"similarities": torch.zeros(3)}, ValueError, "similarities: expected a 2-D"),
    "integers": ({"similarities": torch.ones(2, 3).int()}, TypeError, "similarities: expected fl"),
    "margin of inf": ({"margin": math.inf}, ValueError, "margin: expected a finite number, got in"),
    "margin of text": ({"margin": "0.1"}, TypeError, "margin: expected a number, got '0.1'"),
    "scale of 0": ({"scale": 0.0}, ValueError, "scale: expected a finite number greater than 0"),
    "scale below 0": ({"scale": -1}, ValueError, "scale: expected a finite number greater than 0"),
    "unknown pairs": ({"pairs": "some"}, ValueError, "pairs: expected one of .*got 'some'"),
    "unknown reduction": ({"reduction": "max"}, ValueError, "reduction: expected one of .*'max'"),
}


@each_backend
@pytest.mark.parametrize("mistake", ERRORS)
def test_a_mistake_is_named(backend, mistake):
    arguments, error, message = ERRORS[mistake]
    with use_backend(backend), pytest.raises(error, match=message):
        F.ranking_loss(**{"similarities": torch.zeros(2, 3), **arguments})


# --- memory ---------------------------------------------------------------------------------------


def test_needs_no_matrix_of_pairs(resident_growth: Callable):
    # A (4096, 64, 64) temporary in float32 would be 67 MB, the similarities are 1 MB.
    growth = resident_growth(
        "s = torch.randn(4096, 64, requires_grad=True)",
        "F.ranking_loss(s, pairs='band').backward()",
    )
    assert growth < 4096 * 64 * 64 * 4 / 4
