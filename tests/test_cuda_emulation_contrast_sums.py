"""Sums over pairs and their gradients by the CUDA kernels' own source, run on the CPU."""

from __future__ import annotations

import emulation
import pytest
import torch
from contrast_sums_emulation import (
    Case,
    Side,
    check_bound_gradients,
    check_gradients,
    check_sums,
    expect,
    run,
)
from emulation import METRICS

pytestmark = emulation.needs_compiler


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    return emulation.build("contrast_sums", tmp_path_factory.getbasetemp())


SIDES = [
    Side("logsumexp", 1.5),
    Side("logsumexp", -2.0),
    Side("logsumexp", -0.5, 1.0),
    Side("hinge", 1.0, 1.0),
    Side("sum"),
    Side("softplus", 0.7, -0.5),
    Side("softplus", -1.2, 0.5),
]
NAMES = [f"{side.form} {side.scale} {side.bound}" for side in SIDES]
each_metric = pytest.mark.parametrize("metric", METRICS)
each_side = pytest.mark.parametrize("side", SIDES, ids=NAMES)
each_precision = pytest.mark.parametrize("fast", [False, True], ids=["split", "half"])


def case_of_both_sides(side: Side, metric: str, fast: bool) -> Case:
    other = SIDES[(SIDES.index(side) + 3) % len(SIDES)]
    return Case(40, metric=metric, positive=side, negative=other, fast=fast)


@each_side
@each_metric
@each_precision
def test_every_form_sums_positives_and_negatives(program, tmp_path, side, metric, fast):
    case = case_of_both_sides(side, metric, fast)
    check_sums(case, run(program, tmp_path, case), expect(case))


@each_side
@each_metric
@each_precision
def test_every_form_has_the_gradients_of_the_reference(program, tmp_path, side, metric, fast):
    case = case_of_both_sides(side, metric, fast)
    check_gradients(case, run(program, tmp_path, case), expect(case))


@each_side
def test_bounds_have_the_gradients_of_the_reference(program, tmp_path, side):
    case = case_of_both_sides(side, "euclidean", False)
    check_bound_gradients(case, run(program, tmp_path, case), expect(case))


def check_all(program, folder, case: Case) -> None:
    results, expected = run(program, folder, case), expect(case)
    check_sums(case, results, expected)
    check_gradients(case, results, expected)
    check_bound_gradients(case, results, expected)


POWERS = {"positive": Side("logsumexp", 1.5), "negative": Side("logsumexp", -2.0)}
TERMS = {"positive": Side("hinge", 1.0, 1.0), "negative": Side("softplus", -1.2, 0.5)}
each_pair_of_sides = pytest.mark.parametrize("sides", [POWERS, TERMS], ids=["powers", "terms"])


# Of one row, and around a tile of 128 rows or columns; of fewer dimensions than a slab's 64, and of
# more than the 128 columns of a gradient that a block computes at a time.
@each_pair_of_sides
@pytest.mark.parametrize("shape", [(1, 1), (129, 17), (60, 130)])
def test_a_batch_may_have_any_shape(program, tmp_path, shape, sides):
    anchors, dimensions = shape
    check_all(program, tmp_path, Case(anchors, dimensions=dimensions, **sides))


@each_pair_of_sides
@pytest.mark.parametrize(
    ("metric", "shape"),
    [
        ("euclidean", (30, 140, 5)),
        ("sqeuclidean", (9, 131, 17)),
        ("cosine", (129, 9, 70)),
        ("dot", (40, 12, 3)),
    ],
)
def test_references_are_partners_and_have_gradients(program, tmp_path, metric, shape, sides):
    anchors, references, dimensions = shape
    check_all(program, tmp_path, Case(anchors, references, dimensions, metric=metric, **sides))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (1, 1)])
def test_without_pairs_sums_are_empty_and_gradients_zero(program, tmp_path, shape):
    case = Case(*shape, **POWERS)
    check_all(program, tmp_path, case)


@each_side
def test_a_reference_may_be_the_anchor_itself(program, tmp_path, side):
    case = Case(45, 21, has_self=True, positive=side, negative=side)
    check_all(program, tmp_path, case)


@each_pair_of_sides
@pytest.mark.parametrize("shape", [(140, None), (20, 260)], ids=["batch", "references"])
def test_columns_may_be_in_parts(program, tmp_path, shape, sides):
    check_all(program, tmp_path, Case(*shape, classes=3, wanted_items=4, **sides))


# One class alone; a class for each row; classes that fill whole tiles.
@pytest.mark.parametrize("classes", [1, 2, 10**6])
def test_classes_may_have_any_size(program, tmp_path, classes):
    case = Case(130, classes=classes, positive=Side("hinge", 1.0, 1.0), negative=Side("sum"))
    check_all(program, tmp_path, case)


@pytest.mark.parametrize("form", ["hinge", "logsumexp"])
@pytest.mark.parametrize("alone", ["positive", "negative"])
def test_one_side_may_be_left_out(program, tmp_path, form, alone):
    case = Case(40, classes=9, **{alone: Side(form, -2.0, 1.0)})
    check_all(program, tmp_path, case)


@pytest.mark.parametrize("form", ["hinge", "logsumexp"])
def test_a_distance_at_the_bound_is_no_term(program, tmp_path, form):
    sides = {"positive": Side(form, 1.0, -1.0), "negative": Side(form, -1.0, -1.0)}
    case = Case(60, metric="dot", integers=True, **sides)
    assert ((case.distance == -1) & case.partners()[0]).any()
    assert ((case.distance == -1) & case.partners()[1]).any()
    check_all(program, tmp_path, case)


# Exponents in the thousands: the float32 result is off by more than the weights may be.
@pytest.mark.parametrize("references", [None, 25], ids=["batch", "references"])
def test_gradients_of_huge_results_are_those_of_their_sums(program, tmp_path, references):
    sides = {"positive": Side("logsumexp", 200.0), "negative": Side("logsumexp", -200.0)}
    case = Case(30, references, metric="dot", integers=True, **sides)
    results, expected = run(program, tmp_path, case), expect(case)
    assert (expected.sums[1].abs() > 500).any()
    scale = 2**-17 * expected.to_x.norm(dim=1).max()
    torch.testing.assert_close(results.to_x.double(), expected.to_x, rtol=0, atol=float(scale))
    torch.testing.assert_close(
        results.to_references.double(), expected.to_references, rtol=0, atol=float(scale)
    )


@each_precision
def test_rows_far_from_the_origin_keep_their_digits(program, tmp_path, fast):
    case = Case(40, offset=1000.0, fast=fast, clean=True, **POWERS)
    check_all(program, tmp_path, case)
