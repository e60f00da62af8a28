"""triplet_margin_loss as an operator: its bits, torch around it, mistakes and memory."""

from __future__ import annotations

from collections.abc import Callable

import oracle
import pytest
import torch
from contrast_cases import Problem, each_path
from operator_cases import ISAS, assert_same_bits, compile_whole, each_backend, each_metric, opcheck
from oracle import make
from torch import Tensor

import dmlfast.functional as F
from dmlfast import use_backend

# --- same bits on every run -----------------------------------------------------------------------


def _forward_and_backward(metric: str, positives: str, negatives: str) -> list[Tensor]:
    x, labels = make("random", 203, 6, 5)
    references, others = make("random", 317, 6, 5, seed=1)
    leaves = (x.requires_grad_(), references.requires_grad_())
    loss = F.triplet_margin_loss(
        x,
        labels,
        references,
        others,
        metric=metric,
        positives=positives,
        negatives=negatives,
        margin=0.5,
    )
    return [loss, *torch.autograd.grad(loss, leaves)]


@each_path
@each_metric
@pytest.mark.parametrize("isa", ISAS)
def test_every_thread_count_gives_the_same_bits_and_every_instruction_set_the_same_triplets(
    positives, negatives, metric, isa, select_isa, set_threads
):
    expected = _forward_and_backward(metric, positives, negatives)
    select_isa(isa)
    results = []
    for threads in (1, 2):
        set_threads(threads)
        results.append(_forward_and_backward(metric, positives, negatives))
    assert_same_bits(*results)
    for actual, other in zip(results[0], expected, strict=True):
        # Sums over all negatives are float32 sums, in the order of the instruction set.
        assert oracle.relative_error(actual, other) < (3e-6 if negatives == "all" else 1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_reduction_of_a_large_batch_has_the_same_bits_at_every_thread_count(
    reduction, set_threads
):
    # Above 32,768 elements torch.sum itself splits the work by the number of threads.
    x, labels = make("random", 66_000, 1, 60_000)
    references, others = make("random", 8, 1, 2)
    losses = []
    for threads in (1, 2):
        set_threads(threads)
        loss = F.triplet_margin_loss(
            x,
            labels % 2,
            references,
            others,
            positives="nearest",
            negatives="hardest",
            reduction=reduction,
        )
        losses.append(loss.item())
    assert losses[0] == losses[1]


# --- what torch does around it --------------------------------------------------------------------


@each_path
@each_backend
def test_a_second_backward_raises(positives, negatives, backend):
    x, labels = make("random", 9, 3, 3)
    x.requires_grad_()
    with use_backend(backend):
        loss = F.triplet_margin_loss(
            x, labels, positives=positives, negatives=negatives, margin=2.0
        )
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        # x.sum() keeps a graph alive: a gradient that was silently constant would pass.
        with pytest.raises(RuntimeError, match="differentiate"):
            (gradient.square().sum() + x.sum()).backward()


def test_opcheck_accepts_the_operator_and_its_gradient(operator_calls):
    x, labels = make("random", 9, 3, 3)
    references, others = make("random", 12, 3, 3, seed=1)
    leaves = (x.requires_grad_(), references.requires_grad_())

    def run() -> None:
        one = F.triplet_margin_loss(x, labels)
        two = F.triplet_margin_loss(
            x, labels, references, others, self_index=labels, metric="dot", negatives="semihard"
        )
        torch.autograd.grad(one + two, leaves)

    calls = operator_calls(run)
    assert {f.overloadpacket.__name__ for f, _ in calls} == {
        name.removeprefix("dmlfast::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("dmlfast::contrast_triplet")
    }
    opcheck(calls)


@each_path
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiles_whole_forward_and_backward(positives, negatives, dynamic, reduction):
    def function(x: Tensor, labels: Tensor, margin: float) -> Tensor:
        result = F.triplet_margin_loss(
            x,
            labels,
            margin=margin,
            positives=positives,
            negatives=negatives,
            reduction=reduction,
        )
        return result.loss.sum() if isinstance(result, F.AnchorSums) else result.sum()

    compiled = compile_whole(function, dynamic=dynamic)
    for n, margin in ((24, 0.2), (35, 0.3)):
        x, labels = make("clustered", n, 4, 3)
        results = []
        for f in (function, compiled):
            leaf = x.clone().requires_grad_()
            loss = f(leaf, labels, margin)
            results.append((loss, torch.autograd.grad(loss, leaf)[0]))
        # A scalar's order of summation is the compiler's.
        torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-7)
    torch.compiler.reset()


def test_autocast_leaves_the_dtype_it_receives():
    problem = Problem("random")
    expected = problem.anchors()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same_bits(problem.anchors(), expected)


# --- errors ---------------------------------------------------------------------------------------

X, LABELS = make("random", 6, 3, 2)
ERRORS = {
    "x is 3-D": ({"x": X[None]}, ValueError, r"x: expected a 2-D tensor.*got \(1, 6, 3\)"),
    "x is integer": ({"x": X.long()}, TypeError, r"x: expected float16.*got .*int64"),
    "labels are float": ({"labels": LABELS.float()}, TypeError, r"labels: expected an integer"),
    "labels are too few": ({"labels": LABELS[:5]}, ValueError, r"labels: expected shape \(6,\)"),
    "labels are elsewhere": ({"labels": LABELS.to("meta")}, ValueError, r"labels: .*cpu, got"),
    "references lack labels": ({"references": X}, ValueError, r"reference_labels: expected"),
    "the margin is a string": ({"margin": "1"}, TypeError, r"margin: expected a number, got '1'"),
    "the margin is a tensor": ({"margin": torch.ones(())}, TypeError, r"margin: expected a number"),
    "positives are unknown": ({"positives": "easy"}, ValueError, r"positives: .*got 'easy'"),
    "negatives are unknown": ({"negatives": "hard"}, ValueError, r"negatives: .*got 'hard'"),
    "the metric is unknown": ({"metric": "l2"}, ValueError, r"metric: expected one of.*got 'l2'"),
    "the reduction is unknown": ({"reduction": "avg"}, ValueError, r"reduction: .*got 'avg'"),
}


@each_path
@each_backend
@pytest.mark.parametrize("mistake", ERRORS)
def test_a_mistake_is_named(positives, negatives, backend, mistake):
    arguments, error, message = ERRORS[mistake]
    options = {"x": X, "labels": LABELS, "positives": positives, "negatives": negatives}
    with use_backend(backend), pytest.raises(error, match=message):
        F.triplet_margin_loss(**{**options, **arguments})


# --- memory ---------------------------------------------------------------------------------------


def test_all_triplets_of_two_classes_need_no_matrix_of_pairs(resident_growth: Callable):
    # 4096^2 pairs and 2^34 triplets: one N x N matrix in float64 would be 134 MB, the workspace
    # of a block of anchors is 34 MB.
    growth = resident_growth(
        "x = torch.randn(4096, 16, requires_grad=True); labels = torch.arange(4096) % 2",
        "F.triplet_margin_loss(x, labels, margin=0.2).backward()",
    )
    assert growth < 4096 * 4096 * 8 / 2
