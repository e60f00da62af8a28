"""triplet_margin_loss in all its combinations against a loop over triplets, on CPU."""

from __future__ import annotations

import math

import numpy as np
import oracle
import pytest
import torch
from contrast_cases import Problem, each_negatives, each_path, each_positives, margin_of
from operator_cases import each_backend, each_metric
from oracle import make
from torch import Tensor

import dmlfast.functional as F
from dmlfast import use_backend

# --- value, counts, gradient ----------------------------------------------------------------------


@each_positives
@each_negatives
@each_metric
@each_backend
@pytest.mark.parametrize("form", ["batch", "references", "references and self_index"])
def test_is_the_sum_over_triplets(positives, negatives, metric, backend, form):
    for kind in ("random", "tied", "duplicated"):
        problem = Problem(kind, form)
        options = {
            "metric": metric,
            "positives": positives,
            "negatives": negatives,
            "margin": margin_of(kind, metric),
        }
        expected = problem.oracle(**options)
        assert expected.active.sum() > 0
        with use_backend(backend):
            loss, active = problem.anchors(**options)
        if active is not None:
            assert torch.equal(active, expected.active)
        # Distances up to about 30 are float32 numbers, and so is the result: 2e-7 relative to
        # the largest of them.
        torch.testing.assert_close(loss.double(), expected.loss, rtol=1e-6, atol=4e-6)


@each_positives
@each_negatives
@each_metric
@each_backend
def test_the_gradient_is_that_of_the_active_triplets(positives, negatives, metric, backend):
    for form in ("batch", "references and self_index"):
        problem = Problem("random", form)
        options = {
            "metric": metric,
            "positives": positives,
            "negatives": negatives,
            "margin": margin_of("random", metric),
        }
        with use_backend(backend):
            loss, _ = problem.anchors(**options)
        upstream = torch.linspace(-1, 2, 37)
        actual = torch.autograd.grad(loss, problem.leaves, upstream)
        weights = problem.oracle(**options).weights * upstream[:, None]
        expected = oracle.triplet_gradients(
            weights, problem.x, problem.others.get("references"), metric
        )
        for a, e in zip(actual, expected, strict=False):
            # One rounding to float32; within a batch, two and a float32 addition.
            assert oracle.relative_error(a, e) < 1e-6


@each_path
@each_metric
@pytest.mark.parametrize("kind", ["shifted", "collapsed"])
def test_the_gradient_survives_shifted_and_collapsed_batches(positives, negatives, metric, kind):
    problem = Problem(kind)
    options = {
        "metric": metric,
        "positives": positives,
        "negatives": negatives,
        "margin": margin_of(kind, metric),
    }
    loss, _ = problem.anchors(**options)
    (actual,) = torch.autograd.grad(loss.sum(), problem.x)
    expected, _ = oracle.triplet_gradients(
        problem.oracle(**options).weights, problem.x, None, metric
    )
    # The gradients as anchor and as reference are rounded to float32 before they are added, and
    # all but cancel there: up to 1e3 of their size.
    assert expected.norm() > 0
    assert oracle.relative_error(actual, expected) < 1e-3


@each_positives
@each_negatives
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_every_dtype_is_exact_for_the_values_as_stored(positives, negatives, dtype):
    problem = Problem("clustered", dtype=dtype)
    options = {"positives": positives, "negatives": negatives, "margin": 0.5}
    loss, active = problem.anchors(**options)
    expected = problem.oracle(**options)
    double = dtype == torch.float64
    assert loss.dtype == (torch.float64 if double else torch.float32)
    if active is not None:
        assert torch.equal(active, expected.active)
    assert oracle.relative_error(loss, expected.loss) < (1e-13 if double else 1e-6)
    loss.sum().backward()
    assert problem.x.grad.dtype == dtype


