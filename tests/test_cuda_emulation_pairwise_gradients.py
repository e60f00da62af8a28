"""The CUDA kernels of the gradients of distances and of their moments, run on the CPU."""

from __future__ import annotations

import math

import emulation
import numpy as np
import pytest
import torch
from pairwise_emulation import (
    EPSILON,
    ROUNDING,
    Case,
    decode,
    each_form,
    each_metric,
    each_precision,
    near_pairs,
    packed_rows,
    rows,
    spoil,
    tolerances,
    true_distances,
)
from torch import Tensor

from dmlfast.reference import pairwise as reference

pytestmark = emulation.needs_compiler


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    return emulation.build("pairwise", tmp_path_factory.getbasetemp())


# A weight is rounded as a row is, and so is the row; a tile sums 64 times (exact, thrice) in
# float32, and the weights alone 32 times; 8 roundings of what a weight is computed from.
WEIGHTED = {name: 1.01 * 2 * ROUNDING[name] + 3 * 72 * EPSILON for name in ROUNDING}
ALONE = 48 * EPSILON


def gradient_tolerances(
    case: Case, distance: Tensor, derivative: Tensor, error: Tensor
) -> tuple[Tensor, Tensor]:
    """Bounds of the errors of both gradients.

    Args:
        case: the rows.
        distance: (N, M) float64.
        derivative: (N, M) of the loss by the distance; within a batch of both roles together.
        error: (N, M) bound of the error of the derivative.
    """
    x, y = packed_rows(case)
    # 1 for a row that is not finite, which has no weights.
    lengths = [r.double().norm(dim=1).nan_to_num(1.0) for r in (case.x, case.others)]
    exists = distance.isfinite()
    factor = torch.ones_like(distance)
    if case.metric == "euclidean":
        exists = exists & (distance > 0)
        factor = 1 / torch.where(exists, distance, 1.0)
    elif case.metric == "sqeuclidean":
        factor = 2 * factor
    weight = torch.where(exists, derivative.abs() * factor, 0.0)
    error = torch.where(exists, error * factor, 0.0)
    near = near_pairs(case, distance)
    far = torch.where(near, 0.0, weight)
    difference = (x[:, None] - y[None]).abs()
    if case.metric == "dot":
        difference_x, difference_y = y.abs()[None], x.abs()[:, None]
    else:
        difference_x = difference_y = difference
    close = (torch.where(near, 16 * EPSILON * weight, 0.0) + error)[..., None]
    to_x = WEIGHTED[case.precision] * (far @ y.abs()) + (close * difference_x).sum(1)
    to_y = WEIGHTED[case.precision] * (far.T @ x.abs()) + (close * difference_y).sum(0)
    if case.metric == "cosine":
        # The part along the row is subtracted, and all is divided by the row's length.
        along = (WEIGHTED[case.precision] * far + error).sum(1)[:, None] * x.abs()
        to_x = (to_x + along) / lengths[0].clamp(min=1e-30)[:, None]
        along = (WEIGHTED[case.precision] * far + error).sum(0)[:, None] * y.abs()
        to_y = (to_y + along) / lengths[1].clamp(min=1e-30)[:, None]
    elif case.metric != "dot":
        to_x = to_x + ALONE * far.sum(1)[:, None] * x.abs()
        to_y = to_y + ALONE * far.sum(0)[:, None] * y.abs()
    return to_x, to_y


def check_gradients(
    actual: list[Tensor], expected: tuple[Tensor, Tensor], tolerance: tuple[Tensor, Tensor]
) -> None:
    for a, e, t in zip(actual, expected, tolerance, strict=True):
        if e.shape[0] == 0:
            continue
        assert torch.equal(a.isnan(), e.isnan())
        assert ((a - e).abs() <= t + 2 * EPSILON * e.abs()).logical_or(e.isnan()).all()


def gradients(program, folder, case: Case, operator: str, *arrays: Tensor) -> list[Tensor]:
    content = case.encode(operator) + b"".join(a.contiguous().numpy().tobytes() for a in arrays)
    shapes = tuple(case.x.shape), (0 if case.references is None else len(case.others), -1)
    results = decode(
        emulation.run(program, folder, content),
        (np.float32, shapes[0]),
        (np.float32, (shapes[1][0], case.x.shape[1])),
    )
    return [result.double() for result in results]


def check_distance_gradients(program, folder, case: Case, grad: Tensor) -> None:
    distance = reference.distance(case.x, case.references, metric=case.metric)
    actual = gradients(program, folder, case, "distance_backward", grad.T, distance)
    distance, grad = distance.double(), grad.double()
    x, y = case.doubles()
    expected = reference.distance_backward(grad, distance, x, y, metric=case.metric)
    derivative = grad + grad.T if case.references is None else grad
    tolerance = gradient_tolerances(case, distance, derivative, torch.zeros_like(grad))
    check_gradients(actual, expected, tolerance)


def upstream(case: Case) -> Tensor:
    """(N, M) upstream gradients, a third of them 0."""
    generator = torch.Generator().manual_seed(3)
    grad = torch.randn(len(case.x), len(case.others), generator=generator)
    return torch.where(torch.rand(grad.shape, generator=generator) < 1 / 3, 0.0, grad)


@each_metric
# Of one row and dimension, over several tiles, and over several chunks of 128 dimensions.
@pytest.mark.parametrize(
    ("precision", "shape"),
    [("exact", (1, 1, 1)), ("fast", (130, 17, 17)), ("exact", (9, 20, 130))],
)
def test_gradients_of_distances_are_those_of_the_reference(
    program, tmp_path, metric, precision, shape
):
    anchors, references, dimensions = shape
    x, y = rows(anchors, dimensions), rows(references, dimensions, seed=1)
    if anchors > 1:
        x[6], x[7], x[8] = y[6], y[7] + 1e-4, 0
    case = Case(x, y, metric=metric, precision=precision)
    check_distance_gradients(program, tmp_path, case, upstream(case))


