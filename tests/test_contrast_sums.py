"""The operator of the contrast losses against a loop over pairs, on CPU."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from contrast_sums_cases import (
    SIDES,
    N,
    Problem,
    assert_sums,
    bounds_of,
    each_arrangement,
    each_side,
    weighted,
)
from operator_cases import each_backend, each_metric
from oracle import METRICS, make
from torch import Tensor

from dmlfast import use_backend
from dmlfast.ops._arguments import check_pairs
from dmlfast.ops.contrast_sums import ContrastSums, contrast_sums

# --- value, counts, gradient ----------------------------------------------------------------------


@each_side
@each_metric
@each_backend
@each_arrangement
def test_sums_are_those_of_a_loop_over_pairs(side, metric, backend, arrangement):
    problem = Problem("random", arrangement)
    options = problem.options(metric, side, side)
    expected, _ = problem.oracle(**options)
    assert (expected.positive_count.sum() > 0) == (side != "none")
    with use_backend(backend):
        assert_sums(problem.sums(**options), expected)


@each_side
@each_metric
@each_backend
@pytest.mark.parametrize("arrangement", ["batch", "references and self_index"])
def test_gradients_are_those_of_the_loop(side, metric, backend, arrangement):
    problem = Problem("random", arrangement)
    options = problem.options(metric, side, side)
    up = torch.linspace(-1, 2, N), torch.linspace(1, 0.5, N)
    expected, leaves = problem.oracle(**options)
    with use_backend(backend):
        sums = problem.sums(**options)
        actual = torch.autograd.grad(
            weighted(sums, up), [*problem.leaves, *bounds_of(options)], materialize_grads=True
        )
    right = torch.autograd.grad(weighted(expected, up), leaves, materialize_grads=True)
    for a, e in zip(actual, right, strict=True):
        # exp(2 D) with errors of 1e-5 in 2 D, and differences of rows to 1e-6 of their size.
        assert oracle.relative_error(a, e) < 1e-4


@pytest.mark.parametrize(
    ("positive", "negative"),
    [("softplus", "bounded logsumexp"), ("none", "hinge"), ("sum", "none"), ("hinge", "logsumexp")],
)
@each_backend
def test_the_sides_do_not_depend_on_each_other(positive, negative, backend):
    problem = Problem("clustered", "references")
    options = problem.options("euclidean", positive, negative)
    with use_backend(backend):
        both = problem.sums(**options)
        only = (
            problem.sums(**{k: v for k, v in options.items() if not k.startswith("negative")}),
            problem.sums(**{k: v for k, v in options.items() if not k.startswith("positive")}),
        )
    # Sides may be walked in another order together.
    torch.testing.assert_close(both.positive, only[0].positive, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(both.negative, only[1].negative, rtol=1e-6, atol=1e-6)


# Shifted points have distances of 4e6 under dot: no float32 number is near their exponents.
@pytest.mark.parametrize(
    ("kind", "metric"),
    [
        (kind, metric)
        for kind in ("clustered", "duplicated", "tied", "shifted", "collapsed")
        for metric in METRICS
        if (kind, metric) != ("shifted", "dot")
    ],
)
@each_backend
@pytest.mark.parametrize("side", ["logsumexp", "sum", "softplus"])
def test_awkward_points_have_the_sums_of_the_loop(kind, metric, backend, side):
    problem = Problem(kind)
    options = problem.options(metric, side, side)
    expected, leaves = problem.oracle(**options)
    with use_backend(backend):
        sums = problem.sums(**options)
        assert_sums(sums, expected)
        (actual,) = torch.autograd.grad(weighted(sums, (torch.ones(N),) * 2), problem.x)
    if metric in ("euclidean", "sqeuclidean"):
        right, *_ = torch.autograd.grad(weighted(expected, (torch.ones(N),) * 2), leaves[0])
        # Gradients as anchor and as reference nearly cancel in symmetric sums; near-duplicates
        # must not lose their digits to the size of the rows, which is 1e7 times theirs.
        assert oracle.relative_error(actual, right) < 1e-3


@each_side
@each_metric
def test_gradcheck(side, metric):
    # Points in general position: no step of gradcheck, 1e-6, takes a pair across its bound.
    problem = Problem("random", "references and self_index", torch.float64)
    options = problem.options(metric, side, side)
    names = [name for name in options if name.endswith("_bound")]
    if SIDES[side][0] == "logsumexp":
        names = []  # no gradient flows to these bounds

    def sums(x: Tensor, references: Tensor, *bounds: Tensor) -> tuple[Tensor, Tensor]:
        pairs = check_pairs(x, problem.labels, references, problem.others, problem.own)
        given = {k: v.detach() for k, v in options.items() if k.endswith("_bound")}
        fixed = {k: v for k, v in options.items() if not k.endswith("_bound")}
        found = contrast_sums(pairs, **fixed, **{**given, **dict(zip(names, bounds, strict=True))})
        return tuple(torch.where(v == -math.inf, 0.0, v) for v in found[:2])

    leaves = (*problem.leaves, *(options[name] for name in names))
    assert torch.autograd.gradcheck(sums, leaves, atol=1e-5)


# --- who is a partner -----------------------------------------------------------------------------


@each_side
@each_backend
def test_a_batch_without_partners_has_empty_sums_and_gradient_0(side, backend):
    for x, labels, empty in (
        (torch.empty(0, 3), [], "both"),
        (torch.ones(1, 3), [0], "both"),
        (torch.eye(3), [0, 1, 2], "positive"),
        (torch.eye(3), [7, 7, 7], "negative"),
    ):
        x = x.clone().requires_grad_()
        options = dict(
            zip(("positive_form", "positive_scale", "positive_bound"), SIDES[side], strict=True),
            **dict(
                zip(("negative_form", "negative_scale", "negative_bound"), SIDES[side], strict=True)
            ),
        )
        with use_backend(backend):
            sums = contrast_sums(
                check_pairs(x, torch.tensor(labels, dtype=torch.int64)), metric="cosine", **options
            )
            names = ("positive", "negative") if empty == "both" else (empty,)
            nothing = -math.inf if SIDES[side][0] == "logsumexp" else 0.0
            for name in names:
                value = getattr(sums, name)
                assert value.tolist() == [nothing] * len(labels)
                assert getattr(sums, f"{name}_count").tolist() == [0] * len(labels)
                # Even NaN from above must not reach rows by a sum of nothing.
                (gradient,) = torch.autograd.grad(
                    value, x, torch.full_like(value, math.nan), retain_graph=True
                )
                assert torch.equal(gradient, torch.zeros_like(x))


@each_side
@each_backend
def test_no_references_give_empty_sums(side, backend):
    form, scale, bound = SIDES[side]
    x, labels = make("random", 5, 3, 2)
    references = torch.empty(0, 3, requires_grad=True)
    pairs = check_pairs(x.requires_grad_(), labels, references, torch.empty(0, dtype=torch.int64))
    with use_backend(backend):
        sums = contrast_sums(
            pairs,
            metric="euclidean",
            positive_form=form,
            positive_scale=scale,
            positive_bound=bound,
        )
    assert sums.positive.tolist() == [-math.inf if form == "logsumexp" else 0.0] * 5
    gradients = torch.autograd.grad(sums.positive.sum(), (x, references))
    assert [g.shape for g in gradients] == [(5, 3), (0, 3)]


@each_backend
def test_references_that_are_the_batch_itself_are_references_all_the_same(backend):
    x, labels = make("random", 12, 3, 3)
    nobody = torch.full((12,), -1)
    with use_backend(backend):
        given = contrast_sums(
            check_pairs(x, labels, x, labels, nobody), metric="euclidean", positive_form="sum"
        )
        within = contrast_sums(check_pairs(x, labels), metric="euclidean", positive_form="sum")
    assert torch.equal(given.positive_count, within.positive_count + 1)


@each_metric
@each_backend
def test_zero_distances_and_zero_vectors_have_gradient_0(metric, backend):
    x = torch.zeros(4, 3, requires_grad=True)
    with use_backend(backend):
        sums = contrast_sums(
            check_pairs(x, torch.tensor([0, 0, 1, 1])),
            metric=metric,
            positive_form="sum",
            negative_form="logsumexp",
        )
    each = 1.0 if metric == "cosine" else 0.0
    assert sums.positive.tolist() == [each] * 4
    assert sums.negative.tolist() == pytest.approx([math.log(2) + each] * 4)
    sums.positive.sum().add(sums.negative.sum()).backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


# --- NaN and infinity -----------------------------------------------------------------------------


@each_side
@each_metric
@each_backend
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite_is_nan_itself_and_nobodys_partner(side, metric, backend, bad):
    problem = Problem("random")
    options = problem.options(metric, side, side)
    with torch.no_grad():
        problem.x[11, 2] = bad
    keep = torch.arange(N) != 11
    fewer = {k: v[keep].detach() if k.endswith("_bound") else v for k, v in options.items()}
    with use_backend(backend):
        sums = problem.sums(**options)
        total = weighted(sums, (torch.ones(N),) * 2)
        gradient = torch.autograd.grad(total, problem.x, materialize_grads=True)[0]
        others = contrast_sums(check_pairs(problem.x[keep].detach(), problem.labels[keep]), **fewer)
    for a, e in zip(sums[:2], others[:2], strict=True):
        torch.testing.assert_close(a[keep], e, rtol=1e-6, atol=1e-6)
    lost = SIDES[side][0] != "none"
    assert sums.positive[11].isnan() == sums.negative[11].isnan() == lost
    assert [c[11].item() for c in sums[2:]] == [int(lost)] * 2
    assert gradient.isnan().any(1).nonzero().tolist() == ([[11]] if lost else [])
    assert gradient[11].isnan().all() == lost


@each_backend
def test_an_anchor_that_is_not_finite_has_gradient_0_without_an_upstream_one(backend):
    problem = Problem("random")
    with torch.no_grad():
        problem.x[11] = math.nan
    with use_backend(backend):
        sums = problem.sums(metric="euclidean", positive_form="sum", negative_form="sum")
        (gradient,) = torch.autograd.grad(sums.positive, problem.x, (torch.arange(N) != 11).float())
    assert gradient.isfinite().all()


@each_backend
@pytest.mark.parametrize("side", ["bounded logsumexp", "hinge", "softplus"])
def test_a_bound_of_nan_gives_its_side_nan(backend, side):
    problem = Problem("random")
    options = problem.options("euclidean", side, side)
    with torch.no_grad():
        options["negative_bound"][3] = math.nan
    with use_backend(backend):
        sums = problem.sums(**options)
    assert sums.negative.isnan().nonzero().tolist() == [[3]]
    assert not sums.positive.isnan().any()


@each_backend
def test_exponents_above_the_range_of_float32_stay_finite(backend):
    x, labels = make("random", 20, 4, 3)
    with use_backend(backend):
        sums = contrast_sums(
            check_pairs(50 * x, labels),
            metric="dot",
            negative_form="logsumexp",
            negative_scale=-1.0,
        )
    assert sums.negative.max() > 1000
    assert sums.negative.isfinite().all()


@each_backend
def test_a_distance_that_overflows_stays_on_its_own_side(backend):
    # <x, y> of the two positives is 1e40; masks that multiply would make the others NaN.
    x = torch.tensor([[1e20, 0.0], [1e20, 1.0], [0.0, 1.0]])
    pairs = check_pairs(x, torch.tensor([0, 0, 1]))
    with use_backend(backend):
        both = contrast_sums(pairs, metric="dot", positive_form="logsumexp", negative_form="sum")
        alone = contrast_sums(pairs, metric="dot", negative_form="sum")
    assert both.negative.tolist() == alone.negative.tolist() == [0.0, -1.0, -1.0]


@each_backend
def test_labels_that_no_float32_tells_apart_are_different_classes(backend):
    x, _ = make("random", 3, 4, 2)
    with use_backend(backend):
        sums = contrast_sums(
            check_pairs(x, torch.tensor([2**24, 2**24 + 1, -(2**62)])),
            metric="euclidean",
            positive_form="sum",
            negative_form="sum",
        )
    assert sums.positive_count.tolist() == [0, 0, 0]
    assert sums.negative_count.tolist() == [2, 2, 2]


# --- dtypes, bits, threads ------------------------------------------------------------------------


@each_side
@each_metric
def test_kernel_and_reference_agree(side, metric):
    for kind, dtype in (("clustered", torch.float32), ("random", torch.bfloat16)):
        problem = Problem(kind, "references and self_index", dtype)
        options = problem.options(metric, side, side)
        results = []
        for backend in ("kernel", "reference"):
            with use_backend(backend):
                sums = problem.sums(**options)
                total = weighted(sums, (torch.linspace(-1, 2, N), torch.ones(N)))
                leaves = [*problem.leaves, *bounds_of(options)]
                gradients = torch.autograd.grad(total, leaves, materialize_grads=True)
            results.append((sums, gradients))
        (kernel, to_kernel), (reference, to_reference) = results
        assert_sums(
            kernel, ContrastSums(*(t.double() if t.is_floating_point() else t for t in reference))
        )
        for a, e in zip(to_kernel, to_reference, strict=True):
            assert a.dtype == e.dtype
            # As against the loop; a gradient in bfloat16 is rounded to 2^-9 of itself.
            assert oracle.relative_error(a, e) < (1e-4 if a.dtype == torch.float32 else 1e-2)


@each_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_rows_are_summed_in_float32_as_they_are_stored(backend, dtype):
    problem = Problem("random", dtype=dtype)
    options = problem.options("euclidean", "logsumexp", "softplus")
    expected, _ = problem.oracle(**options)
    with use_backend(backend):
        sums = problem.sums(**options)
    assert sums.positive.dtype == torch.float32
    assert_sums(sums, expected)
    assert torch.autograd.grad(sums.negative.sum(), problem.x)[0].dtype == dtype


@each_side
@each_metric
def test_float64_is_exact_under_every_backend(side, metric):
    problem = Problem("random", "references", torch.float64)
    options = problem.options(metric, side, side)
    expected, leaves = problem.oracle(**options)
    up = torch.linspace(-1, 2, N), torch.linspace(1, 0.5, N)
    sums = problem.sums(**options)
    for a, e in zip(sums[:2], expected[:2], strict=True):
        assert a.dtype == torch.float64
        # Sums of up to 31 float64 numbers in another order.
        torch.testing.assert_close(a, e, rtol=1e-13, atol=1e-13)
    actual = torch.autograd.grad(
        weighted(sums, up), [*problem.leaves, *bounds_of(options)], materialize_grads=True
    )
    right = torch.autograd.grad(weighted(expected, up), leaves, materialize_grads=True)
    for a, e in zip(actual, right, strict=True):
        assert oracle.relative_error(a, e) < 1e-12