@each_positives
@each_negatives
@each_metric
def test_kernel_and_reference_agree(positives, negatives, metric):
    for kind in ("clustered", "tied", "shifted", "collapsed"):
        for form in ("batch", "references and self_index"):
            problem = Problem(kind, form, torch.float64)
            options = {"metric": metric, "positives": positives, "negatives": negatives}
            results = []
            for backend in ("kernel", "reference"):
                with use_backend(backend):
                    loss, active = problem.anchors(**options)
                gradients = torch.autograd.grad(loss.sum(), problem.leaves)
                results.append((loss, active, torch.cat(gradients)))
            kernel, reference = results
            if kernel[1] is not None:
                assert torch.equal(kernel[1], reference[1])
            # Sums of about 200 float64 terms whose order differs.
            assert oracle.relative_error(kernel[0], reference[0]) < 1e-12
            # Those of a gradient may cancel to a thousandth.
            assert oracle.relative_error(kernel[2], reference[2]) < 1e-11


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean"])
@each_backend
@pytest.mark.parametrize("offset", [1e3, 1e6])
def test_a_gradient_is_made_of_differences_not_of_large_multiples(metric, backend, offset):
    x, labels = make("collapsed", 32, 4, 4, dtype=torch.float64)
    x = (x + offset).requires_grad_()
    with use_backend(backend):
        loss = F.triplet_margin_loss(x, labels, metric=metric, reduction="sum")
    (actual,) = torch.autograd.grad(loss, x)
    weights = oracle.triplet_sums(x, labels, metric=metric).weights
    expected, _ = oracle.triplet_gradients(weights, x, None, metric)
    # |x| / |x - y| is up to 1e10: factors times rows would lose ten of sixteen digits.
    assert oracle.relative_error(actual, expected) < 1e-12


@each_metric
@each_negatives
@each_backend
def test_gradcheck(metric, negatives, backend):
    # Points in general position: no step of gradcheck, 1e-6, makes a triplet active or not.
    x, labels = make("random", 8, 3, 3, dtype=torch.float64)
    references, others = make("random", 7, 3, 3, seed=1, dtype=torch.float64)

    def loss(x: Tensor, references: Tensor) -> Tensor:
        return F.triplet_margin_loss(
            x, labels, references, others, metric=metric, negatives=negatives, margin=1.0
        )

    with use_backend(backend):
        assert torch.autograd.gradcheck(
            loss, (x.requires_grad_(), references.requires_grad_()), atol=1e-6
        )


@each_backend
def test_a_worked_example(backend):
    # Anchor 0: positives at 1 and 4, negatives at 2 and 3; margin 0.5.
    x, labels = torch.tensor([[0.0]]), torch.tensor([0])
    references = torch.tensor([[1.0], [4.0], [2.0], [-3.0]])
    others = torch.tensor([0, 0, 1, 2])
    expected = {
        ("all", "all"): 2.5 + 1.5,
        ("all", "hardest"): 2.5,
        ("all", "semihard"): 0.0,
        ("nearest", "all"): 0.0,
        ("farthest", "all"): 4.0,
        ("farthest", "hardest"): 2.5,
        ("farthest", "semihard"): 0.0,
    }
    with use_backend(backend):
        for (positives, negatives), value in expected.items():
            loss = F.triplet_margin_loss(
                x,
                labels,
                references,
                others,
                positives=positives,
                negatives=negatives,
                margin=0.5,
                reduction="sum",
            )
            assert loss.item() == value
        semihard = F.triplet_margin_loss(
            x, labels, references, others, positives="nearest", negatives="semihard", margin=1.25
        )
        assert semihard.item() == 0.25


