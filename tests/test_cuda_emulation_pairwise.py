"""The CUDA kernels of the distances and their moments, run on the CPU."""

from __future__ import annotations

import math

import emulation
import numpy as np
import pytest
import torch
from pairwise_emulation import (
    EPSILON,
    SHARED_BYTES,
    Case,
    decode,
    each_form,
    each_metric,
    each_precision,
    near_pairs,
    rows,
    spoil,
    tolerances,
    true_distances,
)
from torch import Tensor

pytestmark = emulation.needs_compiler


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    return emulation.build("pairwise", tmp_path_factory.getbasetemp())


def distances(program, folder, case: Case) -> Tensor:
    content = emulation.run(program, folder, case.encode("distance"))
    return decode(content, (np.float32, (len(case.x), len(case.others))))[0]


def check_distances(actual: Tensor, case: Case) -> None:
    expected = true_distances(case)
    assert torch.equal(actual.isnan(), expected.isnan())
    error = (actual.double() - expected).abs()
    assert (error <= tolerances(case, expected)).logical_or(expected.isnan()).all()


@each_metric
# Of one row and dimension, more rows than the tile's 128, and more references; over several slabs,
# which have 64 dimensions (exact, 32).
@pytest.mark.parametrize(
    ("precision", "shape"),
    [("exact", (1, 1, 1)), ("fast", (130, 17, 70)), ("exact", (9, 259, 35))],
)
def test_distances_are_those_of_the_reference(program, tmp_path, metric, precision, shape):
    anchors, references, dimensions = shape
    x, y = rows(anchors, dimensions), rows(references, dimensions, seed=1)
    if anchors > 1:
        x, y = spoil(x), spoil(y)
        x[6] = y[6]
        x[7] = y[7] + 1e-4
    case = Case(x, y, metric=metric, precision=precision)
    check_distances(distances(program, tmp_path, case), case)


@each_metric
def test_a_batch_is_its_own_references(program, tmp_path, metric):
    case = Case(spoil(rows(131, 17)), metric=metric)
    check_distances(distances(program, tmp_path, case), case)


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean"])
@each_precision
def test_equal_rows_have_distance_0(program, tmp_path, metric, precision):
    x = rows(20, 5)[:10].repeat(2, 1) + 1e3
    actual = distances(program, tmp_path, Case(x, metric=metric, precision=precision))
    equal = torch.arange(20)[:, None] % 10 == torch.arange(20)[None] % 10
    assert torch.equal(actual == 0, equal)


@each_precision
def test_cosine_distances_are_not_negative(program, tmp_path, precision):
    x = 5 + 1e-3 * rows(20, 8)
    assert distances(program, tmp_path, Case(x, metric="cosine", precision=precision)).min() >= 0


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 2, 0)])
def test_distances_of_nothing_are_defined(program, tmp_path, shape):
    anchors, references, dimensions = shape
    case = Case(torch.ones(anchors, dimensions), torch.ones(references, dimensions))
    assert torch.equal(distances(program, tmp_path, case), torch.zeros(anchors, references))


@pytest.mark.parametrize("factor", [1e-30, 1e15])
@each_precision
def test_distances_have_the_scale_of_their_rows(program, tmp_path, factor, precision):
    case = Case(rows(20, 5) * factor, rows(9, 5) * factor, precision=precision)
    check_distances(distances(program, tmp_path, case), case)


# Without memory for the rows of a block, and for one slab at a time.
@pytest.mark.parametrize("shared_bytes", [64 * 1024, 34 * 1024])
@each_precision
def test_little_shared_memory_gives_the_same_distances(program, tmp_path, precision, shared_bytes):
    x, y = rows(9, 100), rows(130, 100)
    plenty, little = (
        distances(program, tmp_path, Case(x, y, precision=precision, shared_bytes=number))
        for number in (SHARED_BYTES, shared_bytes)
    )
    assert torch.equal(plenty, little)


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean"])
def test_close_rows_stay_close_at_half_precision(program, tmp_path, metric):
    # On a circle, of neighbours whose squared distances, 0.004, are twice what is computed from
    # differences: four units in the last place of a half number, of which each row is off by one.
    angle = torch.arange(100) * 0.063
    case = Case(torch.stack([angle.cos(), angle.sin()], 1), metric=metric, precision="fast")
    assert not near_pairs(case, true_distances(case)).fill_diagonal_(False).any()
    check_distances(distances(program, tmp_path, case), case)


def moments(program, folder, case: Case, centre: float) -> list[Tensor]:
    own = b"" if case.self_index is None else case.self_index.numpy().tobytes()
    content = case.encode("moments") + own + np.float64(centre).tobytes()
    anchors = (len(case.x),)
    return decode(emulation.run(program, folder, content), *[(np.float64, anchors)] * 2)


def check_moments(actual: list[Tensor], case: Case, centre: float) -> None:
    distance = true_distances(case)
    error = torch.where(case.is_self(), 0.0, tolerances(case, distance))
    offset = torch.where(case.is_self(), 0.0, distance - centre)
    # The centre and each difference are rounded, and 32 of them are summed in float32.
    error = error + EPSILON * (abs(centre) + 33 * offset.abs())
    expected = offset.sum(1), offset.square().sum(1)
    tolerance = error.sum(1), (2 * error * offset.abs() + error.square()).sum(1)
    for a, e, t in zip(actual, expected, tolerance, strict=True):
        assert torch.equal(a.isnan(), e.isnan())
        assert ((a - e).abs() <= t).logical_or(e.isnan()).all()


@each_metric
# In several parts, and in one.
@pytest.mark.parametrize(("precision", "wanted_items"), [("fast", 0), ("exact", 1)])
def test_moments_of_a_batch_leave_its_diagonal_out(
    program, tmp_path, metric, precision, wanted_items
):
    case = Case(rows(140, 17), metric=metric, precision=precision, wanted_items=wanted_items)
    check_moments(moments(program, tmp_path, case, 0.75), case, 0.75)


@each_metric
def test_moments_leave_self_out(program, tmp_path, metric):
    x, y = rows(130, 17), rows(150, 17, seed=1)
    # Some share a self, some have none, and 150 and -1 are no reference.
    own = torch.arange(130) // 2 * 3 % 152 - 1
    case = Case(x, y, metric=metric, self_index=own)
    check_moments(moments(program, tmp_path, case, 1.5), case, 1.5)


@pytest.mark.parametrize("lost", [(), (7,), (7, 9)])
@each_form
def test_moments_are_nan_where_a_partner_is_not_finite(program, tmp_path, form, lost):
    x = rows(20, 3)
    x[list(lost), 1] = math.inf
    y = x.clone() if form == "references" else None
    own = torch.arange(20) if form == "references" else None
    case = Case(x, y, self_index=own)
    check_moments(moments(program, tmp_path, case, 0.0), case, 0.0)


@pytest.mark.parametrize("references", [0, 1])
def test_an_anchor_without_partners_has_moments_of_0(program, tmp_path, references):
    x = rows(3, 2)
    x[2, 0] = math.nan
    case = Case(x, x[:references].clone(), self_index=torch.zeros(3, dtype=torch.int64))
    first, second = moments(program, tmp_path, case, 1.0)
    assert first.tolist() == second.tolist() == [0, 0, 0]


@pytest.mark.parametrize("factor", [1e-30, 1e37])
def test_moments_of_tiny_and_huge_rows_leave_no_range(program, tmp_path, factor):
    case = Case(rows(20, 8) * factor)
    check_moments(moments(program, tmp_path, case, 4 * factor), case, 4 * factor)
