"""Ranking of similarities by intensity, and similarities to synthesised rows, in plain torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dmlfast.reference.distances import distance_dtype, row_parts


class _Side(NamedTuple):
    """One log-sum-exp over the pairs (j, k), j < k, of a chunk of rows.

    Attributes:
        difference: (C, J, J) float64, [i, j, k] is multiplied by the scale and exponentiated;
            -inf where there is no such pair.
        sign: of the similarity k in the difference; that of j is the other one.
    """

    difference: Tensor
    sign: int


def _sides(values: Tensor, margin: float, pairs: str) -> Iterator[_Side]:
    """The sides of (C, J) float64 similarities."""
    steps = torch.arange(values.shape[1], device=values.device)
    gap = steps[None, :] - steps[:, None]
    excess = values[:, None, :] - values[:, :, None]
    wanted = gap == 1 if pairs == "adjacent" else gap > 0
    yield _Side(torch.where(wanted, excess + margin, -math.inf), 1)
    if pairs == "band":
        yield _Side(torch.where(wanted, -(excess + margin * steps.double()), -math.inf), -1)


def _logarithm(side: _Side, scale: float) -> tuple[Tensor, Tensor]:
    """log(1 + sum exp(scale * difference)) / scale, (C,), and each exponential's part, (C, J, J).

    Relative to the greatest difference, or to 0 where that is greater: nothing overflows.
    """
    flat = torch.nn.functional.pad(side.difference.flatten(1), (0, 1))
    peak = flat.amax(1)
    powers = (scale * (side.difference - peak[:, None, None])).exp()
    others = (-scale * peak).expm1() + powers.sum((1, 2))
    return peak + others.log1p() / scale, powers / (1 + others)[:, None, None]


def _finite(similarities: Tensor) -> tuple[Tensor, Tensor]:
    """float64 rows, 0 where one is not finite, and (C,) whether each is."""
    finite = similarities.isfinite().all(1)
    return torch.where(finite[:, None], similarities.double(), 0.0), finite


def loss(similarities: Tensor, *, margin: float, scale: float, pairs: str) -> Tensor:
    """The ranking loss of each row of (B, J) similarities.

    Returns:
        (B,) float64 for float64 similarities, else float32; NaN for a row that is not finite.
    """
    result = similarities.new_zeros(similarities.shape[0], dtype=torch.float64)
    for part in row_parts(similarities.shape[0], similarities.shape[1] ** 2):
        values, finite = _finite(similarities[part])
        for side in _sides(values, margin, pairs):
            result[part] += _logarithm(side, scale)[0]
        result[part] = torch.where(finite, result[part], math.nan)
    return result.to(distance_dtype(similarities))


def loss_backward(
    grad: Tensor, similarities: Tensor, *, margin: float, scale: float, pairs: str
) -> Tensor:
    """Gradient of `loss` for an upstream gradient (B,), in the dtype of the similarities.

    NaN for a row that is not finite, unless its upstream gradient is 0.
    """
    result = torch.zeros_like(similarities, dtype=torch.float64)
    for part in row_parts(similarities.shape[0], similarities.shape[1] ** 2):
        values, finite = _finite(similarities[part])
        for side in _sides(values, margin, pairs):
            share = _logarithm(side, scale)[1]
            result[part] += side.sign * (share.sum(1) - share.sum(2))
        weight = torch.where(finite[:, None], result[part], math.nan)
        upstream = grad[part, None].double()
        # 0 * NaN: neither a similarity without a pair nor a row that nobody asks for counts.
        unused = (weight == 0) | (upstream == 0)
        result[part] = torch.where(unused, 0.0, weight * upstream)
    return result.to(similarities.dtype)


class _Synthesis(NamedTuple):
    """Projections of synthesised rows, of a chunk of rows, in float64.

    Attributes:
        length: (C, J) norms, 1 where they are 0.
        unit: (C, J, p) projections of length 1, or 0.
        target: (C, p), what they are compared with.
        own_length: (C,) norms of the rows that are the targets, 1 where they are 0.
        own_unit: (C, p) these rows at length 1, or 0.
    """

    length: Tensor
    unit: Tensor
    target: Tensor
    own_length: Tensor
    own_unit: Tensor


def _unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows at length 1, a zero row as it is, and their norms, 1 for a zero row."""
    norm = torch.linalg.vector_norm(rows, dim=-1)
    length = torch.where(norm == 0, 1.0, norm)
    # An infinite row has no direction: NaN, as it comes.
    return rows / length[..., None], length


def _synthesis(projected: Tensor, shifts: Tensor, targets: Tensor | None) -> _Synthesis:
    rows = projected.double()
    unit, length = _unit(rows[:, None] + shifts.double())
    own_unit, own_length = _unit(rows)
    target = own_unit.relu() if targets is None else targets.double()
    return _Synthesis(length, unit, target, own_length, own_unit)


def synthesis(projected: Tensor, shifts: Tensor, targets: Tensor | None) -> Tensor:
    """Similarities <relu(v_ij / |v_ij|), t_i> of v_ij = projected_i + shifts_j to targets.

    Args:
        projected: (B, p).
        shifts: (J, p).
        targets: (B, p), or None for t_i = relu(projected_i / |projected_i|).

    Returns:
        (B, J) float64 for float64 rows, else float32. 0 / |0| is 0.
    """
    dtype = distance_dtype(projected)
    result = projected.new_empty((projected.shape[0], shifts.shape[0]), dtype=dtype)
    for part in row_parts(projected.shape[0], shifts.numel()):
        own = None if targets is None else targets[part]
        found = _synthesis(projected[part], shifts, own)
        result[part] = (found.unit.relu() * found.target[:, None]).sum(2)
    return result


def synthesis_backward(
    grad: Tensor, projected: Tensor, shifts: Tensor, targets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `synthesis` for an upstream gradient (B, J).

    Returns:
        Those by projected, by shifts and by targets, (0, p) without targets. A pair whose
        upstream gradient is 0 gives nothing, even where it is not finite.
    """
    to_projected = torch.zeros_like(projected, dtype=torch.float64)
    to_shifts = torch.zeros_like(shifts, dtype=torch.float64)
    to_targets = torch.zeros_like(to_projected[:0] if targets is None else to_projected)
    for part in row_parts(projected.shape[0], shifts.numel()):
        own = None if targets is None else targets[part]
        found = _synthesis(projected[part], shifts, own)
        upstream = grad[part, :, None].double()
        used = upstream != 0
        direction = (found.unit > 0) * found.target[:, None]
        to_rows = _through_unit(upstream * direction, found.unit, found.length)
        to_rows = torch.where(used, to_rows, 0.0)
        to_target = torch.where(used, upstream * found.unit.relu(), 0.0).sum(1)
        to_projected[part] = to_rows.sum(1)
        to_shifts += to_rows.sum(0)
        if targets is None:
            to_own = (found.own_unit > 0) * to_target
            to_own = _through_unit(to_own, found.own_unit, found.own_length)
            to_projected[part] += torch.where(used.any(1), to_own, 0.0)
        else:
            to_targets[part] = to_target
    return (
        to_projected.to(projected.dtype),
        to_shifts.to(shifts.dtype),
        to_targets.to(projected.dtype if targets is None else targets.dtype),
    )


def _through_unit(grad: Tensor, unit: Tensor, length: Tensor) -> Tensor:
    """The gradient by rows of a gradient by the same rows at length 1; 0 for a zero row."""
    along = (grad * unit).sum(-1, keepdim=True)
    return (grad - along * unit) / length[..., None]
