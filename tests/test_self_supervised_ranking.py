"""The rankings of views and of synthesised samples without labels against their formulas."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from synthetic_ranking_cases import D, N, batch, gradients, unit
from torch import Tensor

from dmlfast.losses import SelfSupervisedRankingLoss, SelfSupervisedSynthesisRankingLoss


class Constants(NamedTuple):
    margin: float
    bound: float
    scale: float
    positive_weight: float


def ranking_of_views(similarities: list[Tensor], constants: Constants) -> Tensor:
    """methods 2.10 for one sample."""
    a, b, s, weight = constants
    sort = 1 + sum(
        torch.exp(s * (following - one + a)) for one, following in pairwise(similarities)
    )
    close = 1 + sum(torch.exp(-s * (one - b)) for one in similarities)
    return (torch.log(torch.as_tensor(sort)) + weight * torch.log(close)) / s


PUBLISHED = Constants(0.05, 0.5, 12.0, 1.0)
each_constants = pytest.mark.parametrize("constants", [PUBLISHED, Constants(0.3, 0.1, 5.0, 0.4)])


@each_constants
@pytest.mark.parametrize("count", [4, 2, 1])
def test_the_ranking_of_views_is_its_formula(constants, count):
    generator = torch.Generator().manual_seed(0)
    sources = torch.randn(5, D, generator=generator, dtype=torch.float64, requires_grad=True)
    views = torch.randn(5, count, D, generator=generator, dtype=torch.float64, requires_grad=True)
    loss = SelfSupervisedRankingLoss(*constants[:3], positive_weight=constants.positive_weight)
    if constants == PUBLISHED:
        loss = SelfSupervisedRankingLoss()
    value = loss(sources, views)
    rows = [
        ranking_of_views([unit(source) @ unit(view) for view in own], constants)
        for source, own in zip(sources, views, strict=True)
    ]
    expected = sum(rows) / 5
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    for actual, wanted in zip(
        torch.autograd.grad(value, (sources, views)),
        torch.autograd.grad(expected, (sources, views)),
        strict=True,
    ):
        torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-12)


@each_constants
def test_the_ranking_of_synthesised_samples_is_its_formula(constants):
    x, _ = batch()
    torch.manual_seed(2)
    loss = SelfSupervisedSynthesisRankingLoss(
        D,
        radius=0.4,
        projection_size=8,
        margin=constants.margin,
        bound=constants.bound,
        scale=constants.scale,
        positive_weight=constants.positive_weight,
    ).double()
    order = torch.tensor([2, 0, 3, 1])
    loss.draw = lambda groups: order
    value = loss(x)
    expected = x.new_zeros(())
    for row in x:
        similarities = []
        for n, direction in enumerate(order.tolist(), start=1):
            moved = unit(row) + n * 0.4 * unit(loss.directions[direction])
            projected = [unit(loss.projector(v)).clamp(min=0) for v in (moved, unit(row))]
            similarities.append(projected[0] @ projected[1])
        expected = expected + ranking_of_views(similarities, constants) / N
    torch.testing.assert_close(value, expected, rtol=1e-11, atol=0)
    actual, wanted = gradients(value, loss, x), gradients(expected, loss, x)
    for name, gradient in wanted.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_the_synthesis_of_self_supervised_ranking_draws_by_its_generator():
    x, _ = batch()
    torch.manual_seed(0)
    loss = SelfSupervisedSynthesisRankingLoss(D).double()
    values = []
    for seed in (0, 0, 1):
        loss.generator = torch.Generator().manual_seed(seed)
        values.append([loss(x).item() for _ in range(3)])
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_self_supervised_ranking_reduces_over_samples(reduction):
    sources, views = torch.randn(3, D), torch.randn(3, 4, D)
    rows = SelfSupervisedRankingLoss(reduction="none")(sources, views)
    assert rows.shape == (3,)
    expected = rows if reduction == "none" else getattr(rows, reduction)()
    torch.testing.assert_close(
        SelfSupervisedRankingLoss(reduction=reduction)(sources, views), expected
    )


def test_self_supervised_ranking_of_no_sample_is_zero():
    assert SelfSupervisedRankingLoss()(torch.zeros(0, D), torch.zeros(0, 4, D)) == 0
    assert SelfSupervisedSynthesisRankingLoss(D)(torch.zeros(0, D)) == 0


@pytest.mark.parametrize(
    ("views", "error", "message"),
    [
        (torch.zeros(3, D), ValueError, r"views: expected shape \(3, N, 6\)"),
        (torch.zeros(2, 4, D), ValueError, r"views: expected shape \(3, N, 6\)"),
        (torch.zeros(3, 4, D + 1), ValueError, r"views: expected shape \(3, N, 6\)"),
        (torch.zeros(3, 4, D).double(), TypeError, "views: expected torch.float32 as sources"),
        (None, TypeError, "views: expected a torch.Tensor"),
    ],
)
def test_wrong_views_are_refused(views, error, message):
    with pytest.raises(error, match=message):
        SelfSupervisedRankingLoss()(torch.zeros(3, D), views)
