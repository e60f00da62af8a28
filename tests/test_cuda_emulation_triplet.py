"""Triplet losses and their gradients by the CUDA kernels' own source, run on the CPU."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import emulation
import numpy as np
import pytest
import torch
from emulation import METRICS

from dmlfast.reference import contrast as reference
from dmlfast.reference.pairs import pair_chunk

pytestmark = emulation.needs_compiler

POSITIVES = ("all", "nearest", "farthest")  # in the order of csrc/cuda/contrast_triplet.h
# What blocks may have: for slabs that stay, and for one at a time.
LARGE, SMALL = 227 * 1024, 48 * 1024

# What a product may be off, relative to the rows' lengths. Split: the bound of the kernel's own
# repairs, for the few dimensions here. Half: both rows and, in a gradient, the weights are rounded
# to 2^-11 of their elements; sums in float32 add less.
SPLIT, HALF = 2.0**-17, 2.0**-9


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    return emulation.build("contrast_triplet", tmp_path_factory.getbasetemp())


@dataclass
class Case:
    x: torch.Tensor
    labels: torch.Tensor
    references: torch.Tensor | None = None  # None: the batch, without self
    reference_labels: torch.Tensor | None = None
    self_index: torch.Tensor | None = None
    metric: str = "euclidean"
    positives: str = "all"
    margin: float = 0.3
    fast: bool = False
    upstream: torch.Tensor | None = None  # without one no gradient is asked for
    # 0 for the usual numbers.
    most_bounds: int = 0
    wanted_items: int = 0
    shared: int = LARGE

    def partners(self):
        if self.references is None:
            return self.x, self.labels, torch.arange(len(self.x))
        return self.references, self.reference_labels, self.self_index

    def options(self):
        options = {"metric": self.metric, "positives": self.positives, "negatives": "all"}
        return {**options, "margin": self.margin}


@dataclass
class Results:
    loss: torch.Tensor
    active: torch.Tensor
    gradients: tuple[torch.Tensor, ...]  # to x and to the references


def make_case(anchors, references, dimensions, classes, **options):
    """Random rows, with a duplicate, zeros and rows that are not finite where there are many."""
    generator = torch.Generator().manual_seed(anchors + 7 * references + dimensions)
    x = torch.randn(anchors, dimensions, generator=generator)
    labels = torch.randint(-classes, classes, (anchors,), generator=generator)
    if anchors > 4:
        x[1] = x[0]
        x[3, -1] = math.nan
    case = Case(x, labels, upstream=torch.linspace(-1, 1, anchors), **options)
    if references == 0:
        return case
    y = torch.randn(references, dimensions, generator=generator)
    if references > 4:
        y[1] = x[0]
        y[2] = 0
        y[4, 0] = math.nan
    case.references = y
    case.reference_labels = torch.randint(-classes, classes, (references,), generator=generator)
    # A reference that is no partner for most anchors, none for some; often of another class.
    case.self_index = torch.arange(anchors) % (references + 1) - 1
    return case


def run(program, folder, case):
    y, y_labels, selves = case.partners()
    n, m, d = len(case.x), len(y), case.x.shape[1]
    header = [
        *(n, m, d),
        METRICS.index(case.metric),
        POSITIVES.index(case.positives),
        selves is not None,
        case.fast,
        case.references is None,
        case.upstream is not None,
        *(case.most_bounds, case.wanted_items, case.shared),
    ]
    parts = [
        np.array(header, dtype=np.int64),
        np.array([case.margin]),
        case.x.numpy(),
        y.numpy(),
        case.labels.numpy(),
        case.labels.argsort(stable=True).numpy(),
        y_labels.numpy(),
        y_labels.argsort(stable=True).numpy(),
        *([] if selves is None else [selves.numpy()]),
    ]
    if case.upstream is not None:
        # The program reads every other one.
        parts.append(torch.stack([case.upstream, torch.full((n,), 7.0)], 1).contiguous().numpy())
    content = emulation.run(program, folder, b"".join(part.tobytes() for part in parts))
    shapes = [((n,), np.float32), ((n,), np.int64)]
    if case.upstream is not None:
        shapes += [((n, d), np.float32), ((m, d), np.float32)]
    arrays, offset = [], 0
    for shape, kind in shapes:
        array = np.frombuffer(content, kind, math.prod(shape), offset)
        offset += array.nbytes
        arrays.append(torch.from_numpy(array.copy()).reshape(shape))
    assert offset == len(content)
    return Results(arrays[0], arrays[1], tuple(arrays[2:]))


def expect(case):
    y, y_labels, selves = case.partners()
    arguments = case.x, case.labels, y, y_labels, selves
    loss, active = reference.triplet(*arguments, **case.options())
    if case.upstream is None:
        return Results(loss, active, ())
    return Results(
        loss, active, reference.triplet_backward(case.upstream, *arguments, **case.options())
    )


def error_of_distances(case, precision):
    """(N, M) bounds of what distances may be off, by the lengths of the rows as they are packed."""
    y = case.partners()[0].double()
    x, y = (rows.nan_to_num(0.0, 0.0, 0.0) for rows in (case.x.double(), y))
    if y.numel() == 0:
        return torch.zeros(len(x), len(y))
    if case.metric == "cosine":
        return torch.full((len(x), len(y)), 2 * precision, dtype=torch.float64)
    if case.metric != "dot":
        centre = y.mean(0)
        x, y = x - centre, y - centre
    lengths = x.norm(dim=1)[:, None] + y.norm(dim=1)[None]
    errors = precision * lengths.square()
    if case.metric == "euclidean":
        # Distances below are computed directly.
        errors = errors / torch.cdist(x, y).clamp(min=0.03 * lengths.max())
    return errors


def check(program, folder, case):
    """Holds the kernels' results against the reference's; returns them."""
    results, expected = run(program, folder, case), expect(case)
    precision = HALF if case.fast else SPLIT
    assert torch.equal(results.active, expected.active)
    errors = error_of_distances(case, precision)
    # Terms are sums of two rounded distances; the sum is rounded once.
    tolerance = expected.active * (errors.amax(1) if errors.numel() else 0)
    tolerance = tolerance + 2.0**-23 * expected.loss.abs() + 1e-30
    compare(results.loss[:, None], expected.loss[:, None], tolerance[:, None])
    if case.upstream is not None:
        compare_gradients(case, results.gradients, expected.gradients, precision)
    return results


def compare(got, wanted, tolerance):
    assert torch.equal(got.isnan(), wanted.isnan())
    worst = ((got.double() - wanted.double()).abs() - tolerance).nan_to_num(-1.0)
    assert worst.numel() == 0 or float(worst.max()) <= 0


def compare_gradients(case, got, wanted, precision):
    """Each pair adds its weight times the rows' lengths, over the distance where that is one."""
    y, y_labels, selves = case.partners()
    chunk = pair_chunk(case.x, case.labels, y, y_labels, selves, case.metric)
    options = case.options()
    del options["metric"]
    weights = reference.triplet_rows(chunk, **options).weights.abs()
    pairs = weights * case.upstream.abs()[:, None] * error_of_distances(case, 1.0)
    pairs = pairs.nan_to_num()
    if case.metric == "cosine":
        shortest = min(
            float(rows.nan_to_num().norm(dim=1)[rows.nan_to_num().norm(dim=1) > 0].min())
            for rows in (case.x, y)
        )
        pairs = pairs / shortest
    elif case.metric != "euclidean":
        pairs = pairs / max(1e-3, float(torch.cat([case.x, y]).nan_to_num().norm(dim=1).max()))
    else:
        distance = chunk.distance.nan_to_num(1.0)
        pairs = torch.where(distance > 0, pairs / distance.clamp(min=1e-3), 0.0)
    for axis, (g, w) in enumerate(zip(got, wanted, strict=True)):
        tolerance = 2 * precision * pairs.sum(1 - axis)[:, None] + 1e-30
        compare(g, w, tolerance.expand_as(g))


