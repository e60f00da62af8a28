"""Rows at the ends of the range of their dtype, and sizes of several blocks: as the reference."""

from __future__ import annotations

import math
from collections.abc import Callable

import oracle
import pytest
import torch
from torch import Tensor

import dmlfast.functional as F
from dmlfast import use_backend
from dmlfast.ops._arguments import check_pairs
from dmlfast.ops.contrast_sums import contrast_sums

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(40, 8, generator=GENERATOR)
LABELS = torch.arange(40) // 4


def on_both(compute: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """The results of the kernel and of the reference."""
    with use_backend("kernel"):
        kernel = compute()
    with use_backend("reference"):
        return kernel, compute()


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "dot"])
@pytest.mark.parametrize("factor", [1e6, 1e19, 1e25])
def test_one_long_row_leaves_the_distances_of_others_alone(metric, factor):
    x = X.clone()
    x[0] *= factor
    kernel, reference = on_both(lambda: F.pairwise_distance(x, X[:20] + 1, metric=metric))
    # Ordinary rows: up to 3 units of |x|^2 + |y|^2, here about 40.
    torch.testing.assert_close(kernel[1:], reference[1:], rtol=1e-6, atol=2e-5)


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean"])
def test_distances_to_self_are_0_where_others_leave_the_range(metric):
    x = X * 3e37
    assert F.pairwise_distance(x, metric=metric).diagonal().tolist() == [0.0] * 40


@pytest.mark.parametrize("metric", ["sqeuclidean", "dot"])
@pytest.mark.parametrize("factor", [1e-19, 1e-30])
def test_a_loss_of_a_collapsed_batch_is_its_margin(metric, factor):
    loss = F.contrastive_loss(X * factor, LABELS, metric=metric)
    assert loss.item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("factor", [1e-30, 1e-22, 1e18, 1e37])
def test_the_gradient_of_mean_and_deviation_does_not_depend_on_the_scale(factor):
    def gradient(rows: Tensor) -> Tensor:
        leaf = rows.clone().requires_grad_()
        statistics = F.distance_statistics(leaf)
        return torch.autograd.grad(statistics.mean + statistics.deviation, leaf)[0]

    assert oracle.relative_error(gradient(X * factor), gradient(X).double()) < 1e-5


@pytest.mark.parametrize(("factor", "upstream"), [(1e-30, 1e10), (1e37, 1e-3)])
def test_the_gradient_of_distances_survives_tiny_and_huge_ones(factor, upstream):
    def gradient() -> Tensor:
        leaf = (X * factor).requires_grad_()
        return torch.autograd.grad((F.pairwise_distance(leaf) * upstream).sum(), leaf)[0]

    kernel, reference = on_both(gradient)
    assert oracle.relative_error(kernel, reference.double()) < 1e-5


@pytest.mark.parametrize("backend", ["kernel", "reference"])
def test_a_boundary_of_nan_makes_the_gradients_of_its_anchor_nan(backend):
    boundary = torch.full((40,), 1.2)
    boundary[3] = math.nan
    leaves = X.clone().requires_grad_(), boundary.requires_grad_()
    with use_backend(backend):
        loss = F.margin_loss(leaves[0], LABELS, boundary=leaves[1])
        to_x, to_boundary = torch.autograd.grad(loss, leaves)
    assert loss.isnan()
    assert to_x[3].isnan().all()
    assert to_boundary[3].isnan()


@pytest.mark.parametrize("scale", [30.0, 1000.0])
def test_weights_of_large_exponents_add_up_to_1(scale):
    # One negative each: its weight is 1, and the gradient that of the distance itself.
    x = (10 * X[:2]).requires_grad_()
    pairs = check_pairs(x, torch.tensor([0, 1]))
    sums = contrast_sums(
        pairs, metric="euclidean", negative_form="logsumexp", negative_scale=-scale
    )
    (actual,) = torch.autograd.grad(sums.negative.sum() / scale, x)
    (expected,) = torch.autograd.grad(-2 * (x[0].double() - x[1].double()).norm(), x)
    assert oracle.relative_error(actual, expected) < 1e-5


def test_an_exponent_beyond_float32_gives_infinity_not_a_number():
    x = X * 1e19
    loss = F.info_nce_loss(x, LABELS, metric="dot", temperature=1 / 16, reduction="sum")
    assert not loss.isfinite()


@pytest.mark.parametrize("metric", ["sqeuclidean", "cosine", "dot"])
@pytest.mark.parametrize("select", [F.hardest_negative, F.nearest_positive, F.farthest_positive])
def test_float64_rows_with_subnormal_squares_are_selected_exactly(metric, select):
    x = (
        torch.randn(300, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        * 1e-161
    )
    labels = torch.arange(300) % 3
    kernel, reference = on_both(lambda: select(x, labels, metric=metric).index)
    assert torch.equal(kernel, reference)


def test_float64_rows_whose_mean_overflows_are_selected_exactly():
    x = torch.randn(300, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x[:, 0] = 1.7e308 * x[:, 0].sign()
    kernel, reference = on_both(lambda: F.hardest_negative(x, torch.arange(300) % 3).index)
    assert torch.equal(kernel, reference)


def test_cosine_distances_are_not_negative():
    assert F.pairwise_distance(5 + 1e-3 * X, metric="cosine").min() >= 0


def test_rows_without_dimensions_have_distance_0_and_an_empty_gradient():
    x = torch.zeros(3, 0, requires_grad=True)
    distance = F.pairwise_distance(x)
    distance.sum().backward()
    assert distance.eq(0).all()
    assert x.grad.shape == (3, 0)


@pytest.mark.parametrize("references", [None, 8700], ids=["batch", "references"])
def test_sizes_of_several_blocks_in_a_span_have_the_same_values(references):
    # Spans are longer than a block of 128 x 256 from 8,193 rows on.
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(8700, 3, generator=generator)
    y = x if references is None else torch.randn(references, 3, generator=generator)
    labels = torch.arange(8700) // 4

    def loss(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        leaves = [x.clone().requires_grad_()]
        if references is not None:
            leaves.append(y.clone().requires_grad_())
        others = (leaves[1], labels) if references is not None else (None, None)
        value = F.multi_similarity_loss(leaves[0], labels, *others, metric="cosine")
        return value, *torch.autograd.grad(value, leaves)

    value, *gradients = loss(x, y)
    rows = [t.double().requires_grad_() for t in ([x] if references is None else [x, y])]
    unit = [torch.nn.functional.normalize(t) for t in rows]
    similarity = unit[0] @ unit[-1].T
    same = labels[:, None] == labels[None]
    positive = same if references is not None else same & ~torch.eye(8700, dtype=torch.bool)
    to_positive = torch.where(positive, -2 * (similarity - 0.5), -math.inf).logsumexp(1)
    to_negative = torch.where(same, -math.inf, 50 * (similarity - 0.5)).logsumexp(1)
    softplus = torch.nn.functional.softplus
    expected = (softplus(to_positive) / 2 + softplus(to_negative) / 50).mean()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    for actual, other in zip(gradients, torch.autograd.grad(expected, rows), strict=True):
        assert oracle.relative_error(actual, other) < 1e-4
