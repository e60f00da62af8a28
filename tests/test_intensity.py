"""Tests of the metrics of dmlfast.evaluation that rank similarities by intensity."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from dmlfast.evaluation import evaluate_intensity_ranking, view_similarities


def test_similarities_that_fall_all_the_way_are_in_perfect_order():
    ranking = evaluate_intensity_ranking(torch.tensor([[0.9, 0.5, 0.1], [3.0, 2.0, -1.0]]))
    assert (ranking.order_accuracy, ranking.kendall_tau, ranking.num_rows) == (1.0, 1.0, 2)


def test_similarities_that_rise_are_in_the_opposite_order():
    ranking = evaluate_intensity_ranking(torch.tensor([[0.1, 0.5, 0.9]]))
    assert (ranking.order_accuracy, ranking.kendall_tau) == (0.0, -1.0)


def test_the_values_of_an_example_by_hand():
    # Of 3, 4, 1, 2 the pairs (3,1), (3,2), (4,1), (4,2) fall and two rise.
    ranking = evaluate_intensity_ranking(torch.tensor([[3.0, 4.0, 1.0, 2.0]]))
    assert ranking.order_accuracy == pytest.approx(4 / 6)
    assert ranking.kendall_tau == pytest.approx((4 - 2) / 6)


def test_a_tie_is_no_fall():
    ranking = evaluate_intensity_ranking(torch.tensor([[2.0, 2.0, 1.0]]))
    assert ranking.order_accuracy == pytest.approx(2 / 3)
    assert ranking.kendall_tau == pytest.approx(2 / math.sqrt(2 * 3))


def test_rows_of_ties_alone_have_no_order():
    ranking = evaluate_intensity_ranking(torch.zeros(3, 4))
    assert (ranking.order_accuracy, ranking.kendall_tau) == (0.0, 0.0)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("columns", [2, 3, 7])
def test_tau_is_that_of_scipy(columns, ties):
    stats = pytest.importorskip("scipy.stats")
    values = torch.randn(40, columns, generator=torch.Generator().manual_seed(0))
    if ties:
        values = values.round()
        values = values[(values != values[:, :1]).any(1)]
    expected = [stats.kendalltau(range(columns), -row).statistic for row in values.numpy()]
    ranking = evaluate_intensity_ranking(values)
    assert ranking.kendall_tau == pytest.approx(sum(expected) / len(expected), abs=1e-12)


@pytest.mark.parametrize("shape", [(0, 4), (3, 1), (3, 0)])
def test_without_a_pair_there_is_no_value(shape):
    ranking = evaluate_intensity_ranking(torch.zeros(shape))
    assert math.isnan(ranking.order_accuracy)
    assert math.isnan(ranking.kendall_tau)
    assert ranking.num_rows == shape[0]


def test_the_values_by_name():
    assert evaluate_intensity_ranking(torch.tensor([[1.0, 0.0]])).as_dict() == {
        "order_accuracy": 1.0,
        "kendall_tau": 1.0,
    }


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([[1.0]], TypeError, "similarities: expected a torch.Tensor, got list"),
        (torch.zeros(3), ValueError, "similarities: expected a 2-D tensor"),
        (torch.zeros(3, 2).long(), TypeError, "similarities: expected float16"),
        (torch.tensor([[1.0, math.nan]]), ValueError, "expected finite rows, got 1 of 1 not so"),
    ],
)
def test_what_is_no_matrix_of_similarities_is_refused(value, error, message):
    with pytest.raises(error, match=message):
        evaluate_intensity_ranking(value)


# --- similarities of views ------------------------------------------------------------------------


def turned(angle: float):
    """Turns points in the plane; draws once, so that the stream goes on."""

    def view(images: Tensor, generator: torch.Generator) -> Tensor:
        torch.rand(1, generator=generator)
        cos, sin = math.cos(angle), math.sin(angle)
        return images @ torch.tensor([[cos, -sin], [sin, cos]])

    return view


def test_views_are_compared_with_their_own_image_by_the_cosine():
    images = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    views = [turned(angle) for angle in (0.1, 0.7, 2.0)]
    similarities = view_similarities(nn.Identity(), images, views, torch.Generator())
    expected = torch.tensor([0.1, 0.7, 2.0]).cos().expand(5, 3)
    torch.testing.assert_close(similarities, expected)
    assert evaluate_intensity_ranking(similarities).order_accuracy == 1


def test_a_seed_decides_the_views():
    def noisy(images: Tensor, generator: torch.Generator) -> Tensor:
        return images + torch.randn(images.shape, generator=generator)

    images = torch.ones(4, 3)
    found = [
        view_similarities(nn.Identity(), images, [noisy] * 2, torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    # Independent draws: one view is not the other.
    assert not torch.equal(found[0][:, 0], found[0][:, 1])


def test_no_view_gives_no_column():
    assert view_similarities(nn.Identity(), torch.ones(4, 3), [], torch.Generator()).shape == (4, 0)
