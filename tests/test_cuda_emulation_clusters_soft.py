"""Soft assignment and its gradients by the CUDA kernels' own source, run on the CPU."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import emulation
import numpy as np
import pytest
import torch
from contrast_sums_emulation import GRAD_STRIDE, Case, check_rows, row_errors
from emulation import METRICS
from pairwise_emulation import decode
from torch import Tensor

from dmlfast.reference import clusters_soft as reference

pytestmark = emulation.needs_compiler


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    return emulation.build("clusters_soft", tmp_path_factory.getbasetemp())


class Soft(NamedTuple):
    minimum: Tensor
    mean: Tensor
    mass: Tensor
    to_x: Tensor
    to_centers: Tensor


def run(program: Path, folder: Path, case: Case, temperature: float) -> Soft:
    """What the kernels make of the anchors as rows and the references as centres."""
    rows, centers, dimensions = len(case.x), len(case.y), case.dimensions
    header = [rows, centers, dimensions, METRICS.index(case.metric), case.fast]
    parts = [
        np.array([*header, case.wanted_items, GRAD_STRIDE], dtype=np.int64),
        np.array([temperature]),
    ]
    for values, labels in ((case.x, case.labels), (case.y, case.y_labels)):
        parts += [values.numpy(), labels.numpy(), labels.argsort(stable=True).numpy()]
    for grad in case.grads:
        spaced = torch.full((rows, GRAD_STRIDE), math.nan, dtype=torch.float64)
        spaced[:, 0] = grad
        parts += [spaced.numpy()]
    content = emulation.run(program, folder, b"".join(part.tobytes() for part in parts))
    by_row = (np.float64, (rows,))
    shapes = (np.float32, (rows, dimensions)), (np.float32, (centers, dimensions))
    return Soft(*decode(content, *[by_row] * 3, *shapes))


def expect(case: Case, temperature: float) -> Soft:
    """The same by the reference in float64."""
    arguments = case.x.double(), case.labels, case.y.double(), case.y_labels
    options = {"metric": case.metric, "temperature": temperature}
    grads = [grad.double() for grad in case.grads]
    return Soft(
        *reference.soft(*arguments, **options),
        *reference.soft_backward(*grads, *arguments, **options),
    )


class Errors(NamedTuple):
    """How far the results of a row may be off, and those derivatives by the distances."""

    minimum: Tensor
    mean: Tensor
    mass: Tensor
    weight: Tensor  # the absolute derivatives themselves
    of_weight: Tensor


def errors(case: Case, expected: Soft, temperature: float) -> Errors:
    counts = case.partners()[0]
    finite = expected.minimum.isfinite()
    minimum = torch.where(finite, expected.minimum, 0)[:, None]
    mean = torch.where(finite, expected.mean, 0)[:, None]
    distance = torch.where(counts, case.distance, minimum)
    error = torch.where(counts, case.distance_errors(), 0)
    greatest = error.amax(1, keepdim=True) if len(case.y) else error.sum(1, keepdim=True)
    exponent = (distance - minimum).abs() / temperature
    share = torch.where(counts, torch.exp((minimum - distance) / temperature), 0)
    # Exponents are off by those of the distance and of the minimum, and by some roundings of
    # themselves; powers are good to a few 2^-23, and 32 of a tile are added in float32.
    rounding = 2**-21 + 36 * 2**-24 + 2**-22 * exponent
    of_share = torch.expm1((error + greatest) / temperature + rounding)
    spread = share * (distance - mean).abs()
    excess = (share * (distance - minimum).abs()).sum(1)
    of_minimum = greatest[:, 0] + temperature * (share * rounding).sum(1)
    of_mean = (share * error + of_share * spread).sum(1) + 40 * 2**-24 * (excess + temperature)

    to_minimum, to_mean = (grad.double()[:, None] for grad in case.grads)
    slope = to_minimum + to_mean * (1 - (distance - mean) / temperature)
    of_slope = to_mean.abs() * (
        (error + of_mean[:, None]) / temperature + 2**-21 * (1 + exponent)
    ) + 2**-22 * (to_minimum.abs() + slope.abs())
    of_weight = share * (of_share * slope.abs() + (1 + of_share) * of_slope)
    of_mass = expected.mass * (share * of_share).sum(1)
    return Errors(of_minimum, of_mean, of_mass, share * slope.abs(), of_weight)


def check_values(actual: Tensor, expected: Tensor, error: Tensor) -> None:
    finite = expected.isfinite()
    assert torch.equal(actual[~finite].nan_to_num(1.0), expected[~finite].nan_to_num(1.0))
    wrong = finite & ~((actual - expected).abs() <= error)
    assert not wrong.any(), f"{wrong.nonzero()[:, 0]}: {actual[wrong]}, not {expected[wrong]}"


def check(program: Path, folder: Path, case: Case, temperature: float) -> None:
    actual, expected = run(program, folder, case, temperature), expect(case, temperature)
    allowed = errors(case, expected, temperature)
    check_values(actual.minimum, expected.minimum, allowed.minimum)
    check_values(actual.mean, expected.mean, allowed.mean)
    check_values(actual.mass, expected.mass, allowed.mass)
    by_x, by_centers = row_errors(case, allowed.weight, allowed.of_weight)
    check_rows(actual.to_x, expected.to_x, by_x)
    check_rows(actual.to_centers, expected.to_centers, by_centers)


each_metric = pytest.mark.parametrize("metric", METRICS)
each_precision = pytest.mark.parametrize("fast", [False, True], ids=["split", "half"])


@each_metric
@each_precision
@pytest.mark.parametrize("classes", [1, 4])
def test_minimum_mean_and_gradients_are_those_of_the_reference(
    program, tmp_path, metric, fast, classes
):
    check(program, tmp_path, Case(40, 30, classes=classes, metric=metric, fast=fast), 0.3)


# Around a tile of 128 rows or centres; of fewer dimensions than a slab's 64, and of more than the
# 128 of a gradient that a block computes at a time.
@pytest.mark.parametrize("shape", [(1, 1, 1), (129, 9, 17), (9, 129, 130)])
def test_rows_and_centres_may_have_any_shape(program, tmp_path, shape):
    check(program, tmp_path, Case(*shape), 0.5)


# More than a tile of them, in parts and at once.
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("wanted_items", [1, 6])
def test_centres_may_be_in_parts(program, tmp_path, classes, wanted_items):
    case = Case(20, 300, classes=classes, metric="sqeuclidean", wanted_items=wanted_items)
    check(program, tmp_path, case, 0.7)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_without_pairs_there_is_no_distance_and_gradients_are_0(program, tmp_path, shape):
    found = run(program, tmp_path, Case(*shape), 1.0)
    assert found.minimum.isposinf().all()
    assert found.mean.isposinf().all()
    assert (found.to_x == 0).all()
    assert (found.to_centers == 0).all()


@each_precision
def test_a_class_may_have_no_centre_that_counts(program, tmp_path, fast):
    case = Case(140, 20, fast=fast)
    case.labels[::3] = 99
    case.y_labels[::7] = -99
    case.y[case.y_labels == 2] = math.nan
    case.measure()
    expected = expect(case, 0.4)
    lost = (case.labels == 99) | (case.labels == 2)
    assert not expected.minimum[lost].isfinite().any()
    check(program, tmp_path, case, 0.4)


# --- the ends of the range ------------------------------------------------------------------------


# Under the dot product what elements round off, 2^-38 of the greatest, counts.
@pytest.mark.parametrize(
    ("metric", "length"), [("euclidean", 1e38), ("sqeuclidean", 1e38), ("dot", 1e5)]
)
def test_a_centre_far_away_has_no_share_and_spoils_none(program, tmp_path, metric, length):
    case = Case(40, 30, 6, classes=1, metric=metric, clean=True)
    case.x.abs_()
    case.y[4] = -length
    found, expected = run(program, tmp_path, case, 1.0), expect(case, 1.0)
    assert (found.to_centers[4] == 0).all()
    for result, right in zip(found, expected, strict=True):
        assert (result - right).norm() <= 1e-5 * right.norm()


@each_metric
@each_precision
@pytest.mark.parametrize("temperature", [1e20, 1e40, 1e300])
def test_towards_an_infinite_temperature_all_centres_count_alike(
    program, tmp_path, metric, fast, temperature
):
    check(program, tmp_path, Case(40, 30, metric=metric, fast=fast), temperature)


@each_precision
@pytest.mark.parametrize("temperature", [1e-2, 1e-5, 1e-8, 1e-16, 1e-30])
def test_equal_centres_share_evenly_at_any_temperature(program, tmp_path, temperature, fast):
    case = Case(50, 3, classes=1, metric="sqeuclidean", clean=True, fast=fast)
    case.y[:] = case.y[0]
    case.grads[1][:] = 0
    found = run(program, tmp_path, case, temperature)
    difference = (case.x - case.y[0]).double()
    grad = case.grads[0].double()[:, None]
    # Distances that are equal have exact shares, but for some roundings, whatever they are.
    relative = 2 * 2**-11 if fast else 2**-18
    to_x = 2 * grad * difference
    assert ((found.to_x - to_x).norm(dim=1) <= relative * grad[:, 0].abs() * 10).all()
    to_center = -to_x.sum(0) / 3
    error = relative * 10 * grad.abs().sum() / 3
    assert ((found.to_centers - to_center).norm(dim=1) <= error).all()


def check_nearest(program: Path, folder: Path, case: Case, least_known: int) -> None:
    """At a temperature next to 0 each row has its nearest centre, where that is known."""
    nearest = case.distance.argmin(1)
    gap = case.distance.sort(1).values[:, :2].diff(dim=1)[:, 0]
    known = gap > 2 * case.distance_errors().amax(1)
    assert known.sum() >= least_known
    case.grads[0][~known] = 0
    case.grads[1][:] = 0
    found = run(program, folder, case, 1e-30)
    share = torch.nn.functional.one_hot(nearest, len(case.y)).double()
    weight = share * case.grads[0].double()[:, None]
    by_x, by_centers = row_errors(case, weight.abs(), torch.zeros_like(weight))
    check_rows(found.to_x, -weight @ case.y.double(), by_x)
    check_rows(found.to_centers, -weight.T @ case.x.double(), by_centers)


@each_precision
def test_towards_temperature_0_every_row_belongs_to_its_nearest_centre(program, tmp_path, fast):
    case = Case(90, 40, 6, classes=1, metric="dot", clean=True, fast=fast)
    case.y[5] *= 2  # else equal to another
    case.measure()
    check_nearest(program, tmp_path, case, 80)


# The gradient of a centre comes from products with rows and columns exchanged. If these were
# rounded otherwise, centres would lose rows, most often where the high halves' products cancel.
def test_exchanged_products_are_rounded_as_those_of_the_sums(program, tmp_path):
    case = Case(100, 40, 6, classes=1, metric="dot", clean=True)
    for rows, sign in ((case.x, 1), (case.y, -1)):
        rows[:, 1::2] = sign * rows[:, ::2] * (1 + 2**-13 * rows[:, 1::2])
    case.measure()
    check_nearest(program, tmp_path, case, 50)
