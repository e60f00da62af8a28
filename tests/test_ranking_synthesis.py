"""synthesis_similarity against the rows that it never makes, in float64, on CPU."""

from __future__ import annotations

import math
from collections.abc import Callable

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
from oracle import relative_error
from torch import Tensor

import dmlfast.functional as F
from dmlfast import use_backend

# (B, J, d, p): nothing, one row, and sizes that fit no vector and no chunk of rows.
SIZES = [(0, 5, 4, 3), (1, 1, 2, 3), (7, 2, 5, 33), (7, 0, 4, 3), (1000, 5, 6, 17), (40, 33, 8, 64)]

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_form = pytest.mark.parametrize("form", ["own", "bias", "targets", "bias and targets"])


class Problem:
    """Rows, offsets of length 1 to J, a projection, and what a form adds."""

    def __init__(
        self,
        form: str = "own",
        size: tuple[int, int, int, int] = (23, 5, 6, 17),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        rows, steps, d, p = size
        generator = torch.Generator().manual_seed(sum(size))

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        unit = torch.nn.functional.normalize
        offsets = torch.arange(1, steps + 1)[:, None] * unit(draw(steps, d))
        self.tensors = {"x": unit(draw(rows, d)), "offsets": offsets, "weight": draw(p, d)}
        if "bias" in form:
            self.tensors["bias"] = 0.3 * draw(p)
        if "targets" in form:
            self.tensors["targets"] = draw(rows, p)
        self.tensors = {k: v.to(dtype).requires_grad_() for k, v in self.tensors.items()}
        self.leaves = list(self.tensors.values())

    def similarity(self) -> Tensor:
        return F.synthesis_similarity(**self.tensors)

    def oracle(self) -> tuple[Tensor, list[Tensor]]:
        """The similarities of the values as stored, and their leaves in float64."""
        leaves = {k: v.detach().double().requires_grad_() for k, v in self.tensors.items()}
        return written_out(**leaves), list(leaves.values())


def project(v: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """q(v) = relu(l2norm(W v + b)), of 0 for 0."""
    projected = torch.nn.functional.linear(v, weight, bias)
    squares = projected.square().sum(-1, keepdim=True)
    unit = projected / torch.where(squares == 0, 1.0, squares).sqrt()
    return torch.relu(unit)


def written_out(
    x: Tensor,
    offsets: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    targets: Tensor | None = None,
) -> Tensor:
    """(B, J) similarities of rows that are made, as the formula has them."""
    made = project(x[:, None] + offsets, weight, bias)
    compared = project(x, weight, bias) if targets is None else targets
    return (made * compared[:, None]).sum(2)


def upstream(similarity: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(similarity.shape, generator=generator).to(similarity.dtype)


# --- value and gradient ---------------------------------------------------------------------------


@each_form
@each_dtype
@each_backend
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_similarities_are_those_of_the_rows_that_are_made(form, dtype, backend, size):
    problem = Problem(form, size, dtype)
    expected, _ = problem.oracle()
    with use_backend(backend):
        similarity = problem.similarity()
    assert similarity.dtype == oracle.returned_dtype(dtype)
    # Projections of up to 8 products and sums of up to 64 of them: some roundings of a float32
    # number of at most the length of the targets, 1 or about sqrt(64).
    atol = 1e-14 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(similarity.double(), expected, rtol=0, atol=8 * atol)


@each_form
@each_dtype
@each_backend
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gradients_are_those_of_the_rows_that_are_made(form, dtype, backend, size):
    problem = Problem(form, size, dtype)
    with use_backend(backend):
        similarity = problem.similarity()
        actual = torch.autograd.grad(similarity, problem.leaves, upstream(similarity))
    expected, leaves = problem.oracle()
    right = torch.autograd.grad(expected, leaves, upstream(similarity).double())
    # As above, divided by lengths that may be short; 16 bits round a gradient to 2^-9 of itself.
    bound = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 1e-2)
    for name, a, e in zip(problem.tensors, actual, right, strict=True):
        assert a.dtype == dtype, name
        assert relative_error(a, e) < bound, name


@each_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_targets_may_be_float32_beside_16_bits(backend, dtype):
    problem = Problem("own", dtype=dtype)
    targets = torch.rand(23, 17, requires_grad=True)
    exact = {k: v.detach().double() for k, v in problem.tensors.items()}
    with use_backend(backend):
        similarity = F.synthesis_similarity(**problem.tensors, targets=targets)
        (gradient,) = torch.autograd.grad(similarity.sum(), targets)
    double = targets.detach().double().requires_grad_()
    expected = written_out(**exact, targets=double)
    torch.testing.assert_close(similarity.double(), expected, rtol=1e-6, atol=1e-6)
    right = torch.autograd.grad(expected.sum(), double)[0]
    assert gradient.dtype == torch.float32
    assert relative_error(gradient, right) < 1e-6


@each_form
@each_backend
def test_strides_do_not_matter(form, backend):
    problem = Problem(form, (20, 5, 6, 33))
    with use_backend(backend):
        expected = problem.similarity()
        up = upstream(expected)
        gradients = torch.autograd.grad(expected, problem.leaves, up, retain_graph=True)
        # The transpose of a contiguous transpose, and every other element of a larger tensor.
        for view in (lambda t: t.mT.contiguous().mT, lambda t: t.repeat_interleave(2, 0)[::2]):
            tensors = {
                k: (v if v.dim() == 1 else view(v)).detach().requires_grad_()
                for k, v in problem.tensors.items()
            }
            similarity = F.synthesis_similarity(**tensors)
            # torch's own product may add up in another order.
            torch.testing.assert_close(similarity, expected, rtol=1e-6, atol=1e-6)
            for u in (up, up.T.contiguous().T):
                found = torch.autograd.grad(
                    similarity, list(tensors.values()), u, retain_graph=True
                )
                for a, e in zip(found, gradients, strict=True):
                    assert relative_error(a, e) < 1e-5


@each_backend
def test_one_target_may_serve_all_rows(backend):
    problem = Problem()
    target = torch.rand(1, 17, requires_grad=True)
    with use_backend(backend):
        shared, copied = (
            F.synthesis_similarity(**problem.tensors, targets=t)
            for t in (target.expand(23, 17), target.repeat(23, 1))
        )
        gradients = [torch.autograd.grad(s.sum(), target)[0] for s in (shared, copied)]
    assert torch.equal(shared, copied)
    torch.testing.assert_close(*gradients)


@each_form
def test_gradcheck(form):
    # Points in general position: no step of gradcheck, 1e-6, takes a projection across 0.
    problem = Problem(form, (4, 3, 5, 6), torch.float64)
    names = list(problem.tensors)

    def function(*tensors: Tensor) -> Tensor:
        return F.synthesis_similarity(**dict(zip(names, tensors, strict=True)))

    assert torch.autograd.gradcheck(function, tuple(problem.leaves))


# --- zero, tiny, huge, not finite -----------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_projection_of_0_has_similarity_0_and_gradient_0(backend, dtype):
    x = torch.tensor([[0.0, 0.0], [1.0, 2.0], [-1.0, -2.0]], dtype=dtype)
    offsets = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=dtype)
    leaves = [t.requires_grad_() for t in (x, offsets, torch.eye(2, dtype=dtype))]
    with use_backend(backend):
        similarity = F.synthesis_similarity(*leaves)
        # Of 0: as a row, as what is synthesised from row 2, and as a row whose parts are below 0.
        one = pytest.approx(1.0, rel=1e-6)
        assert similarity.tolist() == [[0.0, 0.0], [one, one], [0.0, 0.0]]
        at_zero = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]], dtype=dtype)
        for gradient in torch.autograd.grad(similarity, leaves, at_zero):
            assert torch.equal(gradient, torch.zeros_like(gradient))


