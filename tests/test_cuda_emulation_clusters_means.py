"""The CUDA kernels of the means of clusters, run on the CPU."""

from __future__ import annotations

import math

import emulation
import pytest
import torch
from clusters_emulation import means
from torch import Tensor

from dmlfast.reference import clusters as reference

pytestmark = emulation.needs_compiler

SECTION = 256  # rows of a cluster that are added up in ascending order


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    return emulation.build("clusters", tmp_path_factory.getbasetemp())


def problem(rows: int, d: int, clusters: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows of which some are in no cluster; the last cluster and, by chance, others are empty."""
    generator = torch.Generator().manual_seed(rows + d)
    x = torch.randn(rows, d, generator=generator).to(dtype)
    return x, torch.randint(-1, max(1, clusters - 1), (rows,), generator=generator)


def check(program, folder, x: Tensor, index: Tensor, clusters: int) -> None:
    mean, count = means(program, folder, x, index, clusters)
    expected, expected_count = reference.means(x, index, clusters)
    assert torch.equal(count, expected_count)
    if int(expected_count.amax()) <= SECTION:
        torch.testing.assert_close(mean, expected, rtol=0, atol=0, equal_nan=True)
    else:
        # Float64 sums in another order, of numbers as large as the greatest; rounded once.
        places = 2.0**-53 * (1 if x.dtype == torch.float64 else 2.0**29)
        slack = 2 * places * expected.abs() + 2.0**-52 * int(count.amax()) * x.abs().amax()
        assert ((mean - expected).abs() <= slack).all()


each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@each_dtype
@pytest.mark.parametrize(
    ("rows", "d", "clusters"),
    # Several blocks and grids of rows, more columns than a warp takes, numbers of two digits,
    # clusters of several sections, and those that none or one belongs to.
    [(9000, 3, 2), (700, 131, 5), (5000, 1, 300), (40, 2, 70_000), (1, 1, 1), (0, 3, 2), (3, 0, 2)],
    ids=str,
)
def test_means_and_counts_are_those_of_the_reference(program, tmp_path, dtype, rows, d, clusters):
    check(program, tmp_path, *problem(rows, d, clusters, dtype), clusters)


def test_rows_are_in_no_cluster_where_there_is_none(program, tmp_path):
    mean, count = means(program, tmp_path, torch.ones(5, 2), torch.full((5,), -1), 3)
    assert torch.equal(mean, torch.zeros(3, 2))
    assert count.tolist() == [0, 0, 0]
    mean, _ = means(program, tmp_path, torch.ones(5, 2), torch.full((5,), -1), 0)
    assert mean.shape == (0, 2)


def test_clusters_that_there_are_not_are_none(program, tmp_path):
    index = torch.tensor([0, 2, 2**40, -(2**40), 1, 1])
    mean, count = means(program, tmp_path, torch.arange(6.0)[:, None], index, 2)
    assert count.tolist() == [1, 2]
    assert mean[:, 0].tolist() == [0.0, 4.5]


def test_a_row_that_is_not_finite_spoils_its_own_cluster_alone(program, tmp_path):
    x = torch.tensor([[1.0], [math.nan], [3.0], [math.inf]])
    mean, _ = means(program, tmp_path, x, torch.tensor([0, -1, 0, 1]), 2)
    assert mean.tolist() == [[2.0], [math.inf]]


def test_rows_of_a_section_are_added_in_ascending_order(program, tmp_path):
    # In another order the small ones would be lost, or the large ones not cancel.
    x = torch.tensor([1e20, -1e20, 1.0, 1.0, 1e20, 1.0, -1e20], dtype=torch.float64)
    index = torch.tensor([1, 1, 1, 1, 0, 0, 0])
    mean, _ = means(program, tmp_path, x[:, None], index, 2)
    assert mean[:, 0].tolist() == [0.0, 0.5]
