"""The losses over classes of several centres against their formulas in float64, on CPU."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from class_cases import (
    CLASSES,
    LOSSES,
    D,
    K,
    assert_is_formula,
    each_loss,
    problem,
    soft_triple,
    sub_center_arcface,
)
from operator_cases import DTYPES, assert_same_bits, compile_whole, opcheck
from structure_cases import assert_near, doubles
from torch import Tensor

import dmlfast.functional as F
from dmlfast.reference import contrast_classes as reference

# --- values and gradients -------------------------------------------------------------------------


@each_loss
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("per_class", [1, 3, 10])
def test_losses_and_gradients_are_those_of_the_formula(name, dtype, per_class):
    assert_is_formula(name, problem(per_class=per_class, dtype=dtype), per_class)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("soft triple", {"la": 7.0, "gamma": 0.3, "margin": 0.2}),
        ("soft triple, dot", {"la": -2.0, "gamma": 1.5, "margin": -0.4}),
        ("sub-centre", {"margin": 50.0, "scale": 9.0}),
    ],
)
def test_options_other_than_the_defaults_are_those_of_the_formula(name, options):
    assert_is_formula(name, problem(dtype=torch.float64), K, **options)


@each_loss
# Rows, classes, centres a class, dimensions.
@pytest.mark.parametrize("size", [(1, 1, 1, 2), (1, 2, 1, 2), (300, 5, 2, 2), (3, 700, 4, 33)])
def test_awkward_sizes_are_defined(name, size):
    assert_is_formula(name, problem(*size, dtype=torch.float64), size[2])


@pytest.mark.parametrize("name", ["soft triple", "sub-centre"])
def test_rows_of_one_dimension_have_a_loss_and_no_gradient(name):
    x, labels, centers = problem(20, 5, 2, 1, dtype=torch.float64)
    function, formula = LOSSES[name]
    loss = function(x, labels, centers, centers_per_class=2, reduction="none")
    torch.testing.assert_close(loss, formula(x, labels, centers, 2), rtol=1e-12, atol=1e-12)
    # Their cosines are 1 and -1, whatever the lengths.
    for gradient in torch.autograd.grad(loss.sum(), (x, centers)):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-11)


@each_loss
# Blocks of 16 rows and 16 classes, save one of 16 and 48.
@pytest.mark.parametrize(
    ("products", "rows", "classes"), [(800, 11, 4), (1, 1024, 2**14), (3000, 16, 48)]
)
def test_blocks_give_what_one_block_gives(name, products, rows, classes, monkeypatch):
    monkeypatch.setattr(reference, "_CPU_PRODUCTS", products)
    monkeypatch.setattr(reference, "_ROWS", rows)
    monkeypatch.setattr(reference, "_CLASSES", classes)
    assert_is_formula(name, problem(classes=53, dtype=torch.float64), K)


@each_loss
def test_columns_of_a_parameter_are_centres_as_well(name):
    x, labels, centers = problem()
    columns = centers.detach().T.contiguous().requires_grad_()
    function = LOSSES[name][0]
    results = []
    for leaf, given in ((centers, centers), (columns, columns.T)):
        loss = function(x, labels, given, centers_per_class=K)
        results.append((loss, *torch.autograd.grad(loss, (x, leaf))))
    results[1] = (*results[1][:2], results[1][2].T)
    assert_same_bits(*results)


@each_loss
def test_reductions_are_of_the_rows(name):
    x, labels, centers = problem()
    rows, total, mean = (
        LOSSES[name][0](x, labels, centers, centers_per_class=K, reduction=reduction)
        for reduction in ("none", "sum", "mean")
    )
    torch.testing.assert_close(total, rows.sum())
    torch.testing.assert_close(mean, rows.mean())


@each_loss
def test_gradcheck(name):
    x, labels, centers = problem(6, 3, 2, 3, dtype=torch.float64)
    # Losses of a row have differences that the formula's scale of 64 would round away.
    options = {"scale": 2.0} if name == "sub-centre" else {"la": 2.0}

    def loss(x: Tensor, centers: Tensor) -> Tensor:
        return LOSSES[name][0](x, labels, centers, centers_per_class=2, reduction="none", **options)

    assert torch.autograd.gradcheck(loss, (x, centers))


# --- what the losses are --------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [0.0, 28.6, 90.0, 179.0, 180.0])
def test_the_margin_goes_on_below_beyond_180_degrees(margin):
    # Angles from 0.5 to 179.5 degrees to the centre of class 0, in a plane.
    angles = torch.linspace(0.5, 179.5, 40, dtype=torch.float64).deg2rad()
    x = torch.stack([angles.cos(), angles.sin()], 1).requires_grad_()
    centers = torch.tensor([[2.0, 0.0], [0.0, -3.0]], dtype=torch.float64, requires_grad=True)
    labels = torch.zeros(40, dtype=torch.int64)
    options = {"margin": margin, "scale": 5.0}
    found = F.sub_center_arcface_loss(
        x, labels, centers, centers_per_class=1, reduction="none", **options
    )
    expected = sub_center_arcface(x, labels, centers, 1, **options)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for a, e in zip(
        torch.autograd.grad(found.sum(), (x, centers)),
        torch.autograd.grad(expected.sum(), (x, centers)),
        strict=True,
    ):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_row_on_its_centre_or_opposite_has_a_gradient(sign):
    centers = torch.eye(4, requires_grad=True)
    x = (sign * torch.eye(4)).requires_grad_()
    loss = F.sub_center_arcface_loss(x, torch.arange(4), centers, centers_per_class=1, scale=4.0)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, (x, centers)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "classes", "d"), [(1, 5, 7), (1, 33, 130), (2, 17, 7), (40, 2, 3)])
def test_equal_centres_are_equally_near_at_any_size(n, classes, d, dtype):
    x, labels, centers = problem(n, classes, 1, d, dtype=dtype)
    equal = centers.detach().repeat_interleave(4, 0).requires_grad_()
    loss = F.sub_center_arcface_loss(x, labels, equal, centers_per_class=4)
    (gradient,) = torch.autograd.grad(loss, equal)
    gradient = gradient.unflatten(0, (classes, 4))
    assert (gradient[:, 1:] == 0).all()
    assert (gradient[:, 0] != 0).any(1).all()


def test_of_equally_near_centres_the_lowest_takes_the_gradient():
    x, labels, centers = problem()
    twins = centers.detach().unflatten(0, (CLASSES, K))[:, [0, 1, 1, 0]].flatten(0, 1)
    twins.requires_grad_()
    loss = F.sub_center_arcface_loss(x, labels, twins, centers_per_class=4)
    (gradient,) = torch.autograd.grad(loss, twins)
    gradient = gradient.unflatten(0, (CLASSES, 4))
    assert (gradient[:, 2:] == 0).all()
    assert (gradient[:, :2] != 0).any(2).all(0).any()


@pytest.mark.parametrize("gamma", [1e-3, 1e-8, 1e-40])
def test_towards_temperature_0_the_relaxed_similarity_is_the_greatest(gamma):
    x, labels, centers = problem(dtype=torch.float64)
    sums = [
        reference.sums(x.detach(), labels, centers.detach(), K, reference.Form(*form))
        for form in (("relaxed", gamma, 5.0, "dot"), ("greatest", 1.0, 5.0, "dot"))
    ]
    for relaxed, greatest in zip(*sums, strict=True):
        torch.testing.assert_close(relaxed, greatest, rtol=0, atol=5 * gamma + 1e-14)


@pytest.mark.parametrize("gamma", [1e-2, 1e-6, 1e-30])
def test_equal_centres_share_a_gradient_evenly_at_any_temperature(gamma):
    x, labels, centers = problem()
    one = centers.detach()[::K].clone().requires_grad_()
    three = one.detach().repeat_interleave(3, 0).requires_grad_()
    gradients = [
        torch.autograd.grad(
            F.soft_triple_loss(x, labels, leaf, centers_per_class=count, gamma=gamma), leaf
        )[0]
        for leaf, count in ((one, 1), (three, 3))
    ]
    shared = gradients[1].unflatten(0, (CLASSES, 3))
    torch.testing.assert_close(shared, (gradients[0] / 3)[:, None].expand_as(shared))


@each_loss
def test_losses_far_below_1_keep_their_digits(name):
    # A row of its class and none other: the loss is about exp of -20 or of -64.
    centers = torch.eye(2, dtype=torch.float64)
    x = torch.tensor([[1.0, -0.2]], dtype=torch.float64)
    labels = torch.zeros(1, dtype=torch.int64)
    function = LOSSES[name][0]
    exact = function(x, labels, centers, centers_per_class=1)
    assert 0 < exact < 1e-8
    found = function(x.float(), labels, centers.float(), centers_per_class=1)
    # Roundings of exponents below 100.
    assert found.item() == pytest.approx(exact.item(), rel=1e-4)


@pytest.mark.parametrize("logit", [10, 6000, 700_000])
def test_shares_of_classes_add_up_to_1_at_any_logit(logit):
    # Whole numbers, whose products with each other and with `la` float32 holds; classes fall on
    # each other, and others are beside them.
    x = torch.tensor([[4.0 * logit, 1.0], [4.0 * logit, -2.0]], requires_grad=True)
    places = torch.tensor([0.0, 1.0, 1.0, -1.0, 1.0, 2.0])
    centers = torch.stack([torch.ones(6), places], 1).requires_grad_()
    options = {"la": 0.25, "margin": 0.0, "metric": "dot"}
    labels = torch.tensor([1, 4])
    found = F.soft_triple_loss(x, labels, centers, centers_per_class=1, reduction="none", **options)
    double = doubles(x, centers)
    expected = soft_triple(double[0], labels, double[1], 1, **options)
    # exp and log of numbers near 1.
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    for a, e in zip(
        torch.autograd.grad(found.sum(), (x, centers)),
        torch.autograd.grad(expected.sum(), double),
        strict=True,
    ):
        assert_near(a, e, 1e-6)
    (to_x,) = torch.autograd.grad(
        F.soft_triple_loss(x, labels, centers, centers_per_class=1, **options), x
    )
    assert to_x[:, 0].abs().max() < 1e-7


# --- the edges of the contract --------------------------------------------------------------------


@each_loss
def test_one_class_has_loss_0_and_gradient_0(name):
    x, labels, centers = problem(classes=1)
    loss = LOSSES[name][0](x, labels, centers, centers_per_class=K)
    assert loss == 0
    for gradient in torch.autograd.grad(loss, (x, centers)):
        assert (gradient == 0).all()


@each_loss
def test_an_empty_batch_has_loss_0_and_gradient_0(name):
    x, labels, centers = problem(n=0)
    loss = LOSSES[name][0](x, labels, centers, centers_per_class=K)
    assert loss == 0
    gradients = torch.autograd.grad(loss, (x, centers))
    assert gradients[0].shape == (0, D)
    assert (gradients[1] == 0).all()


@each_loss
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_is_nan_and_spoils_no_other(name, bad):
    x, labels, centers = problem()
    spoilt = x.detach().clone()
    spoilt[3, 1] = bad
    spoilt.requires_grad_()
    function = partial(LOSSES[name][0], centers_per_class=K, reduction="none")
    rest = torch.arange(len(x)) != 3
    found = function(spoilt, labels, centers)
    clean = function(x[rest], labels[rest], centers)
    assert found[3].isnan()
    torch.testing.assert_close(found[rest], clean)
    to_x, to_centers = torch.autograd.grad(found.sum(), (spoilt, centers))
    assert to_x[3].isnan().all()
    for gradient, right in zip(
        (to_x[rest], to_centers), torch.autograd.grad(clean.sum(), (x, centers)), strict=True
    ):
        assert_near(gradient, right[rest] if len(right) == len(x) else right, 1e-5)


@each_loss
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_centre_that_is_not_finite_makes_every_loss_nan(name, bad):
    x, labels, centers = problem()
    spoilt = centers.detach().clone()
    spoilt[4, 1] = bad
    losses = LOSSES[name][0](x, labels, spoilt, centers_per_class=K, reduction="none")
    assert losses.isnan().all()


@each_loss
def test_zero_vectors_have_finite_losses_and_gradients(name):
    x, labels, centers = (leaf.detach().clone() for leaf in problem())
    x[3], centers[4] = 0, 0
    leaves = x.requires_grad_(), centers.requires_grad_()
    loss = LOSSES[name][0](x, labels, centers, centers_per_class=K)
    gradients = torch.autograd.grad(loss, leaves)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)
    if "dot" not in name:
        assert (gradients[0][3] == 0).all()
        assert (gradients[1][4] == 0).all()


@pytest.mark.parametrize("name", ["soft triple", "sub-centre"])
@pytest.mark.parametrize("factor", [1e-30, 1e-25, 1e25, 1e30])
def test_cosines_do_not_depend_on_the_lengths(name, factor):
    x, labels, centers = problem()
    function = partial(LOSSES[name][0], centers_per_class=K)
    long = (x * factor).detach().requires_grad_(), (centers / factor).detach().requires_grad_()
    expected = function(x, labels, centers)
    loss = function(long[0], labels, long[1])
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    scales = factor, 1 / factor
    for actual, right, scale in zip(
        torch.autograd.grad(loss, long),
        torch.autograd.grad(expected, (x, centers)),
        scales,
        strict=True,
    ):
        assert_near(actual.double() * scale, right, 1e-4)


@each_loss
@pytest.mark.parametrize("wrong", [-1, CLASSES, 2**62])
def test_a_label_that_is_no_class_is_refused_or_its_row_is_lost(name, wrong):
    x, labels, centers = problem()
    labels[3] = wrong
    function = partial(LOSSES[name][0], centers_per_class=K)
    with pytest.raises(ValueError, match=rf"labels: expected classes in \[0, 7\), got {wrong}"):
        function(x, labels, centers)
    # A compiled call cannot look.
    function = partial(function, reduction="none")
    found = compile_whole(function)(x, labels, centers)
    torch.compiler.reset()
    rest = torch.arange(len(x)) != 3
    clean = function(x[rest], labels[rest], centers)
    assert found.isnan().nonzero().tolist() == [[3]]
    torch.testing.assert_close(found[rest], clean)
    to_x, to_centers = torch.autograd.grad(found.sum(), (x, centers))
    to_clean, to_clean_centers = torch.autograd.grad(clean.sum(), (x, centers))
    assert to_x[3].isnan().all()
    torch.testing.assert_close(to_x[rest], to_clean[rest])
    torch.testing.assert_close(to_centers, to_clean_centers)


# --- what torch does around it --------------------------------------------------------------------


@each_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_autocast_changes_nothing(name, dtype):
    x, labels, centers = problem(dtype=dtype)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = LOSSES[name][0](x, labels, centers, centers_per_class=K)
        results.append((loss, *torch.autograd.grad(loss, (x, centers))))
    assert_same_bits(*results)


@each_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
# Sizes at which products as they come are cut otherwise for 2, for 3 or for 8 threads.
@pytest.mark.parametrize(
    "size", [(128, 100, 10, 64), (7, 1772, 1, 2), (16, 16, 1, 1000), (2, 40, 2, 257)]
)
def test_every_thread_count_gives_the_same_bits(name, dtype, size, set_threads):
    x, labels, centers = problem(*size, dtype=dtype)
    results = []
    for threads in (1, 2, 3, 8):
        set_threads(threads)
        loss = LOSSES[name][0](x, labels, centers, centers_per_class=size[2])
        results.append((loss, *torch.autograd.grad(loss, (x, centers))))
    for result in results[1:]:
        assert_same_bits(result, results[0])


@each_loss
def test_a_second_backward_raises(name):
    x, labels, centers = problem()
    loss = LOSSES[name][0](x, labels, centers, centers_per_class=K)
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        gradient.sum().backward()


@each_loss
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole_forward_and_backward(name, dynamic):
    def function(x: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
        return LOSSES[name][0](x, labels, centers, centers_per_class=K)

    compiled = compile_whole(function, dynamic=dynamic)
    for n in (24, 35):
        x, labels, centers = problem(n)
        results = []
        for f in (function, compiled):
            loss = f(x, labels, centers)
            results.append((loss, *torch.autograd.grad(loss, (x, centers))))
        assert_same_bits(*results)
    torch.compiler.reset()


@each_loss
def test_opcheck(name, operator_calls):
    x, labels, centers = problem(12)

    def work() -> None:
        loss = LOSSES[name][0](x, labels, centers, centers_per_class=K)
        torch.autograd.grad(loss, (x, centers))

    calls = operator_calls(work, "dmlfast_reference")
    assert [f.overloadpacket.__name__ for f, _ in calls] == [
        "contrast_classes",
        "contrast_classes_backward",
    ]
    opcheck(calls)


@pytest.mark.parametrize("call", ["F.soft_triple_loss", "F.sub_center_arcface_loss"])
def test_60000_centres_need_less_memory_than_their_similarities(call, resident_growth):
    inputs = f"""
x, labels = torch.randn(1024, 8, requires_grad=True), torch.arange(1024)
c = torch.randn(60000, 8, requires_grad=True)
{call}(x, labels % 9, c[:30], centers_per_class=3).backward()
c.grad = None
"""
    code = f"{call}(x, labels, c, centers_per_class=3).backward()"
    # The matrix is 240 MB; blocks of it, and the gradient of 2 MB.
    assert resident_growth(inputs, code) < 30 * 2**20
