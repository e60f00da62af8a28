"""Exact selections and their gradients by the CUDA kernels' own source, run on the CPU."""

from __future__ import annotations

import math

import emulation
import pytest
import torch
from emulation import METRICS
from selection_emulation import UNTOUCHED, Options, check, make_case, run, some_selves

from dmlfast.reference import neighbors as reference

pytestmark = emulation.needs_compiler


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    return emulation.build("neighbors", tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("same_class", "farthest"), [(True, True), (False, False)])
# Of one row, around the tiles of 64 rows, and of several; of fewer dimensions than a slab's 32,
# and more; classes of one, of a few, and larger than 128 references.
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (9, 300, 3, 1), (65, 64, 17, 30), (63, 130, 70, 10)]
)
def test_selection_and_its_gradients_equal_the_reference(
    program, tmp_path, metric, same_class, farthest, shape
):
    options = Options(
        metric=metric,
        same_class=same_class,
        farthest=farthest,
        self_index=some_selves(*shape[:2]),
        grad=torch.linspace(-1, 1, shape[0])[:, None].contiguous(),
    )
    check(*run(program, tmp_path, make_case(*shape), options))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("same_class", [True, False])
def test_float64_is_compared_and_returned(program, tmp_path, metric, same_class):
    case = make_case(64, 65, 64, 5, torch.float64)
    grad = torch.linspace(-1, 1, 64, dtype=torch.float64)[:, None].contiguous()
    check(*run(program, tmp_path, case, Options(metric=metric, same_class=same_class, grad=grad)))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("same_class", [True, False])
def test_thresholds_are_strict_in_the_returned_distance(
    program, tmp_path, metric, dtype, same_class
):
    case = make_case(50, 60, 4, 3, dtype)
    x, labels, y, reference_labels = case
    options = {"metric": metric, "same_class": same_class, "farthest": False}
    nearest, _ = reference.select(x, labels, y, reference_labels, None, None, **options)
    below = torch.nextafter(nearest, torch.full_like(nearest, -math.inf))
    beyond = torch.cat([nearest, below, torch.full_like(nearest, math.inf)], 1)
    grad = torch.ones(50, 3, dtype=dtype)
    check(*run(program, tmp_path, case, Options(beyond=beyond, grad=grad, **options)))


def test_farthest_thresholds_and_selves_hold_at_once(program, tmp_path):
    case = make_case(40, 70, 5, 2)
    beyond = torch.linspace(0, 6, 80).reshape(40, 2)
    options = Options(farthest=True, beyond=beyond, self_index=some_selves(40, 70))
    check(*run(program, tmp_path, case, options))


# More candidates than the threads of an anchor sum up at once: twice, and as many as are served.
@pytest.mark.parametrize("references", [33, 64, 128])
@pytest.mark.parametrize("farthest", [True, False])
def test_a_class_is_compared_in_several_turns(program, tmp_path, references, farthest):
    x, labels, y, reference_labels = make_case(70, references, 40, 1)
    case = x, labels * 0, y, reference_labels * 0
    check(*run(program, tmp_path, case, Options(same_class=True, farthest=farthest)))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("anchors", "classes"), [(130, 20), (100, 1)])
def test_a_batch_is_compared_with_itself(program, tmp_path, metric, anchors, classes):
    x, labels, _, _ = make_case(anchors, 5, 35, classes)
    selves = torch.arange(anchors)
    options = Options(metric=metric, same_class=True, self_index=selves, is_batch_itself=True)
    check(*run(program, tmp_path, (x, labels, x, labels), options))


def test_small_and_large_classes_lie_side_by_side(program, tmp_path):
    x, _, y, _ = make_case(200, 260, 6, 1)
    # Of 70 small classes, one of 130 references, small ones again; the anchors' are as many.
    reference_labels = torch.cat([torch.arange(70), torch.full((130,), 70), torch.arange(71, 131)])
    labels = torch.cat([torch.arange(70), torch.full((70,), 70), torch.arange(71, 131)])
    mixed = torch.randperm(260, generator=torch.Generator().manual_seed(0))
    case = x, labels, y, reference_labels[mixed]
    check(*run(program, tmp_path, case, Options(same_class=True)))


@pytest.mark.parametrize("same_class", [True, False])
@pytest.mark.parametrize("wanted_items", [1, 5, 64])
def test_parts_of_the_columns_join_to_the_same(program, tmp_path, same_class, wanted_items):
    case = make_case(70, 400, 3, 1)
    options = Options(same_class=same_class, wanted_items=wanted_items)
    check(*run(program, tmp_path, case, options))


@pytest.mark.parametrize("same_class", [True, False])
@pytest.mark.parametrize("farthest", [True, False])
def test_ties_go_to_the_lowest_index(program, tmp_path, same_class, farthest):
    _, labels, _, reference_labels = make_case(65, 200, 1, 1)
    generator = torch.Generator().manual_seed(0)
    # Few different rows, spread over tiles and parts.
    x = torch.randint(0, 3, (65, 2), generator=generator).float()
    y = torch.randint(0, 3, (200, 2), generator=generator).float()
    options = Options(same_class=same_class, farthest=farthest, wanted_items=8)
    check(*run(program, tmp_path, (x, labels, y, reference_labels), options))


@pytest.mark.parametrize("same_class", [True, False])
@pytest.mark.parametrize("counted", [0, 3, 80])
def test_a_list_of_queries_is_decided_alone(program, tmp_path, same_class, counted):
    case = make_case(60, 130, 9, 2)
    beyond = torch.linspace(0, 4, 120).reshape(60, 2)
    listed = torch.randperm(120, generator=torch.Generator().manual_seed(0))[:80]
    options = Options(
        same_class=same_class, beyond=beyond, queries=listed, counted=counted, wanted_items=4
    )
    results, expected = run(program, tmp_path, case, options)
    # Queries are counted in the order of the anchors' labels.
    places = case[1].argsort(stable=True)[listed[:counted] // 2], listed[:counted] % 2
    untouched = torch.full_like(expected.distance, UNTOUCHED)
    untouched_index = torch.full_like(expected.index, UNTOUCHED)
    untouched[places] = expected.distance[places]
    untouched_index[places] = expected.index[places]
    expected.distance, expected.index = untouched, untouched_index
    check(results, expected)


@pytest.mark.parametrize("metric", METRICS)
# More slots than one warp adds, and more dimensions than it holds.
def test_gradients_of_rows_that_many_chose(program, tmp_path, metric):
    case = make_case(300, 3, 133, 1)
    grad = torch.linspace(-1, 1, 300)[:, None].contiguous()
    check(*run(program, tmp_path, case, Options(metric=metric, grad=grad)))


@pytest.mark.parametrize("same_class", [True, False])
def test_no_references_find_nothing(program, tmp_path, same_class):
    case = make_case(3, 0, 4, 2)
    results, expected = run(
        program,
        tmp_path,
        case,
        Options(metric="cosine", same_class=same_class, grad=torch.ones(3, 1)),
    )
    check(results, expected)
    assert results.index.flatten().tolist() == [-1, -1, -1]
