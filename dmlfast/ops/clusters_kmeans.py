"""k-means."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmlfast.ops._arguments import (
    check_count,
    check_embeddings,
    check_generator,
    check_references,
    describe,
)
from dmlfast.ops._operators import operators, register
from dmlfast.reference import clusters as reference
from dmlfast.reference.distances import distance_dtype

# The history has 8 bytes for each.
GREATEST_ITERATIONS = 2**20


class KMeans(NamedTuple):
    """What `kmeans` found.

    Attributes:
        centers: (K, d) float64 for float64 rows, else float32, which rows of half precision have to
            be brought to for `assign_clusters`.
        index: (N,) int64, the nearest centre of each row; -1 for a row that is not finite, and for
            every row where no centre is finite.
        inertia: float64 scalar, the sum over the rows of the squared distance to their centre.
        history: (iterations + 1,) float64, the inertia before each iteration and at the end.
    """

    centers: Tensor
    index: Tensor  # type: ignore[assignment]  # shadows tuple.index on purpose
    inertia: Tensor
    history: Tensor


def kmeans(
    x: Tensor,
    clusters: int,
    *,
    iterations: int,
    initial: Tensor | None = None,
    restarts: int = 1,
    generator: torch.Generator | None = None,
) -> KMeans:
    """k-means clustering by Lloyd's iterations.

    In turns each row is assigned to the nearest centre, and each centre moves to the mean of its
    rows. An assignment is exact, as that of `assign_clusters` with "sqeuclidean": the least float64
    sum of squared differences, the lowest of equally near centres. Means are those of
    `cluster_means`. Before the means are taken, each cluster without rows, the lowest first, is
    handed the row that is farthest from its centre, the lowest of equally far ones, of those that
    are neither at their centre nor alone in their cluster; where there is none, the centre stays.
    Once the means no longer move, nothing more is computed, and the rest of the history repeats.

    Deterministic: the same draws give the same bits for every number of threads. On a GPU no kernel
    waits for the host; numbers drawn by a generator of the CPU are copied there, and are equal
    draws on both. The means of clusters of more than 256 rows may round otherwise there.

    Args:
        x: (N, d) rows; float16, bfloat16, float32 or float64, any strides. Those that are not
            finite belong to no cluster.
        clusters: the number K of centres, at least 1; it may exceed the number of rows.
        iterations: how often the centres move at most, 0 to 2^20.
        initial: (K, d) centres to start from, dtype and device of `x`; one that is not finite has
            no rows, as an empty cluster. By default rows drawn as k-means++ does: the first
            uniformly, each other one in proportion to its squared distance to the nearest of those
            before.
        restarts: how many starts are drawn, at least 1; the result is that of the least inertia,
            the first of equal ones.
        generator: of any device; torch's own of the CPU by default, and alone under
            torch.compile(fullgraph=True). K float64 numbers are drawn for each start.

    Returns:
        `KMeans`, not differentiable.

    Memory: O((N + K)·d), on the CPU about half of float32 rows and 200 bytes a row, on a GPU as
    much as float32 rows and 300 bytes a row; half-precision rows are copied to float32. There is no
    N x K matrix. Time: a k-means++ start reads all rows K times, one
    after another, which takes as long as some 20 iterations.

    Raises:
        TypeError: something is not a tensor, an integer or a generator, or has a wrong dtype.
        ValueError: a wrong shape, device or number, no rows to draw from, or `initial` beside
            several restarts.

    Source: Lloyd, "Least squares quantization in PCM", 1982; Arthur and Vassilvitskii,
    "k-means++: the advantages of careful seeding", SODA 2007, with one draw a centre.
    """
    given = check_embeddings("x", x)
    count = check_count("clusters", clusters)
    steps = check_count("iterations", iterations, least=0, greatest=GREATEST_ITERATIONS)
    starts = check_count("restarts", restarts)
    check_generator(generator)
    rows = given.detach().to(distance_dtype(given))
    if initial is not None:
        first = check_references("initial", initial, "x", given)
        if first.shape[0] != count:
            raise ValueError(f"initial: expected {count} rows, got {describe(first)}")
        if starts != 1:
            raise ValueError(f"restarts: expected 1 with initial, got {restarts}")
        return _run(rows, first.detach().to(rows.dtype), steps)
    if rows.shape[0] == 0:
        raise ValueError(f"x: expected rows to draw centres from, got {describe(given)}")
    best = None
    for _ in range(starts):
        found = _run(rows, _drawn(rows, count, generator), steps)
        if best is None:
            best = found
        else:
            is_better = found.inertia < best.inertia
            best = KMeans(*(torch.where(is_better, a, b) for a, b in zip(found, best, strict=True)))
    assert best is not None
    return best


def _drawn(rows: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    source = torch.device("cpu") if generator is None else generator.device
    uniform = torch.rand(count, generator=generator, dtype=torch.float64, device=source)
    index = operators("clusters", rows.device).clusters_seeds(rows, uniform.to(rows.device))
    # Without a finite row, centres that are not finite either: -1 is the last row.
    return rows[index]


def _run(rows: Tensor, initial: Tensor, iterations: int) -> KMeans:
    lloyd = operators("clusters", rows.device).clusters_kmeans
    centers, index, history = lloyd(rows, initial, iterations)
    return KMeans(centers, index, history[-1].clone(), history)


def _reference_seeds(x: Tensor, uniform: Tensor) -> Tensor:
    return reference.seeds(x, uniform)


def _fake_seeds(x: Tensor, uniform: Tensor) -> Tensor:
    return uniform.new_empty(uniform.shape, dtype=torch.int64)


def _reference(x: Tensor, initial: Tensor, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    return reference.kmeans(x, initial, iterations)


def _fake(x: Tensor, initial: Tensor, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(initial.shape),
        x.new_empty(x.shape[0], dtype=torch.int64),
        x.new_empty(iterations + 1, dtype=torch.float64),
    )


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.mark_non_differentiable(*(output if isinstance(output, tuple) else (output,)))


def _no_gradient(operators: Any, ctx: Any, *_: Tensor) -> tuple[None, ...]:
    return None, None, None


register(
    "clusters_seeds",
    reference=_reference_seeds,
    fake=_fake_seeds,
    save_for_backward=_save_nothing,
    backward=lambda *_: (None, None),
)
register(
    "clusters_kmeans",
    reference=_reference,
    fake=_fake,
    save_for_backward=_save_nothing,
    backward=_no_gradient,
)