@each_metric
# In several parts, and in one.
@pytest.mark.parametrize(("precision", "wanted_items"), [("fast", 0), ("exact", 1)])
def test_gradients_of_a_batch_add_both_roles(program, tmp_path, metric, precision, wanted_items):
    x = rows(131, 17)
    x[3], x[4] = x[130], x[2] * (1 + 1e-5)
    case = Case(x, metric=metric, precision=precision, wanted_items=wanted_items)
    check_distance_gradients(program, tmp_path, case, upstream(case))


@each_metric
@each_form
def test_a_pair_of_nan_gives_nan_to_both_rows_unless_unused(program, tmp_path, metric, form):
    x, y = spoil(rows(20, 5)), spoil(rows(30, 5, seed=1))
    case = Case(x, None if form == "batch" else y, metric=metric)
    for grad in (upstream(case), torch.zeros(len(x), len(case.others))):
        # Some pairs of rows that are not finite, not all of them.
        grad[:, 5] *= torch.arange(len(x)) % 2
        check_distance_gradients(program, tmp_path, case, grad)


@pytest.mark.parametrize(("factor", "scale"), [(1e-30, 1e10), (1e37, 1e-3)])
@each_precision
def test_gradients_of_tiny_and_huge_distances_leave_no_range(
    program, tmp_path, precision, factor, scale
):
    case = Case(rows(20, 8) * factor, precision=precision)
    check_distance_gradients(program, tmp_path, case, upstream(case) * scale)


def test_gradients_of_no_pairs_are_0(program, tmp_path):
    for case in (Case(rows(3, 2), rows(0, 2)), Case(rows(0, 2), rows(3, 2))):
        grad = torch.zeros(len(case.x), len(case.others))
        for result in gradients(program, tmp_path, case, "distance_backward", grad, grad):
            assert (result == 0).all()


def check_moment_gradients(
    program, folder, case: Case, centre: float, first: Tensor, second: Tensor
) -> None:
    own = [] if case.self_index is None else [case.self_index]
    middle = torch.tensor([centre], dtype=torch.float64)
    grads = torch.stack([first, second], 1)
    actual = gradients(program, folder, case, "moments_backward", *own, middle, grads)
    expected = reference.moments_backward(
        first, second, *case.doubles(), case.self_index, middle, metric=case.metric
    )
    distance = true_distances(case)
    to_first, to_second = first[:, None], second[:, None]
    if case.references is None:
        to_first, to_second = to_first + first[None], to_second + second[None]
    offset = distance - centre
    derivative = to_first + 2 * to_second * offset
    error = tolerances(case, distance)
    of_derivative = 2 * to_second.abs() * (error + 2 * EPSILON * (offset.abs() + abs(centre)))
    if case.metric == "euclidean":
        of_derivative = of_derivative + derivative.abs() * error / distance.clamp(min=1e-40)
    of_derivative = of_derivative + 8 * EPSILON * (to_first.abs() + derivative.abs())
    derivative, of_derivative = (
        torch.where(case.is_self(), 0.0, part) for part in (derivative, of_derivative)
    )
    check_gradients(
        actual, expected, gradient_tolerances(case, distance, derivative, of_derivative)
    )


def moment_upstream(anchors: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    first, second = torch.randn(2, anchors, dtype=torch.float64, generator=generator)
    # An anchor in five is not used.
    used = torch.arange(anchors) % 5 != 0
    return first * used, second * used


def test_gradients_of_moments_of_no_pairs_are_0(program, tmp_path):
    for case in (Case(rows(3, 2), rows(0, 2)), Case(rows(0, 2), rows(3, 2))):
        check_moment_gradients(program, tmp_path, case, 1.0, *moment_upstream(len(case.x)))


@each_metric
@each_precision
def test_gradients_of_moments_of_a_batch(program, tmp_path, metric, precision):
    x = rows(150, 17)
    x[4] = x[2] * (1 + 1e-5)
    case = Case(x, metric=metric, precision=precision)
    check_moment_gradients(program, tmp_path, case, 0.75, *moment_upstream(150))


@each_metric
def test_gradients_of_moments_leave_self_out(program, tmp_path, metric):
    x, y = rows(140, 17), rows(15, 17, seed=1)
    # Shared selves, none, and 15 and -1, which are no reference.
    own = torch.arange(140) // 2 * 3 % 17 - 1
    case = Case(x, y, metric=metric, self_index=own)
    check_moment_gradients(program, tmp_path, case, 1.5, *moment_upstream(140))


@pytest.mark.parametrize("lost", [(7,), (10, 11)])
@each_form
# An anchor that is used, and ones that are not.
def test_gradients_of_moments_are_nan_where_a_partner_is_not_finite(program, tmp_path, form, lost):
    x = rows(20, 3)
    x[list(lost), 1] = math.inf
    own = torch.arange(20) if form == "references" else None
    case = Case(x, x.clone() if form == "references" else None, self_index=own)
    check_moment_gradients(program, tmp_path, case, 1.0, *moment_upstream(20))


@pytest.mark.parametrize("factor", [1e-30, 1e37])
def test_gradients_of_moments_of_tiny_and_huge_rows_leave_no_range(program, tmp_path, factor):
    case = Case(rows(20, 8) * factor)
    first, second = moment_upstream(20)
    check_moment_gradients(program, tmp_path, case, 4 * factor, first, second / factor)
