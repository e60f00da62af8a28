"""assign_clusters: the nearest centres of each row, on CPU."""

from __future__ import annotations

import oracle
import pytest
import torch
from operator_cases import DTYPES, assert_same_bits, compile_whole, each_backend, each_metric
from oracle import DATA, make
from torch import Tensor

import dmlfast.functional as F
from dmlfast import use_backend

# Rows, centres and dimensions; sizes on both sides of a panel, and more centres than rows.
SIZES = [(0, 3, 4), (1, 1, 1), (3, 40, 5), (137, 1, 3), (137, 33, 16), (64, 16, 0)]


def problem(kind: str, n: int, clusters: int, d: int, dtype: torch.dtype = torch.float32) -> tuple:
    """Rows, their labels, centres and theirs."""
    x, labels = make(kind, n, d, 5, dtype=dtype)
    return x, labels, *make(kind, clusters, d, 5, seed=1, dtype=dtype)


def expected_of(
    x: Tensor, labels: Tensor, centers: Tensor, center_labels: Tensor, metric: str, top: int
) -> tuple[Tensor, Tensor]:
    options = {"k": top, "candidates": "positives", "metric": metric}
    return oracle.nearest(x, labels, centers, center_labels, **options)


@each_metric
@each_backend
@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("top", [1, 3])
@pytest.mark.parametrize("labelled", [False, True])
def test_finds_exactly_the_centres_that_the_oracle_finds(metric, backend, kind, top, labelled):
    x, labels, centers, center_labels = problem(kind, 300, 70, 16)
    options = {}
    if labelled:
        options = {"labels": labels, "center_labels": center_labels}
    else:
        labels, center_labels = torch.zeros(300), torch.zeros(70)
    with use_backend(backend):
        found = F.assign_clusters(x, centers, metric=metric, top=top, **options)
    distance, index = expected_of(x, labels, centers, center_labels, metric, top)
    shape = (300,) if top == 1 else (300, top)
    assert_same_bits(found, (distance.reshape(shape), index.reshape(shape)))


@each_metric
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("top", [1, 3])
@pytest.mark.parametrize("scale", [1e-16, 1e-12, 1e10, 1e12, 1e14, 1e18])
def test_is_exact_where_rows_are_much_longer_or_shorter_than_centres(metric, dtype, top, scale):
    # Of long rows the squared distances differ by less than float64 rounds them.
    x, _, centers, _ = problem("random", 300, 70, 16, dtype)
    found = F.assign_clusters(x * scale, centers, metric=metric, top=top)
    zeros = torch.zeros(300)
    distance, index = expected_of(x * scale, zeros, centers, zeros[:70], metric, top)
    shape = (300,) if top == 1 else (300, top)
    assert_same_bits(found, (distance.reshape(shape), index.reshape(shape)))


@each_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_dtype_and_awkward_sizes_are_defined(backend, dtype, size):
    x, _, centers, _ = problem("random", *size, dtype)
    with use_backend(backend):
        found = F.assign_clusters(x, centers)
    zeros = torch.zeros(max(size))
    distance, index = expected_of(x, zeros[: size[0]], centers, zeros[: size[1]], "euclidean", 1)
    assert_same_bits(found, (distance[:, 0], index[:, 0]))


@each_backend
def test_without_a_centre_of_the_class_nothing_is_found(backend):
    x = torch.tensor([[1.0], [torch.nan], [2.0]])
    with use_backend(backend):
        found = F.assign_clusters(
            x, x[2:], labels=torch.tensor([0, 0, 7]), center_labels=torch.tensor([7])
        )
    assert found.index.tolist() == [-1, -1, 0]
    assert str(found.distance.tolist()) == "[inf, nan, 0.0]"


@each_backend
def test_a_centre_that_is_not_a_number_is_never_chosen(backend):
    centers = torch.tensor([[torch.nan, 0.0], [5.0, 5.0]])
    with use_backend(backend):
        found = F.assign_clusters(torch.zeros(40, 2), centers)
    assert found.index.tolist() == [1] * 40


@each_metric
@each_backend
def test_the_gradient_is_that_of_the_chosen_distances(metric, backend):
    x, _, centers, _ = problem("random", 60, 9, 5, torch.float64)
    leaves = x.requires_grad_(), centers.requires_grad_()
    with use_backend(backend):
        found = F.assign_clusters(*leaves, metric=metric)
    weight = torch.randn(60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    actual = torch.autograd.grad((weight * found.distance).sum(), leaves)
    weights = torch.zeros(60, 9, dtype=torch.float64)
    weights.scatter_(1, found.index[:, None], weight[:, None])
    expected = oracle.triplet_gradients(weights, *leaves, metric)
    # A thousand roundings.
    for a, e in zip(actual, expected, strict=True):
        assert oracle.relative_error(a, e) < 1e-13


@each_backend
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(backend, dynamic):
    with use_backend(backend):
        compiled = compile_whole(F.assign_clusters, dynamic=dynamic)
        for n in (24, 35):
            x, _, centers, _ = problem("random", n, 7, 4)
            assert_same_bits(compiled(x, centers), F.assign_clusters(x, centers))
    torch.compiler.reset()


MISTAKES = {
    "no matrix": (ValueError, "x: expected a 2-D tensor", {"x": torch.zeros(3)}),
    "other dimensions": (ValueError, "centers: expected 4 dim", {"centers": torch.zeros(2, 3)}),
    "other dtype": (
        TypeError,
        "centers: expected torch.float32",
        {"centers": torch.ones(2, 4).double()},
    ),
    "no such metric": (ValueError, "metric: expected one of", {"metric": "manhattan"}),
    "none": (ValueError, "top: expected 1 to 1024, got 0", {"top": 0}),
    "a half": (TypeError, "top: expected an integer", {"top": 1.5}),
    "labels alone": (
        ValueError,
        "center_labels: expected labels",
        {"labels": torch.zeros(5).long()},
    ),
    "center_labels alone": (
        ValueError,
        "^labels: expected",
        {"center_labels": torch.zeros(2).long()},
    ),
    "too few labels": (
        ValueError,
        r"labels: expected shape \(5,\)",
        {"labels": torch.zeros(4).long(), "center_labels": torch.zeros(2).long()},
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_before_any_work(mistake):
    error, message, given = MISTAKES[mistake]
    arguments = {"x": torch.zeros(5, 4), "centers": torch.zeros(2, 4)} | given
    with pytest.raises(error, match=message):
        F.assign_clusters(**arguments)
