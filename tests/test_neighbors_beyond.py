"""Selections beyond a threshold: semi-hard negatives and least distances, on CPU."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from operator_cases import DTYPES, assert_same_bits, each_backend, each_metric
from oracle import make
from torch import Tensor

import dmlfast.functional as F
from dmlfast import use_backend


@each_metric
@each_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_distance_handed_in_as_it_is_selects_the_next_one_and_none_twice(metric, backend, dtype):
    x, labels = make("collapsed", 60, 3, 4, dtype=dtype)
    with use_backend(backend):
        hardest = F.hardest_negative(x, labels, metric=metric)
        beyond = hardest.distance
        ascending = [beyond]
        for _ in range(60):
            beyond = F.semihard_negative(x, labels, beyond=beyond, metric=metric).distance
            ascending.append(beyond)
    value = oracle.values(x, x, metric)
    returned = torch.from_numpy(oracle.distances(value, metric, dtype))
    for i, sequence in enumerate(torch.stack(ascending, 1)):
        expected = returned[i][labels != labels[i]].unique()
        assert sequence[: len(expected)].tolist() == expected.tolist()
        assert sequence[len(expected) :].isinf().all()


@each_metric
@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_boundary_of_beyond_is_one_unit_in_the_last_place(metric, backend, dtype):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(50, 4, generator=generator, dtype=dtype)
    references = torch.randn(50, 4, generator=generator, dtype=dtype)
    labels, others = torch.zeros(50, dtype=torch.int64), torch.arange(50) + 1

    def select(beyond: Tensor) -> Tensor:
        return F.semihard_negative(x, labels, references, others, beyond=beyond, metric=metric)[1]

    with use_backend(backend):
        found = F.hardest_negative(x, labels, references, others, metric=metric)
        just_below = torch.nextafter(found.distance, torch.tensor(-math.inf, dtype=dtype))
        assert torch.equal(select(just_below), found.index)
        assert not (select(found.distance) == found.index).any()


@each_backend
def test_a_float32_distance_is_compared_after_rounding(backend):
    # The value of the only negative is above 1; its distance in float32 is 1.
    x, labels = torch.tensor([[0.0, 0.0]]), torch.tensor([0])
    references, others = torch.tensor([[1.0, 2.0**-14]]), torch.tensor([1])
    with use_backend(backend):
        beyond = F.hardest_negative(x, labels, references, others).distance
        assert beyond.tolist() == [1.0]
        assert F.semihard_negative(x, labels, references, others, beyond=beyond).index == -1


@each_metric
@each_backend
@pytest.mark.parametrize("beyond", [math.inf, math.nan])
def test_nothing_is_beyond_infinity_or_nan(metric, backend, beyond):
    x, labels = make("random", 12, 3, 3)
    with use_backend(backend):
        found = F.semihard_negative(x, labels, beyond=torch.full((12,), beyond), metric=metric)
    assert (found.index == -1).all()
    assert found.distance.isinf().all()


@each_metric
@each_backend
def test_everything_is_beyond_minus_infinity(metric, backend):
    x, labels = make("random", 12, 3, 3)
    with use_backend(backend):
        found = F.semihard_negative(x, labels, beyond=torch.full((12,), -math.inf), metric=metric)
        assert_same_bits(found, F.hardest_negative(x, labels, metric=metric))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float8_e5m2], ids=str)
def test_beyond_may_have_any_floating_dtype(dtype):
    x, labels = make("random", 30, 3, 3)
    found = F.semihard_negative(x, labels, beyond=torch.full((30,), 1.5).to(dtype))
    assert_same_bits(found, F.semihard_negative(x, labels, beyond=torch.full((30,), 1.5)))


@each_backend
@pytest.mark.parametrize(("metric", "beyond"), [("euclidean", 3.0), ("dot", 3.0), ("cosine", 1.7)])
def test_missing_hardest_falls_back_to_the_nearest_negative(backend, metric, beyond):
    x, labels = make("random", 40, 3, 3)
    threshold = {"beyond": torch.full((40,), beyond), "metric": metric}
    with use_backend(backend):
        dropped = F.semihard_negative(x, labels, **threshold)
        filled = F.semihard_negative(x, labels, **threshold, missing="hardest")
        hardest = F.hardest_negative(x, labels, metric=metric)
    none = dropped.index < 0
    assert 0 < none.sum() < 40
    assert torch.equal(filled.index, torch.where(none, hardest.index, dropped.index))
    assert torch.equal(filled.distance, torch.where(none, hardest.distance, dropped.distance))


@each_backend
def test_missing_hardest_finds_a_negative_whose_distance_overflows(backend):
    # <x, y> = 1e40 is -inf as a float32 distance, and still the nearest.
    x, labels = torch.tensor([[1e20], [1e20]]), torch.tensor([0, 1])
    with use_backend(backend):
        found = F.semihard_negative(
            x, labels, beyond=torch.zeros(2), metric="dot", missing="hardest"
        )
        assert_same_bits(found, F.hardest_negative(x, labels, metric="dot"))


def test_missing_hardest_finds_nothing_without_negatives():
    found = F.semihard_negative(
        torch.eye(3), torch.zeros(3, dtype=torch.int64), beyond=torch.zeros(3), missing="hardest"
    )
    assert found.index.tolist() == [-1] * 3


@each_backend
def test_min_distance_passes_over_exact_duplicates(backend):
    x = torch.tensor([[0.0], [0.0], [1.0], [3.0]])
    labels = torch.zeros(4, dtype=torch.int64)
    with use_backend(backend):
        assert F.nearest_positive(x, labels).index.tolist() == [1, 0, 0, 2]
        assert F.nearest_positive(x, labels, min_distance=0.0).index.tolist() == [2, 2, 0, 2]
        assert F.nearest_positive(x, labels, min_distance=1).index.tolist() == [3, 3, 3, 2]
        assert F.nearest_positive(x, labels, min_distance=3.0).index.tolist() == [-1] * 4


def test_no_gradient_flows_to_beyond():
    x, labels = make("random", 10, 3, 2)
    beyond = torch.zeros(10, requires_grad=True)
    assert not F.semihard_negative(x, labels, beyond=beyond).distance.requires_grad
