"""The ranking loss and similarities to synthesised rows on a GPU: `pytest -m cuda`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

import dmlfast.functional as F
from dmlfast import _library, use_backend

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not (torch.cuda.is_available() and _library.cuda_status.loaded),
        reason="needs a CUDA device and the CUDA library",
    ),
]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PAIRS = ("all", "adjacent", "band")

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_pairs = pytest.mark.parametrize("pairs", PAIRS)
each_form = pytest.mark.parametrize("form", ["own", "targets"])
# Of the gradients' length: a sum over the dimensions is off by some roundings of float32, and
# 16-bit gradients are rounded themselves.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def results(function: Callable[..., Tensor], *tensors: Tensor) -> list[Tensor]:
    """What a function returns, and the gradients of its weighted sum."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    result = function(*leaves)
    weight = draw(*result.shape, seed=1).to(result)
    # A third of the results are not used.
    weight[::3] = 0
    return [result.detach(), *torch.autograd.grad((result * weight).sum(), leaves)]


def synthesis_tensors(
    form: str, rows: int = 1031, steps: int = 5, p: int = 130, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Embeddings, offsets, a projection and a bias, and targets where the form has them.

    The projection changes nothing: what is near 0 has the sign that it has in float64.
    """
    tensors = [draw(rows, p), draw(steps, p, seed=2), torch.eye(p), torch.zeros(p)]
    if form == "targets":
        tensors.append(draw(rows, p, seed=5))
    return [t.to(dtype) for t in tensors]


def synthesis(*tensors: Tensor) -> Tensor:
    return F.synthesis_similarity(*tensors[:4], targets=tensors[4] if len(tensors) > 4 else None)


def check_synthesis(tensors: list[Tensor]) -> None:
    dtype = tensors[0].dtype
    expected = results(synthesis, *(t.double() for t in tensors))
    # Full precision of the projection, which is torch's.
    assert torch.get_float32_matmul_precision() == "highest"
    actual = results(synthesis, *(t.cuda() for t in tensors))
    assert actual[0].dtype == torch.float32
    assert (actual[0].cpu().double() - expected[0]).norm() <= 1e-5 * expected[0].norm()
    for a, e in zip(actual[1:], expected[1:], strict=True):
        assert a.dtype == dtype
        assert (a.cpu().double() - e).norm() <= TOLERANCE[dtype] * e.norm()


@each_pairs
@each_dtype
@pytest.mark.parametrize(
    "size", [(1, 2), (5, 0), (0, 5), (70000, 5), (1031, 33), (200000, 3)], ids=str
)
def test_ranking_losses_are_those_of_the_cpu(pairs, dtype, size):
    s = (0.5 * draw(*size)).to(dtype)
    function = partial(F.ranking_loss, pairs=pairs, reduction="none")
    expected = results(function, s)
    for view in (s.cuda(), s.T.contiguous().cuda().T, s.repeat_interleave(2, 1).cuda()[:, ::2]):
        for a, e in zip(results(function, view), expected, strict=True):
            assert a.dtype == e.dtype
            # Both are rounded float64 sums.
            eps = torch.finfo(e.dtype).eps
            torch.testing.assert_close(a.cpu(), e, rtol=2 * eps, atol=1e-12)


@each_pairs
def test_a_row_that_is_not_finite_is_nan_alone(pairs):
    s = draw(300, 5)
    s[3, 1], s[4, 4], s[298, 0] = torch.nan, torch.inf, -torch.inf
    function = partial(F.ranking_loss, pairs=pairs, reduction="none")
    for a, e in zip(results(function, s.cuda()), results(function, s), strict=True):
        assert torch.equal(a.cpu().isnan(), e.isnan())


@each_form
@each_dtype
# (B, J, p): nothing, one of everything, and sizes on both sides of what is taken at once.
@pytest.mark.parametrize(
    "size",
    [(0, 5, 4), (6, 0, 4), (1, 1, 1), (1031, 5, 130), (70000, 5, 64), (300, 33, 515), (301, 70, 3)],
    ids=str,
)
def test_similarities_to_synthesised_rows_are_those_of_float64(form, dtype, size):
    check_synthesis(synthesis_tensors(form, *size, dtype=dtype))


@each_form
def test_strides_do_not_matter(form):
    tensors = [t.cuda() for t in synthesis_tensors(form)]
    expected = results(synthesis, *tensors)
    views = [t.mT.contiguous().mT if t.dim() == 2 else t for t in tensors]
    for a, e in zip(results(synthesis, *views), expected, strict=True):
        # torch's own products may add up in another order.
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


@each_form
@pytest.mark.parametrize("exponent", [-120, -40, 40, 60])
def test_the_size_of_projections_drops_out(form, exponent):
    x, offsets, weight, _, *targets = (t.cuda() for t in synthesis_tensors(form))
    similarity, larger = (
        synthesis(x * size, offsets * size, weight, torch.zeros_like(weight[:, 0]), *targets)
        for size in (1.0, 2.0**exponent)
    )
    torch.testing.assert_close(larger, similarity, rtol=1e-5, atol=1e-5)


@each_form
def test_what_is_not_finite_is_nan_where_it_is_used(form):
    tensors = synthesis_tensors(form, 300)
    tensors[0][4, 1], tensors[0][200, 0], tensors[1][3, 0] = torch.nan, torch.inf, -torch.inf
    on_gpu = results(synthesis, *(t.cuda() for t in tensors))
    for a, e in zip(on_gpu, results(synthesis, *tensors), strict=True):
        assert torch.equal(a.cpu().isnan(), e.isnan())


def losses() -> dict[str, Callable[[Tensor], Tensor]]:
    """Losses of embeddings of 20 dimensions."""
    drawn = draw(5, 20, seed=2), draw(130, 20, seed=3), draw(130, seed=4)
    offsets, weight, bias = (t.cuda() for t in drawn)
    return {
        "ranking": F.ranking_loss,
        "band": partial(F.ranking_loss, pairs="band"),
        "synthetic": lambda x: F.synthetic_ranking_loss(x, offsets, weight, bias),
        "synthetic, of all": lambda x: F.synthetic_ranking_loss(
            x, x[:5], weight * x.square().mean(), bias
        ),
    }


LOSSES = ("ranking", "band", "synthetic", "synthetic, of all")
each_loss = pytest.mark.parametrize("name", LOSSES)


def step(name: str, x: Tensor) -> list[Tensor]:
    """The loss and its gradient."""
    leaf = x.detach().clone().requires_grad_()
    loss = losses()[name](leaf)
    return [loss.detach(), *torch.autograd.grad(loss, leaf)]


@each_loss
def test_kernels_serve_without_a_warning(name, recwarn):
    x = draw(500, 20).cuda()
    found = step(name, x)
    assert not recwarn.list
    with use_backend("reference"):
        expected = step(name, x)
    for a, e in zip(found, expected, strict=True):
        assert (a - e).norm() <= 1e-5 * e.norm()


@each_loss
def test_a_step_has_the_same_bits_ten_times(name):
    x = draw(4000, 20).cuda()
    first = step(name, x)
    for _ in range(10):
        assert all(map(torch.equal, step(name, x), first))


@each_loss
def test_a_step_is_captured_as_a_graph(name):
    # Whatever waits for the host cannot be captured.
    first = draw(1100, 20).cuda()
    x = first.clone().requires_grad_()
    loss_of = losses()[name]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        loss_of(x).backward()
    torch.cuda.current_stream().wait_stream(side)
    x.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = loss_of(x)
        captured.backward()
    with torch.no_grad():
        x.copy_(first.flip(1) * 0.5)
    graph.replay()
    expected = step(name, x)
    assert torch.equal(captured, expected[0])
    assert torch.equal(x.grad, expected[1])


@each_form
def test_no_synthesised_row_is_made(form):
    rows, steps, p = 40000, 20, 256
    tensors = [t.cuda() for t in synthesis_tensors(form, rows, steps, p)]
    results(synthesis, *tensors)  # the workspace of torch's products
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results(synthesis, *tensors)
    used = torch.cuda.max_memory_allocated() - before
    # Projections, gradients and sums of chunks; made, the rows would take 20 times those.
    assert used < 6 * rows * p * 4