# Of one row; several slabs of dimensions, one at a time; a batch of two more than a tile.
@pytest.mark.parametrize(
    ("metric", "shape", "shared"),
    [
        *((metric, (1, 3, 1, 1), LARGE) for metric in METRICS),
        *((metric, (20, 150, 70, 5), SMALL) for metric in ("euclidean", "dot")),
        *((metric, (130, 0, 9, 9), LARGE) for metric in ("euclidean", "cosine")),
    ],
)
def test_triplets_equal_the_reference(program, tmp_path, metric, shape, shared):
    check(program, tmp_path, make_case(*shape, metric=metric, shared=shared))


@pytest.mark.parametrize("positives", ["nearest", "farthest"])
@pytest.mark.parametrize(
    ("metric", "shape"), [("euclidean", (30, 60, 5, 4)), ("cosine", (60, 0, 9, 4))]
)
def test_one_positive_is_the_selected_one(program, tmp_path, positives, metric, shape):
    case = make_case(*shape, metric=metric, positives=positives)
    assert not torch.equal(expect(case).loss, expect(replace(case, positives="all")).loss)
    check(program, tmp_path, case)


@pytest.mark.parametrize("margin", [-0.4, 0.0, 3.0])
@pytest.mark.parametrize("metric", ["euclidean", "dot"])
def test_margins_of_any_sign_hold(program, tmp_path, margin, metric):
    check(program, tmp_path, make_case(12, 40, 4, 3, metric=metric, margin=margin))


# As many as the class has, one more, and so few that the last pass is not full.
@pytest.mark.parametrize("most_bounds", [40, 39, 11])
def test_passes_add_up(program, tmp_path, most_bounds):
    case = make_case(70, 0, 6, 1, most_bounds=most_bounds)
    case.labels = (torch.arange(70) >= 40).long()
    check(program, tmp_path, case)


