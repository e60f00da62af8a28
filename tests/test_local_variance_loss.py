"""Weights against the variance around each sample: the formula, its limits and what it teaches."""

from __future__ import annotations

import math

import pytest
import torch
from operator_cases import each_backend
from structure_cases import assert_near, rows, weights
from torch import Tensor

from dmlfast import use_backend
from dmlfast.losses import LocalVarianceLoss

N, D, CLASSES = 18, 5, 4
LABELS = torch.arange(N) % CLASSES


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return rows(N, D, dtype), weights(N, D, dtype)


def variances_of_class(e: list[list[float]], labels: list[int]) -> list[list[float]]:
    found = []
    for label in labels:
        members = [row for row, other in zip(e, labels, strict=True) if other == label]
        means = [sum(column) / len(members) for column in zip(*members, strict=True)]
        found.append(
            [sum((row[k] - means[k]) ** 2 for row in members) / len(members) for k in range(D)]
        )
    return found


def variances_of_neighbors(e: list[list[float]], count: int) -> list[list[float]]:
    found = []
    for i, row in enumerate(e):
        others = sorted((math.dist(row, other), j) for j, other in enumerate(e) if j != i)
        near = [e[j] for _, j in others[:count]]
        found.append([sum((row[k] - other[k]) ** 2 for other in near) / count for k in range(D)])
    return found


def written_out(w: Tensor, variances: list[list[float]], floor: float) -> Tensor:
    losses = []
    for row, variance in zip(w, variances, strict=True):
        mean = sum(variance) / D
        logs = [(w_k * (v_k + floor * mean)).log() for w_k, v_k in zip(row, variance, strict=True)]
        losses.append(torch.stack(logs).var(correction=0))
    return torch.stack(losses).mean()


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("neighbors", [None, 3])
@pytest.mark.parametrize("floor", [0.01, 0.2])
def test_the_loss_and_its_gradient_are_those_of_the_formula(floor, neighbors, dtype, backend):
    e, w = batch(dtype)
    with use_backend(backend):
        value = LocalVarianceLoss(neighbors, floor=floor)(e, LABELS, structure=w)
    (actual,) = torch.autograd.grad(value, w)
    listed = e.double().tolist()
    variances = (
        variances_of_class(listed, LABELS.tolist())
        if neighbors is None
        else variances_of_neighbors(listed, neighbors)
    )
    double = w.detach().double().requires_grad_()
    expected = written_out(double, variances, floor)
    (wanted,) = torch.autograd.grad(expected, double)
    # Logarithms of order 1 of variances of order 1: a few roundings of each.
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert value.dtype == dtype
    assert_near(value, expected, tolerance)
    assert_near(actual, wanted, tolerance)


def test_weights_inverse_to_the_variance_of_the_class_have_no_loss():
    e, _ = batch()
    variances = torch.tensor(variances_of_class(e.tolist(), LABELS.tolist()), dtype=e.dtype)
    w = (1 / variances).requires_grad_()
    value = LocalVarianceLoss(floor=1e-300)(e, LABELS, structure=w)
    # The square of a few roundings of 1.
    assert value < 1e-28
    assert torch.autograd.grad(value, w)[0].abs().max() < 1e-14


@pytest.mark.parametrize("neighbors", [None, 3])
def test_the_scales_of_embeddings_and_of_weights_do_not_matter(neighbors):
    e, w = batch()
    loss = LocalVarianceLoss(neighbors)
    value = loss(e, LABELS, structure=w)
    assert value > 0
    factors = torch.linspace(0.1, 10, N, dtype=w.dtype)[:, None]
    torch.testing.assert_close(loss(3 * e, LABELS, structure=factors * w), value)


@pytest.mark.parametrize("neighbors", [None, 3])
@pytest.mark.parametrize("factor", [1e30, 1e-30])
def test_embeddings_may_be_as_large_and_small_as_float32_holds(factor, neighbors):
    e, w = batch(torch.float32)
    loss = LocalVarianceLoss(neighbors)
    value = loss(e, LABELS, structure=w)
    torch.testing.assert_close(loss(factor * e, LABELS, structure=w), value)


def test_threads_change_no_bit(set_threads):
    e, w = rows(40000, D), weights(40000, D)
    values = []
    for threads in (1, 2):
        set_threads(threads)
        values.append(LocalVarianceLoss()(e, torch.arange(40000) % 9, structure=w))
    assert torch.equal(*values)


def test_no_gradient_flows_to_the_embeddings():
    e, w = batch()
    value = LocalVarianceLoss()(e.requires_grad_(), LABELS, structure=w)
    assert torch.autograd.grad(value, (e, w), allow_unused=True)[0] is None


def test_neighbors_need_no_labels_and_look_at_none():
    e, w = batch()
    loss = LocalVarianceLoss(3)
    assert loss(e, structure=w) == loss(e, LABELS, structure=w)
    assert loss(e, structure=w) > 0


def test_a_sample_without_a_neighborhood_is_left_out():
    e, w = batch()
    alone, same = torch.randn(1, D, dtype=e.dtype), e[:1].expand(2, D)
    labels = torch.cat([LABELS, torch.tensor([77, 88, 88])])
    more = LocalVarianceLoss()(torch.cat([e, alone, same]), labels, structure=torch.cat([w, w[:3]]))
    torch.testing.assert_close(more, LocalVarianceLoss()(e, LABELS, structure=w))


