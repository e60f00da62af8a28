"""Selections by the CUDA kernels' own source on the CPU, beside the reference."""

from __future__ import annotations

import math
from dataclasses import dataclass

import emulation
import numpy as np
import torch
from emulation import METRICS

from dmlfast.reference import neighbors as reference

# What every result holds before a selection, to be seen where none was asked for.
UNTOUCHED = -7


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
    # Shared memory of a block in a search; 0 where none is asked for.
    searched_with: int = 0


@dataclass
class Results:
    distance: torch.Tensor
    index: torch.Tensor
    gradients: tuple[torch.Tensor, ...]  # to x and to the references
    # Of a search: how many queries each level left undecided.
    undecided: tuple[int, int] = (0, 0)


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
        options.searched_with,
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
    content = emulation.run(program, folder, b"".join(part.tobytes() for part in parts))
    undecided = (0, 0)
    if options.searched_with:
        undecided = tuple(np.frombuffer(content, np.int64, 2).tolist())
        content = content[16:]
    kind = np.float64 if x.dtype == torch.float64 else np.float32
    offset, results = 0, []
    gradients = ((g, kind) for g in expected.gradients)
    for shape, of in ((index, kind), (index, np.int64), *gradients):
        array = np.frombuffer(content, of, shape.numel(), offset).reshape(shape.shape)
        offset += array.nbytes
        results.append(torch.from_numpy(array.copy()))
    return Results(results[0], results[1], tuple(results[2:]), undecided), expected


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
