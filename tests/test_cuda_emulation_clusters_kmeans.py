"""The CUDA kernels of k-means, run on the CPU."""

from __future__ import annotations

import math

import emulation
import pytest
import torch
from clusters_emulation import kmeans, seeds
from torch import Tensor

from dmlfast.reference import clusters as reference

pytestmark = emulation.needs_compiler


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    return emulation.build("clusters", tmp_path_factory.getbasetemp())


def draw(rows: int, d: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(rows + d)
    return torch.randn(rows, d, generator=generator, dtype=torch.float64).to(dtype)


def check(program, folder, x: Tensor, initial: Tensor, iterations: int) -> Tensor:
    """Compares centres and index bit by bit; clusters have no more rows than are added in order.

    Returns:
        the history.
    """
    centers, index, history = kmeans(program, folder, x, initial, iterations)
    expected, expected_index, expected_history = reference.kmeans(x, initial, iterations)
    assert torch.equal(index, expected_index)
    torch.testing.assert_close(centers, expected, rtol=0, atol=0, equal_nan=True)
    # Float64 sums in another order.
    torch.testing.assert_close(history, expected_history, rtol=1e-13, atol=0)
    return history


each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@each_dtype
# Alone, of a few rows, several blocks of rows, more centres than rows, and no rows or centres.
@pytest.mark.parametrize(
    ("rows", "d", "clusters"),
    [(1, 1, 1), (70, 5, 7), (2100, 3, 40), (6, 3, 11), (0, 3, 2), (5, 0, 2)],
    ids=str,
)
def test_centres_index_and_history_are_those_of_the_reference(
    program, tmp_path, dtype, rows, d, clusters
):
    x = draw(rows, d, dtype)
    initial = x[torch.arange(clusters) * 7 % rows] if rows > 0 else draw(clusters, d, dtype)
    check(program, tmp_path, x, initial, 4)


@pytest.mark.parametrize(("dtype", "iterations"), [(torch.float32, 2), (torch.float64, 0)])
def test_many_rows_are_assigned_by_a_search(program, tmp_path, dtype, iterations):
    # Beyond 2^20 pairs, more rows and centres than tiles have, and rows that come to lie equally
    # far from two centres; the scale is taken over from the second iteration on.
    x = draw(1100, 9, dtype)
    x[100:200] = x[:100]
    x[300, 2], x[301, 1] = math.nan, math.inf
    initial = torch.cat([x[:900], x[:60]])
    check(program, tmp_path, x, initial, iterations)


def test_a_search_survives_centres_much_longer_than_rows(program, tmp_path):
    x = draw(1100, 5)
    check(program, tmp_path, x, draw(960, 5) * 1e30, 1)


def test_rows_that_are_not_finite_belong_to_no_cluster(program, tmp_path):
    x = draw(60, 4)
    x[7, 2], x[40, 0], x[41, 1] = math.nan, math.inf, -math.inf
    initial = x[:5].clone()
    initial[2] = math.nan
    check(program, tmp_path, x, initial, 3)


def test_rows_all_alike_are_one_cluster_and_the_other_centres_stay(program, tmp_path):
    initial = torch.tensor([[5.0] * 3, [1.0] * 3, [9.0] * 3])
    check(program, tmp_path, torch.full((50, 3), 2.0), initial, 4)


def test_empty_clusters_are_handed_the_farthest_rows_the_lowest_of_equal_ones(program, tmp_path):
    x = torch.tensor([[0.0], [1.0], [2.0], [10.0], [-10.0]])
    initial = torch.tensor([[0.0], [500.0], [600.0]])
    centers, _, _ = kmeans(program, tmp_path, x, initial, 1)
    assert centers[:, 0].tolist() == [1.0, 10.0, -10.0]
    check(program, tmp_path, x, initial, 3)


def test_a_row_alone_stays_and_so_does_the_last_one_of_a_cluster(program, tmp_path):
    # Five rows for three empty clusters: the pairs hand out one each, the one that is alone none.
    x = torch.tensor([[0.0], [100.0], [102.0], [200.0], [202.0]])
    initial = torch.tensor([[3.0], [700.0], [98.0], [800.0], [198.0], [900.0]])
    check(program, tmp_path, x, initial, 1)
    check(program, tmp_path, x, initial, 3)


def test_many_clusters_are_filled_from_many_blocks_of_rows(program, tmp_path):
    # Rows in pairs of equal distances, over several blocks of 1024.
    x = draw(2500, 2)
    x = torch.cat([x, -x])
    initial = torch.cat([torch.zeros(1, 2), torch.full((30, 2), 1e3)])
    check(program, tmp_path, x, initial, 1)


def test_the_history_repeats_once_nothing_moves(program, tmp_path):
    x = torch.cat([draw(30, 4) * 0.1 + 3 * c for c in range(4)])
    history = check(program, tmp_path, x, x[::30].clone(), 12)
    assert history[-1] == history[5] < history[0]


def test_no_iteration_only_assigns(program, tmp_path):
    x = draw(50, 3)
    centers, _, history = kmeans(program, tmp_path, x, x[:4], 0)
    assert torch.equal(centers, x[:4])
    assert history.shape == (1,)
    check(program, tmp_path, x, x[:4], 0)


# --- the start ------------------------------------------------------------------------------------


def uniform(number: int) -> Tensor:
    return torch.rand(number, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@each_dtype
# Several sections of 256 rows and more than a grid of them, dimensions that fill no slab; fewer
# rows than draws, which makes all weights 0, none, and no dimensions.
@pytest.mark.parametrize(
    ("rows", "d", "draws"),
    [(1000, 21, 9), (70_000, 1, 4), (5, 3, 9), (0, 2, 3), (9, 0, 3)],
    ids=str,
)
def test_draws_are_those_of_the_reference(program, tmp_path, dtype, rows, d, draws):
    x = draw(rows, d, dtype)
    x[: rows // 2 : 5, :1] = math.inf
    expected = reference.seeds(x, uniform(draws))
    assert torch.equal(seeds(program, tmp_path, x, uniform(draws)), expected)


def test_a_number_on_a_border_draws_the_row_after_it_and_rows_without_weight_never(
    program, tmp_path
):
    # Weights of 1 at every second row from the fourth on, over two sections: 256 of them.
    x = torch.zeros(515, 1)
    x[3::2] = 1.0
    for number in (0.0, 1 / 256, 127 / 256, 128 / 256, 1 - 2.0**-53):
        found = seeds(program, tmp_path, x, torch.tensor([0.0, number], dtype=torch.float64))
        assert found.tolist() == [0, 3 + 2 * int(number * 256)]


def test_without_a_finite_row_nothing_is_drawn(program, tmp_path):
    found = seeds(program, tmp_path, torch.full((300, 2), math.nan), uniform(3))
    assert found.tolist() == [-1] * 3


def test_weights_whose_sum_is_infinite_are_drawn_uniformly(program, tmp_path):
    x = draw(600, 2, torch.float64) * 1e153
    assert torch.equal(seeds(program, tmp_path, x, uniform(5)), reference.seeds(x, uniform(5)))