@each_backend
@pytest.mark.parametrize("exponent", [-140, -75, -40, 40, 55, 75, 120])
def test_the_size_of_projections_drops_out(backend, exponent):
    problem = Problem("own")
    size = 2.0**exponent
    with use_backend(backend):
        expected = problem.similarity()
        up = 2.0**-20 * upstream(expected)  # beside squared lengths far below float32
        to_x, to_offsets, _ = torch.autograd.grad(expected, problem.leaves, up)
        x, offsets = (problem.tensors[k].detach() * size for k in ("x", "offsets"))
        leaves = x.requires_grad_(), offsets.requires_grad_()
        similarity = F.synthesis_similarity(*leaves, problem.tensors["weight"].detach())
        found = torch.autograd.grad(similarity, leaves, up)
    # Projections near the end of the range have lost digits before they come here.
    loose = 1e-2 if exponent < -126 else 2e-6
    torch.testing.assert_close(similarity, expected, rtol=loose, atol=loose)
    if -126 <= exponent <= 75:
        for a, e in zip(found, (to_x, to_offsets), strict=True):
            assert relative_error(a.double() * size, e) < 1e-5


@each_backend
def test_large_targets_do_not_overflow(backend):
    # 2e38 + 2e38 has no float32, their mean over a row of length 2 has.
    x, offsets = torch.ones(1, 4), torch.zeros(1, 4)
    targets = torch.tensor([[2e38, 2e38, 1e38, -1e38]], requires_grad=True)
    with use_backend(backend):
        similarity = F.synthesis_similarity(x, offsets, torch.eye(4), targets=targets)
        (gradient,) = torch.autograd.grad(similarity.sum(), targets)
    assert similarity.item() == pytest.approx(2e38, rel=1e-6)
    assert gradient.tolist() == [[0.5] * 4]


