"""Draws of a negative by the CUDA kernels' own source, run on the CPU."""

from __future__ import annotations

import math

import emulation
import labelled_emulation
import pytest
import torch
from emulation import METRICS
from labelled_emulation import within
from selection_emulation import make_case, some_selves

import dmlfast.ops.neighbors_sample  # noqa: F401  (defines what torch.ops names)
from dmlfast.reference import neighbors_sample as reference

pytestmark = emulation.needs_compiler

each_metric = pytest.mark.parametrize("metric", METRICS)


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    return emulation.build("neighbors_sample", tmp_path_factory.getbasetemp())


@pytest.fixture
def draw(program, tmp_path):
    """Draws, compares with the CPU's kernels and, unless told otherwise, with the reference, and
    returns the indices."""

    def run(
        case,
        *,
        metric="euclidean",
        uniform=None,
        self_index=None,
        weighted=True,
        cutoffs=(0.5, 1.4),
        compares_reference=True,
    ):
        x, labels, y, reference_labels = case
        reference_order = reference_labels.argsort(stable=True)
        if uniform is None:
            generator = torch.Generator().manual_seed(3)
            uniform = torch.rand(len(x), generator=generator, dtype=torch.float64)
        fallback = torch.arange(len(x)) % (len(y) + 1) - 1
        others = uniform, fallback, torch.tensor(cutoffs, dtype=torch.float64)
        on_cpu = torch.ops.dmlfast.neighbors_sample(
            x,
            labels,
            labels.argsort(stable=True),
            y,
            reference_labels,
            reference_order,
            self_index,
            uniform,
            fallback,
            weighted,
            *cutoffs,
            metric,
        )
        content = labelled_emulation.run(
            program, tmp_path, case, metric, self_index, [weighted], others
        )
        found = labelled_emulation.read(content, *on_cpu)
        labelled_emulation.assert_same(found, on_cpu)
        if compares_reference:
            expected = reference.sample(
                x,
                labels,
                y,
                reference_labels,
                reference_order,
                self_index,
                uniform,
                fallback,
                weighted=weighted,
                cutoff=cutoffs[0],
                nonzero_loss_cutoff=cutoffs[1],
                metric=metric,
            )
            # Its weights are rounded otherwise, but no number is so near a boundary. Its square
            # roots may be, too: one unit in the last place.
            assert torch.equal(found[1], expected[1])
            unit = torch.finfo(found[0].dtype).eps
            torch.testing.assert_close(found[0], expected[0], rtol=unit, atol=unit, equal_nan=True)
        return found[1][:, 0]

    return run


def on_sphere(anchors, references, dimensions, classes, dtype=torch.float32):
    x, labels, y, reference_labels = make_case(anchors, references, dimensions, classes, dtype)
    return (
        torch.nn.functional.normalize(x),
        labels,
        torch.nn.functional.normalize(y),
        reference_labels,
    )


@each_metric
# Of one row; of one panel of eight to a block, and of several; of dimensions whose weights fall,
# and rise, with the distance; and rows that are not finite, zero and equal.
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (65, 70, 17, 3), (9, 1100, 2, 4), (20, 600, 4, 1)])
def test_draws_are_those_of_the_cpu_and_the_reference(draw, metric, shape):
    draw(on_sphere(*shape), metric=metric, self_index=some_selves(*shape[:2]))


@each_metric
def test_float64_is_drawn_and_returned(draw, metric):
    draw(on_sphere(64, 65, 34, 3, torch.float64), metric=metric)


def test_rows_of_any_length_are_drawn(draw):
    draw(make_case(40, 300, 5, 2), cutoffs=(1e-100, math.inf))


@pytest.mark.parametrize("dimensions", [2, 8, 64])
@pytest.mark.parametrize("references", [90, 1300])
def test_sums_are_the_same_to_the_last_bit(draw, dimensions, references):
    # Numbers at the very boundaries between two references, where rounding decides.
    generator = torch.Generator().manual_seed(dimensions)
    y = torch.nn.functional.normalize(torch.randn(references, dimensions, generator=generator))
    reference_labels = torch.arange(references) % 3
    anchors = 60
    options = {"cutoff": 0.1, "nonzero_loss_cutoff": 1.9, "metric": "euclidean"}
    order = reference_labels.argsort(stable=True)
    weights = reference._weights(
        y[:1], reference_labels[:1], y[order], reference_labels[order], **options
    )
    sums = weights.cumsum(1)[0]
    chosen = torch.randint(references - 1, (anchors,), generator=generator)
    case = y[:1].expand(anchors, -1).contiguous(), torch.zeros(anchors).long(), y, reference_labels
    index = draw(
        case, uniform=(sums / sums[-1])[chosen], cutoffs=(0.1, 1.9), compares_reference=False
    )
    assert len(index.unique()) > 10


def test_a_batch_is_its_own_references(draw):
    x, labels, _, _ = on_sphere(130, 5, 6, 3)
    index = draw(within(x, labels), self_index=torch.arange(130))
    assert (index != torch.arange(130))[5:].all()


@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-53])
def test_the_ends_of_the_numbers_draw_the_first_and_the_last(draw, uniform):
    case = on_sphere(30, 90, 3, 2)
    draw(case, uniform=torch.full((30,), uniform, dtype=torch.float64), compares_reference=False)


def test_anchors_all_of_whose_weights_are_0_take_the_fallback(draw):
    case = on_sphere(66, 70, 5, 2)
    index = draw(case, cutoffs=(1e-3, 1e-3))
    assert (index == torch.arange(66) % 71 - 1).sum() > 60


@each_metric
def test_without_weights_the_fallback_is_taken(draw, metric):
    index = draw(make_case(20, 30, 5, 2), metric=metric, weighted=False)
    assert torch.equal(index, torch.arange(20) - 1)


@pytest.mark.parametrize("weighted", [True, False])
def test_no_references_give_nothing(draw, weighted):
    assert (draw(make_case(3, 0, 4, 2), weighted=weighted, compares_reference=False) == -1).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@each_metric
def test_references_that_are_not_finite_are_not_drawn(draw, metric, bad):
    x, labels, y, reference_labels = on_sphere(30, 90, 6, 2)
    y[::2, 3] = bad
    index = draw((x, labels, y, reference_labels), metric=metric, cutoffs=(0.5, math.inf))
    assert (index[5:] % 2 == 1).all()