@pytest.mark.parametrize("wanted_items", [1, 64])
def test_parts_of_the_columns_add_up(program, tmp_path, wanted_items):
    case = on_a_grid(make_case(9, 260, 4, 1), "sqeuclidean", fast=True)
    check(program, tmp_path, replace(case, wanted_items=wanted_items, most_bounds=100))


@pytest.mark.parametrize("labels", ["one class", "all different", "no references"])
def test_no_triplet_has_loss_zero(program, tmp_path, labels):
    case = make_case(9, 0 if labels == "one class" else 14, 3, 1)
    case.labels = case.labels * 0
    if labels == "all different":
        case.labels, case.reference_labels = torch.arange(9), torch.arange(14) + 9
    if labels == "no references":
        case.references, case.reference_labels = torch.empty(0, 3), torch.empty(0).long()
        case.self_index = None
    results = check(program, tmp_path, case)
    finite = case.x.isfinite().all(1)
    assert not results.loss[finite].any()
    assert not results.active[finite].any()
    assert not results.gradients[0][finite].any()
    assert not results.gradients[1].any()


def test_an_anchor_that_is_not_finite_is_not_lost(program, tmp_path):
    case = make_case(6, 20, 3, 2)
    case.x[2, 1] = math.inf
    case.upstream[3] = 0.0
    results = check(program, tmp_path, case)
    assert results.loss[2:4].isnan().all()
    assert results.active[2:4].tolist() == [1, 1]
    assert results.gradients[0].isnan().all(1).tolist() == [False, False, True, *[False] * 3]
    assert not results.gradients[1].isnan().any()


def tied(metric):
    """Negatives exactly as far as positives, in the same order of the dimensions and in another."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10, 11, generator=generator)
    x[:5] = torch.randn(5, 1, generator=generator)
    positives = torch.randn(8, 11, generator=generator)
    negatives = torch.cat([positives, positives[:, torch.randperm(11, generator=generator)]])
    labels = torch.cat([torch.zeros(8), torch.ones(16)]).long()
    y = torch.cat([positives, negatives])
    return Case(x, torch.zeros(10).long(), y, labels, metric=metric, upstream=torch.ones(10))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("margin", [0.0, 1e-12])
def test_activity_at_a_tie_is_exact(program, tmp_path, metric, margin):
    case = replace(tied(metric), margin=margin)
    assert expect(case).active.sum() != expect(replace(case, margin=1e-12 - margin)).active.sum()
    check(program, tmp_path, case)


def test_a_distance_between_two_numbers_is_rounded_as_it_is_returned(program, tmp_path):
    # 1 + 2^-24 is as far from 1 as from the next number; what is little more goes up.
    tiny, more = 2.0**-12, 2.0**-12 * (1 + 2.0**-20)
    y = torch.tensor([[1, tiny], [tiny, 1], [1, more], [more, -1]]).repeat(2, 1)
    case = Case(torch.zeros(4, 2), torch.zeros(4).long(), y, torch.arange(8) // 4)
    case = replace(case, metric="sqeuclidean", margin=0.0, upstream=torch.ones(4))
    assert expect(case).active.tolist() == [4] * 4
    check(program, tmp_path, case)


def on_a_grid(case, metric, fast):
    """Rows of a few whole numbers around 0: products are exact at any precision."""
    case.x = (2 * case.x.nan_to_num()).round().clamp(-3, 3)
    half = (2 * case.references.nan_to_num()).round().clamp(-3, 3)[::2]
    case.references = torch.cat([half, -half])
    return replace(case, metric=metric, margin=0.37, fast=fast)


@pytest.mark.parametrize("metric", ["euclidean", "dot"])
def test_half_products_have_gradients_of_their_precision(program, tmp_path, metric):
    check(program, tmp_path, on_a_grid(make_case(20, 60, 17, 3), metric, fast=True))


@pytest.mark.parametrize("metric", METRICS)
def test_half_products_are_as_good_as_their_rounding(program, tmp_path, metric):
    case = replace(make_case(20, 60, 17, 3, metric=metric), fast=True, upstream=None)
    error = float(error_of_distances(case, HALF).max())
    results, expected = run(program, tmp_path, case), expect(case)
    fewest, most = (expect(replace(case, margin=case.margin + e)).active for e in (-error, error))
    assert bool((fewest <= results.active).all())
    assert bool((results.active <= most).all())
    assert not torch.equal(results.loss, expected.loss)  # of half products
    # A hinge errs by no more than its distance.
    tolerance = error * most + 2.0**-23 * expected.loss.abs()
    compare(results.loss[:, None], expected.loss[:, None], tolerance[:, None])


def test_results_are_the_same_on_every_run(program, tmp_path):
    case = make_case(12, 140, 6, 2)
    first, second = (run(program, tmp_path, case) for _ in range(2))
    for one, other in zip(
        (first.loss, *first.gradients), (second.loss, *second.gradients), strict=True
    ):
        assert torch.equal(one.nan_to_num(-9.0), other.nan_to_num(-9.0))
