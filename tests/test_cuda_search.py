"""Selections by search: the CUDA kernels' own source, run on the CPU."""

from __future__ import annotations

import math

import emulation
import pytest
import torch
from emulation import METRICS
from selection_emulation import Options, check, expect, make_case, run, some_selves

pytestmark = emulation.needs_compiler

# What blocks may have: for slabs that stay, for some in flight, and for one at a time.
LARGE, MIDDLE, SMALL = 227 * 1024, 99 * 1024, 48 * 1024


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    return emulation.build("neighbors", tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("metric", METRICS)
# Within a tile, one more than a tile, several; one slab of dimensions, and several with a rest.
@pytest.mark.parametrize(
    ("shape", "shared"),
    [((1, 1, 1, 1), LARGE), ((129, 257, 70, 5), MIDDLE), ((40, 130, 9, 2), SMALL)],
)
def test_the_nearest_of_another_class_is_found(program, tmp_path, metric, shape, shared):
    options = Options(metric=metric, self_index=some_selves(*shape[:2]), searched_with=shared)
    check(*run(program, tmp_path, make_case(*shape), options))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("farthest", [True, False])
# Rows with their classes: too large to be read at once, and small ones.
@pytest.mark.parametrize("within_batch", [True, False])
def test_large_classes_are_searched_without_self(program, tmp_path, metric, farthest, within_batch):
    x, _, y, _ = make_case(150, 260, 35, 1)
    labels = torch.arange(150) // 75
    reference_labels = torch.cat([torch.arange(130) % 2, torch.arange(130) // 4 + 2])
    x[75:], labels[75:] = y[-75:], reference_labels[-75:]
    options = Options(
        metric=metric,
        same_class=True,
        farthest=farthest,
        self_index=torch.cat([torch.arange(75) % 40 - 1, torch.arange(185, 260)]),
        searched_with=LARGE,
    )
    case = x, labels, y, reference_labels
    if within_batch:
        case = y, reference_labels, y, reference_labels
        options.self_index = torch.arange(260)
        options.is_batch_itself = True
    results, expected = run(program, tmp_path, case, options)
    check(results, expected)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_thresholds_are_strict(program, tmp_path, metric, dtype):
    case = make_case(30, 150, 6, 3, dtype)
    nearest = expect(case, Options(metric=metric)).distance
    below = torch.nextafter(nearest, torch.full_like(nearest, -math.inf))
    beyond = torch.cat([nearest, below, torch.full_like(nearest, math.inf)], 1)
    options = Options(metric=metric, beyond=beyond, searched_with=LARGE)
    check(*run(program, tmp_path, case, options))


def ordinary(rows=200, dimensions=16):
    """Rows without a near tie, duplicate or value that is not finite; six classes."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, dimensions, generator=generator)
    return x, torch.arange(rows) % 6


def search(program, folder, x, labels, **options):
    selves = torch.arange(len(x))
    settings = Options(self_index=selves, is_batch_itself=True, searched_with=LARGE, **options)
    results, expected = run(program, folder, (x, labels, x, labels), settings)
    check(results, expected)
    return results.undecided


def test_half_precision_decides_ordinary_rows(program, tmp_path):
    x, labels = ordinary()
    assert search(program, tmp_path, x, labels) == (0, 0)


def test_a_shifted_batch_is_ordinary(program, tmp_path):
    x, labels = ordinary()
    # A power of two, and few enough bits of x, that the sum is exact.
    x = (x * 64).round() / 64
    assert search(program, tmp_path, x + 4096, labels) == (0, 0)


def test_split_precision_decides_two_tight_classes(program, tmp_path):
    x, labels = ordinary()
    x = torch.where(labels[:, None] % 2 == 0, 1.0, -1.0) + 1e-4 * x
    first, second = search(program, tmp_path, x, labels % 2)
    assert first > 100
    assert second == 0


def test_equal_rows_are_compared_exactly(program, tmp_path):
    x, labels = ordinary()
    assert search(program, tmp_path, torch.ones_like(x), labels) == (200, 200)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_rows_of_any_magnitude_are_searched(program, tmp_path, scale):
    x, labels = ordinary()
    assert search(program, tmp_path, x * scale, labels) == (0, 0)


def test_one_long_row_leaves_the_others_exact(program, tmp_path):
    x, labels = ordinary()
    x[17] *= 1e12
    search(program, tmp_path, x, labels)


def test_float64_beyond_the_range_of_squares_is_compared_exactly(program, tmp_path):
    x, labels = ordinary(100)
    x = x.double() * 1e160
    assert search(program, tmp_path, x, labels) == (100, 100)


def test_unused_thresholds_are_decided_at_once(program, tmp_path):
    x, labels = ordinary()
    beyond = torch.full((200, 1), math.inf)
    assert search(program, tmp_path, x, labels, beyond=beyond) == (0, 0)


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean"])
def test_classes_that_have_collapsed_are_ordinary_within(program, tmp_path, metric):
    x, labels = ordinary(400)
    labels = labels % 2
    # Two points; around one of them a thousand times as tight as around the other.
    spread = torch.where(labels == 0, 2.0**-10, 2.0**-20)[:, None]
    x = torch.where(labels[:, None] == 0, 1.0, -1.0) + spread * (x * 8).round()
    assert search(program, tmp_path, x, labels, metric=metric, same_class=True) == (0, 0)


def test_equal_rows_of_a_large_class_are_compared_exactly(program, tmp_path):
    x, labels = ordinary(300)
    # Equal rows, and as many that half precision decides.
    labels = labels % 2
    x = torch.where(labels[:, None] == 0, 1.0, x)
    assert search(program, tmp_path, x, labels, same_class=True) == (150, 150)