@pytest.mark.parametrize("gap", [1e-8, 1e-12])
@each_backend
def test_near_duplicates_lose_no_digits_in_the_gradient(gap, backend):
    x = 10 + torch.randn(6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[1] = x[0] + gap
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    gradients = []
    for positives, negatives in (("all", "hardest"), ("nearest", "hardest")):
        leaf = x.clone().requires_grad_()
        with use_backend(backend):
            loss = F.triplet_margin_loss(
                leaf, labels, margin=100.0, positives=positives, negatives=negatives
            )
        gradients.append(torch.autograd.grad(loss, leaf)[0])
    # Two per class: the same triplets by another path, whose terms are differences.
    assert oracle.relative_error(*gradients) < 1e-14


# --- reductions -----------------------------------------------------------------------------------


@each_positives
@each_negatives
@each_backend
def test_mean_divides_by_the_active_triplets_and_sum_does_not(positives, negatives, backend):
    problem = Problem("random")
    options = {"positives": positives, "negatives": negatives, "margin": 0.5}
    expected = problem.oracle(**options)
    with use_backend(backend):
        mean, total = (
            F.triplet_margin_loss(problem.x, problem.labels, reduction=reduction, **options).item()
            for reduction in ("mean", "sum")
        )
    assert total == pytest.approx(expected.loss.sum().item(), rel=1e-6)
    assert mean == pytest.approx((expected.loss.sum() / expected.active.sum()).item(), rel=1e-6)


@each_positives
@each_negatives
def test_none_gives_counts_where_an_anchor_has_several_triplets(positives, negatives):
    problem = Problem("random")
    result = F.triplet_margin_loss(
        problem.x, problem.labels, positives=positives, negatives=negatives, reduction="none"
    )
    if "all" in (positives, negatives):
        assert result.loss.shape == result.active.shape == (37,)
        assert result.active.dtype == torch.int64
        assert not result.active.requires_grad
    else:
        assert result.shape == (37,)


def test_the_default_is_margin_0_05_euclidean_all_triplets_mean():
    x, labels = make("clustered", 30, 4, 4)
    explicit = F.triplet_margin_loss(
        x,
        labels,
        margin=0.05,
        metric="euclidean",
        positives="all",
        negatives="all",
        reduction="mean",
    )
    assert torch.equal(F.triplet_margin_loss(x, labels), explicit)


# --- anchors without triplets ---------------------------------------------------------------------

NO_TRIPLETS = {
    "no anchors": (torch.empty(0, 3), []),
    "one anchor": (torch.ones(1, 3), [0]),
    "one class": (torch.eye(5), [1] * 5),
    "singleton classes": (torch.eye(5), [0, 1, 2, 3, 4]),
}


@each_positives
@each_negatives
@each_backend
@pytest.mark.parametrize("batch", NO_TRIPLETS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_no_triplets_give_loss_0_and_gradient_0(positives, negatives, backend, batch, reduction):
    x, classes = NO_TRIPLETS[batch]
    x = x.clone().requires_grad_()
    with use_backend(backend):
        loss = F.triplet_margin_loss(
            x,
            torch.tensor(classes, dtype=torch.int64),
            positives=positives,
            negatives=negatives,
            reduction=reduction,
        )
    assert loss.item() == 0.0
    loss.backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


@each_path
@each_backend
def test_no_references_give_loss_0_and_gradient_0(positives, negatives, backend):
    x, labels = make("random", 5, 3, 2)
    references = torch.empty(0, 3, requires_grad=True)
    with use_backend(backend):
        loss = F.triplet_margin_loss(
            x.requires_grad_(),
            labels,
            references,
            torch.empty(0, dtype=torch.int64),
            positives=positives,
            negatives=negatives,
        )
    loss.backward()
    assert loss.item() == 0.0
    assert x.grad.tolist() == [[0.0] * 3] * 5
    assert references.grad.shape == (0, 3)


@each_path
@each_backend
def test_an_anchor_alone_in_its_class_is_left_out(positives, negatives, backend):
    problem = Problem("random")
    problem.labels[3] = 99
    with use_backend(backend):
        loss, _ = problem.anchors(positives=positives, negatives=negatives, margin=5.0)
    assert loss[3] == 0.0
    assert (loss > 0).sum() > 10


@each_backend
def test_a_triplet_at_exactly_0_is_not_active(backend):
    x = torch.tensor([[0.0], [1.0], [-1.0]])
    with use_backend(backend):
        result = F.triplet_margin_loss(x, torch.tensor([0, 0, 1]), margin=0.0, reduction="none")
    assert result.active.tolist() == [0, 0, 0]


@each_metric
@each_backend
@pytest.mark.parametrize("kind", ["all rows equal", "zero vectors", "no dimensions"])
def test_distances_that_are_all_equal_give_the_margin(metric, backend, kind):
    x = {
        "all rows equal": torch.full((6, 3), 0.5),
        "zero vectors": torch.zeros(6, 3),
        "no dimensions": torch.zeros(6, 0),
    }[kind].requires_grad_()
    with use_backend(backend):
        loss = F.triplet_margin_loss(x, torch.tensor([0, 1] * 3), metric=metric, margin=0.25)
    loss.backward()
    # The kernel's distance to a negative is a float32 number next to 0.
    assert loss.item() == pytest.approx(0.25, abs=1e-6)
    # The gradients of a positive and a negative at the same point cancel, up to rounding.
    assert x.grad.norm() < 1e-6


# --- NaN and infinity -----------------------------------------------------------------------------


@each_positives
@each_negatives
@each_metric
@each_backend
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_anchor_that_is_not_finite_has_loss_nan(positives, negatives, metric, backend, bad):
    # The row is an anchor only: all references are finite. Its positive has distance -inf and its
    # negatives +inf under dot: a loss of [-inf - inf]_+ = 0 would hide it.
    x = torch.tensor([[bad, 0.0], [1.0, 0.5]])
    references = torch.tensor([[1.0, 0.0], [2.0, 1.0], [-1.0, 0.0], [-3.0, 1.0]])
    with use_backend(backend):
        result = F.triplet_margin_loss(
            x,
            torch.tensor([0, 0]),
            references,
            torch.tensor([0, 0, 1, 1]),
            metric=metric,
            positives=positives,
            negatives=negatives,
            reduction="none",
        )
    if isinstance(result, F.AnchorSums):
        assert result.active[0] == 1
        result = result.loss
    assert result.isnan().tolist() == [True, False]


@each_positives
@each_negatives
@each_metric
@each_backend
def test_a_nan_row_gives_loss_nan_and_gradient_nan_to_itself_alone(
    positives, negatives, metric, backend
):
    x, labels = make("random", 30, 3, 4)
    x[11, 2] = math.nan
    x.requires_grad_()
    with use_backend(backend):
        loss = F.triplet_margin_loss(
            x, labels, metric=metric, positives=positives, negatives=negatives, margin=1.0
        )
    loss.backward()
    assert loss.isnan()
    assert x.grad.isnan().any(1).nonzero().tolist() == [[11]]
    assert x.grad[11].isnan().all()


@each_path
@each_backend
def test_a_nan_reference_is_no_partner(positives, negatives, backend):
    problem = Problem("random", "references")
    with torch.no_grad():
        problem.others["references"][::3] = math.nan
    options = {"positives": positives, "negatives": negatives, "margin": 0.5}
    keep = torch.arange(45) % 3 != 0
    fewer = F.triplet_margin_loss(
        problem.x,
        problem.labels,
        problem.others["references"][keep],
        problem.others["reference_labels"][keep],
        **options,
    )
    with use_backend(backend):
        loss = F.triplet_margin_loss(problem.x, problem.labels, **problem.others, **options)
    assert loss.item() == pytest.approx(fewer.item(), rel=1e-6)


@each_backend
def test_a_loss_that_overflows_is_infinite(backend):
    # <x, y> of the two negatives is 1e40: their distance is -inf, the loss +inf.
    x = torch.tensor([[1e20, 0.0], [0.0, 1.0], [1e20, 0.0]])
    with use_backend(backend):
        result = F.triplet_margin_loss(x, torch.tensor([0, 0, 1]), metric="dot", reduction="none")
    assert result.loss[0] == math.inf


@each_metric
def test_kernel_and_reference_agree_on_the_gradient_of_an_infinite_reference(metric):
    x = torch.tensor([[0.0, 1.0], [1.0, 0.0]], requires_grad=True)
    references = torch.tensor([[math.inf, 0.0], [1.0, 1.0], [0.5, 0.0]])
    labels, others = torch.tensor([0, 0]), torch.tensor([0, 1, 1])
    gradients = []
    for backend in ("kernel", "reference"):
        with use_backend(backend):
            loss = F.triplet_margin_loss(
                x, labels, references, others, metric=metric, reduction="sum"
            )
        gradients.append(torch.autograd.grad(loss, x)[0])
    np.testing.assert_allclose(gradients[0].numpy(), gradients[1].numpy(), rtol=1e-6)
