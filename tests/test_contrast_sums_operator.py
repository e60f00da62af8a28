"""The operator of the contrast losses: its bits, torch around it, and memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from contrast_sums_cases import (
    SIDES,
    N,
    Problem,
    weighted,
)
from operator_cases import ISAS, assert_same_bits, compile_whole, each_backend, each_metric, opcheck
from oracle import make
from torch import Tensor

import dmlfast.functional as F
from dmlfast import use_backend
from dmlfast.ops._arguments import check_pairs
from dmlfast.ops.contrast_sums import ContrastSums, contrast_sums


def _everything(side: str, metric: str) -> list[Tensor]:
    x, labels = make("random", 203, 6, 5)
    references, others = make("random", 317, 6, 5, seed=1)
    form, scale, bound = SIDES[side]
    results = []
    for pairs, leaves in (
        (check_pairs(x.requires_grad_(), labels), (x,)),
        (check_pairs(x, labels, references.requires_grad_(), others), (x, references)),
    ):
        sums = contrast_sums(
            pairs,
            metric=metric,
            positive_form=form,
            positive_scale=scale,
            positive_bound=bound,
            negative_form=form,
            negative_scale=scale,
            negative_bound=bound,
        )
        total = weighted(sums, (torch.linspace(-1, 2, 203), torch.ones(203)))
        results += [*sums, *torch.autograd.grad(total, leaves)]
    return results


@pytest.mark.parametrize("side", ["bounded logsumexp", "hinge", "softplus"])
@each_metric
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2])
def test_every_thread_count_gives_the_same_bits(
    side, metric, isa, threads, select_isa, set_threads
):
    select_isa(isa)
    set_threads(2)
    expected = _everything(side, metric)
    set_threads(threads)
    assert_same_bits(_everything(side, metric), expected)


@each_backend
def test_a_second_backward_raises(backend):
    problem = Problem("random")
    with use_backend(backend):
        sums = problem.sums(metric="euclidean", positive_form="sum")
        (gradient,) = torch.autograd.grad(sums.positive.sum(), problem.x, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiate"):
            (gradient.square().sum() + problem.x.sum()).backward()


@each_backend
def test_opcheck_accepts_the_operator_and_its_gradient(backend, operator_calls: Callable):
    def run() -> None:
        for arrangement in ("batch", "references and self_index"):
            problem = Problem("random", arrangement)
            options = problem.options("euclidean", "hinge", "bounded logsumexp")
            with use_backend(backend):
                sums = problem.sums(**options)
                torch.autograd.grad(weighted(sums, (torch.ones(N),) * 2), problem.leaves)

    namespace = "dmlfast" if backend == "kernel" else "dmlfast_reference"
    calls = operator_calls(run, namespace)
    assert len(calls) == 4
    opcheck(calls)


@each_backend
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole_forward_and_backward(backend, dynamic):
    def function(x: Tensor, labels: Tensor, bound: Tensor) -> Tensor:
        sums = contrast_sums(
            check_pairs(x, labels),
            metric="euclidean",
            positive_form="hinge",
            positive_bound=bound,
            negative_form="logsumexp",
            negative_scale=-1.0,
            negative_bound=2.0,
        )
        return sums.positive.sum() + torch.where(sums.negative_count > 0, sums.negative, 0.0).sum()

    compiled = compile_whole(function, dynamic=dynamic)
    with use_backend(backend):
        for n in (24, 35):
            x, labels = make("clustered", n, 4, 3)
            results = []
            for f in (function, compiled):
                leaves = x.clone().requires_grad_(), torch.full((n,), 0.1, requires_grad=True)
                loss = f(leaves[0], labels, leaves[1])
                results.append((loss, *torch.autograd.grad(loss, leaves)))
            torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-6)
    torch.compiler.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_needs_no_matrix_of_pairs(resident_growth: Callable, dtype: torch.dtype):
    # One 4096 x 4096 matrix in float32 would be 67 MB.
    growth = resident_growth(
        f"x = torch.randn(4096, 16).to({dtype}).requires_grad_();labels = torch.arange(4096) % 8",
        "F.info_nce_loss(x, labels).backward()",
    )
    assert growth < 4096 * 4096 * 4 / 2


def test_the_functions_of_the_family_are_public():
    assert F.ContrastSums is ContrastSums
