"""All distances between two sets of rows, and their mean and deviation without the matrix."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmlfast.ops._arguments import (
    METRICS,
    allows_fast_products,
    check_embeddings,
    check_flag,
    check_integers,
    check_option,
    check_references,
    describe,
)
from dmlfast.ops._operators import operators, reference_operators, register
from dmlfast.reference import pairwise as reference
from dmlfast.reference.distances import distance_dtype, fixed_order_sum

# Enough that their mean is near that of all pairs, against which it is a shift alone.
_SAMPLED_PAIRS = 1024
_STEP = 1_000_003  # a prime: steps of this length visit references without a pattern


class DistanceStatistics(NamedTuple):
    """The distances of all pairs in two numbers.

    Attributes:
        mean: scalar, float64 for float64 rows, else float32; differentiable.
        deviation: scalar likewise, the sample standard deviation (divisor `count` - 1).
        count: int64 scalar, the number of ordered pairs.
    """

    mean: Tensor
    deviation: Tensor
    count: Tensor  # type: ignore[assignment]  # shadows tuple.count on purpose


def pairwise_distance(
    x: Tensor, references: Tensor | None = None, *, metric: str = "euclidean"
) -> Tensor:
    """All distances of the rows of `x` to the references, or to each other.

    A Euclidean distance far below the norms of its rows, D^2 < 1e-3·(|x|^2 + |y|^2), is computed
    from the differences of their values: it is accurate to 1e-6 of itself, and 0 between equal
    rows. Deterministic.

    Args:
        x: (N, d) float16, bfloat16, float32 or float64, any strides.
        references: (M, d), dtype and device of `x`; the batch itself by default, each row with
            itself included.
        metric: "euclidean", "sqeuclidean", "cosine" (1 - cos, 1 for a zero vector) or "dot"
            (-<x, y>); smaller is closer.

    Returns:
        (N, M) float64 for float64 rows, else float32; differentiable once in `x` and
        `references`. The gradient of a Euclidean distance of 0, and of the cosine of a zero
        vector, is 0. A row that is not finite has distance NaN to all others; where the gradient
        of that NaN is used, both rows get gradient NaN.

    Memory: the result, and O((N + M)·d); backward needs no other matrix than the result and its
    gradient. float64 rows are served by plain torch everywhere.

    Raises:
        TypeError: something is not a tensor or has a wrong dtype.
        ValueError: a wrong shape, device or option.
    """
    rows = check_embeddings("x", x)
    others = None if references is None else check_references("references", references, "x", rows)
    check_option("metric", metric, METRICS)
    fast = allows_fast_products()
    result: Tensor = _namespace(rows).pairwise_distance(rows, others, metric, fast)
    return result


def distance_statistics(
    x: Tensor,
    references: Tensor | None = None,
    *,
    self_index: Tensor | None = None,
    metric: str = "euclidean",
    include_self: bool = False,
) -> DistanceStatistics:
    """Mean and sample standard deviation of the distances of all pairs, without their matrix.

    Args:
        x: (N, d) float16, bfloat16, float32 or float64, any strides.
        references: (M, d), dtype and device of `x`; the batch itself by default.
        self_index: (N,) the row of `references` that is the anchor itself and is left out, -1 for
            none. Within a batch it is the anchor's own row, and must not be given.
        metric: as in `pairwise_distance`.
        include_self: within a batch, count the pair of each row with itself too: the statistics
            of the whole (N, N) matrix. Not with `references`.

    Returns:
        `DistanceStatistics`; `mean` and `deviation` are differentiable once in `x` and
        `references`. A row that is not finite makes both NaN. Without any pair the mean, and with
        fewer than two pairs the deviation, is 0 with gradient 0; so is the gradient of a
        deviation of 0.

    Memory: O((N + M)·d). Deterministic; summed in float64 around the mean of a few pairs, so that
    the deviation keeps its digits where it is small against the mean. float64 rows are served by
    plain torch everywhere.

    Raises:
        TypeError: something is not a tensor or has a wrong dtype.
        ValueError: a wrong shape, device or option; `self_index` without references, or
            `include_self` with them.

    Source: the two numbers that place the distance clusters of NASA (Li et al.,
    "Neighborhood-adaptive structure augmented metric learning", AAAI 2022), which includes self.
    """
    rows = check_embeddings("x", x)
    others = None if references is None else check_references("references", references, "x", rows)
    own_index = _check_self(self_index, rows, others)
    check_option("metric", metric, METRICS)
    if check_flag("include_self", include_self) and others is not None:
        raise ValueError(
            "include_self: expected False with references, of which self_index says which are "
            "left out, got True"
        )
    centre = _centre(rows, others, metric)
    first, second = _namespace(rows).pairwise_moments(
        rows, others, own_index, centre, metric, allows_fast_products()
    )
    count = _number_of_pairs(rows, others, own_index)
    if include_self:
        offset = _distance_to_self(rows, metric) - centre
        first, second = first + offset, second + offset.square()
        count = count + rows.shape[0]
    return _statistics(fixed_order_sum(first), fixed_order_sum(second), centre[0], count, rows)


def _statistics(
    first: Tensor, second: Tensor, centre: Tensor, count: Tensor, x: Tensor
) -> DistanceStatistics:
    """Mean and deviation of `count` distances from sums of their offsets from a centre."""
    dtype = distance_dtype(x)
    shift = first / count.clamp(min=1)
    mean = torch.where(count > 0, centre, 0.0) + shift
    variance = (second - first * shift) / (count - 1).clamp(min=1)
    # Not `variance > 0`: NaN has to pass. The gradient of the root is 0 at 0, not infinite.
    zero = variance <= 0
    deviation = torch.where(zero, 0.0, torch.where(zero, 1.0, variance).sqrt())
    return DistanceStatistics(mean.to(dtype), deviation.to(dtype), count)


def _check_self(self_index: object, x: Tensor, references: Tensor | None) -> Tensor | None:
    """`self_index` as int64; raises as `distance_statistics`."""
    if self_index is None:
        return None
    if references is None:
        raise ValueError(
            "self_index: expected None without references, as self is known within a batch, got "
            f"{describe(self_index)}"
        )
    return check_integers("self_index", self_index, x.shape[0], x.device)


def _number_of_pairs(x: Tensor, references: Tensor | None, self_index: Tensor | None) -> Tensor:
    """int64 scalar number of ordered pairs without self."""
    rows = x.shape[0]
    columns = rows - 1 if references is None else references.shape[0]
    count = torch.full((), rows * columns, dtype=torch.int64, device=x.device)
    if self_index is None:
        return count
    return count - ((self_index >= 0) & (self_index < columns)).sum()


def _centre(x: Tensor, references: Tensor | None, metric: str) -> Tensor:
    """(1,) float64 mean distance of some pairs, always the same ones; a constant."""
    rows, columns = x.shape[0], (x if references is None else references).shape[0]
    others = columns - (references is None)
    if rows == 0 or others <= 0:
        return x.new_zeros(1, dtype=torch.float64)
    pair = torch.arange(_SAMPLED_PAIRS, device=x.device)
    # Anchors from the whole batch, which is often sorted by label.
    anchor = pair * rows // _SAMPLED_PAIRS
    partner = pair * _STEP % others
    if references is None:
        partner = (anchor + 1 + partner) % columns
    source = x if references is None else references
    a, b = x.detach()[anchor].double(), source.detach()[partner].double()
    return _row_distance(a, b, metric).mean().reshape(1)


def _row_distance(a: Tensor, b: Tensor, metric: str) -> Tensor:
    """(P,) distances of corresponding float64 rows; not exact to the last digit."""
    if metric == "euclidean":
        return (a - b).square().sum(1).sqrt()
    if metric == "sqeuclidean":
        return (a - b).square().sum(1)
    products = (a * b).sum(1)
    if metric == "dot":
        return -products
    norms = a.square().sum(1).sqrt() * b.square().sum(1).sqrt()
    return torch.where(norms == 0, 1.0, 1 - products / norms)


def _distance_to_self(x: Tensor, metric: str) -> Tensor:
    """(N,) float64 distance of each row to itself."""
    rows = x.double()
    if metric == "dot":
        return -rows.square().sum(1)
    if metric == "cosine":
        return (rows == 0).all(1).double()
    return rows.new_zeros(x.shape[0])


def _namespace(x: Tensor) -> Any:
    """The namespace of the operators: no kernel serves float64."""
    return reference_operators() if x.dtype == torch.float64 else operators("pairwise", x.device)


def _reference_distance(x: Tensor, references: Tensor | None, metric: str, fast: bool) -> Tensor:
    return reference.distance(x, references, metric=metric)


def _reference_distance_backward(
    grad: Tensor, distance: Tensor, x: Tensor, references: Tensor | None, metric: str, fast: bool
) -> tuple[Tensor, Tensor]:
    return reference.distance_backward(grad, distance, x, references, metric=metric)


def _reference_moments(
    x: Tensor,
    references: Tensor | None,
    self_index: Tensor | None,
    centre: Tensor,
    metric: str,
    fast: bool,
) -> tuple[Tensor, Tensor]:
    return reference.moments(x, references, self_index, centre, metric=metric)


def _reference_moments_backward(
    grad_first: Tensor,
    grad_second: Tensor,
    x: Tensor,
    references: Tensor | None,
    self_index: Tensor | None,
    centre: Tensor,
    metric: str,
    fast: bool,
) -> tuple[Tensor, Tensor]:
    return reference.moments_backward(
        grad_first, grad_second, x, references, self_index, centre, metric=metric
    )


def _fake_distance(x: Tensor, references: Tensor | None, metric: str, fast: bool) -> Tensor:
    columns = (x if references is None else references).shape[0]
    return x.new_empty((x.shape[0], columns), dtype=distance_dtype(x))


def _fake_distance_backward(
    grad: Tensor, distance: Tensor, x: Tensor, references: Tensor | None, metric: str, fast: bool
) -> tuple[Tensor, Tensor]:
    return _fake_gradients(x, references)


def _fake_moments(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0],)
    return x.new_empty(shape, dtype=torch.float64), x.new_empty(shape, dtype=torch.float64)


def _fake_moments_backward(
    grad_first: Tensor, grad_second: Tensor, x: Tensor, references: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor]:
    return _fake_gradients(x, references)


def _fake_gradients(x: Tensor, references: Tensor | None) -> tuple[Tensor, Tensor]:
    return (
        x.new_empty(x.shape),
        x.new_empty((0, x.shape[1]) if references is None else references.shape),
    )


def _save_distance(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, references, ctx.metric, ctx.fast = inputs
    ctx.save_for_backward(output, x, references)


def _distance_backward(operators: Any, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    distance, x, references = ctx.saved_tensors
    grad_x, grad_references = operators.pairwise_distance_backward(
        grad, distance, x, references, ctx.metric, ctx.fast
    )
    return grad_x, None if references is None else grad_references, None, None


def _save_moments(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.metric, ctx.fast = inputs
    ctx.save_for_backward(*tensors)


def _moments_backward(
    operators: Any, ctx: Any, grad_first: Tensor, grad_second: Tensor
) -> tuple[Tensor | None, ...]:
    x, references, self_index, centre = ctx.saved_tensors
    grad_x, grad_references = operators.pairwise_moments_backward(
        grad_first, grad_second, x, references, self_index, centre, ctx.metric, ctx.fast
    )
    return grad_x, None if references is None else grad_references, None, None, None, None


register(
    "pairwise_distance",
    reference=_reference_distance,
    reference_backward=_reference_distance_backward,
    fake=_fake_distance,
    fake_backward=_fake_distance_backward,
    save_for_backward=_save_distance,
    backward=_distance_backward,
)
register(
    "pairwise_moments",
    reference=_reference_moments,
    reference_backward=_reference_moments_backward,
    fake=_fake_moments,
    fake_backward=_fake_moments_backward,
    save_for_backward=_save_moments,
    backward=_moments_backward,
)
