"""The CUDA kernels of the adaptive distance and its gradient, run on the CPU."""

from __future__ import annotations

import math

import emulation
import pytest
import torch
from pairwise_emulation import rows, spoil
from structure_emulation import (
    SHARED_BYTES,
    Case,
    check_gradients,
    distances,
    each_form,
    each_squared,
    gradient_tolerances,
    gradients,
    packed,
    tolerances,
    true_distances,
    weights,
)
from torch import Tensor

from dmlfast.reference import structure as reference

pytestmark = emulation.needs_compiler


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    return emulation.build("structure", tmp_path_factory.getbasetemp())


def check_distances(actual: Tensor, case: Case) -> None:
    expected = true_distances(case)
    assert torch.equal(actual.isnan(), expected.isnan())
    error = (actual.double() - expected).abs()
    assert (error <= tolerances(case, expected)).logical_or(expected.isnan()).all()


def upstream(case: Case) -> Tensor:
    """(N, M) upstream gradients, a third of them 0."""
    generator = torch.Generator().manual_seed(3)
    grad = torch.randn(len(case.e), len(case.others), generator=generator)
    return torch.where(torch.rand(grad.shape, generator=generator) < 1 / 3, 0.0, grad)


def check_distance_gradients(program, folder, case: Case, grad: Tensor) -> None:
    distance = reference.distance(case.e, case.w, case.references, squared=case.squared)
    actual = gradients(program, folder, case, "distance_backward", grad.T, distance)
    distance, grad = distance.double(), grad.double()
    expected = reference.distance_backward(grad, distance, *case.doubles(), squared=case.squared)
    check_gradients(actual, expected, gradient_tolerances(case, distance, grad))


def problem(anchors: int, references: int | None, dimensions: int, **options) -> Case:
    """With equal rows, near-duplicates and rows that are not finite, where there is room."""
    e, w = rows(anchors, dimensions), weights(anchors, dimensions)
    y = None if references is None else rows(references, dimensions, seed=1)
    if anchors > 8:
        e, w = spoil(e), w.clone()
        w[0, 0], w[2, -1], w[6] = -1e-30, math.inf, 0.0
    if anchors > 8 and y is not None:
        y = spoil(y)
        e[7], e[8] = y[7], y[8] + 1e-4
    return Case(e, w, y, **options)


# Of one row and dimension, more rows than the tile's 128, and more references; over several slabs,
# which have 32 of the 2 d packed dimensions.
SIZES = [(1, 1, 1), (130, 17, 40), (9, 259, 17), (131, None, 17), (10, None, 1)]


@each_squared
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_distances_are_those_of_the_reference(program, tmp_path, squared, size):
    case = problem(*size, squared=squared)
    check_distances(distances(program, tmp_path, case), case)


@each_squared
# The last over several chunks of 128 of the packed dimensions.
@pytest.mark.parametrize("size", [*SIZES, (10, 20, 100)], ids=str)
def test_gradients_are_those_of_the_reference(program, tmp_path, squared, size):
    case = problem(*size, squared=squared)
    check_distance_gradients(program, tmp_path, case, upstream(case))


def test_gradients_of_a_batch_in_one_part_are_those_of_the_reference(program, tmp_path):
    case = problem(131, None, 17, wanted_items=1)
    check_distance_gradients(program, tmp_path, case, upstream(case))


@each_squared
def test_equal_rows_have_distance_0(program, tmp_path, squared):
    e = rows(20, 5)[:10].repeat(2, 1) + 1e3
    case = Case(e, weights(20, 5), squared=squared)
    equal = torch.arange(20)[:, None] % 10 == torch.arange(20)[None] % 10
    assert torch.equal(distances(program, tmp_path, case) == 0, equal)


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 2, 0)])
def test_nothing_is_defined(program, tmp_path, shape):
    anchors, references, dimensions = shape
    sizes = (anchors, dimensions), (anchors, dimensions), (references, dimensions)
    case = Case(*(torch.ones(size) for size in sizes))
    zeros = torch.zeros(anchors, references)
    assert torch.equal(distances(program, tmp_path, case), zeros)
    for result in gradients(program, tmp_path, case, "distance_backward", zeros.T, zeros):
        assert (result == 0).all()


# Also where squares, and weights, leave the range of float32.
@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e15, 1e30])
@pytest.mark.parametrize("weight", [1e-20, 1.0, 1e15])
def test_size_and_weight_are_factors(program, tmp_path, size, weight):
    case = Case(rows(20, 5) * size, weights(20, 5) * weight, rows(9, 5) * size)
    expected = true_distances(case)
    actual = distances(program, tmp_path, case).double()
    # Below, float32 numbers have fewer digits.
    slack = tolerances(case, expected) + 2.0**-149
    held = expected < 1e37
    assert ((actual - expected).abs() <= slack)[held].all()
    assert actual[expected > 4e38].isinf().all()
    # The gradient by a weight is about size / weight**0.5, that by an element weight**0.5.
    if held.all() and size * weight**0.5 > 1e-30 and size / weight**0.5 < 1e30:
        check_distance_gradients(program, tmp_path, case, upstream(case))


@each_squared
@pytest.mark.parametrize("factor", [1e-3, 1e-5])
def test_rows_far_shorter_than_the_longest_keep_their_digits(program, tmp_path, squared, factor):
    # Their squares are beyond what halves hold beside those of the longest.
    e = rows(20, 8) * factor
    e[7] = -8.0
    e[8] = 8.0
    w = weights(20, 8)
    w[3:5] *= 1e-12
    case = Case(e, w, squared=squared)
    expected = true_distances(case)
    apart = expected > 0
    assert packed(case).near(expected if squared else expected.square())[apart].any()
    error = (distances(program, tmp_path, case).double() - expected).abs() / expected
    # What is not computed from differences loses at most 14 bits of its square.
    assert error[apart].max() <= 2.0**-14
    check_distance_gradients(program, tmp_path, case, upstream(case))


# Without memory for the rows of a block, and for one slab at a time.
@pytest.mark.parametrize("shared_bytes", [64 * 1024, 34 * 1024])
def test_little_shared_memory_gives_the_same_distances(program, tmp_path, shared_bytes):
    e, w, y = rows(9, 50), weights(9, 50), rows(130, 50)
    plenty, little = (
        distances(program, tmp_path, Case(e, w, y, shared_bytes=number))
        for number in (SHARED_BYTES, shared_bytes)
    )
    assert torch.equal(plenty, little)


@each_form
@each_squared
def test_a_pair_of_nan_gives_nan_to_both_rows_unless_unused(program, tmp_path, squared, form):
    case = problem(20, None if form == "batch" else 30, 5, squared=squared)
    for grad in (upstream(case), torch.zeros(20, len(case.others))):
        # Some pairs of rows that are lost, not all of them.
        grad[:, 5] *= torch.arange(20) % 2
        grad[0] *= torch.arange(len(case.others)) % 2
        check_distance_gradients(program, tmp_path, case, grad)