@each_backend
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_nan_where_it_is_used(backend, bad):
    problem = Problem("own")
    with torch.no_grad():
        problem.tensors["x"][4, 1] = bad
        problem.tensors["offsets"][3, 0] = bad
    lost = torch.zeros(23, 5, dtype=torch.bool)
    lost[4], lost[:, 3] = True, True
    with use_backend(backend):
        similarity = problem.similarity()
        assert torch.equal(similarity.isnan(), lost)
        leaves = problem.leaves[:2]
        unused, used = (
            torch.autograd.grad(similarity, leaves, up, retain_graph=True)
            for up in ((~lost).float(), torch.ones(23, 5) * (torch.arange(5) == 3))
        )
    assert all(gradient.isfinite().all() for gradient in unused)
    assert used[0].isnan().all()
    assert used[1].isnan().any(1).nonzero().tolist() == [[3]]


# --- the loss -------------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("pairs", ["all", "adjacent", "band"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_synthetic_loss_is_that_of_the_similarities(backend, pairs, reduction):
    problem = Problem("bias")
    options = {"margin": 0.05, "scale": 12.0, "pairs": pairs, "reduction": reduction}
    with use_backend(backend):
        loss = F.synthetic_ranking_loss(*problem.leaves, **options)
        expected = F.ranking_loss(problem.similarity(), **options)
        actual = torch.autograd.grad(loss.sum(), problem.leaves)
        right = torch.autograd.grad(expected.sum(), problem.leaves)
    assert torch.equal(loss, expected)
    for a, e in zip(actual, right, strict=True):
        assert torch.equal(a, e)


# --- same bits on every run -----------------------------------------------------------------------


def _forward_and_backward(form: str) -> list[Tensor]:
    problem = Problem(form, (1003, 5, 37, 37))
    # torch's product depends on the number of threads, but not that with 1 and 0.
    problem.tensors["weight"] = torch.eye(37)
    leaves = [leaf for leaf in problem.tensors.values() if leaf.requires_grad]
    similarity = problem.similarity()
    return [similarity, *torch.autograd.grad(similarity, leaves, upstream(similarity))]


@pytest.mark.parametrize("form", ["own", "targets"])
@pytest.mark.parametrize("isa", ISAS)
def test_one_thread_and_two_give_the_same_bits(form, isa, select_isa, set_threads):
    select_isa(isa)
    set_threads(1)
    expected = _forward_and_backward(form)
    set_threads(2)
    assert_same_bits(_forward_and_backward(form), expected)


@each_form
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_is_right(form, isa, select_isa):
    select_isa(isa)
    problem = Problem(form)
    similarity = problem.similarity()
    expected, leaves = problem.oracle()
    torch.testing.assert_close(similarity.double(), expected, rtol=0, atol=5e-6)
    actual = torch.autograd.grad(similarity, problem.leaves, upstream(similarity))
    right = torch.autograd.grad(expected, leaves, upstream(similarity).double())
    for a, e in zip(actual, right, strict=True):
        assert relative_error(a, e) < 1e-5


# --- what torch does around it --------------------------------------------------------------------