@pytest.mark.parametrize("weight", [0.0, math.nan])
def test_the_weights_of_a_sample_that_is_left_out_do_not_matter(weight):
    e, w = batch()
    labels = torch.cat([LABELS[:-1], torch.tensor([77])])
    spoilt = torch.cat([w[:-1].detach(), torch.full((1, D), weight)]).requires_grad_()
    expected = torch.autograd.grad(LocalVarianceLoss()(e, labels, structure=w), w)[0]
    actual = torch.autograd.grad(LocalVarianceLoss()(e, labels, structure=spoilt), spoilt)[0]
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("neighbors", [None, 3])
def test_a_class_too_small_for_the_dtype_beside_the_others_is_left_out(neighbors):
    e, w = rows(N, D, torch.float32), weights(N, D, torch.float32)
    # Of the size of the square root of float32's least number, and of no extent in a dimension.
    tiny = 1e-22 * torch.randn(4, D)
    tiny[:, 0] = 0.0
    labels = torch.cat([LABELS, torch.full((4,), 77)])
    loss = LocalVarianceLoss(neighbors)
    more = loss(torch.cat([e, tiny]), labels, structure=torch.cat([w, w[:4]]))
    torch.testing.assert_close(
        more, loss(torch.cat([e, 0 * tiny]), labels, structure=torch.cat([w, w[:4]]))
    )
    assert torch.autograd.grad(more, w)[0].isfinite().all()


def test_without_dimensions_the_loss_is_0():
    e = torch.zeros(N, 0, requires_grad=True)
    assert LocalVarianceLoss()(e, LABELS, structure=e) == 0


@pytest.mark.parametrize("neighbors", [None, 3])
@pytest.mark.parametrize("size", [0, 1])
def test_without_a_neighborhood_at_all_the_loss_is_0_and_attached(size, neighbors):
    e, w = rows(size, D), weights(size, D)
    value = LocalVarianceLoss(neighbors)(e, LABELS[:size], structure=w)
    assert value == 0
    assert not torch.autograd.grad(value, w)[0].any()


@pytest.mark.parametrize("neighbors", [None, 3])
def test_equal_rows_far_from_the_origin_have_no_neighborhood(neighbors):
    e = torch.full((6, D), 1234.567)
    value = LocalVarianceLoss(neighbors)(e, torch.zeros(6).long(), structure=weights(6, D))
    assert value == 0


@pytest.mark.parametrize("neighbors", [None, 20])
def test_fewer_neighbors_than_asked_for_are_those_there_are(neighbors):
    e, w = rows(2, D, torch.float64), weights(2, D, torch.float64)
    labels = torch.zeros(2).long()
    expected = written_out(w, variances_of_class(e.tolist(), [0, 0]), 0.01)
    torch.testing.assert_close(LocalVarianceLoss(neighbors)(e, labels, structure=w), expected)


@pytest.mark.parametrize("neighbors", [None, 3])
@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_an_embedding_that_is_not_finite_makes_the_loss_nan(lost, neighbors):
    e, w = batch()
    e = e.detach().clone()
    e[3, 1] = lost
    assert LocalVarianceLoss(neighbors)(e, LABELS, structure=w).isnan()
    alone = torch.where(torch.arange(N) == 3, 99, LABELS)
    assert LocalVarianceLoss(neighbors)(e, alone, structure=w).isnan()


@pytest.mark.parametrize("neighbors", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_embeddings_are_computed_on_in_float32(dtype, neighbors):
    e, w = batch(dtype)
    loss = LocalVarianceLoss(neighbors)
    value = loss(e, LABELS, structure=w)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(e.float(), LABELS, structure=w.float()))


@pytest.mark.parametrize("neighbors", [None, 12])
def test_the_weights_learn_where_a_class_varies(neighbors):
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([2.0, 1.0, 1.0, 0.5, 0.5])
    centers = 20 * torch.randn(4, D, generator=generator)
    labels = torch.arange(64) % 4
    e = centers[labels] + spread * torch.randn(64, D, generator=generator)
    w = torch.ones(64, D, requires_grad=True)
    optimiser = torch.optim.Adam([w], lr=0.02)
    for _ in range(200):
        optimiser.zero_grad()
        LocalVarianceLoss(neighbors)(e, labels, structure=w).backward()
        optimiser.step()
    learnt = (w / w.sum(1, keepdim=True)).mean(0)
    expected = spread.square().reciprocal() / spread.square().reciprocal().sum()
    # Variances of 16 rows are known to about a third, and the mean over four classes to a sixth.
    torch.testing.assert_close(learnt.detach(), expected, rtol=0.35, atol=0.05)


def test_it_compiles_whole():
    e, w = batch(torch.float32)
    loss = LocalVarianceLoss()
    found = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        value = function(e, LABELS, structure=w)
        found.append((value, *torch.autograd.grad(value, w)))
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager)
    torch.compiler.reset()


def test_the_options_are_shown():
    assert repr(LocalVarianceLoss(5, floor=0.5)) == "LocalVarianceLoss(neighbors=5, floor=0.5)"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"neighbors": 0}, ValueError),
        ({"neighbors": 1.5}, TypeError),
        ({"neighbors": 1025}, ValueError),
        ({"floor": 0.0}, ValueError),
        ({"floor": "low"}, TypeError),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused_at_construction(options, error):
    with pytest.raises(error, match=f"{next(iter(options))}: expected"):
        LocalVarianceLoss(**options)


@pytest.mark.parametrize(
    ("labels", "error"),
    [(None, ValueError), (LABELS[:3], ValueError), (LABELS.float(), TypeError)],
    ids=["none", "another length", "floating"],
)
def test_wrong_labels_are_named(labels, error):
    e, w = batch()
    with pytest.raises(error, match="labels: expected"):
        LocalVarianceLoss()(e, labels, structure=w)


def test_a_structure_of_another_shape_is_named():
    with pytest.raises(ValueError, match=r"structure: expected \(18, 5\), the shape of embeddings"):
        LocalVarianceLoss()(batch()[0], LABELS, structure=torch.ones(N, D + 1).double())
