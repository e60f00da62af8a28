"""Selections under autograd, torch.compile and what else torch does around them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import oracle
import pytest
import torch
from neighbors_cases import SELECTIONS, Problem, distance_only, each_selection
from operator_cases import (
    DTYPES,
    assert_same_bits,
    compile_whole,
    each_backend,
    each_metric,
    opcheck,
)
from oracle import make
from torch import Tensor

import dmlfast.functional as F
from dmlfast import use_backend

# --- gradients ------------------------------------------------------------------------------------


@each_selection
@each_metric
@pytest.mark.parametrize("form", ["batch", "references and self_index"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_gradient_is_that_of_the_chosen_distances(selection, metric, form, dtype):
    problem = Problem("random", form, dtype)
    problem.x.requires_grad_()
    leaves = [problem.x]
    if form != "batch":
        leaves.append(problem.others["references"].requires_grad_())
    found = problem.library(selection, metric)
    weight = torch.randn(137, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight[found.index < 0] = 0.0
    distance = torch.where(found.index >= 0, found.distance, 0.0)
    actual = torch.autograd.grad((weight * distance).sum(), leaves)
    weights = torch.zeros(137, len(leaves[-1]), dtype=torch.float64)
    weights.scatter_(1, found.index.clamp(min=0)[:, None], weight[:, None])
    expected = oracle.triplet_gradients(
        weights, problem.x, problem.others.get("references"), metric
    )
    # The sums are rounded once to the dtype (within a batch twice, and added there); the upstream
    # gradient was rounded to float32 first. float64 allows a thousand roundings.
    tolerance = {torch.float64: 1e-13, torch.float32: 4e-7, torch.bfloat16: 3e-2}[dtype]
    for a, e in zip(actual, expected, strict=False):
        assert a.dtype == dtype
        assert oracle.relative_error(a, e) < tolerance


@each_selection
@each_metric
def test_the_gradients_of_kernel_and_reference_agree(selection, metric):
    for kind in ("random", "tied", "duplicated", "collapsed"):
        problem = Problem(kind, "references and self_index", torch.float64)
        leaves = (problem.x.requires_grad_(), problem.others["references"].requires_grad_())
        gradients = []
        for backend in ("kernel", "reference"):
            with use_backend(backend):
                distance = problem.library(selection, metric).distance
            total = distance.masked_fill(distance.isinf(), 0.0).sin().sum()
            gradients.append(torch.cat(torch.autograd.grad(total, leaves)))
        # Both add float64; the order of the terms of a dot product may differ: for points that
        # are all but equal, differences of numbers near 1 lose another 1e4.
        assert oracle.relative_error(*gradients) < 1e-10


@each_selection
@each_metric
def test_gradcheck_of_the_reference(selection, metric):
    # Points in general position: no step of gradcheck, 1e-6, changes a choice.
    x, labels = make("random", 9, 3, 3, dtype=torch.float64)
    references, others = make("random", 8, 3, 3, seed=1, dtype=torch.float64)
    function = distance_only(selection, metric=metric)

    def finite(x: Tensor, references: Tensor) -> Tensor:
        distance = function(x, labels, references, others)
        return distance[distance.isfinite()]

    with use_backend("reference"):
        assert torch.autograd.gradcheck(
            finite, (x.requires_grad_(), references.requires_grad_()), atol=1e-6
        )


@each_backend
@pytest.mark.parametrize("selection", ["nearest_positive", "farthest_positive"])
def test_the_gradient_at_distance_0_is_0(backend, selection):
    x = torch.ones(4, 3, requires_grad=True)
    with use_backend(backend):
        getattr(F, selection)(x, torch.zeros(4, dtype=torch.int64)).distance.sum().backward()
    assert x.grad.tolist() == [[0.0] * 3] * 4


@each_backend
def test_a_zero_vector_has_cosine_distance_1_and_gradient_0(backend):
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    with use_backend(backend):
        found = F.nearest_positive(x, torch.tensor([0, 0]), metric="cosine")
        found.distance.sum().backward()
    assert found.distance.tolist() == [1.0, 1.0]
    assert x.grad.tolist() == [[0.0, 0.0], [0.0, 0.0]]


@each_backend
def test_indices_carry_no_gradient(backend):
    x, labels = make("random", 10, 3, 2)
    with use_backend(backend):
        found = F.nearest_positive(x.requires_grad_(), labels)
    assert found.distance.requires_grad
    assert not found.index.requires_grad


@each_backend
def test_a_gradient_flows_to_references_alone(backend):
    x, labels = make("random", 6, 3, 2)
    references = x.clone().requires_grad_()
    with use_backend(backend):
        F.hardest_negative(x, labels, references, labels).distance.sum().backward()
    assert references.grad.norm() > 0


@each_backend
def test_a_second_backward_raises(backend):
    x, labels = make("random", 6, 3, 2)
    x.requires_grad_()
    with use_backend(backend):
        distance = F.nearest_positive(x, labels).distance.sum()
        (gradient,) = torch.autograd.grad(distance, x, create_graph=True)
        # x.sum() keeps a graph alive: a gradient that was silently constant would pass.
        with pytest.raises(RuntimeError, match="differentiate"):
            (gradient.square().sum() + x.sum()).backward()


# --- what torch does around it --------------------------------------------------------------------


def _all_calls(x: Tensor, references: Tensor) -> Callable[[], None]:
    labels, others = torch.arange(len(x)) % 3, torch.arange(len(references)) % 3

    def run() -> None:
        results = [
            F.nearest_positive(x, labels),
            F.farthest_positive(x, labels, references, others, metric="cosine"),
            F.hardest_negative(x, labels, references, others, self_index=labels, metric="dot"),
            F.semihard_negative(x, labels, beyond=torch.ones(len(x), 2), missing="hardest"),
            F.nearest_neighbors(x, references, 3, metric="cosine"),
            F.sample_negative(x, labels, references, others, metric="dot"),
            F.sample_negative(x, labels, distribution="uniform"),
        ]
        sum(r.distance.sum() for r in results).backward()

    return run


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck_accepts_every_operator_of_the_family(dtype, operator_calls):
    x, references = (torch.randn(n, 3, dtype=dtype, requires_grad=True) for n in (9, 12))
    calls = operator_calls(_all_calls(x, references))
    # The counts of a search are for benchmarks, on CUDA alone.
    assert {f.overloadpacket.__name__ for f, _ in calls} == {
        name.removeprefix("dmlfast::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("dmlfast::neighbors_") and name != "dmlfast::neighbors_search_counts"
    }
    opcheck(calls)


@each_selection
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole_forward_and_backward(selection, dynamic):
    function = distance_only(selection)
    compiled = compile_whole(function, dynamic=dynamic)
    for n in (24, 35):
        x, labels = make("clustered", n, 4, 3)
        leaves = x.clone().requires_grad_(), x.clone().requires_grad_()
        expected, actual = function(leaves[0], labels), compiled(leaves[1], labels)
        assert_same_bits((actual,), (expected,))
        for distance in (expected, actual):
            distance.masked_fill(distance.isinf(), 0.0).sum().backward()
        assert_same_bits((leaves[1].grad,), (leaves[0].grad,))
    torch.compiler.reset()


def test_compiles_whole_with_references_and_a_changing_min_distance():
    x, labels = make("clustered", 24, 4, 3)
    function = partial(F.nearest_positive, x, labels, x, labels, self_index=torch.arange(24))
    compiled = compile_whole(lambda least: function(min_distance=least).distance, dynamic=True)
    for least in (0.0, 0.05, 0.1):
        assert_same_bits((compiled(least),), (function(min_distance=least).distance,))
    torch.compiler.reset()


def test_the_reference_compiles_whole_too():
    x, labels = make("clustered", 24, 4, 3)
    function = distance_only("nearest_positive")
    x.requires_grad_()
    with use_backend("reference"):
        actual = compile_whole(function)(x, labels)
    assert_same_bits((actual,), (function(x, labels),))
    torch.compiler.reset()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_autocast_leaves_the_dtype_it_receives(dtype):
    problem = Problem("random", "batch", dtype)
    expected = problem.library("hardest_negative", "cosine")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same_bits(problem.library("hardest_negative", "cosine"), expected)


def test_runs_in_inference_mode():
    x, labels = make("random", 20, 3, 2)
    with torch.inference_mode():
        found = F.nearest_positive(x, labels)
    assert_same_bits(found, F.nearest_positive(x, labels))


def test_the_inputs_are_left_alone():
    problem = Problem("random", "references and self_index")
    tensors = [problem.x, problem.labels, *problem.others.values()]
    before = [t.clone() for t in tensors]
    for selection in SELECTIONS:
        problem.library(selection, "cosine")
    assert_same_bits(tensors, before)