@each_backend
def test_a_second_backward_raises(backend):
    problem = Problem()
    x = problem.tensors["x"]
    with use_backend(backend):
        (gradient,) = torch.autograd.grad(problem.similarity().sum(), x, create_graph=True)
        # x.sum() keeps a graph alive: a gradient that was silently constant would pass.
        with pytest.raises(RuntimeError, match="differentiate"):
            (gradient.square().sum() + x.sum()).backward()


@each_backend
def test_opcheck_accepts_the_operator_and_its_gradient(backend, operator_calls: Callable):
    def run() -> None:
        for form in ("own", "targets"):
            problem = Problem(form)
            with use_backend(backend):
                torch.autograd.grad(problem.similarity().sum(), problem.leaves)

    calls = operator_calls(run, NAMESPACE[backend])
    assert len(calls) == 4
    opcheck(calls)


@each_backend
@each_form
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole_forward_and_backward(backend, form, dynamic):
    def function(**tensors: Tensor) -> Tensor:
        return F.ranking_loss(F.synthesis_similarity(**tensors))

    compiled = compile_whole(function, dynamic=dynamic)
    with use_backend(backend):
        for rows in (24, 35):
            problem = Problem(form, (rows, 5, 6, 17))
            results = []
            for f in (function, compiled):
                loss = f(**problem.tensors)
                results.append((loss, *torch.autograd.grad(loss, problem.leaves)))
            torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)
    torch.compiler.reset()


@each_backend
def test_autocast_leaves_the_dtype_it_receives(backend):
    problem = Problem("bias")
    with use_backend(backend):
        expected = problem.similarity()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(problem.similarity(), expected)


# --- errors ---------------------------------------------------------------------------------------

X, WEIGHT = torch.zeros(4, 3), torch.zeros(6, 3)
ERRORS = {
    "x a list": ({"x": [[1.0]]}, TypeError, "x: expected a torch.Tensor"),
    "x a vector": ({"x": torch.zeros(3)}, ValueError, "x: expected a 2-D tensor"),
    "offsets of other dimensions": (
        {"offsets": torch.zeros(5, 2)},
        ValueError,
        "offsets: expected 3 dimensions as in x",
    ),
    "offsets of another dtype": (
        {"offsets": torch.zeros(5, 3).double()},
        TypeError,
        "offsets: expected torch.float32 as x",
    ),
    "weight transposed": ({"weight": WEIGHT.T}, ValueError, "weight: expected 3 dimensions as in"),
    "weight of another dtype": ({"weight": WEIGHT.half()}, TypeError, "weight: expected torch.fl"),
    "bias of another length": (
        {"bias": torch.zeros(3)},
        ValueError,
        r"bias: expected shape \(6,\) on cpu, got \(3,\)",
    ),
    "bias of another dtype": ({"bias": torch.zeros(6).half()}, TypeError, "bias: expected torch.f"),
    "a number as bias": ({"bias": 0.0}, TypeError, "bias: expected a torch.Tensor, got float"),
    "targets of another shape": (
        {"targets": torch.zeros(4, 3)},
        ValueError,
        r"targets: expected shape \(4, 6\) on cpu, got \(4, 3\)",
    ),
    "targets of another dtype": (
        {"targets": torch.zeros(4, 6).half()},
        TypeError,
        "targets: expected torch.float32 as x",
    ),
}


@each_backend
@pytest.mark.parametrize("mistake", ERRORS)
def test_a_mistake_is_named(backend, mistake):
    given, error, message = ERRORS[mistake]
    arguments = {"x": X, "offsets": torch.zeros(5, 3), "weight": WEIGHT, **given}
    with use_backend(backend), pytest.raises(error, match=message):
        F.synthesis_similarity(**arguments)


# --- memory ---------------------------------------------------------------------------------------


def test_needs_no_synthesised_rows(resident_growth: Callable):
    # One (B·J, p) temporary in float32 would be 84 MB, a (B, p) one is 4 MB.
    growth = resident_growth(
        "x, o = torch.randn(4096, 256, requires_grad=True), torch.randn(20, 256)\n"
        "w = torch.randn(256, 256, requires_grad=True)",
        "F.synthetic_ranking_loss(x, o, w).backward()",
    )
    assert growth < 4096 * 20 * 256 * 4 / 2
