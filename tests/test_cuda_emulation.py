"""The CUDA kernels' own source, run on the CPU under the address and undefined sanitizers."""

from __future__ import annotations

import math
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from dmlfast.reference import neighbors as reference

ROOT = Path(__file__).resolve().parents[1]
METRICS = ("euclidean", "sqeuclidean", "cosine", "dot")
UNTOUCHED = -7  # what the program fills its results with
COMPILER = shutil.which("c++")

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("emulation") / "neighbors"
    subprocess.run(
        [
            COMPILER,
            "-std=c++17",
            "-O1",
            "-g",
            "-ffp-contract=off",
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all",
            "-DDMLFAST_EMULATION",
            # So few that blocks go on to further rows.
            "-DDMLFAST_MAXIMUM_GRID=3",
            f"-I{ROOT / 'csrc'}",
            f"-I{ROOT / 'csrc' / 'cuda'}",
            str(ROOT / "tests" / "cuda_emulation" / "neighbors.cpp"),
            "-o",
            str(path),
        ],
        check=True,
    )
    return path


def make_case(anchors, references, dimensions, classes, dtype=torch.float32):
    """Anchors, labels, references and their labels, with duplicates, zeros, NaN and infinity."""
    generator = torch.Generator().manual_seed(anchors + references + dimensions)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    x = normal(anchors, dimensions)
    y = normal(references, dimensions)
    labels = torch.randint(-classes, classes, (anchors,), generator=generator)
    reference_labels = torch.randint(-classes, classes, (references,), generator=generator)
    if references > 4:
        y[3] = y[1]
        y[2] = 0
        y[4, 0] = math.nan
    if anchors > 4:
        x[1] = y[1]
        x[3, -1] = math.nan
        x[4, 0] = math.inf
    return x, labels, y, reference_labels


@dataclass
class Options:
    metric: str = "euclidean"
    same_class: bool = False
    farthest: bool = False
    self_index: torch.Tensor | None = None
    beyond: torch.Tensor | None = None
    # The upstream gradient; without one no gradient is asked for.
    grad: torch.Tensor | None = None
    # How many items of work to divide into, at least; 0 for the usual number.
    wanted_items: int = 0
    # The references are the anchors, in the same memory.
    is_batch_itself: bool = False
    # Decide only the first `counted` of these queries.
    queries: torch.Tensor | None = None
    counted: int = 0


@dataclass
class Results:
    distance: torch.Tensor
    index: torch.Tensor
    gradients: tuple[torch.Tensor, ...]  # to x and to the references


def expect(case, options):
    x, labels, y, reference_labels = case
    distance, index = reference.select(
        x,
        labels,
        y,
        reference_labels,
        options.self_index,
        options.beyond,
        metric=options.metric,
        same_class=options.same_class,
        farthest=options.farthest,
    )
    if options.grad is None:
        return Results(distance, index, ())
    gradients = reference.select_backward(options.grad, x, y, index, metric=options.metric)
    return Results(distance, index, gradients)


def run(program, folder, case, options):
    """What the kernels select, and their gradients at the reference's index; and what to expect."""
    x, labels, y, reference_labels = case
    expected = expect(case, options)
    index = expected.index
    queries = options.queries
    header = [
        *x.shape[:1],
        *y.shape,
        index.shape[1],
        x.dtype == torch.float64,
        METRICS.index(options.metric),
        options.same_class,
        options.farthest,
        options.self_index is not None,
        options.beyond is not None,
        options.wanted_items,
        -1 if queries is None else len(queries),
        options.counted,
        options.is_batch_itself,
        options.grad is not None,
    ]
    parts = [
        np.array(header, dtype=np.int64),
        x.numpy(),
        y.numpy(),
        labels.numpy(),
        labels.argsort(stable=True).numpy(),
        reference_labels.numpy(),
        reference_labels.argsort(stable=True).numpy(),
        *([] if options.self_index is None else [options.self_index.numpy()]),
        *([] if options.beyond is None else [options.beyond.double().numpy()]),
        *([] if queries is None else [queries.int().numpy()]),
    ]
    if options.grad is not None:
        slot_order = index.flatten().argsort(stable=True)
        parts += [options.grad.numpy(), index.numpy(), slot_order.numpy()]
    source, target = folder / "case", folder / "result"
    source.write_bytes(b"".join(part.tobytes() for part in parts))
    subprocess.run([program, source, target], check=True)
    content = target.read_bytes()
    kind = np.float64 if x.dtype == torch.float64 else np.float32
    offset, results = 0, []
    gradients = ((g, kind) for g in expected.gradients)
    for shape, of in ((index, kind), (index, np.int64), *gradients):
        array = np.frombuffer(content, of, shape.numel(), offset).reshape(shape.shape)
        offset += array.nbytes
        results.append(torch.from_numpy(array.copy()))
    return Results(results[0], results[1], tuple(results[2:])), expected


def check(results, expected):
    assert torch.equal(results.index, expected.index)
    # A value that no distance has stands for NaN.
    assert torch.equal(results.distance.nan_to_num(-9.0), expected.distance.nan_to_num(-9.0))
    # The gradients' sums run in float64 in another order: one unit in the last place of the dtype.
    tolerance = {"rtol": 4 * torch.finfo(results.distance.dtype).eps, "atol": 1e-12}
    for got, wanted in zip(results.gradients, expected.gradients, strict=True):
        torch.testing.assert_close(got, wanted, equal_nan=True, **tolerance)


def some_selves(anchors, references):
    """A reference never chosen for most anchors, -1 for some."""
    return torch.arange(anchors) % (references + 1) - 1


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
