"""multi_cluster_loss: the same bits on every run, compilation, errors and memory, on CPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from operator_cases import ISAS, NAMESPACE, assert_same_bits, compile_whole, each_backend, opcheck
from structure_cases import clusters_problem

import dmlfast.functional as F
from dmlfast import use_backend

# --- same bits on every run -----------------------------------------------------------------------


@pytest.mark.parametrize("order_weight", [0.0, 0.7])
@pytest.mark.parametrize("isa", ISAS)
def test_one_thread_and_two_give_the_same_bits(order_weight, isa, select_isa, set_threads):
    select_isa(isa)
    results = []
    for threads in (1, 2, 2):
        set_threads(threads)
        e, w = clusters_problem(703, 6)
        loss = F.multi_cluster_loss(e, w, clusters=4, order_weight=order_weight, reduction="none")
        gradients = torch.autograd.grad(loss, (e, w), torch.linspace(-1, 2, 703))
        mean = F.multi_cluster_loss(e, w, clusters=4, order_weight=order_weight)
        results.append((loss, mean, *gradients))
    for other in results[1:]:
        assert_same_bits(results[0], other)


# --- what torch does around it --------------------------------------------------------------------


@each_backend
def test_a_second_backward_raises(backend):
    e, w = clusters_problem(9, 3)
    with use_backend(backend):
        (gradient,) = torch.autograd.grad(F.multi_cluster_loss(e, w), e, create_graph=True)
        # e.sum() keeps a graph alive: a gradient that was silently constant would pass.
        with pytest.raises(RuntimeError, match="differentiate"):
            (gradient.square().sum() + e.sum()).backward()


@each_backend
@pytest.mark.parametrize("order_weight", [0.0, 0.7])
def test_opcheck_accepts_the_operator_and_its_gradient(
    backend, order_weight, operator_calls: Callable
):
    e, w = clusters_problem(9, 3)

    def run() -> None:
        with use_backend(backend):
            torch.autograd.grad(F.multi_cluster_loss(e, w, order_weight=order_weight), (e, w))

    calls = [
        call
        for call in operator_calls(run, NAMESPACE[backend])
        if call[0].overloadpacket.__name__.startswith("structure_")
    ]
    assert len(calls) == 2
    opcheck(calls, constants=torch.float64)


@each_backend
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("order_weight", [0.0, 0.7])
def test_compiles_whole_forward_and_backward(backend, dynamic, order_weight):
    function = partial(F.multi_cluster_loss, clusters=4, order_weight=order_weight)
    compiled = compile_whole(function, dynamic=dynamic)
    with use_backend(backend):
        for n in (24, 35):
            results = []
            for f in (function, compiled):
                e, w = clusters_problem(n, 4)
                loss = f(e, w)
                results.append((loss, *torch.autograd.grad(loss, (e, w))))
            # A scalar's order of summation is the compiler's.
            torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-7)
    torch.compiler.reset()


@each_backend
def test_a_sharpness_at_the_end_of_the_range_is_that_of_the_nearest_cluster(backend):
    e, w = clusters_problem(20, 5)
    with use_backend(backend):
        loss = F.multi_cluster_loss(e, w, clusters=4, sharpness=1.7e308)
        expected = F.multi_cluster_loss(e, w, clusters=4, sharpness=1e9)
    torch.testing.assert_close(loss, expected)


@each_backend
def test_autocast_leaves_the_dtype_it_receives(backend):
    e, w = clusters_problem(20, 5)
    with use_backend(backend):
        expected = F.multi_cluster_loss(e, w)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(F.multi_cluster_loss(e, w), expected)


# --- errors ---------------------------------------------------------------------------------------

X = torch.zeros(6, 3)
ERRORS = {
    "e is 3-D": ({"e": X[None]}, ValueError, r"e: expected a 2-D tensor.*got \(1, 6, 3\)"),
    "w is longer": ({"w": torch.zeros(7, 3)}, ValueError, r"w: expected \(6, 3\), the shape of e"),
    "no cluster": ({"clusters": 0}, ValueError, "clusters: expected at least 1, got 0"),
    "half a cluster": ({"clusters": 2.5}, TypeError, "clusters: expected an integer, got 2.5"),
    "spread below 0": ({"spread": -1}, ValueError, "spread: expected a finite number of at least"),
    "sharpness inf": ({"sharpness": math.inf}, ValueError, "sharpness: expected a finite number"),
    "floor of text": ({"floor": "0.2"}, TypeError, "floor: expected a number, got '0.2'"),
    "floor below 0": ({"floor": -0.1}, ValueError, "floor: expected a number of 0 to 1"),
    "floor above 1": ({"floor": 1.1}, ValueError, "floor: expected a number of 0 to 1"),
    "include_self of 1": ({"include_self": 1}, TypeError, "include_self: expected True or False"),
    "order_weight NaN": ({"order_weight": math.nan}, ValueError, "order_weight: expected a number"),
    "order_margin inf": ({"order_margin": math.inf}, ValueError, "order_margin: expected a finite"),
    "unknown reduction": ({"reduction": "max"}, ValueError, "reduction: expected one of .*'max'"),
}


@each_backend
@pytest.mark.parametrize("mistake", ERRORS)
def test_a_mistake_is_named(backend, mistake):
    arguments, error, message = ERRORS[mistake]
    with use_backend(backend), pytest.raises(error, match=message):
        F.multi_cluster_loss(**{"e": X, "w": X, **arguments})


# --- memory ---------------------------------------------------------------------------------------


def test_needs_no_matrix_of_pairs(resident_growth: Callable):
    # Embeddings and weights are 8 MB, packed 8 MB twice, with sums for gradients three times that.
    # One float32 matrix of the pairs would be 268 MB, and the shares of four clusters 1 GB.
    growth = resident_growth(
        "e = torch.randn(8192, 128, requires_grad=True)\n"
        "w = torch.ones(8192, 128, requires_grad=True)",
        "F.multi_cluster_loss(e, w, clusters=4).backward()",
    )
    assert growth < 12 * 2 * 8192 * 128 * 4
